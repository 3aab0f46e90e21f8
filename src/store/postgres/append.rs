//! The statement that appends entries to a log, with their new DEKs, under a fence.

use sqlx::Row;
use sqlx::postgres::{PgBindIterExt, PgConnection};

use crate::model::{Salted, Timestamp};

use super::super::row::{Columns, required, signed};
use super::super::{Batch, Change, EntryRow, FenceReading, LogHead};
use super::commit::{AttemptError, PgQuery};
use super::dek_writes::bind_deks;
use super::proofs::bind_fence;
use super::timestamptz::Timestamptz;
use super::{statements, timestamptz};

statements! {
    /// Compares and swaps the head, and inserts everything else only if that succeeds: one
    /// statement, one round trip, one flush. The parameters are numbered in the order in which they
    /// are bound.
    APPEND = "
        WITH durable AS MATERIALIZED (
            SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
        ), head AS (
            UPDATE np_byok_heads h SET size = size + $3, frontier = $5
            FROM durable WHERE h.tenant = $1 AND h.size = $2 AND h.frontier = $4
                -- The gate: the tenant is not locked, and is served as it was when the batch's calls began. Whoever changes
                -- this row appends to the log as well, so a statement that waited for the head does not find it again.
                AND ($6::int8 IS NULL OR EXISTS (
                    SELECT FROM np_byok_tenants t WHERE t.uid = h.tenant AND t.revision = $6 AND NOT t.locked))
                -- The fence: each key in use meets its requirement when the statement begins. After a wait for the head's
                -- row, this is checked again only if that row was written, so what counts is the age returned below.
                AND NOT EXISTS (
                    SELECT FROM unnest($7::bytea[], $8::text[], $9::text[], $10::int8[], $11::int8[], $12::int8[])
                        AS f(key_id, key_name, key_version, epoch, revision, within)
                    LEFT JOIN np_byok_proofs p ON p.tenant = h.tenant AND p.key_id = f.key_id
                        AND p.key_name = f.key_name AND p.key_version = f.key_version
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
            FROM head, unnest(
                $13::timestamptz[], $14::uuid[], $15::text[], $16::text[], $17::text[], $18::text[],
                $19::text[], $20::bytea[], $21::bytea[],
                $22::text[], $23::bytea[], $24::bytea[],
                $25::int4[], $26::text[], $27::bytea[], $28::text[], $29::bytea[]
            ) WITH ORDINALITY AS e(
                at, id, operation, outcome, means, role,
                user_id, user_salt, user_hmac,
                request_id, request_salt, request_hmac,
                item_count, records, items, detail, digest, place)
        ), deks AS (
            INSERT INTO np_byok_wrapped_deks
                (tenant, id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
            SELECT $1, d.* FROM head, unnest(
                $30::uuid[], $31::text[], $32::bytea[], $33::bytea[], $34::text[], $35::text[], $36::int2[],
                $37::timestamptz[], $38::bytea[], $39::bytea[]
            ) AS d(
                id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme,
                created_at, mac, record_mac)
        )
        SELECT clock_timestamp(), ARRAY(
            SELECT p.proven_at FROM unnest($7::bytea[], $8::text[], $9::text[])
                WITH ORDINALITY AS f(key_id, key_name, key_version, place)
            JOIN np_byok_proofs p USING (key_id, key_name, key_version) WHERE p.tenant = $1 ORDER BY f.place)
        FROM head";
}

/// Appends the batch's entries to the log at `before`, with these new DEKs. Returns what was read
/// of the fence, if there is one, and the head after the entries.
pub(super) async fn append(
    connection: &mut PgConnection,
    batch: &Batch,
    deks: &[Change],
    before: &LogHead,
    persistent: bool,
) -> Result<(Option<FenceReading>, LogHead), AttemptError> {
    let after = before.extended(&batch.entries);
    let query = append_query(batch, deks, before, &after).persistent(persistent);
    let row = query.fetch_optional(connection).await?.ok_or(AttemptError::NotAppended)?;
    if batch.fence.is_empty() {
        return Ok((None, after));
    }
    let proven_at: Vec<Timestamptz> = row.try_get(1)?;
    let proven_at = proven_at.into_iter().map(Timestamp::from).collect();
    Ok((Some(FenceReading { now: required(row.timestamp(0)?)?, proven_at }), after))
}

/// Binds all parameters of [`APPEND`], in their order.
fn append_query(batch: &Batch, deks: &[Change], before: &LogHead, after: &LogHead) -> PgQuery {
    // $1 to $6
    let query = sqlx::query(APPEND)
        .bind(batch.tenant.0)
        .bind(signed(batch.base))
        .bind(i64::try_from(batch.entries.len()).unwrap_or(i64::MAX))
        .bind(before.frontier.to_bytes())
        .bind(after.frontier.to_bytes())
        .bind(batch.gate.map(|gate| signed(gate.revision)));
    // $7 to $12
    let query = bind_fence(query, &batch.fence);
    // $13 to $29
    let query = bind_entries(query, &batch.entries);
    // $30 to $39
    bind_deks(query, deks)
}

/// Binds one array for each column, in the order of the columns.
fn bind_entries(query: PgQuery, entries: &[EntryRow]) -> PgQuery {
    fn user(entry: &EntryRow) -> Option<&Salted> {
        entry.user.as_ref()
    }
    query
        .bind(entries.iter().map(|entry| timestamptz(entry.at)).bind_iter())
        .bind(entries.iter().map(|entry| entry.id.0).bind_iter())
        .bind(entries.iter().map(|entry| entry.operation.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.outcome.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.means.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| &*entry.role).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).and_then(|user| user.value.as_deref())).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).and_then(|user| user.salt)).bind_iter())
        .bind(entries.iter().map(|entry| user(entry).map(|user| user.hmac)).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.value.as_deref()).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.salt).bind_iter())
        .bind(entries.iter().map(|entry| entry.request.hmac).bind_iter())
        .bind(entries.iter().map(|entry| i32::try_from(entry.item_count).unwrap_or(i32::MAX)).bind_iter())
        .bind(entries.iter().map(|entry| entry.records.as_str()).bind_iter())
        .bind(entries.iter().map(|entry| entry.items.as_slice()).bind_iter())
        .bind(entries.iter().map(|entry| entry.detail.as_deref()).bind_iter())
        .bind(entries.iter().map(|entry| entry.digest).bind_iter())
}
