-- Each tenant's log becomes a Merkle tree. An entry's leaf is made of `at` and `digest`, which covers all else of it that
-- never changes. Entries from before have none that means anything: the tree begins after them.
ALTER TABLE np_byok_audit ADD COLUMN detail TEXT;
ALTER TABLE np_byok_audit ADD COLUMN digest BLOB NOT NULL
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000' CHECK (length(digest) = 32);

-- `log` counts the logs that a tenant has had: a database that was restored goes on in another one. Its first leaf is the
-- entry at `first`; `frontier` holds the roots of the largest complete subtrees, from left to right.
ALTER TABLE np_byok_heads ADD COLUMN log INTEGER NOT NULL DEFAULT 1 CHECK (log > 0);
ALTER TABLE np_byok_heads ADD COLUMN first INTEGER NOT NULL DEFAULT 0 CHECK (first >= 0);
ALTER TABLE np_byok_heads ADD COLUMN frontier BLOB NOT NULL DEFAULT x'';
UPDATE np_byok_heads SET first = size;

DROP TRIGGER np_byok_audit_no_update;
CREATE TRIGGER np_byok_audit_no_update BEFORE UPDATE ON np_byok_audit
WHEN NOT (
    NEW.rowid IS OLD.rowid AND NEW.tenant IS OLD.tenant AND NEW.seq IS OLD.seq AND NEW.at IS OLD.at
    AND NEW.id IS OLD.id AND NEW.operation IS OLD.operation AND NEW.outcome IS OLD.outcome
    AND NEW.means IS OLD.means AND NEW.role IS OLD.role AND NEW.user_hmac IS OLD.user_hmac
    AND NEW.request_hmac IS OLD.request_hmac AND NEW.item_count IS OLD.item_count AND NEW.items IS OLD.items
    AND NEW.detail IS OLD.detail AND NEW.digest IS OLD.digest
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

-- Signed heads, as they were published; `size` counts the leaves of that log.
CREATE TABLE np_byok_checkpoints (
    tenant  BLOB NOT NULL REFERENCES np_byok_tenants,
    log     INTEGER NOT NULL,
    size    INTEGER NOT NULL CHECK (size >= 0),
    note    TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, log, size)
) STRICT, WITHOUT ROWID;
