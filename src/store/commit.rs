//! The one write of the store, and the reads that a commit depends on.

use async_trait::async_trait;

use crate::model::{Proof, TenantUid};

use super::{Change, EntryRow, Fence, FenceReading, Gate, ReadError, Snapshot, TenantRow};

/// Everything that is committed together for one tenant: entries, changes, and the fence that
/// applies to both.
///
/// Committing the identical batch again never applies it twice. With entries, the log has moved on,
/// and position `base` holds the first of them. Without entries, each change is defined so that
/// repeating it does nothing more.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The tenant that owns this batch.
    pub tenant: TenantUid,
    /// The size of the tenant's log that `entries` are appended to. The commit is a
    /// compare-and-swap on it. Ignored if there are no entries.
    pub base: u64,
    /// The entries, in their order in the log.
    pub entries: Vec<EntryRow>,
    /// The changes, applied in order in the same transaction.
    pub changes: Vec<Change>,
    /// The requirement on the tenant's row when the entries are appended, if there is one. Ignored
    /// if there are no entries.
    pub gate: Option<Gate>,
    /// The requirements on the keys in use when the entries are appended. Ignored if there are no
    /// entries.
    pub fence: Vec<Fence>,
}

impl Batch {
    /// Returns a batch of changes without entries.
    pub fn of_changes(tenant: TenantUid, changes: Vec<Change>) -> Self {
        Self { tenant, base: 0, entries: Vec::new(), changes, gate: None, fence: Vec::new() }
    }

    /// Returns whether the entries are appended only if something beside the log's head is as
    /// required.
    pub(super) fn is_conditional(&self) -> bool {
        self.gate.is_some() || !self.fence.is_empty()
    }
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of rows that each change touched, in order. After a retry of a batch whose
    /// outcome was unknown, what the rows show now.
    pub applied: Vec<u64>,
    /// What the commit read of the keys in the fence. `None` if there was no fence, and after a
    /// retry of a batch whose outcome was unknown: in that case the fence was passed, but it is not
    /// known when.
    pub reading: Option<FenceReading>,
}

/// Why a batch was not committed, as far as is known. The error describes this attempt only: after
/// an earlier [`CommitError::Unknown`], only [`Committed`], [`CommitError::Moved`] or
/// [`CommitError::Fenced`] settles the outcome of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitError {
    /// Another replica has appended to the log. Nothing was done.
    Moved {
        /// The current size of the log, as the base of the next attempt.
        size: u64,
    },
    /// The gate, or a requirement of the fence, is not met. Nothing was done.
    Fenced,
    /// The connection was lost after the statement was sent. Commit the identical batch again: it
    /// is never applied twice.
    Unknown,
    /// The database is unreachable. Nothing was done.
    Unavailable,
    /// The log has the size that this process last saw, but different content: the database went
    /// back in time. Nothing was done.
    Rewound,
    /// The database refused the batch (a constraint, a missing table or right, a NUL in a text, an
    /// unknown tenant). Nothing was done, and a retry will not help.
    Rejected,
}

/// The one write: what commits to tenants' logs needs of a database.
#[async_trait]
pub trait Commits: Send + Sync {
    /// Commits a batch durably, whole or not at all.
    ///
    /// # Errors
    /// See [`CommitError`]. Only after [`CommitError::Unknown`] may the batch have been committed.
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError>;

    /// Waits for a turn at the tenant's head, sets the batch's base to the size found there, and
    /// commits as [`Self::commit`] does. This is for a log that others append to all the time,
    /// where a compare-and-swap would never win. `base` is set before anything is committed, so the
    /// identical batch can be committed again after an unknown outcome.
    ///
    /// # Errors
    /// As for [`Self::commit`], but never [`CommitError::Moved`] on a database that lets writers
    /// queue.
    async fn commit_in_turn(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        batch.base = self.log_size(batch.tenant).await.map_err(|_| CommitError::Unavailable)?;
        self.commit(batch).await
    }

    /// Returns the size of the tenant's log, or 0 for a tenant without a log.
    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError>;

    /// Returns the proofs of one tenant's key versions, which fences are checked against. Leaves
    /// out retired ones.
    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError>;

    /// Returns the row of the tenant, which gates are checked against. `None` if there is none.
    async fn gate_row(&self, tenant: TenantUid) -> Result<Option<TenantRow>, ReadError>;
}
