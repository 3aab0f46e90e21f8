-- When each key version was last shown to work: what the fence of a commit asks, and where the prober keeps its state.
-- Times are this database's own. `canary` is what a probe unwraps.
CREATE TABLE np_byok_proofs (
    tenant        BLOB NOT NULL REFERENCES np_byok_tenants,
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
    PRIMARY KEY (tenant, key_name, key_version)
) STRICT, WITHOUT ROWID;

-- Each change of a posture, with what the provider's answer was in our words: never the provider's own.
CREATE TABLE np_byok_incidents (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL,
    at             INTEGER NOT NULL,
    key_name       TEXT NOT NULL,
    key_version    TEXT NOT NULL,
    was            TEXT NOT NULL CHECK (was IN ('active', 'degraded', 'revoked')),
    posture        TEXT NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    class          TEXT,
    http_status    INTEGER,
    kms_request_id TEXT,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
