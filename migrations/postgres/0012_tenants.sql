-- Several tenants, each with keys of its own. A release that knows one key goes on beside this schema: what it writes gets
-- the defaults, which say the tenant's first key. The schema's name is in the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Whoever commits waits behind us for the tables: rather try again than keep them waiting.
SET LOCAL lock_timeout = '2s';

DO $tenants$
DECLARE
    home     text := current_setting('byok.schema');
    relation text;
BEGIN
    -- `revision` counts the changes of the tenant's stage and keys; a commit names the one that it began with.
    EXECUTE format('ALTER TABLE %I.np_byok_tenants'
        ' ADD COLUMN stage text NOT NULL DEFAULT ''active'''
        '     CHECK (stage IN (''platform'', ''entitled'', ''active'', ''handed_off'')),'
        ' ADD COLUMN revision bigint NOT NULL DEFAULT 0 CHECK (revision >= 0),'
        ' ADD COLUMN locked boolean NOT NULL DEFAULT false', home);
    -- `id` is byok''s own; all zeros is the tenant''s first key. Without a provider, the key is the one that the deployment''s
    -- configuration names. `credential_ref` is a name that the operator has bound, never a credential.
    EXECUTE format('CREATE TABLE %I.np_byok_keys ('
        ' tenant         bytea NOT NULL REFERENCES %1$I.np_byok_tenants,'
        ' id             bytea NOT NULL CHECK (octet_length(id) = 16),'
        ' label          text NOT NULL,'
        ' owner          text NOT NULL CHECK (owner IN (''platform'', ''customer'')),'
        ' state          text NOT NULL CHECK (state IN (''draft'', ''current'', ''retired'')),'
        ' provider       text,'
        ' region         text,'
        ' identifier     text,'
        ' credential_ref text,'
        ' revision       bigint NOT NULL CHECK (revision >= 0),'
        ' created_at     timestamptz NOT NULL DEFAULT now(),'
        ' PRIMARY KEY (tenant, id))', home);
    EXECUTE format('CREATE UNIQUE INDEX np_byok_keys_current ON %I.np_byok_keys (tenant, label)'
        ' WHERE state = ''current''', home);
    EXECUTE format('INSERT INTO %I.np_byok_keys (tenant, id, label, owner, state, revision)'
        ' SELECT uid, decode(repeat(''00'', 16), ''hex''), ''default'', ''customer'', ''current'', 0'
        ' FROM %1$I.np_byok_tenants', home);
    FOREACH relation IN ARRAY ARRAY['np_byok_wrapped_deks', 'np_byok_proofs', 'np_byok_jobs', 'np_byok_incidents'] LOOP
        -- A constant default rewrites no row, and a constraint that is not validated reads none.
        EXECUTE format('ALTER TABLE %I.%I'
            ' ADD COLUMN key_id bytea NOT NULL DEFAULT decode(repeat(''00'', 16), ''hex''),'
            ' ADD CONSTRAINT %I CHECK (octet_length(key_id) = 16) NOT VALID', home, relation, relation || '_key_id');
    END LOOP;
END $tenants$;
