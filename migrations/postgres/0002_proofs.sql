-- When each key version was last shown to work: what the fence of a commit asks, and where the prober keeps its state.
-- Times are this database's own. `canary` is what a probe unwraps.
CREATE TABLE np_byok_proofs (
    tenant        bytea NOT NULL REFERENCES np_byok_tenants,
    key_name      text NOT NULL,
    key_version   text NOT NULL,
    posture       text NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    epoch         bigint NOT NULL CHECK (epoch >= 0),
    revision      bigint NOT NULL CHECK (revision >= 0),
    proven_at     timestamptz NOT NULL,
    since         timestamptz NOT NULL,
    steady_since  timestamptz,
    failures      integer NOT NULL,
    falls         integer NOT NULL,
    doubted_by    uuid,
    next_probe_at timestamptz NOT NULL,
    needed_until  timestamptz NOT NULL,
    canary_dek    uuid NOT NULL,
    canary        bytea NOT NULL,
    canary_scheme smallint NOT NULL,
    canary_probe  boolean NOT NULL,
    PRIMARY KEY (tenant, key_name, key_version)
-- A row changes every second: room for its next form beside it keeps the index out of that.
) WITH (fillfactor = 20);

-- Each change of a posture, with what the provider's answer was in our words: never the provider's own.
CREATE TABLE np_byok_incidents (
    tenant         bytea NOT NULL REFERENCES np_byok_tenants,
    id             uuid NOT NULL,
    at             timestamptz NOT NULL,
    key_name       text NOT NULL,
    key_version    text NOT NULL,
    was            text NOT NULL CHECK (was IN ('active', 'degraded', 'revoked')),
    posture        text NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    class          text,
    http_status    integer,
    kms_request_id text,
    PRIMARY KEY (tenant, id)
);
