//! The rotation job. It pages through a tenant's DEKs, re-wraps them in batches with the KMS's own
//! operation, and updates a row only if the row still holds what was read. Its cursor is in the
//! database, so any replica can continue after a kill. A half-done rotation is a valid state, and a
//! repeated run changes nothing.

mod batch;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::audit::{CommitFailed, Unit, pack};
use crate::keyring::{KeyringError, KeysUsed};
use crate::kms::{DekBinding, ItemResult, KmsError, KmsErrorClass, Purpose, log_failure};
use crate::model::{
    DekId, Entry, EntryId, ErrorCode, Extensions, Item, Job, JobId, JobState, KeyVersion, Means, Operation,
    Outcome, Posture, Tenant, Wrapped,
};
use crate::store::{Change, DekRow, Fence};
use crate::tenancy::{TenantRuntime, Turn, Turns};

use super::Jobs;
use batch::Batch;

/// How long a replica that has died keeps a job from the others.
const LEASE: Duration = Duration::from_secs(30);

/// The result of one batch.
enum Step {
    Advanced,
    Finished,
    /// The KMS or the database is out of reach, or the budget of KMS calls is spent. The cursor is
    /// kept.
    Stalled,
    /// Another replica works on the job, or it was paused or cancelled.
    Lost,
}

/// A job that this replica holds.
struct Leased<'t> {
    tenant: &'t Tenant,
    runtime: Arc<TenantRuntime>,
    holder: Uuid,
    job: Job,
    /// The last DEK that was processed.
    cursor: Option<DekId>,
}

/// What a batch commits besides the job's progress.
#[derive(Default)]
struct BatchChanges {
    items: Vec<Item>,
    changes: Vec<Change>,
    fence: Vec<Fence>,
}

impl Jobs {
    /// Works on every running job that no other replica holds, each in a task of its own, so that
    /// neither a long job nor a KMS that hangs delays another tenant's. `holder` names this
    /// replica.
    pub(super) async fn work_on_rotations(
        self: &Arc<Self>,
        turns: &mut Turns<JobId>,
        holder: Uuid,
        stop: &CancellationToken,
    ) {
        let Ok(running) = self.store.running_jobs().await else { return };
        turns.start(running.into_iter().map(|(tenant, id)| {
            let (jobs, stop) = (self.clone(), stop.clone());
            (id, move |turn| async move { jobs.rotate(&tenant, id, holder, &turn, &stop).await })
        }));
    }

    /// Works on a job as far as it gets, or until its turn is over, or `stop` is cancelled.
    async fn rotate(&self, tenant: &Tenant, id: JobId, holder: Uuid, turn: &Turn, stop: &CancellationToken) {
        while !stop.is_cancelled() && !turn.is_over() && !self.checkpoints.is_behind(tenant.uid) {
            match self.rotate_batch(tenant, id, holder).await.unwrap_or_else(|ended| ended) {
                Step::Advanced => {}
                // The worker comes back later.
                Step::Finished | Step::Lost | Step::Stalled => return,
            }
        }
    }

    /// Re-wraps the next DEKs of a job, and commits them together with its cursor. The error is the
    /// result of a batch that ended early.
    async fn rotate_batch(&self, tenant: &Tenant, id: JobId, holder: Uuid) -> Result<Step, Step> {
        let mut leased = self.lease(tenant, id, holder).await?;
        if let Some(current) = Self::replacement_of_target(&leased).await {
            leased.job.target = current;
            return Ok(self.start_over(leased).await);
        }
        let rows = self.next_rows(&mut leased).await?;
        if rows.is_empty() {
            return Ok(self.end_or_start_over(leased).await);
        }
        let (keys_used, batch) = self.rewrap_batch(&mut leased, rows).await?;
        // If the key was disabled meanwhile, discard what it returned.
        let fence = self.keyring.fence(tenant, &keys_used).await.map_err(|_| Step::Stalled)?;
        Ok(self.commit_batch(leased, batch, fence).await)
    }

