//! Whether a caller may ever do something: what a front asks before it reads or copies what the call is given.

use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::App;

impl App {
    /// Whether the caller's role may do this with any context.
    pub fn may_ever(&self, caller: &Caller, operation: Operation) -> bool {
        self.policy().may_ever(&caller.identity, operation)
    }

    /// Lets in who may ever do this; a refusal is recorded.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, or why that could not be recorded.
    pub async fn permit(&self, caller: &Caller, operation: Operation) -> Result<(), Refusal> {
        match self.may_ever(caller, operation) {
            true => Ok(()),
            false => Err(self.refuse(caller, operation, ErrorCode::PermissionDenied.into()).await),
        }
    }
}
