//! The rotation job. It pages through a tenant's DEKs, re-wraps them in batches with the KMS's own
//! operation, and updates a row only if the row still holds what was read. Its cursor is in the
//! database, so any replica can continue after a kill. A half-done rotation is a valid state, and a
//! repeated run changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::audit::{Unit, pack, recorded_id};
use crate::crypto::sha256;
use crate::keyring::{Footing, KeyringError};
use crate::kms::{DekBinding, ItemResult, KmsError, KmsErrorClass, Purpose, Verdict, log_failure};
use crate::model::{
    DekId, Entry, EntryId, ErrorCode, Extensions, Item, Job, JobId, JobState, KeyVersion, Means, Operation,
    Outcome, Posture, Source, Tenant, Wrapped,
};
use crate::store::{Change, DekRow, Fence};

use super::Jobs;

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

/// What a batch commits besides the job's progress.
#[derive(Default)]
struct BatchChanges {
    items: Vec<Item>,
    changes: Vec<Change>,
    fence: Vec<Fence>,
}

impl Jobs {
    /// Works on every running job that no other replica holds, each as far as it gets, or until
    /// `stop` is cancelled.
    pub(super) async fn work_on_rotations(&self, holder: Uuid, stop: &CancellationToken) {
        if self.checkpoints.is_behind() {
            return;
        }
        let jobs = match self.store.running_jobs().await {
            Ok(jobs) => jobs,
            Err(_) => return,
        };
        for (tenant, id) in jobs {
            while !stop.is_cancelled() {
                match self.rotate_batch(&tenant, id, holder).await {
                    Step::Advanced => {}
                    // The worker comes back later; meanwhile another tenant's job gets its turn.
                    Step::Finished | Step::Lost | Step::Stalled => break,
                }
            }
        }
    }

