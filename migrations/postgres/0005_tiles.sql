-- What is derived from the entries by a worker, so that proofs and pages need not read them all. All of it can be derived
-- again, except where entries are gone: there the tiles are what is left of their tree.

-- Level 0 holds the hashes of 256 leaves of one log, level l the roots of 256 tiles of level l-1; full tiles only. `root` is
-- the tile's own.
CREATE TABLE np_byok_tiles (
    tenant bytea NOT NULL REFERENCES np_byok_tenants,
    log    integer NOT NULL CHECK (log > 0),
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    tile   bigint NOT NULL CHECK (tile >= 0),
    root   bytea NOT NULL CHECK (octet_length(root) = 32),
    hashes bytea NOT NULL CHECK (octet_length(hashes) = 8192),
    PRIMARY KEY (tenant, log, level, tile)
);
-- Hashes do not compress, and a root is often read without them.
ALTER TABLE np_byok_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

CREATE FUNCTION np_byok_tiles_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'np_byok_tiles: tiles are never changed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER np_byok_tiles_row BEFORE UPDATE OR DELETE ON np_byok_tiles
    FOR EACH ROW EXECUTE FUNCTION np_byok_tiles_guard();
CREATE TRIGGER np_byok_tiles_whole BEFORE TRUNCATE ON np_byok_tiles
    FOR EACH STATEMENT EXECUTE FUNCTION np_byok_tiles_guard();

-- Chunk n of level 0 is the entries at the 256 places from n * 256 on, chunk n of level 1 the 256 chunks from n * 256 on: the
-- earliest and the latest of their times. Clocks differ between replicas, so neither grows with n for sure.
CREATE TABLE np_byok_chunks (
    tenant   bytea NOT NULL REFERENCES np_byok_tenants,
    level    smallint NOT NULL CHECK (level IN (0, 1)),
    chunk    bigint NOT NULL CHECK (chunk >= 0),
    earliest timestamptz NOT NULL,
    latest   timestamptz NOT NULL,
    PRIMARY KEY (tenant, level, chunk)
);

-- In which chunks of level 0 a value comes: a user, a record, an operation or an outcome. `value` is 64 bits of a hash of it,
-- so a chunk may be named that does not have it.
CREATE TABLE np_byok_chunk_values (
    tenant bytea NOT NULL REFERENCES np_byok_tenants,
    value  bigint NOT NULL,
    chunk  bigint NOT NULL CHECK (chunk >= 0),
    PRIMARY KEY (tenant, value, chunk)
);
