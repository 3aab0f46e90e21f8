//! Placeholder.

use crate::config::{AzureSettings, Mistake};
use crate::kms::LocalKey;

/// Placeholder.
pub struct AzureKeyVault;

impl AzureKeyVault {
    /// Placeholder.
    pub fn new(_: AzureSettings) -> Result<LocalKey, Mistake> {
        Err(Mistake { variable: "BYOK_PROVIDER".to_owned(), problem: "is not served yet".to_owned() })
    }
}
