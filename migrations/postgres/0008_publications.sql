-- The tenant's logs that have ended, each as its head stood when the next one was opened: its entries are at the places from
-- `first` to before `size`. The one that goes on stands in np_byok_heads.
CREATE TABLE np_byok_logs (
    tenant   bytea NOT NULL REFERENCES np_byok_tenants,
    log      integer NOT NULL CHECK (log > 0),
    first    bigint NOT NULL CHECK (first >= 0),
    size     bigint NOT NULL CHECK (size >= first),
    frontier bytea NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, log)
);

-- What was last published at each place that the customer keeps checkpoints in. Times are this database's own; who publishes
-- moves `next_attempt_at` ahead, so that no other does meanwhile.
CREATE TABLE np_byok_publications (
    tenant          bytea NOT NULL REFERENCES np_byok_tenants,
    place           text NOT NULL,
    log             integer,
    size            bigint CHECK ((size IS NULL) = (log IS NULL)),
    published_at    timestamptz CHECK ((published_at IS NULL) = (log IS NULL)),
    failures        integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    next_attempt_at timestamptz NOT NULL,
    holder          uuid NOT NULL,
    PRIMARY KEY (tenant, place)
);
