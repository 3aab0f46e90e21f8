//! The read traits of the store. Each gives one kind of rows.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use crate::merkle::Hash;
use crate::model::{DekId, Job, JobId, KeyVersion, Tenant, TenantUid, Timestamp};

use super::{CheckpointRow, DekRow, EntryFilter, LogHead, Page, PlacedEntry};

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The database is unreachable.
    Unavailable,
    /// The database was not asked: too many calls are waiting for it to answer this one in time.
    Busy,
    /// The database refused the query: a table, a column or a right is missing. This says nothing
    /// about what the database holds.
    Rejected,
    /// A row is damaged, or does not have the form that byok writes.
    Malformed,
}

/// Reads of tenants and of the heads of their logs.
#[async_trait]
pub trait TenantReads {
    /// Returns the tenant of that name.
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError>;

    /// Returns all tenants, ordered by name.
    async fn tenants(&self) -> Result<Vec<Tenant>, ReadError>;

    /// Returns the head of the tenant's log, or `None` for a tenant without a log.
    async fn log_head(&self, tenant: TenantUid) -> Result<Option<LogHead>, ReadError>;

    /// Returns the tenant's logs that have ended, each with its final head, ordered by number.
    async fn ended_logs(&self, tenant: TenantUid) -> Result<Vec<LogHead>, ReadError>;
}

/// Reads of wrapped DEKs.
#[async_trait]
pub trait DekReads {
    /// Returns the rows with these ids, in any order. Unknown ids are left out.
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError>;

    /// Returns the newest DEK of each of these records, in any order. Records without a DEK are
    /// left out.
    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Returns up to `limit` rows with ids above `after`, ordered by id.
    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;

    /// Returns up to `limit` rows without a MAC with ids above `after`, ordered by id. Leaves out
    /// rows whose wrapped bytes are longer than 64 KiB, which is more than any provider makes.
    async fn unsealed_deks(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError>;
}

/// Reads of rotation jobs.
#[async_trait]
pub trait JobReads {
    /// Returns one job and the last DEK that was processed.
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError>;

    /// Returns the live job, or else the newest one.
    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError>;

    /// Returns the running jobs of all tenants.
    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError>;

    /// Returns how many DEKs are wrapped under a version other than this one.
    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError>;
}

/// Searches of the audit log.
#[async_trait]
pub trait EntrySearch: Sync {
    /// Returns up to `limit` (1 or more) matching entries below `before` (all when `None`), newest
    /// first. The amount that one call reads is bounded: a page may have fewer entries, or none,
    /// with more to come.
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page, ReadError>;

    /// Returns the latest `limit` (1 or more) matching entries, newest first, reading as many pages
    /// as that takes. Returns fewer if there are no more.
    async fn latest_entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = self.entries(tenant, filter, before, limit).await?;
            found.extend(page.entries);
            before = page.next;
            if before.is_none() || found.len() >= limit as usize {
                return Ok(found);
            }
        }
    }
}

/// Reads of the audit log by position and time.
#[async_trait]
pub trait AuditReads {
    /// Returns up to `limit` entries from this position on, oldest first. Returns fewer if they are
    /// large, and none only if none are left. All entries at one position come together, unless
    /// `limit` separates them. Missing positions are left out.
    async fn entries_from(
        &self,
        tenant: TenantUid,
        from: u64,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError>;

    /// Returns the number of bytes that the entries at these positions take up in the database,
    /// oldest first, each with its position. Missing entries are left out.
    async fn sizes(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, u64)>, ReadError>;

    /// Returns the positions of the entries from time `from` on and before time `until`, if given,
    /// from the lowest to the highest. Returns `None` if there is no entry in that time.
    async fn places(
        &self,
        tenant: TenantUid,
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<Range<u64>>, ReadError>;

    /// Returns the leaves at these positions of the log, oldest first, each with its position.
    /// Missing leaves are left out.
    async fn leaves(&self, tenant: TenantUid, places: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError>;
}

/// Reads of signed heads.
#[async_trait]
pub trait CheckpointReads {
    /// Returns the checkpoint of the largest size in one of the tenant's logs.
    async fn latest_checkpoint(
        &self,
        tenant: TenantUid,
        log: u32,
    ) -> Result<Option<CheckpointRow>, ReadError>;

    /// Returns up to `limit` checkpoints of one log, of at least this size, ordered by size.
    async fn checkpoints_from(
        &self,
        tenant: TenantUid,
        log: u32,
        size: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, ReadError>;
}
