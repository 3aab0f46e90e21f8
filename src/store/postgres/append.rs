//! The statement that appends entries to a log, with their new DEKs, under a fence.

use sqlx::Row;
use sqlx::postgres::{PgBindIterExt, PgConnection};

use crate::model::{Salted, Timestamp};

use super::super::row::{Columns, signed};
use super::super::{Batch, Change, EntryRow, FenceReading, LogHead};
use super::commit::{AttemptError, PgQuery};
use super::dek_writes::bind_deks;
use super::proofs::bind_fence;
use super::timestamptz::Timestamptz;
use super::{statements, timestamptz};

statements! {
    /// Compares and swaps the head, and inserts everything else only if that succeeds: one
    /// statement, one round trip, one flush. Returns null if it does not (migration 15). The
    /// parameters are numbered in the order in which they are bound.
    APPEND = "
        SELECT read_at, proven_at FROM np_byok_append($1, $2, $3, $4, $5,
            $6, $7, $8, $9, $10, $11,
            $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28,
            $29, $30, $31, $32, $33, $34, $35, $36, $37, $38)";
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
    let row = query.fetch_one(connection).await?;
    let now = row.timestamp(0)?.ok_or(AttemptError::NotAppended)?;
    if batch.fence.is_empty() {
        return Ok((None, after));
    }
    let proven_at: Vec<Timestamptz> = row.try_get(1)?;
    let proven_at = proven_at.into_iter().map(Timestamp::from).collect();
    Ok((Some(FenceReading { now, proven_at }), after))
}

/// Binds all parameters of [`APPEND`], in their order.
fn append_query(batch: &Batch, deks: &[Change], before: &LogHead, after: &LogHead) -> PgQuery {
    // $1 to $5
    let query = sqlx::query(APPEND)
        .bind(batch.tenant.0)
        .bind(signed(batch.base))
        .bind(before.frontier.to_bytes())
        .bind(after.frontier.to_bytes())
        .bind(batch.gate.map(|gate| signed(gate.revision)));
    // $6 to $11
    let query = bind_fence(query, &batch.fence);
    // $12 to $28
    let query = bind_entries(query, &batch.entries);
    // $29 to $38
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
