//! Policies for a key in AWS KMS.

use crate::config::Reader;

/// For `aws iam` and `aws kms`.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let _ = reader;
    String::new()
}
