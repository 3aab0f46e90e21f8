-- What binds a DEK's row to a secret that this database does not hold: `mac` its wrapped bytes with their key version,
-- `record_mac` its record. Rows from before have neither: a server that has the secret holds them against the log and adds
-- them.
ALTER TABLE np_byok_wrapped_deks ADD COLUMN mac BLOB CHECK (length(mac) = 32);
ALTER TABLE np_byok_wrapped_deks ADD COLUMN record_mac BLOB CHECK (length(record_mac) = 32);

-- Those that are to be sealed: none, in the long run.
CREATE INDEX np_byok_wrapped_deks_unsealed ON np_byok_wrapped_deks (tenant, id) WHERE mac IS NULL;

-- A release before this one re-wraps and knows no MAC: what is left of it then would be that of other bytes.
CREATE TRIGGER np_byok_wrapped_deks_rewrapped AFTER UPDATE OF wrapped ON np_byok_wrapped_deks
WHEN NEW.wrapped IS NOT OLD.wrapped AND NEW.mac IS OLD.mac AND NEW.mac IS NOT NULL
BEGIN
    UPDATE np_byok_wrapped_deks SET mac = NULL WHERE tenant = NEW.tenant AND id = NEW.id;
END;
