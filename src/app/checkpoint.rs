//! Makes checkpoints of the log on request, and enforces the rule that nothing is appended to a log
//! that is behind a published checkpoint.

use crate::jobs::{CheckpointError, Checkpoints, CurrentCheckpoint};
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::App;
use super::record::read_refusal;

impl App {
    /// Returns a checkpoint of the log of the caller's tenant as it is now. This is a read of
    /// state, so it leaves one entry an hour. The entry is written before the checkpoint is made,
    /// so that the checkpoint covers it.
    ///
    /// # Errors
    /// The call is not permitted, there is no key to sign with, the log is behind a published
    /// checkpoint, or the database is out of reach.
    pub async fn checkpoint(&self, caller: &Caller) -> Result<CurrentCheckpoint, Refusal> {
        self.enter(caller, Operation::Audit).await?;
        if !self.checkpoints.signs() {
            return Err(CheckpointError::Unsigned.into());
        }
        self.record_state_read(caller, Operation::Audit).await?;
        Ok(self.checkpoints.of(caller.tenant()).current().await?)
    }

    /// Returns the checkpoints of all tenants' logs.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Checks whether entries may be appended to the log of a tenant. If not, no operation of this
    /// tenant may run.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`.
    pub(super) fn may_append(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.checkpoints.is_behind(caller.tenant().uid) {
            return Err(ErrorCode::AuditLogBehind.into());
        }
        Ok(())
    }
}

impl From<CheckpointError> for Refusal {
    fn from(none: CheckpointError) -> Self {
        match none {
            CheckpointError::Behind => ErrorCode::AuditLogBehind.into(),
            CheckpointError::Unsigned => Self::because(
                ErrorCode::NotFound,
                "This server signs no checkpoints: it has no BYOK_AUDIT_SIGNING_KEY.",
            ),
            CheckpointError::Store(error) => read_refusal(error),
        }
    }
}
