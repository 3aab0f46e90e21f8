-- What binds a DEK's row to a secret that this database does not hold: `mac` its wrapped bytes with their key version,
-- `record_mac` its record. Rows from before have neither: a server that has the secret holds them against the log and adds
-- them. The index over those that are to be sealed is built apart from this, where nobody waits for it. The schema's name is
-- in the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;
-- Whoever calls the server waits behind us for the table: rather try again than keep them waiting.
SET LOCAL lock_timeout = '2s';

DO $row_macs$
DECLARE
    home text := current_setting('byok.schema');
BEGIN
    EXECUTE format('ALTER TABLE %I.np_byok_wrapped_deks ADD COLUMN mac bytea, ADD COLUMN record_mac bytea', home);
    -- Holds for what comes; there is nothing yet to look at.
    EXECUTE format('ALTER TABLE %I.np_byok_wrapped_deks'
        ' ADD CONSTRAINT np_byok_wrapped_deks_mac_check CHECK (octet_length(mac) = 32) NOT VALID,'
        ' ADD CONSTRAINT np_byok_wrapped_deks_record_mac_check CHECK (octet_length(record_mac) = 32) NOT VALID', home);

    -- A release before this one re-wraps and knows no MAC: what is left of it then would be that of other bytes.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_wrapped_deks_unseal() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    NEW.mac := NULL;
    RETURN NEW;
END $body$
    $function$, home);
    EXECUTE format('CREATE TRIGGER np_byok_wrapped_deks_rewrapped BEFORE UPDATE OF wrapped ON %1$I.np_byok_wrapped_deks'
        ' FOR EACH ROW WHEN (NEW.wrapped IS DISTINCT FROM OLD.wrapped AND NEW.mac IS NOT DISTINCT FROM OLD.mac)'
        ' EXECUTE FUNCTION %1$I.np_byok_wrapped_deks_unseal()', home);
END $row_macs$;
