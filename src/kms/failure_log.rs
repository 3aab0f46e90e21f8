//! The log line for an error of the KMS. It has the error's class, HTTP status and request id, and
//! never its text.

use super::{Distrust, KmsError, KmsErrorClass};
use crate::model::RequestId;

/// Logs a failure of the KMS, with the id of the request that it affected, if there was one.
pub fn log_failure(error: &KmsError, request_id: Option<&RequestId>) {
    // The budget logs this itself, once a minute.
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
