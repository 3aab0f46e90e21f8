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
    /// Returns the ids whose rows now hold what was to be inserted. Leaves out an id that holds a
    /// different DEK.
    INSERT_DEKS = "
        INSERT INTO np_byok_wrapped_deks AS o
            (tenant, id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        SELECT $1, d.* FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::bytea[], $6::text[], $7::text[],
            $8::int2[], $9::timestamptz[], $10::bytea[], $11::bytea[]) AS d(id, record_id, wrapped, key_id, key_name,
            key_version, wrap_scheme, created_at, mac, record_mac)
        ON CONFLICT (tenant, id) DO UPDATE SET wrapped = o.wrapped
            WHERE o.wrapped = EXCLUDED.wrapped AND o.record_id IS NOT DISTINCT FROM EXCLUDED.record_id
        RETURNING o.id";

    /// A row that already has the new content counts as touched, so that a retry reports what the
    /// first attempt did, and keeps a MAC that it was given since. A row that was sealed between
    /// read and write loses its MAC, unless it was sealed when it was read.
    REWRAP = "
        UPDATE np_byok_wrapped_deks d SET wrapped = r.wrapped, key_id = r.key_id, key_name = r.key_name,
            key_version = r.key_version, wrap_scheme = r.wrap_scheme, rewrapped_at = now(), mac = CASE
                WHEN (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
                    = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme) THEN d.mac
                ELSE r.mac END
        FROM unnest($2::uuid[], $3::bytea[], $4::bytea[], $5::text[], $6::text[], $7::int2[], $8::bytea[],
            $9::bytea[], $10::text[], $11::text[], $12::int2[], $13::bytea[]) AS r(id, from_wrapped, from_id,
            from_name, from_version, from_scheme, wrapped, key_id, key_name, key_version, wrap_scheme, mac)
        WHERE d.tenant = $1 AND d.id = r.id AND (
            (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
                = (r.from_wrapped, r.from_id, r.from_name, r.from_version, r.from_scheme)
            OR (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
                = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme))
        RETURNING d.id";

    /// A row that already has the MACs counts as touched.
    SEAL = "
        WITH sealed AS (
            UPDATE np_byok_wrapped_deks d SET mac = r.mac, record_mac = r.record_mac
            FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::bytea[], $6::text[], $7::text[], $8::int2[],
                $9::bytea[], $10::bytea[]) AS r(id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme,
                mac, record_mac)
            WHERE d.tenant = $1 AND d.id = r.id AND d.record_id IS NOT DISTINCT FROM r.record_id
                AND (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
                    = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme)
            RETURNING d.id)
        SELECT count(*) FROM sealed";
}

/// Inserts the DEKs of a run of [`Change::InsertDek`].
pub(super) async fn insert_deks(
    connection: &mut PgConnection,
    tenant: TenantUid,
    run: &[Change],
    persistent: bool,
) -> Result<(), AttemptError> {
    let query = bind_deks(sqlx::query(INSERT_DEKS).bind(tenant.0), run).persistent(persistent);
    let inserted = query.fetch_all(connection).await?;
    if inserted.len() == run.len() { Ok(()) } else { Err(AttemptError::DekIdTaken) }
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
