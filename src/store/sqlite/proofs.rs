//! Proofs and incidents. Times are by SQLite's clock, in milliseconds.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;

use crate::model::{Canary, Incident, KeyVersion, Proof, TenantUid, Timestamp};

use super::super::row::{self, Columns, required, signed};
use super::super::{Fence, FenceReading, KeyringStore, ReadError, Snapshot, Watched};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    WATCH = "
        INSERT INTO np_byok_proofs (tenant, key_id, key_name, key_version, posture, epoch, revision, proven_at, since,
            steady_since, failures, falls, doubted_by, next_probe_at, needed_until, canary_dek, canary, canary_scheme,
            canary_probe)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
            CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000, ?15, ?16, ?17, ?18)
        ON CONFLICT DO NOTHING";

    /// A row whose `needed_until` is 0 is retired; this watches it again.
    WATCH_AGAIN = "
        UPDATE np_byok_proofs
        SET needed_until = max(needed_until, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)
        WHERE tenant = ?1 AND key_id = ?2 AND key_name = ?3 AND key_version = ?4";

    EXTEND_WATCH = "
        UPDATE np_byok_proofs SET needed_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?5
        WHERE tenant = ?1 AND key_id = ?2 AND key_name = ?3 AND key_version = ?4 AND needed_until > 0";

    RETIRE = "
        UPDATE np_byok_proofs SET epoch = epoch + 1, revision = revision + 1, needed_until = 0
        WHERE tenant = ?1 AND key_id = ?2 AND (key_name, key_version) <> (?3, ?4) AND needed_until > 0";

    /// Replaces the row if it still has the revision that was read. A row that already has the new
    /// content counts as touched, so that a retry reports what the first attempt did.
    UPDATE_PROOF = "
        UPDATE np_byok_proofs SET posture = ?5, epoch = ?6, revision = ?7, proven_at = ?8, since = ?9,
            steady_since = ?10, failures = ?11, falls = ?12, doubted_by = ?13, next_probe_at = ?14
        WHERE tenant = ?1 AND key_id = ?2 AND key_name = ?3 AND key_version = ?4 AND (revision = ?15
            OR (posture, epoch, revision, proven_at, since, steady_since, failures, falls, doubted_by, next_probe_at)
                IS (?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14))";

    INCIDENT = "
        INSERT INTO np_byok_incidents (tenant, id, at, key_id, key_name, key_version, was, posture, class, http_status,
            kms_request_id)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
        ON CONFLICT (tenant, id) DO NOTHING";

    BY_TENANT = "
        SELECT key_id, key_name, key_version, posture, epoch, revision, proven_at, since, steady_since, failures, falls,
            doubted_by, next_probe_at
        FROM np_byok_proofs WHERE tenant = ?1 AND needed_until > 0";

    WATCHED = "
        SELECT p.key_id, p.key_name, p.key_version, p.posture, p.epoch, p.revision, p.proven_at, p.since, p.steady_since,
            p.failures, p.falls, p.doubted_by, p.next_probe_at, t.uid, t.name, p.canary_dek, p.canary,
            p.canary_scheme, p.canary_probe, p.needed_until
        FROM np_byok_proofs p JOIN np_byok_tenants t ON t.uid = p.tenant
        WHERE p.needed_until > 0
            AND (p.posture <> 'active' OR p.needed_until > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)";

    NOW = "SELECT CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000";
}

pub(super) fn watch<'q>(tenant: &'q TenantUid, proof: &'q Proof, canary: &'q Canary) -> SqliteQuery<'q> {
    bind_proof(WATCH, tenant, proof)
        .bind(canary.dek_id.0)
        .bind(canary.wrapped.bytes.as_slice())
        .bind(canary.wrapped.scheme)
        .bind(canary.made_for_probes)
}

/// Watches the key version of a row that is there.
pub(super) fn watch_again<'q>(tenant: &'q TenantUid, version: &'q KeyVersion) -> SqliteQuery<'q> {
    bind_key_version(WATCH_AGAIN, tenant, version)
}