    /// Takes or renews the lease of the job, and reads the job.
    async fn lease<'t>(&self, tenant: &'t Tenant, id: JobId, holder: Uuid) -> Result<Leased<'t>, Step> {
        // First: a replica that cannot serve the tenant must not keep the job from the others.
        let runtime = self.tenants.with(tenant.uid).await.map_err(|_| Step::Stalled)?;
        let lease = Change::LeaseJob { job: id, holder, lease: LEASE };
        let unit = Unit::unconditional(tenant.uid, None, vec![lease]);
        match self.committer.commit(unit).await {
            Ok(durable) if durable.applied.first() == Some(&1) => {}
            Ok(_) => return Err(Step::Lost),
            Err(_) => return Err(Step::Stalled),
        }
        let Ok(Some((job, cursor))) = self.store.job(tenant.uid, id).await else { return Err(Step::Stalled) };
        match job.state {
            JobState::Running => Ok(Leased { tenant, runtime, holder, job, cursor }),
            // It was paused after the lease was taken.
            JobState::Paused => Err(Step::Lost),
            JobState::Done | JobState::Cancelled => Err(Step::Finished),
        }
    }

    /// Returns the KMS's current version if it should replace the job's target: a stalled job may
    /// be waiting for a version that the customer has replaced since.
    async fn replacement_of_target(leased: &Leased<'_>) -> Option<KeyVersion> {
        let job = &leased.job;
        if job.stalled.is_none_or(|code| code == ErrorCode::RateLimited) {
            return None;
        }
        leased.runtime.keys.current_version().await.ok().filter(|current| *current != job.target)
    }

    /// Reads the rows of the next batch: as many as the KMS re-wraps at once.
    async fn next_rows(&self, leased: &mut Leased<'_>) -> Result<Vec<DekRow>, Step> {
        let limit = u32::try_from(leased.runtime.keys.profile().batch_limit).unwrap_or(u32::MAX);
        let rows = self.store.deks_after(leased.tenant.uid, leased.cursor, limit).await;
        let rows = rows.map_err(|_| Step::Stalled)?;
        leased.job.updated_at = self.clock.now();
        Ok(rows)
    }

    /// Ends the job after its last row, unless DEKs are left under other versions.
    async fn end_or_start_over(&self, mut leased: Leased<'_>) -> Step {
        // Ids sort by time, so a DEK that was made on a replica whose clock is behind may sort
        // before the cursor.
        match self.deks_under_other_versions(leased.tenant, &leased.job.target).await {
            // Or the KMS's rotation is not in effect everywhere yet, and the re-wrap changed
            // nothing. Either way, wait before starting over.
            Some(left) if left > leased.job.progress.failed => {
                return match self.start_over(leased).await {
                    Step::Lost => Step::Lost,
                    Step::Advanced | Step::Finished | Step::Stalled => Step::Stalled,
                };
            }
            Some(_) => {}
            None => return Step::Stalled,
        }
        let job = &mut leased.job;
        job.state = JobState::Done;
        job.stalled = None;
        job.finished_at = Some(job.updated_at);
        info!(rotation = %job.id, rewrapped = job.progress.rewrapped, failed = job.progress.failed, "rotation done");
        let cursor = leased.cursor;
        self.advance(leased, cursor, BatchChanges::default()).await
    }

    /// Asks the KMS to re-wrap the rows that need it. If it re-wraps none because of the key, the
    /// job stalls.
    async fn rewrap_batch(
        &self,
        leased: &mut Leased<'_>,
        rows: Vec<DekRow>,
    ) -> Result<(KeysUsed, Batch), Step> {
        let mut batch = Batch::of(rows, &leased.job.target, leased.cursor);
        if !self.keyring.can_reseal(leased.tenant.uid, &batch.old) {
            return Err(self.stall(leased, ErrorCode::RowMacKeyRequired).await);
        }
        let keys_used = match self.rewrap(leased, &batch.old).await {
            Ok((keys_used, answers)) => {
                batch.answers = answers;
                keys_used
            }
            Err(code) => return Err(self.stall(leased, code).await),
        };
        leased.job.progress.kms_calls += leased.runtime.keys.profile().rewrap_cost.calls(batch.asked());
        if let Some(error) = batch.stuck() {
            log_failure(error, None);
            return Err(self.stall(leased, error.class.code()).await);
        }
        Ok((keys_used, batch))
    }

    /// Commits the re-wrapped rows and the job's progress.
    async fn commit_batch(&self, mut leased: Leased<'_>, batch: Batch, fence: Vec<Fence>) -> Step {
        let (cursor, is_cut_short) = (batch.cursor(), batch.first_unasked().is_some());
        let tenant = leased.tenant.uid;
        leased.job.progress.skipped += batch.skipped();
        let reseal = |row: &DekRow, to: &Wrapped| self.keyring.reseal(tenant, row, to);
        let results = batch.results(&leased.job.target, reseal);
        leased.job.stalled = None;
        leased.job.progress.failed += results.failed;
        leased.job.progress.rewrapped += results.rewrapped.len() as u64;
        Self::follow_target(&mut leased, results.elsewhere).await;
        let done = BatchChanges { items: results.items, changes: results.changes, fence };
        let step = self.advance(leased, cursor, done).await;
        self.keyring.evict(tenant, results.rewrapped);
        match step {
            // Trying again at once is pointless.
            Step::Advanced if is_cut_short => Step::Stalled,
            step => step,
        }
    }

    /// Takes the version that the KMS has wrapped under as the job's target. AWS always wraps under
    /// the current version. If the key was rotated meanwhile, the job would otherwise loop forever,
    /// trying to reach a version that nothing is wrapped under any more. A late answer under an
    /// older version does not change the target.
    async fn follow_target(leased: &mut Leased<'_>, elsewhere: Option<KeyVersion>) {
        if let Some(went) = elsewhere
            && leased.runtime.keys.current_version().await.is_ok_and(|current| current == went)
        {
            leased.job.target = went;
        }
    }

    /// Returns the number of DEKs under versions other than the target. If there are none, it ends
    /// the watch of the other versions before the rotation is reported as done, because the
    /// customer may disable them then. Afterwards it counts again, in case a DEK was made under one
    /// of them meanwhile. Returns `None` if the database does not answer.
    async fn deks_under_other_versions(&self, tenant: &Tenant, target: &KeyVersion) -> Option<u64> {
        let left = self.store.deks_not_under(tenant.uid, target).await.ok()?;
        if left > 0 {
            return Some(left);
        }
        let retire = Change::Retire { all_but: target.clone() };
        let unit = Unit::unconditional(tenant.uid, None, vec![retire]);
        self.committer.commit(unit).await.ok()?;
        self.store.deks_not_under(tenant.uid, target).await.ok()
    }

    /// Re-wraps the rows whose key version may be used. Returns one answer for each row; for a row
    /// whose key version may not be used, the answer is the reason.
    ///
    /// # Errors
    /// The reason why no row can be re-wrapped now: the database is out of reach, or a row has to
    /// be sealed first.
    async fn rewrap(
        &self,
        leased: &Leased<'_>,
        rows: &[DekRow],
    ) -> Result<(KeysUsed, Vec<ItemResult<Wrapped>>), ErrorCode> {
        let tenant = leased.tenant;
        let (keys_used, may) = self.keyring.keys_used_by_rewrap(tenant, rows).await;
        let mut asked: Vec<(DekBinding, Wrapped)> = Vec::with_capacity(rows.len());
        let mut refused = Vec::with_capacity(rows.len());
        for (row, may) in rows.iter().zip(may) {
            refused.push(match may {
                Ok(()) => {
                    let binding = DekBinding { tenant: tenant.uid, dek_id: row.id, purpose: Purpose::Record };
                    asked.push((binding, row.wrapped.clone()));
                    None
                }
                Err(KeyringError::Kms(error)) => Some(error),
                Err(KeyringError::KeyUnusable(Posture::Revoked)) => {
                    Some(KmsError::local(KmsErrorClass::AccessDenied))
                }
                Err(KeyringError::KeyUnusable(Posture::Active | Posture::Degraded)) => {
                    Some(KmsError::local(KmsErrorClass::Unreachable))
                }
                Err(KeyringError::Altered) => Some(KmsError::local(KmsErrorClass::InvalidWrappedDek)),
                Err(KeyringError::RowMacKeyMissing) => return Err(ErrorCode::RowMacKeyRequired),
                Err(
                    KeyringError::Store(_)
                    | KeyringError::NotServed(_)
                    | KeyringError::Missing
                    | KeyringError::Unsealed,
                ) => {
                    return Err(ErrorCode::Unavailable);
                }
            });
        }
        let mut answers = Vec::new();
        if !asked.is_empty() {
            answers = leased.runtime.keys.rewrap(&asked, &leased.job.target).await;
        }
        let mut answers = answers.into_iter();
        let missing = || KmsError::local(KmsErrorClass::Internal);
        let answer = |refused: Option<KmsError>| match refused {
            Some(error) => Err(error),
            None => answers.next().unwrap_or_else(|| Err(missing())),
        };
        Ok((keys_used, refused.into_iter().map(answer).collect()))
    }

    /// Goes through all DEKs again. Those that have the target version already are skipped.
    async fn start_over(&self, mut leased: Leased<'_>) -> Step {
        let job = &mut leased.job;
        let Ok(left) = self.store.deks_not_under(leased.tenant.uid, &job.target).await else {
            return Step::Stalled;
        };
        job.progress.total = job.progress.rewrapped + left;
        job.progress.failed = 0;
        job.stalled = None;
        self.advance(leased, None, BatchChanges::default()).await
    }

    /// Keeps the cursor, and records why nothing moves.
    async fn stall(&self, leased: &Leased<'_>, code: ErrorCode) -> Step {
        let (runtime, cursor) = (leased.runtime.clone(), leased.cursor);
        let job = Job { stalled: Some(code), ..leased.job.clone() };
        let stalled = Leased { runtime, job, ..*leased };
        match self.advance(stalled, cursor, BatchChanges::default()).await {
            Step::Lost => Step::Lost,
            Step::Advanced | Step::Finished | Step::Stalled => Step::Stalled,
        }
    }

    /// Commits the job's progress, with the cursor at this DEK.
    async fn advance(&self, leased: Leased<'_>, cursor: Option<DekId>, done: BatchChanges) -> Step {
        let Leased { tenant, runtime, holder, job, .. } = leased;
        let BatchChanges { items, mut changes, fence } = done;
        let finished = job.state == JobState::Done;
        let entry = (!items.is_empty()).then(|| self.rotation_entry(job.id, items));
        changes.push(Change::AdvanceJob { job, holder, after: cursor });
        let unit = Unit {
            tenant: tenant.uid,
            entry: entry.as_ref().map(|entry| pack(tenant.uid, entry)),
            changes,
            gate: runtime.gate(),
            fence,
        };
        match self.committer.commit(unit).await {
            Ok(durable) if durable.applied.last() != Some(&1) => Step::Lost,
            Ok(_) if finished => Step::Finished,
            Ok(_) => Step::Advanced,
            Err(CommitFailed::Gated) => {
                // The worker comes back with what the tenant is served with then.
                let _ = self.tenants.refreshed(tenant.uid).await;
                Step::Stalled
            }
            Err(_) => Step::Stalled,
        }
    }

    /// Builds the entry of a batch. Its request id is the id of the job; the call that started the
    /// job has an entry with its own request id.
    fn rotation_entry(&self, job: JobId, items: Vec<Item>) -> Entry {
        Entry {
            id: EntryId::new(),
            at: self.clock.now(),
            operation: Operation::Rotate,
            outcome: Outcome::of_items(&items),
            role: Arc::from("rotation"),
            user: None,
            means: Means::Operator,
            request_id: Some(job.to_string()),
            detail: None,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items,
        }
    }
}
