//! Checks whether a caller may ever perform an operation. A front end asks this before it reads or
//! copies the input of the call.

use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::App;

impl App {
    /// Returns whether the caller's role may perform this operation with any context at all.
    pub fn may_ever(&self, caller: &Caller, operation: Operation) -> bool {
        caller.runtime.settings.policy.may_ever(&caller.identity, operation)
    }

    /// Admits a caller who may ever perform this operation. A refusal is recorded.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, or the reason why the refusal could not be recorded.
    pub async fn permit(&self, caller: &Caller, operation: Operation) -> Result<(), Refusal> {
        if self.may_ever(caller, operation) {
            return Ok(());
        }
        Err(self.refuse(caller, operation, ErrorCode::PermissionDenied.into()).await)
    }
}
