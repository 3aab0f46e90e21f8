//! What the provider's records say, whatever their format.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;

use crate::model::Timestamp;

use super::{cloudtrail, google, key_vault, vault};

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AWS CloudTrail.
    CloudTrail,
    /// A Vault or OpenBao audit device.
    Vault,
    /// Google Cloud's audit logs.
    Google,
    /// The diagnostic log of an Azure Key Vault or managed HSM.
    KeyVault,
}

impl Format {
    pub(super) const ALL: [Self; 4] = [Self::CloudTrail, Self::Vault, Self::Google, Self::KeyVault];

    /// What a report calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudTrail => "AWS CloudTrail",
            Self::Vault => "Vault audit device",
            Self::Google => "Google Cloud audit log",
            Self::KeyVault => "Azure Key Vault diagnostic log",
        }
    }

    /// Whether its records have a request id that our entries have too. Google answers with none.
    pub fn joins(self) -> bool {
        match self {
            Self::CloudTrail | Self::Vault | Self::KeyVault => true,
            Self::Google => false,
        }
    }

    /// Whether who calls chooses that id, and may choose one of ours.
    pub(super) fn caller_chooses_id(self) -> bool {
        match self {
            Self::KeyVault => true,
            Self::CloudTrail | Self::Vault | Self::Google => false,
        }
    }

    /// What one record says; `None` where it is none of this format.
    pub(super) fn read(self, record: &Value, keys: &[Arc<str>]) -> Option<Record> {
        match self {
            Self::CloudTrail => cloudtrail::read(record, keys),
            Self::Vault => vault::read(record, keys),
            Self::Google => google::read(record, keys),
            Self::KeyVault => key_vault::read(record, keys),
        }
    }
}

/// Who called, where the record does not say.
pub(super) const NOBODY: &str = "nobody known";

/// What was done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Something was wrapped, or made and wrapped.
    Wrap,
    /// Something was unwrapped.
    Unwrap,
    /// Something was wrapped anew, and nobody saw it.
    Rewrap,
    /// The key itself was given out. Nothing of ours does that.
    Export,
}

impl Use {
    /// Every use.
    pub const ALL: [Self; 4] = [Self::Wrap, Self::Unwrap, Self::Rewrap, Self::Export];

    /// What a report calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
            Self::Export => "export",
        }
    }
}

/// One record.
pub(super) struct Record {
    pub(super) at: Timestamp,
    /// `None` where it is not about a use of our keys.
    pub(super) call: Option<Call>,
}

/// One call that used a key, or was refused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// The provider's request id; empty where a record has none.
    pub(super) id: String,
    pub(super) at: Timestamp,
    pub(super) used: Use,
    /// Who called, as the provider names them.
    pub(super) principal: String,
    /// Fingerprint of the credential that the call came with, where the record has it. It tells who called where `principal`
    /// does not: of a credential that has ended the provider knows no more.
    pub(super) credential: Option<u64>,
    pub(super) refused: bool,
    /// Whether the provider's record shows that nothing that protects a record can have come of it.
    pub(super) probe: bool,
    /// Fingerprints of what was unwrapped or re-wrapped, where the record tells one from another.
    pub(super) given: Vec<u64>,
    /// Fingerprints of what was made.
    pub(super) made: Vec<u64>,
}

/// A record of the provider that is about no use of our keys.
pub(super) fn other(at: Timestamp) -> Option<Record> {
    Some(Record { at, call: None })
}

/// What tells one text from another.
pub(super) fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The text at a JSON pointer; empty where there is none.
pub(super) fn text<'r>(record: &'r Value, pointer: &str) -> &'r str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The time at a JSON pointer.
pub(super) fn time(record: &Value, pointer: &str) -> Option<Timestamp> {
    Timestamp::parse(text(record, pointer))
}

/// Whether a path, an address or an ARN names one of the keys right after `before`.
pub(super) fn names_key(path: &str, before: &str, keys: &[Arc<str>]) -> bool {
    let mut parts = path.split(['/', '?', ':']);
    parts.any(|part| part == before) && parts.next().is_some_and(|name| keys.iter().any(|key| **key == *name))
}
