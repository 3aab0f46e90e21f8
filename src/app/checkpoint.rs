//! A checkpoint of the log for who asks for one, and the rule that nothing is appended to a log that is behind what was
//! published.

use crate::jobs::{CheckpointShown, Checkpoints, NoneMade};
use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::App;
use super::record::read_refusal;

impl App {
    /// The checkpoint of the caller's tenant's log as it is now. A read of a state: it leaves an entry an hour, before the
    /// checkpoint is made, so that the log does not move past it.
    ///
    /// # Errors
    /// Not permitted, no key to sign with, a log that is behind what was published, or the database out of reach.
    pub async fn checkpoint(&self, caller: &Caller) -> Result<CheckpointShown, Refusal> {
        self.enter(caller, Operation::Audit).await?;
        if !self.checkpoints.signs() {
            return Err(NoneMade::Unsigned.into());
        }
        self.record_state_read(caller, Operation::Audit).await?;
        Ok(self.checkpoints.shown().await?)
    }

    /// The checkpoints of the tenant's log.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Whether anything may be appended, and so anything be done.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`.
    pub(super) fn may_append(&self) -> Result<(), Refusal> {
        match self.checkpoints.is_behind() {
            true => Err(ErrorCode::AuditLogBehind.into()),
            false => Ok(()),
        }
    }
}

impl From<NoneMade> for Refusal {
    fn from(none: NoneMade) -> Self {
        match none {
            NoneMade::Behind => ErrorCode::AuditLogBehind.into(),
            NoneMade::Unsigned => Self::because(
                ErrorCode::NotFound,
                "This server signs no checkpoints: it has no BYOK_AUDIT_SIGNING_KEY.",
            ),
            NoneMade::Store(error) => read_refusal(error),
        }
    }
}
