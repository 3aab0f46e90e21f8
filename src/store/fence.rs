//! The gate and the fence: the requirements on the tenant's row and on the keys that a batch
//! depends on, and what a commit read of the keys.

use std::time::Duration;

use crate::model::{Canary, KeyVersion, Posture, Proof, Tenant, Timestamp};

use super::TenantRow;

/// The requirement on the row of the tenant: it is not locked, and its stage and keys have not
/// changed since the calls began. A writer that changes that row appends to the tenant's log in the
/// same commit, so that every entry is on one side of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    /// The revision of the row that the calls began with.
    pub revision: u64,
}

impl Gate {
    /// Returns whether a row meets the requirement.
    pub fn holds(self, row: &TenantRow) -> bool {
        !row.locked && row.revision == self.revision
    }
}

/// The requirement on one key version. A batch with entries is committed only if it is met.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The key version.
    pub key_version: KeyVersion,
    /// The requirement.
    pub requirement: Requirement,
}

/// A requirement on a key version. A key version without a proof row meets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// The key version is active under this epoch.
    Active {
        /// The epoch that the call began under.
        epoch: u64,
    },
    /// The key version is active under this epoch, and was shown to work within this time, by the
    /// database's clock. A proof from the future does not count: the clock was set back. PostgreSQL
    /// checks this before it waits for a lock, so a caller that must not answer late has to check
    /// [`FenceReading`].
    Proven {
        /// The epoch that the call began under.
        epoch: u64,
        /// The largest age of the proof.
        within: Duration,
    },
    /// Nobody has written the proof row since it was read.
    Unchanged {
        /// The revision of the row that was read.
        revision: u64,
    },
}

impl Requirement {
    /// Returns whether a row meets the requirement at `now`, as the commit's statement checks it.
    /// For a caller that has read the row.
    pub fn holds(self, proof: &Proof, now: Timestamp) -> bool {
        match self {
            Self::Active { epoch } => proof.posture == Posture::Active && proof.epoch == epoch,
            Self::Proven { epoch, within } => {
                Self::Active { epoch }.holds(proof, now)
                    && proof.proven_at <= now
                    && now.since(proof.proven_at) <= within
            }
            Self::Unchanged { revision } => proof.revision == revision,
        }
    }
}

/// What a commit read of the keys of its fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReading {
    /// The time by the database's clock after the fence was passed and any wait for the log's head
    /// was over.
    pub now: Timestamp,
    /// The time when each key was last shown to work, in the order of the fence.
    pub proven_at: Vec<Timestamp>,
}

/// Proof rows as they were at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// The time of the read, by the database's clock.
    pub now: Timestamp,
    /// The rows.
    pub rows: Vec<T>,
}

impl FenceReading {
    /// Checks a fence against rows that were read. Returns `None` if it does not hold.
    pub fn of(fence: &[Fence], proofs: &Snapshot<Proof>) -> Option<Self> {
        let find = |fence: &Fence| {
            let proof = proofs.rows.iter().find(|proof| proof.key_version == fence.key_version)?;
            fence.requirement.holds(proof, proofs.now).then_some(proof.proven_at)
        };
        let proven_at: Option<Vec<Timestamp>> = fence.iter().map(find).collect();
        Some(Self { now: proofs.now, proven_at: proven_at? })
    }
}

/// A key version to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The tenant that owns the key version.
    pub tenant: Tenant,
    /// The key version's proof.
    pub proof: Proof,
    /// The canary that a probe unwraps.
    pub canary: Canary,
    /// The time until which some replica reports that it has DEKs of this key version in memory.
    pub needed_until: Timestamp,
}
