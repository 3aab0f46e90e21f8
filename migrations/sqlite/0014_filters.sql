-- What a search reads instead of all entries. These filters take the place of np_byok_chunks and np_byok_chunk_values, which
-- this release neither reads nor writes (an erasure and a removal of entries still delete from the second). A later
-- migration drops them.

-- Level 0, chunk n: the entries at the 256 places from n * 256 on, the earliest and the latest of their times, and a Bloom
-- filter of the users, records, operations and outcomes that come in them. Level 1, chunk n: the group of the 256 chunks from
-- n * 256 on, with their filters turned, 32 bytes for each position. A filter that is null says nothing: it is still to be
-- made, or what it was made of was erased. `erasures` of level 1 counts these, so that nothing is written that was made of
-- entries read before one.
CREATE TABLE np_byok_filters (
    tenant   BLOB NOT NULL REFERENCES np_byok_tenants,
    level    INTEGER NOT NULL CHECK (level IN (0, 1)),
    chunk    INTEGER NOT NULL CHECK (chunk >= 0),
    earliest INTEGER,
    latest   INTEGER,
    filter   BLOB CHECK (length(filter) <= 4194304),
    erasures INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, level, chunk)
) STRICT;

-- Those that are to be made: few, in the long run.
CREATE INDEX np_byok_filters_unfilled ON np_byok_filters (tenant, level, chunk) WHERE filter IS NULL;
