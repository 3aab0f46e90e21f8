-- What the serving role needs, and no more. Its name is in the setting `byok.serving_role` of this transaction.
DO $$
DECLARE
    serving text := current_setting('byok.serving_role');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), serving);
    EXECUTE format('REVOKE ALL ON np_byok_migrations, np_byok_tenants, np_byok_heads, np_byok_wrapped_deks,'
        ' np_byok_audit, np_byok_jobs, np_byok_proofs, np_byok_incidents, np_byok_announcements, np_byok_checkpoints,'
        ' np_byok_tiles, np_byok_chunks, np_byok_chunk_values, np_byok_holds, np_byok_exports, np_byok_streams,'
        ' np_byok_logs, np_byok_publications FROM %I', serving);
    EXECUTE format('GRANT SELECT ON np_byok_migrations, np_byok_holds, np_byok_exports, np_byok_logs TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT ON np_byok_tenants TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE (size, frontier) ON np_byok_heads TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE (wrapped, key_name, key_version, wrap_scheme, rewrapped_at)'
        ' ON np_byok_wrapped_deks TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT ON np_byok_audit TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON np_byok_jobs, np_byok_proofs, np_byok_publications TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT ON np_byok_incidents, np_byok_checkpoints, np_byok_tiles, np_byok_chunks,'
        ' np_byok_chunk_values TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE (attempts, next_attempt_at, holder, outcome, ended_at)'
        ' ON np_byok_announcements TO %I', serving);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE (next, holder, leased_until, failing_since)'
        ' ON np_byok_streams TO %I', serving);
    EXECUTE format('GRANT EXECUTE ON FUNCTION np_byok_make_partitions() TO %I', serving);
END $$;
