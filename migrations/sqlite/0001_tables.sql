-- The first tables: those of PostgreSQL, without partitions. Moments are microseconds since 1970, ids are 16 bytes.

CREATE TABLE np_byok_tenants (
    uid        BLOB PRIMARY KEY NOT NULL CHECK (length(uid) = 16),
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

-- The head of each tenant's log: what a commit compares and swaps.
CREATE TABLE np_byok_heads (
    tenant BLOB PRIMARY KEY NOT NULL REFERENCES np_byok_tenants,
    size   INTEGER NOT NULL DEFAULT 0 CHECK (size >= 0)
) STRICT;

CREATE TABLE np_byok_wrapped_deks (
    tenant       BLOB NOT NULL,
    id           BLOB NOT NULL,
    record_id    TEXT,
    wrapped      BLOB NOT NULL,
    key_name     TEXT NOT NULL,
    key_version  TEXT NOT NULL,
    wrap_scheme  INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    rewrapped_at INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX np_byok_wrapped_deks_record ON np_byok_wrapped_deks (tenant, record_id, id) WHERE record_id IS NOT NULL;

CREATE TABLE np_byok_audit (
    tenant       BLOB NOT NULL,
    seq          INTEGER NOT NULL CHECK (seq >= 0),
    at           INTEGER NOT NULL,
    id           BLOB NOT NULL CHECK (length(id) = 16),
    operation    TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    means        TEXT NOT NULL,
    role         TEXT NOT NULL,
    user_id      TEXT,
    user_salt    BLOB CHECK (length(user_salt) = 16),
    user_hmac    BLOB CHECK (length(user_hmac) = 32),
    request_id   TEXT,
    request_salt BLOB CHECK (length(request_salt) = 16),
    request_hmac BLOB NOT NULL CHECK (length(request_hmac) = 32),
    item_count   INTEGER NOT NULL CHECK (item_count >= 0),
    records      TEXT NOT NULL CHECK (json_type(records) = 'array'),
    items        BLOB NOT NULL,
    PRIMARY KEY (tenant, seq),
    CHECK (user_hmac IS NOT NULL OR (user_id IS NULL AND user_salt IS NULL))
) STRICT;

-- Entries stay as they are. An UPDATE may set the erasable columns, and elements of `records`, to null, and nothing else.
CREATE TRIGGER np_byok_audit_no_update BEFORE UPDATE ON np_byok_audit
WHEN NOT (
    NEW.rowid IS OLD.rowid AND NEW.tenant IS OLD.tenant AND NEW.seq IS OLD.seq AND NEW.at IS OLD.at
    AND NEW.id IS OLD.id AND NEW.operation IS OLD.operation AND NEW.outcome IS OLD.outcome
    AND NEW.means IS OLD.means AND NEW.role IS OLD.role AND NEW.user_hmac IS OLD.user_hmac
    AND NEW.request_hmac IS OLD.request_hmac AND NEW.item_count IS OLD.item_count AND NEW.items IS OLD.items
    AND (NEW.user_id IS NULL OR NEW.user_id IS OLD.user_id)
    AND (NEW.user_salt IS NULL OR NEW.user_salt IS OLD.user_salt)
    AND (NEW.request_id IS NULL OR NEW.request_id IS OLD.request_id)
    AND (NEW.request_salt IS NULL OR NEW.request_salt IS OLD.request_salt)
    AND json_type(NEW.records) IS 'array'
    AND json_array_length(NEW.records) IS json_array_length(OLD.records)
    AND NOT EXISTS (
        SELECT 1 FROM json_each(NEW.records) AS n JOIN json_each(OLD.records) AS o ON o.key = n.key
        WHERE n.type <> 'null' AND (n.type IS NOT o.type OR n.value IS NOT o.value))
)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never changed');
END;

CREATE TRIGGER np_byok_audit_no_delete BEFORE DELETE ON np_byok_audit
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never deleted');
END;

-- INSERT OR REPLACE deletes without a delete trigger.
CREATE TRIGGER np_byok_audit_no_replace BEFORE INSERT ON np_byok_audit
WHEN EXISTS (SELECT 1 FROM np_byok_audit WHERE tenant = NEW.tenant AND seq = NEW.seq)
    OR EXISTS (SELECT 1 FROM np_byok_audit WHERE rowid = NEW.rowid)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never replaced');
END;

CREATE TABLE np_byok_jobs (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('RUNNING', 'DONE')),
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
CREATE UNIQUE INDEX np_byok_jobs_running ON np_byok_jobs (tenant) WHERE state = 'RUNNING';
