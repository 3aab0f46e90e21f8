-- A rotation may be paused and cancelled. A paused one is still the tenant's one rotation: none is begun beside it, by no
-- release. SQLite changes no CHECK of a table that is there, so the table is made anew.
CREATE TABLE np_byok_jobs_of_four_states (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('RUNNING', 'PAUSED', 'DONE', 'CANCELLED')),
    target_key     TEXT NOT NULL,
    target_version TEXT NOT NULL,
    total          INTEGER NOT NULL,
    rewrapped      INTEGER NOT NULL,
    skipped        INTEGER NOT NULL,
    failed         INTEGER NOT NULL,
    kms_calls      INTEGER NOT NULL,
    stalled        TEXT,
    started_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    finished_at    INTEGER,
    cursor         BLOB,
    holder         BLOB,
    lease_until    INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
INSERT INTO np_byok_jobs_of_four_states
    SELECT tenant, id, state, target_key, target_version, total, rewrapped, skipped, failed, kms_calls, stalled, started_at,
        updated_at, finished_at, cursor, holder, lease_until
    FROM np_byok_jobs;
DROP TABLE np_byok_jobs;
ALTER TABLE np_byok_jobs_of_four_states RENAME TO np_byok_jobs;
CREATE UNIQUE INDEX np_byok_jobs_live ON np_byok_jobs (tenant) WHERE state IN ('RUNNING', 'PAUSED');
