//! What leaves the database: incidents, checkpoints and entries, and how far each was sent.

use async_trait::async_trait;

use crate::model::{Incident, TenantUid};

use super::{DueAnnouncement, Publication, ReadError, StreamRow};

/// Reads of what is announced, published and streamed.
#[async_trait]
pub trait OutgoingReads {
    /// Returns up to `limit` incidents of one tenant, newest first.
    async fn incidents(&self, tenant: TenantUid, limit: u32) -> Result<Vec<Incident>, ReadError>;

    /// Returns up to `limit` announcements that are due and that no holder has taken, oldest first.
    /// For each key version, returns only the first announcement that has not ended, or none while
    /// that one is not due: later ones wait for it.
    async fn due_announcements(&self, limit: u32) -> Result<Vec<DueAnnouncement>, ReadError>;

    /// Returns the last publication at each destination where a publication was attempted.
    async fn publications(&self, tenant: TenantUid) -> Result<Vec<Publication>, ReadError>;

    /// Returns the tenant's streams that were ever begun.
    async fn streams(&self, tenant: TenantUid) -> Result<Vec<StreamRow>, ReadError>;
}
