-- What became of telling the operator's webhook about each incident. Times are this database's own. While `outcome` is
-- null the announcement is open: it may be tried once `next_attempt_at` has come, and who tries it moves that ahead, so
-- that no other does meanwhile.
CREATE TABLE np_byok_announcements (
    tenant          bytea NOT NULL,
    incident        uuid NOT NULL,
    -- The order in which they are made: within a key version the order in which its posture changed.
    place           bigint GENERATED ALWAYS AS IDENTITY,
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    holder          uuid,
    outcome         text CHECK (outcome IN ('announced', 'refused', 'given_up')),
    ended_at        timestamptz CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    PRIMARY KEY (tenant, incident),
    FOREIGN KEY (tenant, incident) REFERENCES np_byok_incidents
);
CREATE INDEX np_byok_announcements_open ON np_byok_announcements (place) WHERE outcome IS NULL;

-- An incident is never without its announcement, whoever writes it: also the release before, beside this one.
CREATE FUNCTION np_byok_announce() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO np_byok_announcements (tenant, incident) VALUES (NEW.tenant, NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER np_byok_incidents_announce AFTER INSERT ON np_byok_incidents
    FOR EACH ROW EXECUTE FUNCTION np_byok_announce();

INSERT INTO np_byok_announcements (tenant, incident) SELECT tenant, id FROM np_byok_incidents ORDER BY at, id;
