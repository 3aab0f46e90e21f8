-- A rotation may be paused and cancelled. A paused one is still the tenant's one rotation: none is begun beside it, by no
-- release. The schema's name is in the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Whoever works on a rotation waits behind us for the table: rather try again than keep them waiting.
SET LOCAL lock_timeout = '2s';

DO $rotation_states$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    EXECUTE format('ALTER TABLE %I.np_byok_jobs'
        ' DROP CONSTRAINT np_byok_jobs_state_check,'
        ' ADD CONSTRAINT np_byok_jobs_state_check CHECK (state IN (''RUNNING'', ''PAUSED'', ''DONE'', ''CANCELLED''))', home);
    EXECUTE format('CREATE UNIQUE INDEX np_byok_jobs_live ON %I.np_byok_jobs (tenant)'
        ' WHERE state IN (''RUNNING'', ''PAUSED'')', home);
    EXECUTE format('DROP INDEX %I.np_byok_jobs_running', home);
END $rotation_states$;
