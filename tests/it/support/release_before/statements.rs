//! The texts of the statements, copied from commit 2a12350. They are not adapted to a new schema:
//! whether they still work on it is what the tests show.

/// Appends entries with their new DEKs, if the head is still the one that was read and the fence is
/// passed.
pub(super) const APPEND: &str = "
    WITH durable AS MATERIALIZED (
        SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
    ), head AS (
        UPDATE np_byok_heads h SET size = size + $3, frontier = $32
        FROM durable WHERE h.tenant = $1 AND h.size = $2 AND h.frontier = $31
            -- The fence: no key in use but is as it must be when the statement begins. After a wait for the head's
            -- row it is asked again only where that was written, so what counts is the age that is told below.
            AND NOT EXISTS (
                SELECT FROM unnest($26::text[], $27::text[], $28::int8[], $29::int8[], $30::int8[])
                    AS f(key_name, key_version, epoch, revision, within)
                LEFT JOIN np_byok_proofs p
                    ON p.tenant = h.tenant AND p.key_name = f.key_name AND p.key_version = f.key_version
                WHERE (
                    (f.epoch IS NULL OR (p.posture = 'active' AND p.epoch = f.epoch))
                    AND (f.revision IS NULL OR p.revision = f.revision)
                    AND (f.within IS NULL OR p.proven_at
                        BETWEEN clock_timestamp() - f.within * interval '1 microsecond' AND clock_timestamp())
                ) IS NOT TRUE)
        RETURNING size
    ), entries AS (
        INSERT INTO np_byok_audit (tenant, seq, at, id, operation, outcome, means, role, user_id, user_salt,
            user_hmac, request_id, request_salt, request_hmac, item_count, records, items, detail, digest)
        SELECT $1, $2 + e.place - 1, e.at, e.id, e.operation, e.outcome, e.means, e.role, e.user_id, e.user_salt,
            e.user_hmac, e.request_id, e.request_salt, e.request_hmac, e.item_count, e.records::jsonb, e.items,
            e.detail, e.digest
        FROM head, unnest($4::timestamptz[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::bytea[], $12::bytea[], $13::text[], $14::bytea[], $15::bytea[], $16::int4[],
            $17::text[], $18::bytea[], $33::text[], $34::bytea[]) WITH ORDINALITY
            AS e(at, id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count, records, items, detail, digest, place)
    ), deks AS (
        INSERT INTO np_byok_wrapped_deks
            (tenant, id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        SELECT $1, d.* FROM head, unnest($19::uuid[], $20::text[], $21::bytea[], $22::text[], $23::text[],
            $24::int2[], $25::timestamptz[], $35::bytea[], $36::bytea[]) AS d(id, record_id, wrapped, key_name,
            key_version, wrap_scheme, created_at, mac, record_mac)
    )
    SELECT clock_timestamp(), ARRAY(
        SELECT p.proven_at FROM unnest($26::text[], $27::text[]) WITH ORDINALITY AS f(key_name, key_version, place)
        JOIN np_byok_proofs p USING (key_name, key_version) WHERE p.tenant = $1 ORDER BY f.place)
    FROM head";

/// Stores DEKs that were wrapped under another key version.
pub(super) const REWRAP: &str = "
    UPDATE np_byok_wrapped_deks d SET wrapped = r.wrapped, key_name = r.key_name, key_version = r.key_version,
        wrap_scheme = r.wrap_scheme, rewrapped_at = now(), mac = CASE
            WHEN (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
                = (r.wrapped, r.key_name, r.key_version, r.wrap_scheme) THEN d.mac
            ELSE r.mac END
    FROM unnest($2::uuid[], $3::bytea[], $4::text[], $5::text[], $6::int2[], $7::bytea[], $8::text[], $9::text[],
        $10::int2[], $11::bytea[]) AS r(id, from_wrapped, from_name, from_version, from_scheme, wrapped, key_name,
        key_version, wrap_scheme, mac)
    WHERE d.tenant = $1 AND d.id = r.id AND (
        (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
            = (r.from_wrapped, r.from_name, r.from_version, r.from_scheme)
        OR (d.wrapped, d.key_name, d.key_version, d.wrap_scheme)
            = (r.wrapped, r.key_name, r.key_version, r.wrap_scheme))
    RETURNING d.id";

/// Reads the head of a tenant's log.
pub(super) const HEAD: &str = "SELECT size, log::int8, first, frontier FROM np_byok_heads WHERE tenant = $1";

/// Adds a tenant and its log unless it exists. Runs at every start.
pub(super) const CREATE: &str = "
    WITH t AS (INSERT INTO np_byok_tenants (uid, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING uid),
        h AS (INSERT INTO np_byok_heads (tenant) SELECT uid FROM t)
    SELECT count(*) FROM (SELECT uid FROM t
        UNION ALL SELECT uid FROM np_byok_tenants WHERE uid = $1 AND name = $2) AS there";

/// Adds a key version to the watched ones.
pub(super) const WATCH: &str = "
    WITH watched AS (
        INSERT INTO np_byok_proofs AS o (tenant, key_name, key_version, posture, epoch, revision, proven_at, since,
            steady_since, failures, falls, doubted_by, next_probe_at, needed_until, canary_dek, canary,
            canary_scheme, canary_probe)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, clock_timestamp(), $14, $15, $16, $17)
        -- What is needed until the epoch is retired.
        ON CONFLICT (tenant, key_name, key_version)
            DO UPDATE SET needed_until = greatest(o.needed_until, EXCLUDED.needed_until)
        RETURNING 1)
    SELECT count(*) FROM watched";

/// Replaces a proof with its next form, and adds the incident that this makes.
pub(super) const PROVE: &str = "
    WITH proven AS (
        UPDATE np_byok_proofs SET posture = $4, epoch = $5, revision = $6, proven_at = $7, since = $8,
            steady_since = $9, failures = $10, falls = $11, doubted_by = $12, next_probe_at = $13
        WHERE tenant = $1 AND key_name = $2 AND key_version = $3 AND (revision = $14
            OR (posture, epoch, revision, proven_at, since, steady_since, failures, falls, doubted_by, next_probe_at)
                IS NOT DISTINCT FROM ($4, $5, $6, $7, $8, $9, $10, $11, $12, $13))
        RETURNING 1
    ), incident AS (
        INSERT INTO np_byok_incidents (tenant, id, at, key_name, key_version, was, posture, class, http_status,
            kms_request_id)
        SELECT $1, $15, $16, $2, $3, $17, $21, $18, $19, $20 FROM proven WHERE $15::uuid IS NOT NULL
        ON CONFLICT (tenant, id) DO NOTHING
    )
    SELECT count(*) FROM proven";

/// Adds an incident that is not a change of posture.
pub(super) const INCIDENT: &str = "
    WITH incident AS (
        INSERT INTO np_byok_incidents (tenant, id, at, key_name, key_version, was, posture, class, http_status,
            kms_request_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (tenant, id) DO NOTHING
        RETURNING 1)
    SELECT count(*) FROM incident";

/// Reads the proofs of a tenant.
pub(super) const PROOFS: &str = "
    SELECT key_name, key_version, posture, epoch, revision, proven_at, since, steady_since, failures::int8,
        falls::int8, doubted_by, next_probe_at, clock_timestamp()
    FROM np_byok_proofs WHERE tenant = $1 AND needed_until > 'epoch'";

/// Reads the incidents of a tenant.
pub(super) const INCIDENTS: &str = "
    SELECT id, at, key_name, key_version, was, posture, class, http_status::int8, kms_request_id
    FROM np_byok_incidents WHERE tenant = $1 ORDER BY id DESC LIMIT $2";

/// Adds a rotation job.
pub(super) const START: &str = "
    WITH started AS (
        INSERT INTO np_byok_jobs (tenant, id, state, target_key, target_version, total, rewrapped, skipped, failed,
            kms_calls, stalled, started_at, updated_at, finished_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        ON CONFLICT DO NOTHING RETURNING id)
    SELECT count(*) FROM (SELECT id FROM started
        UNION ALL SELECT id FROM np_byok_jobs WHERE tenant = $1 AND id = $2) AS there";

/// Takes or renews the lease of a rotation job.
pub(super) const LEASE: &str = "
    WITH leased AS (
        UPDATE np_byok_jobs SET holder = $3, lease_until = clock_timestamp() + $4 * interval '1 microsecond'
        WHERE tenant = $1 AND id = $2 AND state = 'RUNNING'
            AND (holder IS NULL OR holder = $3 OR lease_until IS NULL OR lease_until < clock_timestamp())
        RETURNING id)
    SELECT count(*) FROM leased";

/// Stores the progress of a rotation job.
pub(super) const ADVANCE: &str = "
    WITH advanced AS (
        UPDATE np_byok_jobs SET state = $3, target_key = $4, target_version = $5, total = $6, rewrapped = $7,
            skipped = $8, failed = $9, kms_calls = $10, stalled = $11, started_at = $12, updated_at = $13,
            finished_at = $14, cursor = $15
        WHERE tenant = $1 AND id = $2 AND holder = $16 AND state IN ('RUNNING', $3)
        RETURNING id)
    SELECT count(*) FROM advanced";

/// Reads a rotation job.
pub(super) const JOB: &str = "
    SELECT id, state, target_key, target_version, total, rewrapped, skipped, failed, kms_calls, stalled, started_at,
        updated_at, finished_at, cursor
    FROM np_byok_jobs WHERE tenant = $1 AND id = $2";

/// Reads DEKs by their ids.
pub(super) const DEKS: &str = "
    SELECT id, record_id, wrapped, key_name, key_version, wrap_scheme::int8, created_at, mac, record_mac
    FROM np_byok_wrapped_deks WHERE tenant = $1 AND id = ANY($2)";

/// Reads the newest DEK of each record.
pub(super) const DEKS_OF_RECORDS: &str = "
    SELECT d.id, d.record_id, d.wrapped, d.key_name, d.key_version, d.wrap_scheme::int8, d.created_at,
        d.mac, d.record_mac
    FROM (SELECT DISTINCT record_id FROM unnest($2::text[]) AS w(record_id)) AS wanted
    CROSS JOIN LATERAL (
        SELECT * FROM np_byok_wrapped_deks
        WHERE tenant = $1 AND hashtextextended(record_id, 0::int8) = hashtextextended(wanted.record_id, 0::int8)
            AND record_id = wanted.record_id
        ORDER BY id DESC LIMIT 1) AS d";
