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
            self.drop_old_entries().await;
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
    }

    /// Drops the entries that are past their retention, if there is one, and if this process may.
    pub async fn drop_old_entries(&self) {
        let (Some(admin), Some(age)) = (&self.admin, self.retention.age) else { return };
        if !self.may_drop().await {
            return;
        }
        let prune = async || admin.prune(admin.older_than(age, self.retention.exported_only).await?).await;
        match prune().await {
            Ok(0) => {}
            Ok(dropped) => info!(dropped, "old entries were dropped; their hashes are kept"),
            Err(failed) => warn!(?failed, "old entries were not dropped: trying again in an hour"),
        }
    }

    /// Returns whether old entries may be dropped now. A log that is behind is evidence, so nothing
    /// of it may be dropped. A partition holds the entries of all tenants, and is dropped as a
    /// whole or without those on legal hold. So all wait for a log that is behind, unless it is on
    /// hold.
    async fn may_drop(&self) -> bool {
        for tenant in self.checkpoints.behind() {
            if !matches!(self.database.on_hold(tenant.uid).await, Ok(true)) {
                warn!(
                    tenant = tenant.name,
                    "old entries are not dropped: this log is behind what was published of it; see `byok audit hold on`"
                );
                return false;
            }
        }
        true
    }
}
