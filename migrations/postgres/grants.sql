-- What the serving role needs, and no more. Its name is in the setting `byok.serving_role` of this transaction, the schema of
-- the tables in `byok.schema`, and the path is `pg_catalog, pg_temp`.
DO $$
DECLARE
    home    text := current_setting('byok.schema');
    serving text := current_setting('byok.serving_role');
    granted record;
BEGIN
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM %I', home, serving);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, serving);
    FOR granted IN SELECT * FROM (VALUES
        ('np_byok_migrations', 'SELECT'),
        ('np_byok_holds', 'SELECT'),
        ('np_byok_exports', 'SELECT'),
        ('np_byok_logs', 'SELECT'),
        ('np_byok_tenants', 'SELECT, INSERT'),
        ('np_byok_keys', 'SELECT, INSERT'),
        ('np_byok_heads', 'SELECT, INSERT, UPDATE (size, frontier)'),
        ('np_byok_wrapped_deks',
            'SELECT, INSERT, UPDATE (wrapped, key_id, key_name, key_version, wrap_scheme, rewrapped_at, mac, record_mac)'),
        ('np_byok_audit', 'SELECT, INSERT'),
        ('np_byok_jobs', 'SELECT, INSERT, UPDATE'),
        ('np_byok_proofs', 'SELECT, INSERT, UPDATE'),
        ('np_byok_publications', 'SELECT, INSERT, UPDATE'),
        ('np_byok_incidents', 'SELECT, INSERT'),
        ('np_byok_checkpoints', 'SELECT, INSERT'),
        ('np_byok_tiles', 'SELECT, INSERT'),
        ('np_byok_chunks', 'SELECT, INSERT'),
        ('np_byok_chunk_values', 'SELECT, INSERT'),
        ('np_byok_filters', 'SELECT, INSERT (tenant, level, chunk, earliest, latest, filter), UPDATE (earliest, latest, filter)'),
        ('np_byok_announcements',
            'SELECT, INSERT, UPDATE (attempts, next_attempt_at, holder, outcome, ended_at)'),
        ('np_byok_streams', 'SELECT, INSERT, UPDATE (next, holder, leased_until, failing_since)')
    ) AS needed (relation, rights) LOOP
        EXECUTE format('REVOKE ALL ON %I.%I FROM %I', home, granted.relation, serving);
        EXECUTE format('GRANT %s ON %I.%I TO %I', granted.rights, home, granted.relation, serving);
    END LOOP;
    EXECUTE format('GRANT EXECUTE ON FUNCTION %I.np_byok_make_partitions() TO %I', home, serving);
END $$;
