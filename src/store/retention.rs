//! Retention of the log: legal holds, erasures, and the removal of old entries.

use std::ops::Range;

use async_trait::async_trait;

use crate::model::{Tenant, TenantUid, Timestamp};

use super::ReadError;

/// A personal value to remove from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PersonalValue {
    /// A user. The request ids of the user's calls are removed as well.
    User(String),
    /// A record id.
    Record(String),
}

impl PersonalValue {
    /// Returns the value.
    pub(super) fn value(&self) -> &str {
        match self {
            Self::User(value) | Self::Record(value) => value,
        }
    }
}

/// Which old entries may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Only entries from before this time, in whole months if the database stores months
    /// separately.
    pub before: Timestamp,
    /// Only entries that were exported.
    pub exported_only: bool,
}

/// A part of the log whose entries are old enough to be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// The database's name for this part.
    pub part: String,
    /// The positions that would be dropped of each tenant, in order. They leave out what a hold
    /// keeps, what no tile of the tree covers yet, and, if requested, what was not exported.
    pub entries: Vec<(Tenant, Vec<Range<u64>>)>,
}

/// Why old entries were not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneError {
    /// The droppable entries are no longer the same. Nothing was done.
    Changed,
    /// The database is unreachable or refused. Nothing is known to have been done.
    Store(ReadError),
}

/// What only the owner of the tables may do: read holds, and remove old entries.
#[async_trait]
pub trait RetentionStore {
    /// Returns whether the tenant's entries are kept at any age.
    async fn on_hold(&self, tenant: TenantUid) -> Result<bool, ReadError>;

    /// Returns the parts of the log that have entries that may be dropped, oldest first.
    async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, ReadError>;

    /// Drops exactly these entries. Their hashes stay in the tiles of the tree. An entry of the log
    /// must name each of them first.
    ///
    /// # Errors
    /// See [`PruneError`].
    async fn prune(&self, retention: Retention, prunable: &Prunable) -> Result<(), PruneError>;
}
