-- How far each stream of a tenant's log has come: what follows at `next` was not taken yet. Who holds the lease sends;
-- times are this database's own.
CREATE TABLE np_byok_streams (
    tenant        bytea NOT NULL REFERENCES np_byok_tenants,
    name          text NOT NULL CHECK (name IN ('file', 'webhook')),
    next          bigint NOT NULL DEFAULT 0 CHECK (next >= 0),
    holder        uuid NOT NULL,
    leased_until  timestamptz NOT NULL,
    failing_since timestamptz,
    PRIMARY KEY (tenant, name)
);
