//! What is kept of the log, and what no longer: legal holds, erasures, and old entries that are dropped.

use std::ops::Range;

use async_trait::async_trait;

use crate::model::{Tenant, TenantUid, Timestamp};

use super::ReadError;

/// A personal value that is to go from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Personal {
    /// A user: with it go the request ids of the user's calls.
    User(String),
    /// A record id.
    Record(String),
}

impl Personal {
    /// The value.
    pub(super) fn value(&self) -> &str {
        match self {
            Self::User(value) | Self::Record(value) => value,
        }
    }
}

/// Which old entries may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Those from before this moment, a whole month at a time where the database keeps months apart.
    pub before: Timestamp,
    /// Only those that were exported.
    pub exported_only: bool,
}

/// A part of the log whose entries are old enough to be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// The database's name for it.
    pub part: String,
    /// What would go of each tenant: places, in order. What stays is what a hold keeps, what no tile of the tree covers yet,
    /// and, where that is asked for, what was not exported.
    pub entries: Vec<(Tenant, Vec<Range<u64>>)>,
}

/// Why old entries were not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneError {
    /// What may be dropped is not any more what it was. Nothing was done.
    Changed,
    /// The database is out of reach, or would not have it; nothing is known to have been done.
    Store(ReadError),
}

/// What an operator asks of a database that keeps the log, as its owner.
#[async_trait]
pub trait Keeping {
    /// Whether the tenant's entries are kept whatever their age.
    async fn on_hold(&self, tenant: TenantUid) -> Result<bool, ReadError>;

    /// The parts of the log with entries that may be dropped, oldest first.
    async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, ReadError>;

    /// Drops exactly these entries. Their hashes stay in the tree's tiles. Each is to be named by an entry before.
    ///
    /// # Errors
    /// See [`PruneError`].
    async fn prune(&self, retention: Retention, prunable: &Prunable) -> Result<(), PruneError>;
}
