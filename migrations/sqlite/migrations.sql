-- Which migrations this schema has. `oldest_reader` is the oldest schema level (a binary's own last migration) that can
-- still serve it.
CREATE TABLE np_byok_migrations (
    version       INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    checksum      BLOB NOT NULL,
    oldest_reader INTEGER NOT NULL,
    applied_at    INTEGER NOT NULL
) STRICT;
