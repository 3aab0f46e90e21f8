-- A proof is of a version of one of the tenant's keys, and nothing but: two keys may have a version of the same name.
CREATE TABLE np_byok_proofs_of_keys (
    tenant        BLOB NOT NULL REFERENCES np_byok_tenants,
    key_id        BLOB NOT NULL CHECK (length(key_id) = 16),
    key_name      TEXT NOT NULL,
    key_version   TEXT NOT NULL,
    posture       TEXT NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    epoch         INTEGER NOT NULL CHECK (epoch >= 0),
    revision      INTEGER NOT NULL CHECK (revision >= 0),
    proven_at     INTEGER NOT NULL,
    since         INTEGER NOT NULL,
    steady_since  INTEGER,
    failures      INTEGER NOT NULL,
    falls         INTEGER NOT NULL,
    doubted_by    BLOB,
    next_probe_at INTEGER NOT NULL,
    needed_until  INTEGER NOT NULL,
    canary_dek    BLOB NOT NULL,
    canary        BLOB NOT NULL,
    canary_scheme INTEGER NOT NULL,
    canary_probe  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key_id, key_name, key_version)
) STRICT, WITHOUT ROWID;
INSERT INTO np_byok_proofs_of_keys
    SELECT tenant, key_id, key_name, key_version, posture, epoch, revision, proven_at, since, steady_since, failures, falls,
        doubted_by, next_probe_at, needed_until, canary_dek, canary, canary_scheme, canary_probe
    FROM np_byok_proofs;
DROP TABLE np_byok_proofs;
ALTER TABLE np_byok_proofs_of_keys RENAME TO np_byok_proofs;
-- Filters have replaced this index.
DELETE FROM np_byok_chunks;
DELETE FROM np_byok_chunk_values;
