//! Proofs and incidents. Times are by the database's clock.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Error;
use sqlx::postgres::{PgBindIterExt, PgRow};

use crate::model::{Canary, Incident, KeyVersion, Proof, TenantUid};

use super::super::row::{self, Columns, required, signed};
use super::super::{Fence, KeyringStore, ReadError, Requirement, Snapshot, Watched};
use super::commit::PgQuery;
use super::{Postgres, reads, statements, timestamptz};

statements! {
    /// Does nothing if the key version has a row. No index is named: two replicas may insert the
    /// row at once, and either unique index may be the one that notices.
    WATCH = "
        WITH watched AS (
            INSERT INTO np_byok_proofs (tenant, key_id, key_name, key_version, posture, epoch, revision, proven_at,
                since, steady_since, failures, falls, doubted_by, next_probe_at, needed_until, canary_dek, canary,
                canary_scheme, canary_probe)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, clock_timestamp(), $15, $16, $17, $18)
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT count(*) FROM watched";

    /// A row whose `needed_until` is the epoch is retired; this watches it again.
    WATCH_AGAIN = "
        WITH watched AS (
            UPDATE np_byok_proofs SET needed_until = greatest(needed_until, clock_timestamp())
            WHERE tenant = $1 AND key_id = $2 AND key_name = $3 AND key_version = $4
            RETURNING 1)
        SELECT count(*) FROM watched";

    /// The latest report counts, even if it lasts shorter than the one before.
    EXTEND_WATCH = "
        WITH needed AS (
            UPDATE np_byok_proofs SET needed_until = clock_timestamp() + $5 * interval '1 microsecond'
            WHERE tenant = $1 AND key_id = $2 AND key_name = $3 AND key_version = $4 AND needed_until > 'epoch'
            RETURNING 1)
        SELECT count(*) FROM needed";

    RETIRE = "
        WITH retired AS (
            UPDATE np_byok_proofs SET epoch = epoch + 1, revision = revision + 1, needed_until = 'epoch'
            WHERE tenant = $1 AND key_id = $2 AND (key_name, key_version) <> ($3, $4) AND needed_until > 'epoch'
            RETURNING 1)
        SELECT count(*) FROM retired";

    /// Replaces the row if it still has the revision that was read, and adds the incident, if there
    /// is one. A row that already has the new content counts as touched, so that a retry reports
    /// what the first attempt did.
    UPDATE_PROOF = "
        WITH proven AS (
            UPDATE np_byok_proofs SET posture = $5, epoch = $6, revision = $7, proven_at = $8, since = $9,
                steady_since = $10, failures = $11, falls = $12, doubted_by = $13, next_probe_at = $14
            WHERE tenant = $1 AND key_id = $2 AND key_name = $3 AND key_version = $4 AND (revision = $15
                OR (posture, epoch, revision, proven_at, since, steady_since, failures, falls, doubted_by, next_probe_at)
                    IS NOT DISTINCT FROM ($5, $6, $7, $8, $9, $10, $11, $12, $13, $14))
            RETURNING 1
        ), incident AS (
            INSERT INTO np_byok_incidents (tenant, id, at, key_id, key_name, key_version, was, posture, class,
                http_status, kms_request_id)
            SELECT $1, $16, $17, $2, $3, $4, $18, $19, $20, $21, $22 FROM proven WHERE $16::uuid IS NOT NULL
            ON CONFLICT (tenant, id) DO NOTHING
        )
        SELECT count(*) FROM proven";

    /// An incident without a new proof.
    INCIDENT = "
        WITH incident AS (
            INSERT INTO np_byok_incidents (tenant, id, at, key_id, key_name, key_version, was, posture, class,
                http_status, kms_request_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (tenant, id) DO NOTHING
            RETURNING 1)
        SELECT count(*) FROM incident";
}

reads! {
    BY_TENANT = "
        SELECT key_id, key_name, key_version, posture, epoch, revision, proven_at, since, steady_since, failures::int8,
            falls::int8, doubted_by, next_probe_at, clock_timestamp()
        FROM np_byok_proofs WHERE tenant = $1 AND needed_until > 'epoch'";

    WATCHED = "
        SELECT p.key_id, p.key_name, p.key_version, p.posture, p.epoch, p.revision, p.proven_at, p.since, p.steady_since,
            p.failures::int8, p.falls::int8, p.doubted_by, p.next_probe_at, t.uid, t.name, p.canary_dek, p.canary,
            p.canary_scheme::int8, p.canary_probe::int::int8, p.needed_until, clock_timestamp()
        FROM np_byok_proofs p JOIN np_byok_tenants t ON t.uid = p.tenant
        WHERE p.needed_until > 'epoch' AND (p.posture <> 'active' OR p.needed_until > clock_timestamp())";

    NOW = "SELECT clock_timestamp()";
}

/// Each of these functions builds a statement that returns how many rows it touched.
pub(super) fn watch(tenant: TenantUid, proof: &Proof, canary: &Canary) -> PgQuery {
    bind_proof(sqlx::query(WATCH), tenant, proof)
        .bind(canary.dek_id.0)
        .bind(canary.wrapped.bytes.clone())
        .bind(canary.wrapped.scheme)
        .bind(canary.made_for_probes)
}

/// Watches the key version of a row that exists, whichever writer has inserted it.
pub(super) fn watch_again(tenant: TenantUid, version: &KeyVersion) -> PgQuery {
    bind_key_version(sqlx::query(WATCH_AGAIN), tenant, version)
}

pub(super) fn extend_watch(tenant: TenantUid, version: &KeyVersion, lasting: Duration) -> PgQuery {
    let micros = i64::try_from(lasting.as_micros()).unwrap_or(i64::MAX);
    bind_key_version(sqlx::query(EXTEND_WATCH), tenant, version).bind(micros)
}

pub(super) fn retire(tenant: TenantUid, all_but: &KeyVersion) -> PgQuery {
    bind_key_version(sqlx::query(RETIRE), tenant, all_but)
}

pub(super) fn update_proof(tenant: TenantUid, from: u64, to: &Proof, incident: Option<&Incident>) -> PgQuery {
    bind_proof(sqlx::query(UPDATE_PROOF), tenant, to)
        .bind(signed(from))
        .bind(incident.map(|incident| incident.id.0))
        .bind(incident.map(|incident| timestamptz(incident.at)))
        .bind(incident.map(|incident| incident.was.as_str()))
        .bind(incident.map(|incident| incident.posture.as_str()))
        .bind(incident.and_then(|incident| incident.class.as_deref().map(str::to_owned)))
        .bind(incident.and_then(|incident| incident.http_status).map(i32::from))
        .bind(incident.and_then(|incident| incident.kms_request_id.as_deref().map(str::to_owned)))
}

pub(super) fn incident(tenant: TenantUid, incident: &Incident) -> PgQuery {
    sqlx::query(INCIDENT)
        .bind(tenant.0)
        .bind(incident.id.0)
        .bind(timestamptz(incident.at))
        .bind(incident.key_version.key_id.0)
        .bind(incident.key_version.key.to_string())
        .bind(incident.key_version.version.to_string())
        .bind(incident.was.as_str())
        .bind(incident.posture.as_str())
        .bind(incident.class.as_deref().map(str::to_owned))
        .bind(incident.http_status.map(i32::from))
        .bind(incident.kms_request_id.as_deref().map(str::to_owned))
}

/// Binds the tenant, and the id, name and version of its key.
fn bind_key_version(query: PgQuery, tenant: TenantUid, version: &KeyVersion) -> PgQuery {
    let KeyVersion { key_id, key, version } = version;
    query.bind(tenant.0).bind(key_id.0).bind(key.to_string()).bind(version.to_string())
}

fn bind_proof(query: PgQuery, tenant: TenantUid, proof: &Proof) -> PgQuery {
    bind_key_version(query, tenant, &proof.key_version)
        .bind(proof.posture.as_str())
        .bind(signed(proof.epoch))
        .bind(signed(proof.revision))
        .bind(timestamptz(proof.proven_at))
        .bind(timestamptz(proof.since))
        .bind(proof.steady_since.map(timestamptz))
        .bind(i32::try_from(proof.failures).unwrap_or(i32::MAX))
        .bind(i32::try_from(proof.falls).unwrap_or(i32::MAX))
        .bind(proof.doubted_by)
        .bind(timestamptz(proof.next_probe_at))
}

/// Binds the fence as six arrays: key id, key, version, epoch, revision, microseconds.
pub(super) fn bind_fence(query: PgQuery, fence: &[Fence]) -> PgQuery {
    let epoch = |fence: &Fence| match fence.requirement {
        Requirement::Active { epoch } | Requirement::Proven { epoch, .. } => Some(signed(epoch)),
        Requirement::Unchanged { .. } => None,
    };
    let revision = |fence: &Fence| match fence.requirement {
        Requirement::Unchanged { revision } => Some(signed(revision)),
        Requirement::Active { .. } | Requirement::Proven { .. } => None,
    };
    let within = |fence: &Fence| match fence.requirement {
        Requirement::Proven { within, .. } => Some(i64::try_from(within.as_micros()).unwrap_or(i64::MAX)),
        Requirement::Active { .. } | Requirement::Unchanged { .. } => None,
    };
    query
        .bind(fence.iter().map(|fence| fence.key_version.key_id.0).bind_iter())
        .bind(fence.iter().map(|fence| &*fence.key_version.key).bind_iter())
        .bind(fence.iter().map(|fence| &*fence.key_version.version).bind_iter())
        .bind(fence.iter().map(epoch).bind_iter())
        .bind(fence.iter().map(revision).bind_iter())
        .bind(fence.iter().map(within).bind_iter())
}

#[async_trait]
impl KeyringStore for Postgres {
    async fn watched(&self) -> Result<Snapshot<Watched>, ReadError> {
        self.seen(sqlx::query(WATCHED), 20, row::watched).await
    }
}

impl Postgres {
    /// Returns the proofs of one tenant's key versions, except retired ones.
    pub(super) async fn proofs_of(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        self.seen(sqlx::query(BY_TENANT).bind(tenant.0), 13, row::proof).await
    }

    /// Returns decoded rows together with the database's time, which column `at` holds.
    async fn seen<T>(
        &self,
        query: PgQuery,
        at: usize,
        decode: impl Fn(&PgRow) -> Result<T, Error>,
    ) -> Result<Snapshot<T>, ReadError> {
        let rows = self.all(query, |row| Ok((decode(row)?, required(row.timestamp(at)?)?))).await?;
        let now = match rows.first() {
            Some((_, now)) => *now,
            None => self
                .first(sqlx::query(NOW), |row| required(row.timestamp(0)?))
                .await?
                .ok_or(ReadError::Malformed)?,
        };
        Ok(Snapshot { now, rows: rows.into_iter().map(|(row, _)| row).collect() })
    }
}
