//! Whether a key version can be used, as the database holds it for all replicas. How one state becomes the next is
//! `keyring`'s.

use std::sync::Arc;

use uuid::Uuid;

use super::{DekId, IncidentId, KeyVersion, Timestamp, Wrapped};

/// Can this key version be used now?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Posture {
    /// It was shown to work.
    Active,
    /// The KMS is out of reach.
    Degraded,
    /// The KMS says no.
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

/// What is known of a key version: when it was last shown to work, and since when it is how it is. Times are the
/// database's own, whatever this machine's clock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Which version of which key.
    pub key_version: KeyVersion,
    /// Can it be used?
    pub posture: Posture,
    /// Raised by one whenever the posture changes: what a call began under must be what it ends under.
    pub epoch: u64,
    /// Raised by one with every write of this row: who writes compares and swaps it.
    pub revision: u64,
    /// Not later than when the last probe that succeeded was sent.
    pub proven_at: Timestamp,
    /// When the posture became what it is.
    pub since: Timestamp,
    /// The first success of those in a row that stand now; `None` after a failure.
    pub steady_since: Option<Timestamp>,
    /// How many probes in a row have failed.
    pub failures: u32,
    /// How many revocations in a row came soon after the key had come back, the first among them.
    pub falls: u32,
    /// The replica whose probe met an outage that no other has confirmed.
    pub doubted_by: Option<Uuid>,
    /// When the next probe is due.
    pub next_probe_at: Timestamp,
}

/// What a probe unwraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The DEK that it was made as.
    pub dek_id: DekId,
    /// As the KMS returned it; of the proof's key version.
    pub wrapped: Wrapped,
    /// Whether it was made to be probed with. Where the KMS's current version is another, it is a record's wrapped DEK.
    pub made_for_probes: bool,
}

/// A change of posture, with sanitized evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its id.
    pub id: IncidentId,
    /// When the probe that showed it was sent, by the database's clock.
    pub at: Timestamp,
    /// Of which key version.
    pub key_version: KeyVersion,
    /// What the posture was.
    pub was: Posture,
    /// What it became.
    pub posture: Posture,
    /// What the KMS did, in our words (`KmsErrorClass`); `None` for a recovery.
    pub class: Option<Arc<str>>,
    /// The KMS's HTTP status, where it answered.
    pub http_status: Option<u16>,
    /// The KMS's id of that request, where it gave one.
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
