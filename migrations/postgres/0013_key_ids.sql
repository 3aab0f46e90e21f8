-- A proof is of a key version, and a key version is of one of the tenant's keys: two keys may have one name. The release
-- before has the primary key, which goes once that release cannot be beside any more. The schema's name is in the setting
-- `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Whoever probes waits behind us for the table: rather try again than keep them waiting.
SET LOCAL lock_timeout = '2s';

DO $key_ids$
BEGIN
    EXECUTE format('CREATE UNIQUE INDEX np_byok_proofs_key_version'
        ' ON %I.np_byok_proofs (tenant, key_id, key_name, key_version)', current_setting('byok.schema'));
END $key_ids$;
