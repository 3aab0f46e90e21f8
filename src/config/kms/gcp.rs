//! gcp-kms.

use crate::config::Reader;

/// How to reach it.
pub struct GcpSettings {}

impl GcpSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.mistake("BYOK_PROVIDER", "is `gcp-kms`, which this version does not serve yet");
        None
    }
}