pub(super) fn extend_watch<'q>(
    tenant: &'q TenantUid,
    version: &'q KeyVersion,
    lasting: Duration,
) -> SqliteQuery<'q> {
    let micros = i64::try_from(lasting.as_micros()).unwrap_or(i64::MAX);
    bind_key_version(EXTEND_WATCH, tenant, version).bind(micros)
}

pub(super) fn retire<'q>(tenant: &'q TenantUid, all_but: &'q KeyVersion) -> SqliteQuery<'q> {
    bind_key_version(RETIRE, tenant, all_but)
}

pub(super) fn update_proof<'q>(tenant: &'q TenantUid, from: u64, to: &'q Proof) -> SqliteQuery<'q> {
    bind_proof(UPDATE_PROOF, tenant, to).bind(signed(from))
}

pub(super) fn incident<'q>(tenant: &'q TenantUid, incident: &'q Incident) -> SqliteQuery<'q> {
    sqlx::query(INCIDENT)
        .bind(tenant.0.as_slice())
        .bind(incident.id.0)
        .bind(incident.at.0)
        .bind(incident.key_version.key_id.0.as_slice())
        .bind(&*incident.key_version.key)
        .bind(&*incident.key_version.version)
        .bind(incident.was.as_str())
        .bind(incident.posture.as_str())
        .bind(incident.class.as_deref())
        .bind(incident.http_status)
        .bind(incident.kms_request_id.as_deref())
}

/// Binds the tenant, and the id, name and version of its key.
fn bind_key_version<'q>(
    sql: &'static str,
    tenant: &'q TenantUid,
    version: &'q KeyVersion,
) -> SqliteQuery<'q> {
    let KeyVersion { key_id, key, version } = version;
    sqlx::query(sql).bind(tenant.0.as_slice()).bind(key_id.0.as_slice()).bind(&**key).bind(&**version)
}

fn bind_proof<'q>(sql: &'static str, tenant: &'q TenantUid, proof: &'q Proof) -> SqliteQuery<'q> {
    bind_key_version(sql, tenant, &proof.key_version)
        .bind(proof.posture.as_str())
        .bind(signed(proof.epoch))
        .bind(signed(proof.revision))
        .bind(proof.proven_at.0)
        .bind(proof.since.0)
        .bind(proof.steady_since.map(|at| at.0))
        .bind(proof.failures)
        .bind(proof.falls)
        .bind(proof.doubted_by)
        .bind(proof.next_probe_at.0)
}

/// Checks the fence under the lock of this transaction. Returns `None` if a requirement is not met.
pub(super) async fn check_fence(
    connection: &mut SqliteConnection,
    tenant: &TenantUid,
    fence: &[Fence],
) -> Result<Option<FenceReading>, sqlx::Error> {
    let query = sqlx::query(BY_TENANT).bind(tenant.0.as_slice());
    let rows = query.fetch_all(&mut *connection).await?;
    let rows = rows.iter().map(row::proof).collect::<Result<_, _>>()?;
    let now = required(sqlx::query(NOW).fetch_one(connection).await?.timestamp(0)?)?;
    Ok(FenceReading::of(fence, &Snapshot { now, rows }))
}

#[async_trait]
impl KeyringStore for Sqlite {
    async fn watched(&self) -> Result<Snapshot<Watched>, ReadError> {
        let rows = self.all(sqlx::query(WATCHED), row::watched).await?;
        Ok(Snapshot { now: self.clock().await?, rows })
    }
}

impl Sqlite {
    /// Returns the proofs of one tenant's key versions, except retired ones.
    pub(super) async fn proofs_of(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        // Reads the clock last, so that a row that is written meanwhile does not seem to be from
        // the future.
        let rows = self.all(sqlx::query(BY_TENANT).bind(tenant.0.as_slice()), row::proof).await?;
        Ok(Snapshot { now: self.clock().await?, rows })
    }

    async fn clock(&self) -> Result<Timestamp, ReadError> {
        self.first(sqlx::query(NOW), |row| required(row.timestamp(0)?)).await?.ok_or(ReadError::Malformed)
    }
}
