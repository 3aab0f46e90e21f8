//! What must hold of the keys that a batch stands on, and what was found of them.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{Canary, Incident, KeyVersion, Posture, Proof, Tenant, TenantUid, Timestamp};

use super::ReadError;

/// What must hold of one key version, or a batch with entries is not committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Of which.
    pub key_version: KeyVersion,
    /// What.
    pub must: Must,
}

/// What must hold. A key version that has no proof row passes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Must {
    /// It is active, since this epoch.
    BeActive {
        /// The epoch that the call began under.
        epoch: u64,
    },
    /// The same; and it was shown to work within so long, by the database's clock. A proof from the future is none: the
    /// clock was set back. PostgreSQL asks before it waits for a lock: who must not answer late looks at [`Passed`].
    BeProven {
        /// The epoch that the call began under.
        epoch: u64,
        /// How old the proof may be.
        within: Duration,
    },
    /// Nobody has written its proof row since.
    BeUnchanged {
        /// What the row was read at.
        revision: u64,
    },
}

impl Must {
    /// Whether a row as it stands at `now` passes: what the statement of the commit asks, for who has read the row.
    pub fn holds(self, proof: &Proof, now: Timestamp) -> bool {
        match self {
            Self::BeActive { epoch } => proof.posture == Posture::Active && proof.epoch == epoch,
            Self::BeProven { epoch, within } => {
                Self::BeActive { epoch }.holds(proof, now)
                    && proof.proven_at <= now
                    && now.since(proof.proven_at) <= within
            }
            Self::BeUnchanged { revision } => proof.revision == revision,
        }
    }
}

/// What a commit found of the keys of its fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What the database's clock said once the fence was passed, and any wait for the log's head was over.
    pub now: Timestamp,
    /// When each was last shown to work, in the order of the fence.
    pub proven_at: Vec<Timestamp>,
}

/// Proof rows as they stand at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// What the database's clock said when they were read.
    pub now: Timestamp,
    /// The rows.
    pub rows: Vec<T>,
}

impl Passed {
    /// What a fence finds of rows that were read; `None` where it does not hold.
    pub fn of(fence: &[Fence], seen: &Seen<Proof>) -> Option<Self> {
        let find = |fence: &Fence| {
            let proof = seen.rows.iter().find(|proof| proof.key_version == fence.key_version)?;
            fence.must.holds(proof, seen.now).then_some(proof.proven_at)
        };
        let proven_at: Option<Vec<Timestamp>> = fence.iter().map(find).collect();
        Some(Self { now: seen.now, proven_at: proven_at? })
    }
}

/// A key version that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whose.
    pub tenant: Tenant,
    /// What is known of it.
    pub proof: Proof,
    /// What a probe unwraps.
    pub canary: Canary,
    /// Until when some replica says that it has DEKs of it in memory.
    pub needed_until: Timestamp,
}

/// Reads of proofs and incidents.
#[async_trait]
pub trait ProofReads {
    /// The proofs of one tenant's key versions, but for those that are retired.
    async fn proofs(&self, tenant: TenantUid) -> Result<Seen<Proof>, ReadError>;

    /// Every tenant's key versions that are to be probed: those that some replica needs, and those that are not active, but
    /// for those that are retired.
    async fn watched(&self) -> Result<Seen<Watched>, ReadError>;

    /// Up to `limit` incidents of one tenant, newest first.
    async fn incidents(&self, tenant: TenantUid, limit: u32) -> Result<Vec<Incident>, ReadError>;
}
