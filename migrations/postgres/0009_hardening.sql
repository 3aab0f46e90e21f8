-- Functions that find nothing but PostgreSQL's own functions and our tables, wherever they are called from. Until here they
-- were looked for in the schema of the tables as well: whoever may make functions there (up to PostgreSQL 14 everybody) could
-- have one run as the tables' owner. The schema's name is in the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $hardening$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    EXECUTE format($function$
CREATE OR REPLACE FUNCTION %1$I.np_byok_make_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '2s' AS $body$
DECLARE
    home  CONSTANT text := %1$L;
    month timestamptz := date_trunc('month', now());
    name  text;
    made  integer := 0;
BEGIN
    -- The lock that migrations take: neither finds the catalogue changed under its hands.
    PERFORM pg_advisory_xact_lock(hashtextextended('np_byok_migrations', 0));
    FOR ahead IN 0..3 LOOP
        name := 'np_byok_audit_' || to_char(month, 'YYYYMM');
        IF to_regclass(format('%%I.%%I', home, name)) IS NULL
            -- Rows that the default partition already took stay there.
            AND NOT EXISTS (SELECT FROM %1$I.np_byok_audit_default d
                WHERE d.at >= month AND d.at < month + interval '1 month')
        THEN
            EXECUTE format('CREATE TABLE %%1$I.%%2$I (LIKE %%1$I.np_byok_audit INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                home, name);
            EXECUTE format('CREATE TRIGGER np_byok_audit_whole BEFORE TRUNCATE ON %%1$I.%%2$I'
                ' FOR EACH STATEMENT EXECUTE FUNCTION %%1$I.np_byok_audit_guard()', home, name);
            EXECUTE format('ALTER TABLE %%1$I.np_byok_audit ATTACH PARTITION %%1$I.%%2$I FOR VALUES FROM (%%3$L) TO (%%4$L)',
                home, name, month, month + interval '1 month');
            made := made + 1;
        END IF;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $body$
    $function$, home);

    EXECUTE format($function$
CREATE OR REPLACE FUNCTION %1$I.np_byok_announce() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    INSERT INTO %1$I.np_byok_announcements (tenant, incident) VALUES (NEW.tenant, NEW.id);
    RETURN NULL;
END $body$
    $function$, home);

    -- An erasure takes the record's id out of the rows of its DEKs. What stays is its HMAC-SHA256 under a salt of 16 random
    -- bytes that is kept nowhere: such a row is told from one of a DEK that never had a record.
    EXECUTE format('ALTER TABLE %I.np_byok_wrapped_deks ADD COLUMN record_hmac bytea', home);
    -- Holds for what comes; to look at what is there would take a scan of all of it under the lock.
    EXECUTE format('ALTER TABLE %I.np_byok_wrapped_deks ADD CONSTRAINT np_byok_wrapped_deks_erased'
        ' CHECK (record_hmac IS NULL OR (octet_length(record_hmac) = 32 AND record_id IS NULL)) NOT VALID', home);
END $hardening$;
