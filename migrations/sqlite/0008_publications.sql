-- The tenant's logs that have ended, each as its head stood when the next one was opened: its entries are at the places from
-- `first` to before `size`. The one that goes on stands in np_byok_heads.
CREATE TABLE np_byok_logs (
    tenant   BLOB NOT NULL REFERENCES np_byok_tenants,
    log      INTEGER NOT NULL CHECK (log > 0),
    first    INTEGER NOT NULL CHECK (first >= 0),
    size     INTEGER NOT NULL CHECK (size >= first),
    frontier BLOB NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, log)
) STRICT, WITHOUT ROWID;

-- What was last published at each place that the customer keeps checkpoints in. Times are this database's own; who publishes
-- moves `next_attempt_at` ahead, so that no other does meanwhile.
CREATE TABLE np_byok_publications (
    tenant          BLOB NOT NULL REFERENCES np_byok_tenants,
    place           TEXT NOT NULL,
    log             INTEGER,
    size            INTEGER CHECK ((size IS NULL) = (log IS NULL)),
    published_at    INTEGER CHECK ((published_at IS NULL) = (log IS NULL)),
    failures        INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    next_attempt_at INTEGER NOT NULL,
    holder          BLOB NOT NULL,
    PRIMARY KEY (tenant, place)
) STRICT, WITHOUT ROWID;
