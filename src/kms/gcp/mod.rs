//! Placeholder.

use crate::config::{GcpSettings, Mistake};
use crate::kms::LocalKey;

/// Placeholder.
pub struct GcpKms;

impl GcpKms {
    /// Placeholder.
    pub fn new(_: GcpSettings) -> Result<LocalKey, Mistake> {
        Err(Mistake { variable: "BYOK_PROVIDER".to_owned(), problem: "is not served yet".to_owned() })
    }
}
