-- What a search reads instead of all entries. These filters take the place of np_byok_chunks and np_byok_chunk_values, which
-- a release before this one goes on with while it serves beside this one; this release neither reads nor writes those two
-- (an erasure and a removal of entries still delete from the second). A later migration drops them. The schema's name is in
-- the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $filters$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    -- Level 0, chunk n: the entries at the 256 places from n * 256 on, the earliest and the latest of their times, and a
    -- Bloom filter of the users, records, operations and outcomes that come in them. Level 1, chunk n: the group of the 256
    -- chunks from n * 256 on, with their filters turned, 32 bytes for each position. A filter that is null says nothing:
    -- it is still to be made, or what it was made of was erased. `erasures` of level 1 counts these, so that nothing is
    -- written that was made of entries read before one.
    EXECUTE format('CREATE TABLE %I.np_byok_filters ('
        ' tenant   bytea NOT NULL REFERENCES %1$I.np_byok_tenants,'
        ' level    smallint NOT NULL CHECK (level IN (0, 1)),'
        ' chunk    bigint NOT NULL CHECK (chunk >= 0),'
        ' earliest timestamptz,'
        ' latest   timestamptz,'
        ' filter   bytea CHECK (octet_length(filter) <= 4194304),'
        ' erasures bigint NOT NULL DEFAULT 0,'
        ' PRIMARY KEY (tenant, level, chunk))', home);
    -- A few bytes of a filter are read without the rest of it.
    EXECUTE format('ALTER TABLE %I.np_byok_filters ALTER COLUMN filter SET STORAGE EXTERNAL', home);
    -- Those that are to be made: few, in the long run.
    EXECUTE format('CREATE INDEX np_byok_filters_unfilled ON %I.np_byok_filters (tenant, level, chunk)'
        ' WHERE filter IS NULL', home);

    -- Adds the filters of one level that are missing or null, and returns how many. A filter that is there stays: whoever
    -- can change one can hide entries from a search. The lock of the group's row is held meanwhile, which an erasure takes
    -- before it takes filters away: one that is not committed yet is waited for, and then seen. Adds nothing if there were
    -- more erasures than the filters were made after, or if the log ends before them: a database that went back in time
    -- has other entries there later.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_add_filters(
    filter_tenant bytea, filter_group bigint, group_erasures bigint, filter_level smallint,
    filter_chunks bigint[], filter_earliest timestamptz[], filter_latest timestamptz[], filters bytea[]
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    added bigint;
BEGIN
    PERFORM 1 FROM %1$I.np_byok_filters f
        WHERE f.tenant = filter_tenant AND f.level = 1 AND f.chunk = filter_group AND f.erasures = group_erasures
        FOR NO KEY UPDATE;
    IF NOT FOUND OR NOT EXISTS (
        SELECT 1 FROM %1$I.np_byok_heads h WHERE h.tenant = filter_tenant
            AND h.size / CASE filter_level WHEN 0 THEN 256 ELSE 65536 END > (SELECT max(c) FROM unnest(filter_chunks) AS c))
    THEN
        RETURN 0;
    END IF;
    INSERT INTO %1$I.np_byok_filters AS f (tenant, level, chunk, earliest, latest, filter)
        SELECT filter_tenant, filter_level, n.* FROM unnest(filter_chunks, filter_earliest, filter_latest, filters)
            AS n(chunk, earliest, latest, filter)
        ON CONFLICT (tenant, level, chunk) DO UPDATE
        SET earliest = EXCLUDED.earliest, latest = EXCLUDED.latest, filter = EXCLUDED.filter WHERE f.filter IS NULL;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END $body$
    $function$, home);
    EXECUTE format('REVOKE ALL ON FUNCTION %I.np_byok_add_filters FROM PUBLIC', home);
END $filters$;
