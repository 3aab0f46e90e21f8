-- Each tenant's log becomes a Merkle tree. An entry's leaf is made of `at` and `digest`, which covers all else of it that
-- never changes. Entries from before have none that means anything: the tree begins after them.
-- The heads first, as an append takes its locks.
LOCK TABLE np_byok_heads IN ACCESS EXCLUSIVE MODE;
ALTER TABLE np_byok_audit
    ADD COLUMN detail text,
    ADD COLUMN digest bytea NOT NULL DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000';
-- Holds for what comes; to look at what is there would take a scan of all of it under the lock.
ALTER TABLE np_byok_audit ADD CONSTRAINT np_byok_audit_digest_check CHECK (octet_length(digest) = 32) NOT VALID;
-- A release before this one, beside it, must not append what no tree holds.
ALTER TABLE np_byok_audit ALTER COLUMN digest DROP DEFAULT;

-- `log` counts the logs that a tenant has had: a database that was restored goes on in another one. Its first leaf is the
-- entry at `first`; `frontier` holds the roots of the largest complete subtrees, from left to right.
ALTER TABLE np_byok_heads
    ADD COLUMN log integer NOT NULL DEFAULT 1 CHECK (log > 0),
    ADD COLUMN first bigint NOT NULL DEFAULT 0 CHECK (first >= 0),
    ADD COLUMN frontier bytea NOT NULL DEFAULT '';
UPDATE np_byok_heads SET first = size;

-- Signed heads, as they were published; `size` counts the leaves of that log.
CREATE TABLE np_byok_checkpoints (
    tenant  bytea NOT NULL REFERENCES np_byok_tenants,
    log     integer NOT NULL,
    size    bigint NOT NULL CHECK (size >= 0),
    note    text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, log, size)
);
