-- Takes away what only the release before needed, so it waits until no server of that release runs: the rights with which the
-- serving role wrote heads, entries, DEKs and tenants itself (`grants.sql` looks for this step), the key of the proofs under
-- which two keys of a tenant could not have a version of the same name, and the rows of the index that filters have replaced.
-- The filters are derived again: that release did not know them when it erased or removed entries. The schema's name is in the
-- setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Whoever probes waits behind us for the table: rather try again than keep them waiting.
SET LOCAL lock_timeout = '2s';

DO $narrowed$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    EXECUTE format('ALTER TABLE %I.np_byok_proofs DROP CONSTRAINT np_byok_proofs_pkey,'
        ' ADD CONSTRAINT np_byok_proofs_pkey PRIMARY KEY USING INDEX np_byok_proofs_key_version', home);
    EXECUTE format('TRUNCATE %1$I.np_byok_chunks, %1$I.np_byok_chunk_values, %1$I.np_byok_filters', home);
END $narrowed$;
