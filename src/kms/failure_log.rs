//! What the server's log may hold of a KMS that refused or failed: its class, HTTP status and
//! request id, never its text.

use super::{Distrust, KmsError, KmsErrorClass};
use crate::model::RequestId;

/// Logs a failure of the KMS, and which request met it, where it was one.
pub fn log_failure(error: &KmsError, request_id: Option<&RequestId>) {
    // Said once a minute where the budget is kept, and not for each of its items.
    if error.class == KmsErrorClass::BudgetSpent {
        return;
    }
    tracing::warn!(
        class = ?error.class,
        status = error.http_status,
        kms_request_id = error.request_id.as_deref(),
        request_id = request_id.map(RequestId::as_str),
        tls = error.distrust.map(Distrust::sentence),
        retry_in_seconds = error.retry_after.map(|wait| wait.as_secs()),
        "the KMS refused or failed"
    );
}
