//! Rotation as a caller sees it: forecasting the cost, starting a rotation, and reading its
//! progress. The work itself is in `jobs::rotation`.

use crate::kms::{KmsError, log_failure};
use crate::model::{ErrorCode, Job, JobId, JobState, KeyVersion, Operation, Outcome, Progress, Refusal};
use crate::store::Change;
use crate::tenancy::Caller;

use super::App;
use super::record::read_refusal;

/// A rotation, as a forecast or as a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// What a rotation would do now. Nothing was changed.
    Forecast {
        /// The version that DEKs would be re-wrapped under.
        target: KeyVersion,
        /// The number of DEKs that would be re-wrapped.
        deks: u64,
        /// The number of calls that the KMS would receive.
        kms_calls: u64,
    },
    /// The rotation job.
    Job(Job),
}

impl App {
    /// Starts the rotation job, or returns the one that is running. With `dry_run` it only returns
    /// what a rotation would do.
    ///
    /// # Errors
    /// The call is not permitted, a rotation is paused (`ROTATION_STATE_CONFLICT`), the KMS does
    /// not distinguish key versions (`KEY_VERSION_UNKNOWN`), or the KMS or the database is out of
    /// reach.
    pub async fn rotate(&self, caller: &Caller, dry_run: bool) -> Result<Rotation, Refusal> {
        let operation = Operation::Rotate;
        self.enter(caller, operation).await?;
        if !dry_run && let Some(paused) = self.paused_rotation(caller).await? {
            return Err(self.refuse(caller, operation, is_paused(&paused)).await);
        }
        let target = match caller.runtime.keys.current_version().await {
            Ok(target) => target,
            Err(error) => return Err(self.refuse(caller, operation, kms_refusal(&error)).await),
        };
        self.keyring.note_current_version(caller.tenant().uid, &target);
        let total = self.store.deks_not_under(caller.tenant().uid, &target).await.map_err(read_refusal)?;
        // Anything that the rotation would count or re-wrap has the same version name before and
        // after.
        if total == 0 && !caller.runtime.keys.profile().tells_apart(&target) {
            return Err(self.refuse(caller, operation, ErrorCode::KeyVersionUnknown.into()).await);
        }
        if dry_run {
            self.record(caller, operation, Outcome::Ok, Vec::new(), Vec::new()).await?;
            let kms_calls = caller.runtime.keys.profile().rewrap_cost.calls(total);
            return Ok(Rotation::Forecast { target, deks: total, kms_calls });
        }
        let now = self.clock.now();
        let job = Job {
            id: JobId::new(),
            state: JobState::Running,
            target,
            progress: Progress { total, ..Progress::default() },
            stalled: None,
            started_at: now,
            updated_at: now,
            finished_at: None,
        };
        let start = vec![Change::StartJob(job.clone())];
        let applied = self.record(caller, operation, Outcome::Ok, Vec::new(), start).await?;
        if applied.first() == Some(&1) {
            return Ok(Rotation::Job(job));
        }
        // Another rotation is running, or was until now. Return that one.
        match self.store.latest_job(caller.tenant().uid).await.map_err(read_refusal)? {
            Some(running) => Ok(Rotation::Job(running)),
            None => Err(ErrorCode::Internal.into()),
        }
    }

    async fn paused_rotation(&self, caller: &Caller) -> Result<Option<Job>, Refusal> {
        let latest = self.store.latest_job(caller.tenant().uid).await.map_err(read_refusal)?;
        Ok(latest.filter(|job| job.state == JobState::Paused))
    }

    /// Returns a rotation of the caller's tenant, or the newest one if `id` is `None`. This is a
    /// read of state, so it leaves one entry an hour.
    ///
    /// # Errors
    /// The call is not permitted, there is no such rotation, or the database is out of reach.
    pub async fn rotation(&self, caller: &Caller, id: Option<JobId>) -> Result<Job, Refusal> {
        let operation = Operation::Rotate;
        self.enter(caller, operation).await?;
        let found = match id {
            Some(id) => self.store.job(caller.tenant().uid, id).await.map(|found| found.map(|(job, _)| job)),
            None => self.store.latest_job(caller.tenant().uid).await,
        };
        let found = found.map_err(read_refusal)?.ok_or(ErrorCode::RotationNotFound)?;
        self.record_state_read(caller, operation).await?;
        Ok(found)
    }
}

/// Returns the refusal for a caller who tries to start a rotation while one is paused.
fn is_paused(job: &Job) -> Refusal {
    let said = format!("The rotation {} is paused: resume it, or cancel it and start another one.", job.id);
    Refusal::because(ErrorCode::RotationStateConflict, said)
}

fn kms_refusal(error: &KmsError) -> Refusal {
    log_failure(error, None);
    error.refusal()
}
