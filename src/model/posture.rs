//! The state of key versions, as the database stores it for all replicas. `keyring` has the changes
//! of state.

use std::sync::Arc;

use uuid::Uuid;

use super::{DekId, IncidentId, KeyVersion, Timestamp, Wrapped};

/// Whether a key version can be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Posture {
    /// The key was shown to work.
    Active,
    /// The KMS is out of reach.
    Degraded,
    /// The KMS refuses the use of the key.
    Revoked,
}

impl Posture {
    /// Every posture, best first.
    pub const ALL: [Self; 3] = [Self::Active, Self::Degraded, Self::Revoked];

    /// The name in tables, logs and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Degraded => "degraded",
            Self::Revoked => "revoked",
        }
    }

    /// The posture of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|posture| posture.as_str() == name)
    }
}

/// The state of a key version: its posture, and when it was last shown to work. Times are by the
/// database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The key version.
    pub key_version: KeyVersion,
    /// Whether it can be used.
    pub posture: Posture,
    /// Incremented whenever the posture changes: a call must end in the epoch that it began in.
    pub epoch: u64,
    /// Incremented by every write of this row, for compare-and-swap.
    pub revision: u64,
    /// A time not later than the sending of the last successful probe.
    pub proven_at: Timestamp,
    /// When the posture last changed.
    pub since: Timestamp,
    /// The first of the current consecutive successes; `None` after a failure.
    pub steady_since: Option<Timestamp>,
    /// The number of consecutive failed probes.
    pub failures: u32,
    /// The number of consecutive revocations that each came soon after a recovery, the first
    /// included.
    pub falls: u32,
    /// The replica whose probe found an outage that no other replica has confirmed.
    pub doubted_by: Option<Uuid>,
    /// When the next probe is due.
    pub next_probe_at: Timestamp,
}

/// The wrapped DEK that probes unwrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The id of the DEK.
    pub dek_id: DekId,
    /// The wrapped DEK, of the proof's key version.
    pub wrapped: Wrapped,
    /// Whether it was made for probes. If the KMS's current version is another, a record's wrapped
    /// DEK is used instead.
    pub made_for_probes: bool,
}

/// A change of posture, with sanitized evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// The id of the incident.
    pub id: IncidentId,
    /// When the probe that found it was sent, by the database's clock.
    pub at: Timestamp,
    /// The key version.
    pub key_version: KeyVersion,
    /// The posture before.
    pub was: Posture,
    /// The posture after.
    pub posture: Posture,
    /// The class of the KMS's error (`KmsErrorClass`); `None` for a recovery.
    pub class: Option<Arc<str>>,
    /// The KMS's HTTP status, if it answered.
    pub http_status: Option<u16>,
    /// The KMS's id of that request, if it returned one.
    pub kms_request_id: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::Posture;

    #[test]
    fn every_posture_reads_back() {
        for posture in Posture::ALL {
            assert_eq!(Posture::parse(posture.as_str()), Some(posture));
        }
    }
}
