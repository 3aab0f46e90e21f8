//! azure-key-vault.

use crate::config::Reader;

/// How to reach it.
pub struct AzureSettings {}

impl AzureSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.mistake("BYOK_PROVIDER", "is `azure-key-vault`, which this version does not serve yet");
        None
    }
}
