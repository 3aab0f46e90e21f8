//! Writes of wrapped DEKs.

use sqlx::Sqlite as Engine;

use crate::model::{DekId, TenantUid, Wrapped};

use super::super::DekRow;
use super::{SqliteQuery, statements};

statements! {
    /// Touches one row if the DEK is stored, now or already; none if its id holds a different one.
    INSERT_DEK = "
        INSERT INTO np_byok_wrapped_deks
            (tenant, id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
        ON CONFLICT (tenant, id) DO UPDATE SET wrapped = wrapped
            WHERE wrapped = excluded.wrapped AND record_id IS excluded.record_id";

    /// A row that already has the new content counts as touched, so that a retry reports what the
    /// first attempt did, and keeps a MAC that it was given since. A row that was sealed between
    /// read and write loses its MAC, unless it was sealed when it was read.
    REWRAP = "
        UPDATE np_byok_wrapped_deks
        SET wrapped = ?8, key_id = ?9, key_name = ?10, key_version = ?11, wrap_scheme = ?12,
            mac = CASE WHEN (wrapped, key_id, key_name, key_version, wrap_scheme) = (?8, ?9, ?10, ?11, ?12)
                THEN mac ELSE ?13 END,
            rewrapped_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000
        WHERE tenant = ?1 AND id = ?2 AND (
            (wrapped, key_id, key_name, key_version, wrap_scheme) = (?3, ?4, ?5, ?6, ?7)
            OR (wrapped, key_id, key_name, key_version, wrap_scheme) = (?8, ?9, ?10, ?11, ?12))";

    /// A row that already has the MACs counts as touched.
    SEAL = "
        UPDATE np_byok_wrapped_deks SET mac = ?9, record_mac = ?10
        WHERE tenant = ?1 AND id = ?2 AND record_id IS ?3
            AND (wrapped, key_id, key_name, key_version, wrap_scheme) = (?4, ?5, ?6, ?7, ?8)";
}

/// Binds one value for each column, in the order of the columns.
pub(super) fn insert_dek<'q>(tenant: &'q TenantUid, row: &'q DekRow) -> SqliteQuery<'q> {
    let query = sqlx::query::<Engine>(INSERT_DEK)
        .bind(tenant.0.as_slice())
        .bind(row.id.0)
        .bind(row.record_id.as_deref());
    bind_wrapped(query, &row.wrapped)
        .bind(row.created_at.0)
        .bind(row.mac.as_ref().map(<[u8; 32]>::as_slice))
        .bind(row.record_mac.as_ref().map(<[u8; 32]>::as_slice))
}

/// Binds the wrapped DEK that was read, the one to store instead, and its MAC.
pub(super) fn rewrap<'q>(
    tenant: &'q TenantUid,
    dek_id: DekId,
    from: &'q Wrapped,
    to: &'q Wrapped,
    mac: Option<&'q [u8; 32]>,
) -> SqliteQuery<'q> {
    let query = sqlx::query::<Engine>(REWRAP).bind(tenant.0.as_slice()).bind(dek_id.0);
    bind_wrapped(bind_wrapped(query, from), to).bind(mac.map(<[u8; 32]>::as_slice))
}

pub(super) fn seal<'q>(tenant: &'q TenantUid, row: &'q DekRow) -> SqliteQuery<'q> {
    let query = sqlx::query(SEAL).bind(tenant.0.as_slice()).bind(row.id.0).bind(row.record_id.as_deref());
    bind_wrapped(query, &row.wrapped)
        .bind(row.mac.as_ref().map(<[u8; 32]>::as_slice))
        .bind(row.record_mac.as_ref().map(<[u8; 32]>::as_slice))
}

/// Binds the bytes, the key's id, its name and version, and the scheme.
fn bind_wrapped<'q>(query: SqliteQuery<'q>, wrapped: &'q Wrapped) -> SqliteQuery<'q> {
    query
        .bind(wrapped.bytes.as_slice())
        .bind(wrapped.key_version.key_id.0.as_slice())
        .bind(&*wrapped.key_version.key)
        .bind(&*wrapped.key_version.version)
        .bind(wrapped.scheme)
}
