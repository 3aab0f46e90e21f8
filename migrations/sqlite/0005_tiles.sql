-- What is derived from the entries by a worker, so that proofs and pages need not read them all. All of it can be derived
-- again, except where entries are gone: there the tiles are what is left of their tree.

-- Level 0 holds the hashes of 256 leaves of one log, level l the roots of 256 tiles of level l-1; full tiles only. `root` is
-- the tile's own.
CREATE TABLE np_byok_tiles (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    log    INTEGER NOT NULL CHECK (log > 0),
    level  INTEGER NOT NULL CHECK (level BETWEEN 0 AND 7),
    tile   INTEGER NOT NULL CHECK (tile >= 0),
    root   BLOB NOT NULL CHECK (length(root) = 32),
    hashes BLOB NOT NULL CHECK (length(hashes) = 8192),
    PRIMARY KEY (tenant, log, level, tile)
) STRICT;

CREATE TRIGGER np_byok_tiles_no_update BEFORE UPDATE ON np_byok_tiles
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never changed');
END;
CREATE TRIGGER np_byok_tiles_no_delete BEFORE DELETE ON np_byok_tiles
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never deleted');
END;
-- INSERT OR REPLACE deletes without a delete trigger.
CREATE TRIGGER np_byok_tiles_no_replace BEFORE INSERT ON np_byok_tiles
WHEN EXISTS (
        SELECT 1 FROM np_byok_tiles WHERE tenant = NEW.tenant AND log = NEW.log AND level = NEW.level AND tile = NEW.tile)
    OR EXISTS (SELECT 1 FROM np_byok_tiles WHERE rowid = NEW.rowid)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never replaced');
END;

-- Chunk n of level 0 is the entries at the 256 places from n * 256 on, chunk n of level 1 the 256 chunks from n * 256 on: the
-- earliest and the latest of their times. Clocks differ between replicas, so neither grows with n for sure.
CREATE TABLE np_byok_chunks (
    tenant   BLOB NOT NULL REFERENCES np_byok_tenants,
    level    INTEGER NOT NULL CHECK (level IN (0, 1)),
    chunk    INTEGER NOT NULL CHECK (chunk >= 0),
    earliest INTEGER NOT NULL,
    latest   INTEGER NOT NULL,
    PRIMARY KEY (tenant, level, chunk)
) STRICT, WITHOUT ROWID;

-- In which chunks of level 0 a value comes: a user, a record, an operation or an outcome. `value` is 64 bits of a hash of it,
-- so a chunk may be named that does not have it.
CREATE TABLE np_byok_chunk_values (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    value  INTEGER NOT NULL,
    chunk  INTEGER NOT NULL CHECK (chunk >= 0),
    PRIMARY KEY (tenant, value, chunk)
) STRICT, WITHOUT ROWID;
