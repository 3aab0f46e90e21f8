//! Rotation jobs and their leases.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::{DekId, Job, JobCommand, JobId, JobState, KeyVersion, Tenant, TenantUid, Timestamp};

use super::super::row::{self, Columns, number, required, signed};
use super::super::{JobReads, ReadError};
use super::{Sqlite, SqliteQuery, statements};

statements! {
    START = "
        INSERT INTO np_byok_jobs (tenant, id, state, key_id, target_key, target_version, total, rewrapped, skipped,
            failed, kms_calls, stalled, started_at, updated_at, finished_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT DO NOTHING";

    EXISTS_WITH = "SELECT EXISTS (SELECT 1 FROM np_byok_jobs WHERE tenant = ?1 AND id = ?2)";

    LEASE = "
        UPDATE np_byok_jobs SET holder = ?3,
            lease_until = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000 + ?4
        WHERE tenant = ?1 AND id = ?2 AND state = 'RUNNING' AND (holder IS NULL OR holder = ?3
            OR lease_until IS NULL OR lease_until < CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)";

    /// Keeps the holder when the job is done, so that a retry of the last step finds it.
    ADVANCE = "
        UPDATE np_byok_jobs SET state = ?3, key_id = ?4, target_key = ?5, target_version = ?6, total = ?7,
            rewrapped = ?8, skipped = ?9, failed = ?10, kms_calls = ?11, stalled = ?12, started_at = ?13,
            updated_at = ?14, finished_at = ?15, cursor = ?16
        WHERE tenant = ?1 AND id = ?2 AND holder = ?17 AND state IN ('RUNNING', ?3)";

    /// Removes the holder: a release that knows no state except RUNNING would otherwise continue
    /// the job.
    COMMAND = "
        UPDATE np_byok_jobs SET state = ?3, holder = CASE WHEN state = ?3 THEN holder END,
            lease_until = CASE WHEN state = ?3 THEN lease_until END,
            stalled = CASE WHEN state = ?3 THEN stalled END,
            updated_at = CASE WHEN state = ?3 THEN updated_at ELSE ?4 END,
            finished_at = CASE WHEN state = ?3 OR NOT ?5 THEN finished_at ELSE ?4 END
        WHERE tenant = ?1 AND id = ?2 AND state IN ('RUNNING', 'PAUSED', ?3)";

    BY_ID = "
        SELECT id, state, key_id, target_key, target_version, total, rewrapped, skipped, failed, kms_calls, stalled,
            started_at, updated_at, finished_at, cursor
        FROM np_byok_jobs WHERE tenant = ?1 AND id = ?2";

    LATEST = "
        SELECT id, state, key_id, target_key, target_version, total, rewrapped, skipped, failed, kms_calls, stalled,
            started_at, updated_at, finished_at, cursor
        FROM np_byok_jobs WHERE tenant = ?1 ORDER BY state IN ('RUNNING', 'PAUSED') DESC, started_at DESC, id DESC LIMIT 1";

    RUNNING = "
        SELECT t.uid, t.name, j.id FROM np_byok_jobs j JOIN np_byok_tenants t ON t.uid = j.tenant
        WHERE j.state = 'RUNNING' ORDER BY j.started_at";

    NOT_UNDER = "
        SELECT count(*) FROM np_byok_wrapped_deks
        WHERE tenant = ?1 AND (key_id <> ?2 OR key_name <> ?3 OR key_version <> ?4)";
}

pub(super) fn start<'q>(tenant: &'q TenantUid, job: &'q Job) -> SqliteQuery<'q> {
    bind_job(START, tenant, job)
}

/// Builds a query for whether the job exists.
pub(super) fn exists(tenant: &TenantUid, job: JobId) -> SqliteQuery<'_> {
    sqlx::query(EXISTS_WITH).bind(tenant.0.as_slice()).bind(job.0)
}

pub(super) fn lease(tenant: &TenantUid, job: JobId, holder: Uuid, lease: Duration) -> SqliteQuery<'_> {
    let micros = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
    sqlx::query(LEASE).bind(tenant.0.as_slice()).bind(job.0).bind(holder).bind(micros)
}

pub(super) fn advance<'q>(
    tenant: &'q TenantUid,
    job: &'q Job,
    holder: Uuid,
    after: Option<DekId>,
) -> SqliteQuery<'q> {
    bind_job(ADVANCE, tenant, job).bind(after.map(|after| after.0)).bind(holder)
}

pub(super) fn command(tenant: &TenantUid, job: JobId, command: JobCommand, at: Timestamp) -> SqliteQuery<'_> {
    let state = command.leads_to();
    let query = sqlx::query(COMMAND).bind(tenant.0.as_slice()).bind(job.0).bind(state.as_str());
    query.bind(at.0).bind(state == JobState::Cancelled)
}

fn bind_job<'q>(sql: &'static str, tenant: &'q TenantUid, job: &'q Job) -> SqliteQuery<'q> {
    sqlx::query(sql)
        .bind(tenant.0.as_slice())
        .bind(job.id.0)
        .bind(job.state.as_str())
        .bind(job.target.key_id.0.as_slice())
        .bind(&*job.target.key)
        .bind(&*job.target.version)
        .bind(signed(job.progress.total))
        .bind(signed(job.progress.rewrapped))
        .bind(signed(job.progress.skipped))
        .bind(signed(job.progress.failed))
        .bind(signed(job.progress.kms_calls))
        .bind(job.stalled.map(|code| code.as_str()))
        .bind(job.started_at.0)
        .bind(job.updated_at.0)
        .bind(job.finished_at.map(|at| at.0))
}

#[async_trait]
impl JobReads for Sqlite {
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError> {
        self.first(sqlx::query(BY_ID).bind(tenant.0.as_slice()).bind(id.0), row::job).await
    }

    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError> {
        let latest = self.first(sqlx::query(LATEST).bind(tenant.0.as_slice()), row::job).await?;
        Ok(latest.map(|(job, _)| job))
    }

    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError> {
        self.all(sqlx::query(RUNNING), |row| Ok((row::tenant(row)?, JobId(required(row.uuid(2)?)?)))).await
    }

    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError> {
        let query = sqlx::query(NOT_UNDER)
            .bind(tenant.0.as_slice())
            .bind(version.key_id.0.as_slice())
            .bind(&*version.key)
            .bind(&*version.version);
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
    }
}