    async fn rotate_batch(&self, tenant: &Tenant, id: JobId, holder: Uuid) -> Step {
        let lease = Change::LeaseJob { job: id, holder, lease: LEASE };
        match self
            .committer
            .commit(Unit { tenant: tenant.uid, entry: None, changes: vec![lease], fence: Vec::new() })
            .await
        {
            Ok(durable) if durable.applied.first() == Some(&1) => {}
            Ok(_) => return Step::Lost,
            Err(_) => return Step::Stalled,
        }
        let Ok(Some((mut job, after))) = self.store.job(tenant.uid, id).await else { return Step::Stalled };
        match job.state {
            JobState::Running => {}
            // It was paused after the lease was taken.
            JobState::Paused => return Step::Lost,
            JobState::Done | JobState::Cancelled => return Step::Finished,
        }
        // A stalled job may be waiting for a version that the customer has replaced since.
        if job.stalled.is_some_and(|code| code != ErrorCode::RateLimited)
            && let Ok(current) = self.kms.current_version().await
            && current != job.target
        {
            job.target = current;
            return self.start_over(tenant, job, holder).await;
        }
        let limit = u32::try_from(self.kms.profile().batch_limit).unwrap_or(u32::MAX);
        let Ok(rows) = self.store.deks_after(tenant.uid, after, limit).await else { return Step::Stalled };
        job.updated_at = self.clock.now();
        let Some(last) = rows.last().map(|row| row.id) else {
            // Ids sort by time, so a DEK that was made on a replica whose clock is behind may sort
            // before the cursor.
            match self.deks_under_other_versions(tenant, &job.target).await {
                // Or the KMS's rotation is not in effect everywhere yet, and the re-wrap changed
                // nothing. Either way, wait before starting over.
                Some(left) if left > job.progress.failed => {
                    return match self.start_over(tenant, job, holder).await {
                        Step::Lost => Step::Lost,
                        Step::Advanced | Step::Finished | Step::Stalled => Step::Stalled,
                    };
                }
                Some(_) => {}
                None => return Step::Stalled,
            }
            job.state = JobState::Done;
            job.stalled = None;
            job.finished_at = Some(job.updated_at);
            info!(rotation = %id, rewrapped = job.progress.rewrapped, failed = job.progress.failed, "rotation done");
            return self.advance(tenant, job, holder, after, BatchChanges::default()).await;
        };

        let (old, current): (Vec<DekRow>, Vec<DekRow>) =
            rows.into_iter().partition(|row| row.wrapped.key_version != job.target);
        if !self.keyring.can_reseal(&old) {
            return self.stall(tenant, job, holder, after, ErrorCode::RowMacKeyRequired).await;
        }
        let (footing, answers) = match self.rewrap(tenant, &old, &job.target).await {
            Ok(rewrapped) => rewrapped,
            Err(code) => return self.stall(tenant, job, holder, after, code).await,
        };
        let unasked = |error: &KmsError| error.class.verdict() == Verdict::Unasked;
        let asked = answers.iter().filter(|answer| !answer.as_ref().is_err_and(unasked)).count();
        job.progress.kms_calls += self.kms.profile().rewrap_cost.calls(asked as u64);
        // What our own budget left out is for the next batch: the cursor stays before the first
        // such row.
        let left = old
            .iter()
            .zip(&answers)
            .find(|(_, answer)| answer.as_ref().is_err_and(unasked))
            .map(|(row, _)| row.id);
        let cursor = match left {
            None => Some(last),
            Some(left) => {
                old.iter().chain(&current).map(|row| row.id).filter(|id| *id < left).max().or(after)
            }
        };
        // If nothing was re-wrapped, the key failed, not a single DEK. Keep the cursor, and record
        // why nothing moves.
        let whole = answers.iter().any(Result::is_ok);
        let mut failed = answers.iter().filter_map(|answer| answer.as_ref().err());
        let stuck = failed.find(|error| match error.class.verdict() {
            Verdict::Item => false,
            Verdict::Unasked => !whole && cursor == after,
            Verdict::Revoked | Verdict::Outage | Verdict::Misconfigured => !whole,
        });
        if let Some(error) = stuck {
            log_failure(error, None);
            let code = error.class.code();
            return self.stall(tenant, job, holder, after, code).await;
        }
        // If the key was disabled meanwhile, discard what it returned.
        let Ok(fence) = self.keyring.fence(tenant, &footing).await else { return Step::Stalled };
        job.stalled = None;
        job.progress.skipped += current.iter().filter(|row| Some(row.id) <= cursor).count() as u64;
        let mut items = Vec::with_capacity(old.len());
        let mut changes = Vec::with_capacity(old.len() + 1);
        let mut rewrapped = Vec::with_capacity(old.len());
        let mut elsewhere = None;
        for (row, answer) in old.into_iter().zip(answers) {
            // This row comes again in the next batch. Rows after the cursor that were re-wrapped
            // are kept, and skipped then.
            if answer.is_err() && left.is_some_and(|left| row.id >= left) {
                continue;
            }
            let record_id = row.record_id.as_ref().map(|record_id| Arc::from(recorded_id(record_id)));
            let mut item = Item { record_id, dek_id: Some(row.id), ..Item::default() };
            match answer {
                Ok(answer) => {
                    item.key_version = Some(answer.value.key_version.clone());
                    item.wrapped_hash = Some(sha256(&answer.value.bytes));
                    item.source = Some(Source::Kms);
                    item.kms_request_id = answer.request_id;
                    let (from, to) = (&row.wrapped.key_version, &answer.value.key_version);
                    if from != to {
                        rewrapped.push(row.id);
                    }
                    if *to != job.target {
                        elsewhere = Some(to.clone());
                    }
                    let mac = self.keyring.reseal(tenant.uid, &row, &answer.value);
                    let (from, to) = (row.wrapped, answer.value);
                    changes.push(Change::Rewrap { dek_id: row.id, from, to, mac });
                }
                Err(error) => {
                    warn!(dek_id = %row.id, class = ?error.class, "a DEK could not be re-wrapped");
                    item.key_version = Some(row.wrapped.key_version);
                    item.kms_request_id = error.request_id;
                    item.refused = Some(error.class.code());
                    job.progress.failed += 1;
                }
            }
            items.push(item);
        }
        job.progress.rewrapped += rewrapped.len() as u64;
        // AWS always wraps under the current version. If the key was rotated meanwhile, the job
        // takes the new version as its target. Otherwise it would loop forever, trying to reach a
        // version that nothing is wrapped under any more. A late answer under an older version does
        // not change the target.
        if let Some(went) = elsewhere
            && self.kms.current_version().await.is_ok_and(|current| current == went)
        {
            job.target = went;
        }
        let step = self.advance(tenant, job, holder, cursor, BatchChanges { items, changes, fence }).await;
        self.keyring.forget(tenant.uid, rewrapped);
        match step {
            // Trying again at once is pointless.
            Step::Advanced if left.is_some() => Step::Stalled,
            step => step,
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
        let unit = Unit { tenant: tenant.uid, entry: None, changes: vec![retire], fence: Vec::new() };
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
        tenant: &Tenant,
        rows: &[DekRow],
        target: &KeyVersion,
    ) -> Result<(Footing, Vec<ItemResult<Wrapped>>), ErrorCode> {
        let (footing, may) = self.keyring.footing(tenant, rows).await;
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
                Err(KeyringError::Dark(Posture::Revoked)) => {
                    Some(KmsError::local(KmsErrorClass::AccessDenied))
                }
                Err(KeyringError::Dark(Posture::Active | Posture::Degraded)) => {
                    Some(KmsError::local(KmsErrorClass::Unreachable))
                }
                Err(KeyringError::Altered) => Some(KmsError::local(KmsErrorClass::InvalidWrappedDek)),
                Err(KeyringError::Unbound) => return Err(ErrorCode::RowMacKeyRequired),
                Err(KeyringError::Store(_) | KeyringError::Missing | KeyringError::Unsealed) => {
                    return Err(ErrorCode::Unavailable);
                }
            });
        }
        let mut answers = Vec::new();
        if !asked.is_empty() {
            answers = self.kms.rewrap(&asked, target).await;
        }
        let mut answers = answers.into_iter();
        let missing = || KmsError::local(KmsErrorClass::Internal);
        let answer = |refused: Option<KmsError>| match refused {
            Some(error) => Err(error),
            None => answers.next().unwrap_or_else(|| Err(missing())),
        };
        Ok((footing, refused.into_iter().map(answer).collect()))
    }

    /// Goes through all DEKs again. Those that have the target version already are skipped.
    async fn start_over(&self, tenant: &Tenant, mut job: Job, holder: Uuid) -> Step {
        let Ok(left) = self.store.deks_not_under(tenant.uid, &job.target).await else { return Step::Stalled };
        job.progress.total = job.progress.rewrapped + left;
        job.progress.failed = 0;
        job.stalled = None;
        self.advance(tenant, job, holder, None, BatchChanges::default()).await
    }

    /// Keeps the cursor, and records why nothing moves.
    async fn stall(
        &self,
        tenant: &Tenant,
        mut job: Job,
        holder: Uuid,
        after: Option<DekId>,
        code: ErrorCode,
    ) -> Step {
        job.stalled = Some(code);
        match self.advance(tenant, job, holder, after, BatchChanges::default()).await {
            Step::Lost => Step::Lost,
            Step::Advanced | Step::Finished | Step::Stalled => Step::Stalled,
        }
    }

    async fn advance(
        &self,
        tenant: &Tenant,
        job: Job,
        holder: Uuid,
        after: Option<DekId>,
        done: BatchChanges,
    ) -> Step {
        let BatchChanges { items, mut changes, fence } = done;
        let finished = job.state == JobState::Done;
        let entry = (!items.is_empty()).then(|| self.rotation_entry(job.id, items));
        changes.push(Change::AdvanceJob { job, holder, after });
        let unit = Unit {
            tenant: tenant.uid,
            entry: entry.as_ref().map(|entry| pack(tenant.uid, entry)),
            changes,
            fence,
        };
        match self.committer.commit(unit).await {
            Ok(durable) if durable.applied.last() != Some(&1) => Step::Lost,
            Ok(_) if finished => Step::Finished,
            Ok(_) => Step::Advanced,
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
