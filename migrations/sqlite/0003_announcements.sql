-- What became of telling the operator's webhook about each incident. Times are this database's own. While `outcome` is
-- null the announcement is open: it may be tried once `next_attempt_at` has come, and who tries it moves that ahead, so
-- that no other does meanwhile.
CREATE TABLE np_byok_announcements (
    -- The order in which they are made: within a key version the order in which its posture changed.
    place           INTEGER PRIMARY KEY NOT NULL,
    tenant          BLOB NOT NULL,
    incident        BLOB NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000),
    holder          BLOB,
    outcome         TEXT CHECK (outcome IN ('announced', 'refused', 'given_up')),
    ended_at        INTEGER CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    UNIQUE (tenant, incident),
    FOREIGN KEY (tenant, incident) REFERENCES np_byok_incidents
) STRICT;
CREATE INDEX np_byok_announcements_open ON np_byok_announcements (place) WHERE outcome IS NULL;

-- An incident is never without its announcement, whoever writes it: also the release before, beside this one.
CREATE TRIGGER np_byok_incidents_announce AFTER INSERT ON np_byok_incidents
BEGIN
    INSERT INTO np_byok_announcements (tenant, incident) VALUES (NEW.tenant, NEW.id);
END;

INSERT INTO np_byok_announcements (tenant, incident) SELECT tenant, id FROM np_byok_incidents ORDER BY at, id;
