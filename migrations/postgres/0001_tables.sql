-- The first tables. All keys lead with the tenant, so that the tables can be distributed by it.

CREATE TABLE np_byok_tenants (
    uid        bytea PRIMARY KEY CHECK (octet_length(uid) = 16),
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The head of each tenant's log: what a commit compares and swaps.
CREATE TABLE np_byok_heads (
    tenant bytea PRIMARY KEY REFERENCES np_byok_tenants,
    size   bigint NOT NULL DEFAULT 0 CHECK (size >= 0)
);

CREATE TABLE np_byok_wrapped_deks (
    tenant       bytea NOT NULL,
    id           uuid NOT NULL,
    record_id    text,
    wrapped      bytea NOT NULL,
    key_name     text NOT NULL,
    key_version  text NOT NULL,
    wrap_scheme  smallint NOT NULL,
    created_at   timestamptz NOT NULL,
    rewrapped_at timestamptz,
    PRIMARY KEY (tenant, id)
);

-- By the hash of the record id: an index row holds at most 2.7 kB, and a record id may be longer.
CREATE INDEX np_byok_wrapped_deks_record ON np_byok_wrapped_deks (tenant, hashtextextended(record_id, 0), id)
    WHERE record_id IS NOT NULL;

CREATE TABLE np_byok_audit (
    tenant       bytea NOT NULL,
    seq          bigint NOT NULL CHECK (seq >= 0),
    at           timestamptz NOT NULL,
    id           uuid NOT NULL,
    operation    text NOT NULL,
    outcome      text NOT NULL,
    means        text NOT NULL,
    role         text NOT NULL,
    user_id      text,
    user_salt    bytea CHECK (octet_length(user_salt) = 16),
    user_hmac    bytea CHECK (octet_length(user_hmac) = 32),
    request_id   text,
    request_salt bytea CHECK (octet_length(request_salt) = 16),
    request_hmac bytea NOT NULL CHECK (octet_length(request_hmac) = 32),
    item_count   integer NOT NULL CHECK (item_count >= 0),
    records      jsonb NOT NULL CHECK (jsonb_typeof(records) = 'array'),
    items        bytea NOT NULL,
    -- The partition's column has to be in it; that no place is taken twice is the head's work.
    PRIMARY KEY (tenant, seq, at),
    CHECK (user_hmac IS NOT NULL OR (user_id IS NULL AND user_salt IS NULL))
) PARTITION BY RANGE (at);

-- Packed bytes do not compress.
ALTER TABLE np_byok_audit ALTER COLUMN items SET STORAGE EXTERNAL;
CREATE INDEX np_byok_audit_at ON np_byok_audit USING brin (at);

-- Entries stay as they are. An UPDATE may set the erasable columns, and elements of `records`, to null, and nothing else.
CREATE FUNCTION np_byok_audit_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    erased record := NEW;
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'np_byok_audit: entries are never deleted' USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Undo what an erasure may do; then nothing else may differ.
    IF NEW.user_id IS NULL THEN erased.user_id := OLD.user_id; END IF;
    IF NEW.user_salt IS NULL THEN erased.user_salt := OLD.user_salt; END IF;
    IF NEW.request_id IS NULL THEN erased.request_id := OLD.request_id; END IF;
    IF NEW.request_salt IS NULL THEN erased.request_salt := OLD.request_salt; END IF;
    IF NEW.records IS DISTINCT FROM OLD.records
        AND jsonb_array_length(NEW.records) = jsonb_array_length(OLD.records)
        AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(NEW.records) WITH ORDINALITY AS n(element, place)
            JOIN jsonb_array_elements(OLD.records) WITH ORDINALITY AS o(element, place) USING (place)
            WHERE n.element <> o.element AND n.element <> 'null')
    THEN
        erased.records := OLD.records;
    END IF;
    IF erased IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'np_byok_audit: entries are never changed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER np_byok_audit_row BEFORE UPDATE OR DELETE ON np_byok_audit
    FOR EACH ROW EXECUTE FUNCTION np_byok_audit_guard();
CREATE TRIGGER np_byok_audit_whole BEFORE TRUNCATE ON np_byok_audit
    FOR EACH STATEMENT EXECUTE FUNCTION np_byok_audit_guard();

-- Takes what has no month yet, so that an entry never fails for want of a partition.
CREATE TABLE np_byok_audit_default PARTITION OF np_byok_audit DEFAULT;
CREATE TRIGGER np_byok_audit_whole BEFORE TRUNCATE ON np_byok_audit_default
    FOR EACH STATEMENT EXECUTE FUNCTION np_byok_audit_guard();

-- Makes the partitions of this month and the next three; returns how many. It runs as the tables' owner, so that the
-- serving role can make partitions and yet owns none. A partition is made apart and then attached, which leaves
-- inserts running.
CREATE FUNCTION np_byok_make_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
    month timestamptz := date_trunc('month', now());
    name  text;
    made  integer := 0;
BEGIN
    -- The lock that migrations take: neither finds the catalogue changed under its hands.
    PERFORM pg_advisory_xact_lock(hashtextextended('np_byok_migrations', 0));
    FOR ahead IN 0..3 LOOP
        name := 'np_byok_audit_' || to_char(month, 'YYYYMM');
        IF to_regclass(format('%I.%I', current_schema(), name)) IS NULL
            -- Rows that the default partition already took stay there.
            AND NOT EXISTS (SELECT FROM np_byok_audit_default d WHERE d.at >= month AND d.at < month + interval '1 month')
        THEN
            EXECUTE format('CREATE TABLE %I.%I (LIKE np_byok_audit INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                current_schema(), name);
            EXECUTE format('CREATE TRIGGER np_byok_audit_whole BEFORE TRUNCATE ON %I.%I'
                ' FOR EACH STATEMENT EXECUTE FUNCTION np_byok_audit_guard()', current_schema(), name);
            EXECUTE format('ALTER TABLE np_byok_audit ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)',
                current_schema(), name, month, month + interval '1 month');
            made := made + 1;
        END IF;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION np_byok_make_partitions() FROM PUBLIC;

CREATE TABLE np_byok_jobs (
    tenant         bytea NOT NULL REFERENCES np_byok_tenants,
    id             uuid NOT NULL,
    state          text NOT NULL CHECK (state IN ('RUNNING', 'DONE')),
    target_key     text NOT NULL,
    target_version text NOT NULL,
    total          bigint NOT NULL,
    rewrapped      bigint NOT NULL,
    skipped        bigint NOT NULL,
    failed         bigint NOT NULL,
    kms_calls      bigint NOT NULL,
    stalled        text,
    started_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    finished_at    timestamptz,
    cursor         uuid,
    holder         uuid,
    lease_until    timestamptz,
    PRIMARY KEY (tenant, id)
);
CREATE UNIQUE INDEX np_byok_jobs_running ON np_byok_jobs (tenant) WHERE state = 'RUNNING';
