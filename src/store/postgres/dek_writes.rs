//! Writes of wrapped DEKs. Each array parameter has one element for each DEK.

use std::collections::HashSet;

use sqlx::postgres::{PgBindIterExt, PgConnection};
use sqlx::{Error, Row};
use uuid::Uuid;

use crate::model::TenantUid;

use super::super::{Change, DekRow};
use super::commit::{AttemptError, PgQuery};
use super::{statements, timestamptz};

statements! {
    /// Returns the ids whose rows now hold what was to be inserted (migration 15).
    INSERT_DEKS = "
        SELECT id FROM np_byok_insert_deks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS inserted(id)";

    /// Returns the ids of the rows that have the new content now (migration 15).
    REWRAP = "
        SELECT id FROM np_byok_rewrap_deks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) AS rewrapped(id)";

    /// Returns how many rows have the MACs now (migration 15).
    SEAL = "SELECT np_byok_seal_deks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
}

/// Inserts the new DEKs among the changes, for a batch without entries.
pub(super) async fn insert_deks(
    connection: &mut PgConnection,
    tenant: TenantUid,
    changes: &[Change],
    persistent: bool,
) -> Result<(), AttemptError> {
    let query = bind_deks(sqlx::query(INSERT_DEKS).bind(tenant.0), changes).persistent(persistent);
    let inserted = query.fetch_all(connection).await?;
    if inserted.len() == deks(changes).count() { Ok(()) } else { Err(AttemptError::DekIdTaken) }
}

/// Replaces the wrapped bytes of a run of [`Change::Rewrap`]. Returns how many rows each touched.
pub(super) async fn rewrap(
    connection: &mut PgConnection,
    tenant: TenantUid,
    run: &[Change],
    persistent: bool,
) -> Result<Vec<u64>, Error> {
    let wraps = || {
        run.iter().filter_map(|change| match change {
            Change::Rewrap { dek_id, from, to, mac } => Some((dek_id, from, to, mac)),
            _ => None,
        })
    };
    let query = sqlx::query(REWRAP)
        .bind(tenant.0)
        .bind(wraps().map(|(id, ..)| id.0).bind_iter())
        .bind(wraps().map(|(_, from, ..)| from.bytes.as_slice()).bind_iter())
        .bind(wraps().map(|(_, from, ..)| from.key_version.key_id.0).bind_iter())
        .bind(wraps().map(|(_, from, ..)| &*from.key_version.key).bind_iter())
        .bind(wraps().map(|(_, from, ..)| &*from.key_version.version).bind_iter())
        .bind(wraps().map(|(_, from, ..)| from.scheme).bind_iter())
        .bind(wraps().map(|(.., to, _)| to.bytes.as_slice()).bind_iter())
        .bind(wraps().map(|(.., to, _)| to.key_version.key_id.0).bind_iter())
        .bind(wraps().map(|(.., to, _)| &*to.key_version.key).bind_iter())
        .bind(wraps().map(|(.., to, _)| &*to.key_version.version).bind_iter())
        .bind(wraps().map(|(.., to, _)| to.scheme).bind_iter())
        .bind(wraps().map(|(.., mac)| *mac).bind_iter())
        .persistent(persistent);
    let rows = query.fetch_all(connection).await?;
    let touched: HashSet<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(wraps().map(|(id, ..)| u64::from(touched.contains(&id.0))).collect())
}

/// Builds a statement that returns how many rows it sealed.
pub(super) fn seal(tenant: TenantUid, rows: &[DekRow]) -> PgQuery {
    sqlx::query(SEAL)
        .bind(tenant.0)
        .bind(rows.iter().map(|row| row.id.0).bind_iter())
        .bind(rows.iter().map(|row| row.record_id.as_deref()).bind_iter())
        .bind(rows.iter().map(|row| row.wrapped.bytes.as_slice()).bind_iter())
        .bind(rows.iter().map(|row| row.wrapped.key_version.key_id.0).bind_iter())
        .bind(rows.iter().map(|row| &*row.wrapped.key_version.key).bind_iter())
        .bind(rows.iter().map(|row| &*row.wrapped.key_version.version).bind_iter())
        .bind(rows.iter().map(|row| row.wrapped.scheme).bind_iter())
        .bind(rows.iter().map(|row| row.mac).bind_iter())
        .bind(rows.iter().map(|row| row.record_mac).bind_iter())
}

/// Binds the new DEKs among the changes: one array for each column, in the order of the columns.
pub(super) fn bind_deks(query: PgQuery, changes: &[Change]) -> PgQuery {
    query
        .bind(deks(changes).map(|dek| dek.id.0).bind_iter())
        .bind(deks(changes).map(|dek| dek.record_id.as_deref()).bind_iter())
        .bind(deks(changes).map(|dek| dek.wrapped.bytes.as_slice()).bind_iter())
        .bind(deks(changes).map(|dek| dek.wrapped.key_version.key_id.0).bind_iter())
        .bind(deks(changes).map(|dek| &*dek.wrapped.key_version.key).bind_iter())
        .bind(deks(changes).map(|dek| &*dek.wrapped.key_version.version).bind_iter())
        .bind(deks(changes).map(|dek| dek.wrapped.scheme).bind_iter())
        .bind(deks(changes).map(|dek| timestamptz(dek.created_at)).bind_iter())
        .bind(deks(changes).map(|dek| dek.mac).bind_iter())
        .bind(deks(changes).map(|dek| dek.record_mac).bind_iter())
}

fn deks(changes: &[Change]) -> impl Iterator<Item = &DekRow> {
    changes.iter().filter_map(|change| if let Change::InsertDek(row) = change { Some(row) } else { None })
}
