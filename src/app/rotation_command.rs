//! Pausing, resuming and cancelling a rotation. What changes its state and the entry of who did so are one commit; whoever works
//! on it loses its lease with that, and stops.

use std::sync::Arc;

use crate::model::{Caller, ErrorCode, Job, JobCommand, JobId, JobState, Operation, Outcome, Refusal};
use crate::store::Change;

use super::App;
use super::record::{commit_refusal, read_refusal};

impl App {
    /// Has a rotation of the caller's tenant paused, resumed or cancelled, and says where it stands then. Where it stands there
    /// already, this changes nothing but the log.
    ///
    /// # Errors
    /// Not permitted, no such rotation, one that has ended (`ROTATION_STATE_CONFLICT`), or the database out of reach.
    pub async fn command_rotation(
        &self,
        caller: &Caller,
        id: JobId,
        command: JobCommand,
    ) -> Result<Job, Refusal> {
        let operation = Operation::Rotate;
        self.enter(caller, operation).await?;
        let Some(job) = self.job(caller, id).await? else {
            return Err(self.refuse(caller, operation, ErrorCode::RotationNotFound.into()).await);
        };
        if !command.is_taken_by(job.state) {
            return Err(self.refuse(caller, operation, not_possible(command, job.state)).await);
        }
        self.may_append()?;
        let detail: Arc<str> = format!("{} {id}", command.as_str()).into();
        let entry = |outcome, voids| {
            let detail = Some(detail.clone());
            self.packed(caller, operation, outcome, detail, Vec::new(), voids).1
        };
        let commanded = entry(Outcome::Ok, None);
        let entry_id = commanded.id;
        let change = Change::CommandJob { job: id, command, at: self.clock.now() };
        let durable =
            self.commit(caller, commanded, vec![change], Vec::new()).await.map_err(commit_refusal)?;
        let job = self.job(caller, id).await?.ok_or(ErrorCode::Internal)?;
        if durable.applied.first() == Some(&1) {
            return Ok(job);
        }
        // It ended in the moment between: the entry that says otherwise is voided.
        let refusal = not_possible(command, job.state);
        let voiding = entry(Outcome::Refused(refusal.code), Some(entry_id));
        self.commit(caller, voiding, Vec::new(), Vec::new()).await.map_err(commit_refusal)?;
        Err(refusal)
    }

    async fn job(&self, caller: &Caller, id: JobId) -> Result<Option<Job>, Refusal> {
        let found = self.store.job(caller.tenant.uid, id).await.map_err(read_refusal)?;
        Ok(found.map(|(job, _)| job))
    }
}

/// What a caller sees who commands a rotation that has ended.
fn not_possible(command: JobCommand, state: JobState) -> Refusal {
    let asked = match command {
        JobCommand::Pause => "paused",
        JobCommand::Resume => "resumed",
        JobCommand::Cancel => "cancelled",
    };
    let state = state.as_str();
    let said = format!("The rotation is {state}: it cannot be {asked} any more. Start another one.");
    Refusal::because(ErrorCode::RotationStateConflict, said)
}
