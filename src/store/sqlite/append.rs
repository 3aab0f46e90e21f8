//! Appends entries to a log, under a gate and a fence.

use sqlx::{Sqlite as Engine, SqliteConnection};

use super::super::row::{head, signed};
use super::super::{Batch, EntryRow, FenceReading};
use super::commit::AttemptError;
use super::{SqliteQuery, proofs, statements, tenancy};

statements! {
    HEAD = "SELECT size, log, first, frontier FROM np_byok_heads WHERE tenant = ?1";
    MOVE_HEAD = "UPDATE np_byok_heads SET size = ?2, frontier = ?3 WHERE tenant = ?1";

    INSERT_ENTRY = "
        INSERT INTO np_byok_audit (tenant, seq, at, id, operation, outcome, means, role, user_id, user_salt, user_hmac,
            request_id, request_salt, request_hmac, item_count, records, items, detail, digest)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
}

/// Appends the batch's entries, if it has any. Returns what was read of the fence, if there is one.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    batch: &Batch,
) -> Result<Option<FenceReading>, AttemptError> {
    if batch.entries.is_empty() {
        return Ok(None);
    }
    if let Some(gate) = batch.gate {
        let row = tenancy::row_of(connection, &batch.tenant).await?;
        if !row.is_some_and(|row| gate.holds(&row)) {
            return Err(AttemptError::NotAppended);
        }
    }
    let reading = match batch.fence.as_slice() {
        [] => None,
        fence => Some(
            proofs::check_fence(connection, &batch.tenant, fence).await?.ok_or(AttemptError::NotAppended)?,
        ),
    };
    let tenant = batch.tenant.0.as_slice();
    let row = sqlx::query(HEAD).bind(tenant).fetch_optional(&mut *connection).await?;
    let before = head(&row.ok_or(AttemptError::NotAppended)?)?;
    if before.end() != batch.base {
        return Err(AttemptError::NotAppended);
    }
    let after = before.extended(&batch.entries);
    let swap = sqlx::query(MOVE_HEAD).bind(tenant).bind(signed(after.end())).bind(after.frontier.to_bytes());
    swap.execute(&mut *connection).await?;
    for (seq, entry) in (batch.base..).zip(&batch.entries) {
        insert_entry(tenant, seq, entry).execute(&mut *connection).await?;
    }
    Ok(reading)
}

/// Binds one value for each column, in the order of the columns.
fn insert_entry<'q>(tenant: &'q [u8], seq: u64, entry: &'q EntryRow) -> SqliteQuery<'q> {
    let user = entry.user.as_ref();
    sqlx::query::<Engine>(INSERT_ENTRY)
        .bind(tenant)
        .bind(signed(seq))
        .bind(entry.at.0)
        .bind(entry.id.0)
        .bind(entry.operation.as_str())
        .bind(entry.outcome.as_str())
        .bind(entry.means.as_str())
        .bind(&*entry.role)
        .bind(user.and_then(|user| user.value.as_deref()))
        .bind(user.and_then(|user| user.salt.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(user.map(|user| user.hmac.as_slice()))
        .bind(entry.request.value.as_deref())
        .bind(entry.request.salt.as_ref().map(<[u8; 16]>::as_slice))
        .bind(entry.request.hmac.as_slice())
        .bind(entry.item_count)
        .bind(entry.records.as_str())
        .bind(entry.items.as_slice())
        .bind(entry.detail.as_deref())
        .bind(entry.digest.as_slice())
}
