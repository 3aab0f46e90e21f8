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
                -- The fence: each key in use meets its requirement when the statement begins. After a wait for the head's
                -- row, this is checked again only if that row was written, so what counts is the age returned below.
                AND NOT EXISTS (
                    SELECT FROM unnest($6::text[], $7::text[], $8::int8[], $9::int8[], $10::int8[])
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
            FROM head, unnest(
                $11::timestamptz[], $12::uuid[], $13::text[], $14::text[], $15::text[], $16::text[],
                $17::text[], $18::bytea[], $19::bytea[],
                $20::text[], $21::bytea[], $22::bytea[],
                $23::int4[], $24::text[], $25::bytea[], $26::text[], $27::bytea[]
            ) WITH ORDINALITY AS e(
                at, id, operation, outcome, means, role,
                user_id, user_salt, user_hmac,
                request_id, request_salt, request_hmac,
                item_count, records, items, detail, digest, place)
        ), deks AS (
            INSERT INTO np_byok_wrapped_deks
                (tenant, id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
            SELECT $1, d.* FROM head, unnest(
                $28::uuid[], $29::text[], $30::bytea[], $31::text[], $32::text[], $33::int2[], $34::timestamptz[],
                $35::bytea[], $36::bytea[]
            ) AS d(
                id, record_id, wrapped, key_name, key_version, wrap_scheme, created_at,
                mac, record_mac)
        )
        SELECT clock_timestamp(), ARRAY(
            SELECT p.proven_at FROM unnest($6::text[], $7::text[]) WITH ORDINALITY AS f(key_name, key_version, place)
            JOIN np_byok_proofs p USING (key_name, key_version) WHERE p.tenant = $1 ORDER BY f.place)
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
    // $1 to $5
    let query = sqlx::query(APPEND)
        .bind(batch.tenant.0)
        .bind(signed(batch.base))
        .bind(i64::try_from(batch.entries.len()).unwrap_or(i64::MAX))
        .bind(before.frontier.to_bytes())
        .bind(after.frontier.to_bytes());
    // $6 to $10
    let query = bind_fence(query, &batch.fence);
    // $11 to $27
    let query = bind_entries(query, &batch.entries);
    // $28 to $36
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
