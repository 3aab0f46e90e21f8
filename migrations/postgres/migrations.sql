-- Which migrations this schema has. `oldest_reader` is the oldest schema level (a binary's own last migration) that can
-- still serve it.
CREATE TABLE np_byok_migrations (
    version       integer PRIMARY KEY,
    name          text NOT NULL,
    checksum      bytea NOT NULL,
    oldest_reader integer NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT now()
);
