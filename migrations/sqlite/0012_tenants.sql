-- Several tenants, each with keys of its own. A release that knows one key goes on beside this schema: what it writes gets
-- the defaults, which say the tenant's first key.

-- `revision` counts the changes of the tenant's stage and keys; a commit names the one that it began with.
ALTER TABLE np_byok_tenants ADD COLUMN stage TEXT NOT NULL DEFAULT 'active'
    CHECK (stage IN ('platform', 'entitled', 'active', 'handed_off'));
ALTER TABLE np_byok_tenants ADD COLUMN revision INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0);
ALTER TABLE np_byok_tenants ADD COLUMN locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1));

-- `id` is byok's own; all zeros is the tenant's first key. Without a provider, the key is the one that the deployment's
-- configuration names. `credential_ref` is a name that the operator has bound, never a credential.
CREATE TABLE np_byok_keys (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL CHECK (length(id) = 16),
    label          TEXT NOT NULL,
    owner          TEXT NOT NULL CHECK (owner IN ('platform', 'customer')),
    state          TEXT NOT NULL CHECK (state IN ('draft', 'current', 'retired')),
    provider       TEXT,
    region         TEXT,
    identifier     TEXT,
    credential_ref TEXT,
    revision       INTEGER NOT NULL CHECK (revision >= 0),
    created_at     INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX np_byok_keys_current ON np_byok_keys (tenant, label) WHERE state = 'current';
INSERT INTO np_byok_keys (tenant, id, label, owner, state, revision, created_at)
    SELECT uid, zeroblob(16), 'default', 'customer', 'current', 0, unixepoch() * 1000000 FROM np_byok_tenants;

ALTER TABLE np_byok_wrapped_deks ADD COLUMN key_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'
    CHECK (length(key_id) = 16);
ALTER TABLE np_byok_proofs ADD COLUMN key_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'
    CHECK (length(key_id) = 16);
ALTER TABLE np_byok_jobs ADD COLUMN key_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'
    CHECK (length(key_id) = 16);
ALTER TABLE np_byok_incidents ADD COLUMN key_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'
    CHECK (length(key_id) = 16);
