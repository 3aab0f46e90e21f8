//! The upkeep of the database: it creates the partitions of the coming months, builds indexes that
//! no migration makes, and drops old entries if a retention is set.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::admin::LogAdmin;
use crate::config::AuditRetention;
use crate::store::{Database, ReadError};

use super::Checkpoints;

/// The upkeep of one database, every hour.
pub struct Upkeep {
    /// The database.
    pub database: Arc<dyn Database>,
    /// The owner of the tables, if this process has its rights; otherwise `byok audit prune` drops
    /// old entries.
    pub admin: Option<LogAdmin>,
    /// The checkpoints of all tenants' logs.
    pub checkpoints: Arc<Checkpoints>,
    /// The retention of entries.
    pub retention: AuditRetention,
}

impl Upkeep {
    /// Runs the upkeep until the future is dropped.
    pub async fn run(&self) {
        tokio::join!(self.keep(), self.keep_indexed());
    }

    /// Builds indexes that no migration makes. Until they exist, the reads that need them are
    /// slower.
    async fn keep_indexed(&self) {
        loop {
            match self.database.build_indexes().await {
                // Another role has to build them: `byok migrate`.
                Ok(0) | Err(ReadError::Rejected) => {}
                Ok(built) => info!(built, "indexes were built"),
                Err(error) => warn!(?error, "an index could not be built: trying again in an hour"),
            }
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
    }

    async fn keep(&self) {
        loop {
            if self.database.upkeep().await.is_err() {
                warn!("the database's upkeep failed: trying again in an hour");
            }
            // A log that is behind is evidence: nothing is appended to it, and nothing of it is
            // dropped. Entries are dropped by month, whosever they are.
            if let (Some(admin), Some(age)) = (&self.admin, self.retention.age)
                && !self.checkpoints.any_is_behind()
            {
                let prune =
                    async || admin.prune(admin.older_than(age, self.retention.exported_only).await?).await;
                match prune().await {
                    Ok(0) => {}
                    Ok(dropped) => info!(dropped, "old entries were dropped; their hashes are kept"),
                    Err(failed) => warn!(?failed, "old entries were not dropped: trying again in an hour"),
                }
            }
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
    }
}
