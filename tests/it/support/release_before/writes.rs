//! Writes of the release before.

use std::time::Duration;

use byok::model::{Canary, DekId, Incident, Job, JobId, Proof, Tenant, TenantUid, Wrapped};
use byok::store::{DekRow, EntryRow, Fence, LogHead, Requirement};
use uuid::Uuid;

use super::statements::{ADVANCE, APPEND, CREATE, INCIDENT, LEASE, PROVE, REWRAP, START, WATCH};
use super::{PgQuery, ReleaseBefore, signed, timestamptz};

/// Every method but [`Self::rewrap`] returns how many rows it touched.
impl ReleaseBefore {
    pub(crate) async fn create(&mut self, tenant: &Tenant) -> i64 {
        self.touched(sqlx::query(CREATE).bind(tenant.uid.0).bind(tenant.name.clone())).await
    }

    /// Stores the DEK as wrapped under another version. Returns whether the row was still the one
    /// that was read.
    pub(crate) async fn rewrap(&mut self, tenant: TenantUid, dek: &DekRow, to: &Wrapped) -> bool {
        let from = &dek.wrapped;
        let query = sqlx::query(REWRAP)
            .bind(tenant.0)
            .bind(vec![dek.id.0])
            .bind(vec![from.bytes.clone()])
            .bind(vec![from.key_version.key.to_string()])
            .bind(vec![from.key_version.version.to_string()])
            .bind(vec![from.scheme])
            .bind(vec![to.bytes.clone()])
            .bind(vec![to.key_version.key.to_string()])
            .bind(vec![to.key_version.version.to_string()])
            .bind(vec![to.scheme])
            .bind(vec![None::<Vec<u8>>]);
        query.fetch_optional(&mut self.connection).await.expect("it is wrapped").is_some()
    }

    pub(crate) async fn watch(&mut self, tenant: TenantUid, proof: &Proof, canary: &Canary) -> i64 {
        let query = bind_proof(sqlx::query(WATCH), tenant, proof)
            .bind(canary.dek_id.0)
            .bind(canary.wrapped.bytes.clone())
            .bind(canary.wrapped.scheme)
            .bind(canary.made_for_probes);
        self.touched(query).await
    }

    pub(crate) async fn prove(
        &mut self,
        tenant: TenantUid,
        from: u64,
        to: &Proof,
        incident: Option<&Incident>,
    ) -> i64 {
        let query = bind_proof(sqlx::query(PROVE), tenant, to)
            .bind(signed(from))
            .bind(incident.map(|incident| incident.id.0))
            .bind(incident.map(|incident| timestamptz(incident.at)))
            .bind(incident.map(|incident| incident.was.as_str()))
            .bind(incident.and_then(|incident| incident.class.as_deref().map(str::to_owned)))
            .bind(incident.and_then(|incident| incident.http_status).map(i32::from))
            .bind(incident.and_then(|incident| incident.kms_request_id.as_deref().map(str::to_owned)))
            .bind(incident.map(|incident| incident.posture.as_str()));
        self.touched(query).await
    }

    pub(crate) async fn record(&mut self, tenant: TenantUid, incident: &Incident) -> i64 {
        let query = sqlx::query(INCIDENT)
            .bind(tenant.0)
            .bind(incident.id.0)
            .bind(timestamptz(incident.at))
            .bind(incident.key_version.key.to_string())
            .bind(incident.key_version.version.to_string())
            .bind(incident.was.as_str())
            .bind(incident.posture.as_str())
            .bind(incident.class.as_deref().map(str::to_owned))
            .bind(incident.http_status.map(i32::from))
            .bind(incident.kms_request_id.as_deref().map(str::to_owned));
        self.touched(query).await
    }

    pub(crate) async fn start(&mut self, tenant: TenantUid, job: &Job) -> i64 {
        self.touched(bind_job(sqlx::query(START).bind(tenant.0), job)).await
    }

    pub(crate) async fn lease(&mut self, tenant: TenantUid, job: JobId, holder: Uuid) -> i64 {
        let lease = i64::try_from(Duration::from_secs(60).as_micros()).expect("it fits");
        self.touched(sqlx::query(LEASE).bind(tenant.0).bind(job.0).bind(holder).bind(lease)).await
    }

    pub(crate) async fn advance(
        &mut self,
        tenant: TenantUid,
        job: &Job,
        holder: Uuid,
        after: Option<DekId>,
    ) -> i64 {
        let query = bind_job(sqlx::query(ADVANCE).bind(tenant.0), job);
        self.touched(query.bind(after.map(|after| after.0)).bind(holder)).await
    }
}

