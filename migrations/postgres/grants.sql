-- What the serving role needs, and no more: heads, entries, DEKs and tenants are written by functions. A server of the release
-- before writes them itself, until migration 16 says that none runs. The role's name is in the setting `byok.serving_role` of
-- this transaction, the schema of the tables in `byok.schema`, and the path is `pg_catalog, pg_temp`.
DO $$
DECLARE
    home    text := current_setting('byok.schema');
    serving text := current_setting('byok.serving_role');
    granted record;
    narrowed boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I.np_byok_migrations WHERE version = 16)', home) INTO narrowed;
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM %I', home, serving);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, serving);
    FOR granted IN SELECT * FROM (VALUES
        ('np_byok_migrations', 'SELECT'),
        ('np_byok_holds', 'SELECT'),
        ('np_byok_exports', 'SELECT'),
        ('np_byok_logs', 'SELECT'),
        ('np_byok_tenants', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT' END),
        ('np_byok_keys', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT' END),
        ('np_byok_heads', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE (size, frontier)' END),
        ('np_byok_wrapped_deks', CASE WHEN narrowed THEN 'SELECT' ELSE
            'SELECT, INSERT, UPDATE (wrapped, key_id, key_name, key_version, wrap_scheme, rewrapped_at, mac, record_mac)' END),
        ('np_byok_audit', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT' END),
        ('np_byok_jobs', 'SELECT, INSERT, UPDATE'),
        ('np_byok_proofs', 'SELECT, INSERT, UPDATE'),
        ('np_byok_publications', 'SELECT, INSERT, UPDATE'),
        ('np_byok_incidents', 'SELECT, INSERT'),
        ('np_byok_checkpoints', 'SELECT, INSERT'),
        ('np_byok_tiles', 'SELECT, INSERT'),
        ('np_byok_chunks', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT' END),
        ('np_byok_chunk_values', CASE WHEN narrowed THEN 'SELECT' ELSE 'SELECT, INSERT' END),
        ('np_byok_filters', 'SELECT, INSERT (tenant, level, chunk)'),
        ('np_byok_announcements',
            'SELECT, INSERT, UPDATE (attempts, next_attempt_at, holder, outcome, ended_at)'),
        ('np_byok_streams', 'SELECT, INSERT, UPDATE (next, holder, leased_until, failing_since)')
    ) AS needed (relation, rights) LOOP
        EXECUTE format('REVOKE ALL ON %I.%I FROM %I', home, granted.relation, serving);
        EXECUTE format('GRANT %s ON %I.%I TO %I', granted.rights, home, granted.relation, serving);
    END LOOP;
    FOR granted IN SELECT unnest(ARRAY['np_byok_make_partitions', 'np_byok_add_filters', 'np_byok_append', 'np_byok_lock_head',
        'np_byok_insert_deks', 'np_byok_rewrap_deks', 'np_byok_seal_deks', 'np_byok_create_tenant']) AS function
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %I.%I TO %I', home, granted.function, serving);
    END LOOP;
END $$;
