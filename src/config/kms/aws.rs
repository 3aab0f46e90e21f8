//! aws-kms.

use crate::config::Reader;

/// How to reach it.
pub struct AwsSettings {}

impl AwsSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.mistake("BYOK_PROVIDER", "is `aws-kms`, which this version does not serve yet");
        None
    }
}
