-- Before anything else is done here as the tables' owner: nobody but owners may make objects in the schema of the tables.
-- Whoever may make a function there could have it found in the place of PostgreSQL's own by statements of other roles. The
-- schema's name is in the setting `byok.schema` of this transaction, and the path is `pg_catalog, pg_temp`.
DO $$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    -- Only its owner can: the doctor says where it is another role's and open.
    IF (SELECT pg_has_role(current_user, nspowner, 'USAGE') FROM pg_namespace WHERE nspname = home::name) THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', home);
    END IF;
END $$;