pub(super) fn append(
    tenant: TenantUid,
    head: &LogHead,
    entries: &[EntryRow],
    deks: &[DekRow],
    fence: &[Fence],
) -> PgQuery {
    let query =
        sqlx::query(APPEND).bind(tenant.0).bind(signed(head.end())).bind(signed(entries.len() as u64));
    let query = bind_fence(bind_deks(bind_entries(query, entries), deks), fence);
    query
        .bind(head.frontier.to_bytes())
        .bind(head.extended(entries).frontier.to_bytes())
        .bind(all(entries, |entry| entry.detail.as_deref().map(str::to_owned)))
        .bind(all(entries, |entry| entry.digest.to_vec()))
        .bind(all(deks, |dek| dek.mac.map(Vec::from)))
        .bind(all(deks, |dek| dek.record_mac.map(Vec::from)))
}

fn bind_entries(query: PgQuery, entries: &[EntryRow]) -> PgQuery {
    query
        .bind(all(entries, |entry| timestamptz(entry.at)))
        .bind(all(entries, |entry| entry.id.0))
        .bind(all(entries, |entry| entry.operation.as_str()))
        .bind(all(entries, |entry| entry.outcome.as_str()))
        .bind(all(entries, |entry| entry.means.as_str()))
        .bind(all(entries, |entry| entry.role.to_string()))
        .bind(all(entries, |entry| entry.user.as_ref().and_then(|user| user.value.clone())))
        .bind(all(entries, |entry| entry.user.as_ref().and_then(|user| user.salt.map(Vec::from))))
        .bind(all(entries, |entry| entry.user.as_ref().map(|user| user.hmac.to_vec())))
        .bind(all(entries, |entry| entry.request.value.clone()))
        .bind(all(entries, |entry| entry.request.salt.map(Vec::from)))
        .bind(all(entries, |entry| entry.request.hmac.to_vec()))
        .bind(all(entries, |entry| i32::try_from(entry.item_count).expect("it fits")))
        .bind(all(entries, |entry| entry.records.clone()))
        .bind(all(entries, |entry| entry.items.clone()))
}

fn bind_deks(query: PgQuery, deks: &[DekRow]) -> PgQuery {
    query
        .bind(all(deks, |dek| dek.id.0))
        .bind(all(deks, |dek| dek.record_id.as_deref().map(str::to_owned)))
        .bind(all(deks, |dek| dek.wrapped.bytes.clone()))
        .bind(all(deks, |dek| dek.wrapped.key_version.key.to_string()))
        .bind(all(deks, |dek| dek.wrapped.key_version.version.to_string()))
        .bind(all(deks, |dek| dek.wrapped.scheme))
        .bind(all(deks, |dek| timestamptz(dek.created_at)))
}

fn bind_fence(query: PgQuery, fence: &[Fence]) -> PgQuery {
    // Epoch, revision, microseconds.
    let asked = |fence: &Fence| match fence.requirement {
        Requirement::Active { epoch } => (Some(epoch), None, None),
        Requirement::Proven { epoch, within } => (Some(epoch), None, u64::try_from(within.as_micros()).ok()),
        Requirement::Unchanged { revision } => (None, Some(revision), None),
    };
    query
        .bind(all(fence, |fence| fence.key_version.key.to_string()))
        .bind(all(fence, |fence| fence.key_version.version.to_string()))
        .bind(all(fence, |fence| asked(fence).0.map(signed)))
        .bind(all(fence, |fence| asked(fence).1.map(signed)))
        .bind(all(fence, |fence| asked(fence).2.map(signed)))
}

fn bind_proof(query: PgQuery, tenant: TenantUid, proof: &Proof) -> PgQuery {
    query
        .bind(tenant.0)
        .bind(proof.key_version.key.to_string())
        .bind(proof.key_version.version.to_string())
        .bind(proof.posture.as_str())
        .bind(signed(proof.epoch))
        .bind(signed(proof.revision))
        .bind(timestamptz(proof.proven_at))
        .bind(timestamptz(proof.since))
        .bind(proof.steady_since.map(timestamptz))
        .bind(i32::try_from(proof.failures).expect("it fits"))
        .bind(i32::try_from(proof.falls).expect("it fits"))
        .bind(proof.doubted_by)
        .bind(timestamptz(proof.next_probe_at))
}

fn bind_job(query: PgQuery, job: &Job) -> PgQuery {
    query
        .bind(job.id.0)
        .bind(job.state.as_str())
        .bind(job.target.key.to_string())
        .bind(job.target.version.to_string())
        .bind(signed(job.progress.total))
        .bind(signed(job.progress.rewrapped))
        .bind(signed(job.progress.skipped))
        .bind(signed(job.progress.failed))
        .bind(signed(job.progress.kms_calls))
        .bind(job.stalled.map(|code| code.as_str()))
        .bind(timestamptz(job.started_at))
        .bind(timestamptz(job.updated_at))
        .bind(job.finished_at.map(timestamptz))
}

fn all<R, T>(rows: &[R], column: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(column).collect()
}
