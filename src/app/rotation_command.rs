//! Pauses, resumes and cancels a rotation. The change of its state and the entry that names the
//! caller are one commit. That commit ends the lease of the replica that works on the rotation,
//! which then stops.

use std::sync::Arc;

use crate::model::{ErrorCode, Job, JobCommand, JobId, JobState, Operation, Outcome, Refusal};
use crate::store::Change;
use crate::tenancy::Caller;

use super::App;
use super::record::read_refusal;

impl App {
    /// Pauses, resumes or cancels a rotation of the caller's tenant, and returns the job in its new
    /// state. If the job is in that state already, only the log changes.
    ///
    /// # Errors
    /// The call is not permitted, there is no such rotation, the rotation has ended
    /// (`ROTATION_STATE_CONFLICT`), or the database is out of reach.
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
        self.may_append(caller)?;
        let detail: Arc<str> = format!("{} {id}", command.as_str()).into();
        let entry = |outcome, voids| {
            let detail = Some(detail.clone());
            self.packed(caller, operation, outcome, detail, Vec::new(), voids).1
        };
        let commanded = entry(Outcome::Ok, None);
        let entry_id = commanded.id;
        let change = Change::CommandJob { job: id, command, at: self.clock.now() };
        let gate = caller.runtime.gate();
        let applied = self.commit_entry(caller, commanded, vec![change], gate).await?;
        let job = self.job(caller, id).await?.ok_or(ErrorCode::Internal)?;
        if applied.first() == Some(&1) {
            return Ok(job);
        }
        // The rotation ended between the read and the commit. Void the entry, which says otherwise.
        let refusal = not_possible(command, job.state);
        let voiding = entry(Outcome::Refused(refusal.code), Some(entry_id));
        self.commit_entry(caller, voiding, Vec::new(), None).await?;
        Err(refusal)
    }

    async fn job(&self, caller: &Caller, id: JobId) -> Result<Option<Job>, Refusal> {
        let found = self.store.job(caller.tenant().uid, id).await.map_err(read_refusal)?;
        Ok(found.map(|(job, _)| job))
    }
}

/// Returns the refusal for a caller who commands a rotation that has ended.
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
