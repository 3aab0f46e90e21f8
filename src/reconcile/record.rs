//! The content of the providers' records, whatever their format.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;

use crate::model::Timestamp;

use super::{cloudtrail, google, key_vault, vault};

/// The format of a provider's log.
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

    /// Returns the name in a report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudTrail => "AWS CloudTrail",
            Self::Vault => "Vault audit device",
            Self::Google => "Google Cloud audit log",
            Self::KeyVault => "Azure Key Vault diagnostic log",
        }
    }

    /// Returns whether its records have a request id that entries have too. Google returns none.
    pub fn joins(self) -> bool {
        match self {
            Self::CloudTrail | Self::Vault | Self::KeyVault => true,
            Self::Google => false,
        }
    }

    /// Returns whether the caller chooses that id, and so may choose one of byok's.
    pub(super) fn caller_chooses_id(self) -> bool {
        match self {
            Self::KeyVault => true,
            Self::CloudTrail | Self::Vault | Self::Google => false,
        }
    }

    /// Reads one record; `None` if it does not have this format.
    pub(super) fn read(self, record: &Value, keys: &[Arc<str>]) -> Option<Record> {
        match self {
            Self::CloudTrail => cloudtrail::read(record, keys),
            Self::Vault => vault::read(record, keys),
            Self::Google => google::read(record, keys),
            Self::KeyVault => key_vault::read(record, keys),
        }
    }
}

/// The caller if the record does not name one.
pub(super) const NOBODY: &str = "nobody known";

/// The use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Something was wrapped, or made and wrapped.
    Wrap,
    /// Something was unwrapped.
    Unwrap,
    /// Something was re-wrapped without being disclosed.
    Rewrap,
    /// The key itself was exported. byok never does that.
    Export,
}

impl Use {
    /// Every use.
    pub const ALL: [Self; 4] = [Self::Wrap, Self::Unwrap, Self::Rewrap, Self::Export];

    /// Returns the name in a report.
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
    /// The call; `None` if the record is not about a use of byok's keys.
    pub(super) call: Option<Call>,
}

/// One call that used a key, or was refused its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// The provider's request id; empty if the record has none.
    pub(super) id: String,
    pub(super) at: Timestamp,
    pub(super) used: Use,
    /// The caller, as the provider names it.
    pub(super) principal: String,
    /// The fingerprint of the credential of the call, if the record has it. It identifies the
    /// caller where `principal` does not: the provider knows nothing else about a credential that
    /// has expired.
    pub(super) credential: Option<u64>,
    pub(super) refused: bool,
    /// Whether the provider's record shows that the call cannot have disclosed anything that
    /// protects a record.
    pub(super) probe: bool,
    /// The fingerprints of what was unwrapped or re-wrapped, if the record distinguishes values.
    pub(super) given: Vec<u64>,
    /// The fingerprints of what was made.
    pub(super) made: Vec<u64>,
}

/// Returns a record that is not about a use of byok's keys.
pub(super) fn other(at: Timestamp) -> Option<Record> {
    Some(Record { at, call: None })
}

/// Returns a number that distinguishes texts.
pub(super) fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Returns the text at a JSON pointer; empty if there is none.
pub(super) fn text<'r>(record: &'r Value, pointer: &str) -> &'r str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the time at a JSON pointer.
pub(super) fn time(record: &Value, pointer: &str) -> Option<Timestamp> {
    Timestamp::parse(text(record, pointer))
}

/// Returns whether a path, an address or an ARN names one of the keys right after `before`.
pub(super) fn names_key(path: &str, before: &str, keys: &[Arc<str>]) -> bool {
    let mut parts = path.split(['/', '?', ':']);
    parts.any(|part| part == before) && parts.next().is_some_and(|name| keys.iter().any(|key| **key == *name))
}
