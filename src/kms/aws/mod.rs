//! Placeholder.

use crate::config::{AwsSettings, Mistake};
use crate::kms::LocalKey;

/// Placeholder.
pub struct AwsKms;

impl AwsKms {
    /// Placeholder.
    pub fn new(_: AwsSettings) -> Result<LocalKey, Mistake> {
        Err(Mistake { variable: "BYOK_PROVIDER".to_owned(), problem: "is not served yet".to_owned() })
    }
}
