-- How far each stream of a tenant's log has come: what follows at `next` was not taken yet. Who holds the lease sends;
-- times are this database's own.
CREATE TABLE np_byok_streams (
    tenant        BLOB NOT NULL REFERENCES np_byok_tenants,
    name          TEXT NOT NULL CHECK (name IN ('file', 'webhook')),
    next          INTEGER NOT NULL DEFAULT 0 CHECK (next >= 0),
    holder        BLOB NOT NULL,
    leased_until  INTEGER NOT NULL,
    failing_since INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
