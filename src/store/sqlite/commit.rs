//! The one write of the store. A commit is one immediate transaction.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use sqlx::Error;

use crate::model::{Proof, TenantUid};

use super::super::failure::Failure;
use super::super::replay::replay_outcome;
use super::super::row::{Columns, number, required, signed};
use super::super::{
    Batch, CommitError, Commits, Committed, ReadError, Snapshot, TenancyReads as _, TenantRow,
};
use super::nul::contains_nul;
use super::{Sqlite, changes, statements, tenants};

pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

statements! {
    /// What the log shows about a batch that was not appended: its size, and the entry at the
    /// batch's base.
    PLACE = "
        SELECT h.size, (SELECT a.id FROM np_byok_audit a WHERE a.tenant = ?1 AND a.seq = ?2)
        FROM np_byok_heads h WHERE h.tenant = ?1";
}

/// Why an attempt ended.
pub(super) enum AttemptError {
    /// The log is not at the batch's base, or a requirement of the fence is not met.
    NotAppended,
    /// A DEK id is taken by another DEK.
    DekIdTaken,
    /// The driver's error.
    Driver(Error),
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

#[async_trait]
impl Commits for Sqlite {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        let committed = self.commit_batch(batch).await;
        match committed {
            // A batch without entries does not clear the flag: it is smaller, and may fit into the
            // files as they are.
            Ok(_) if !batch.entries.is_empty() => self.cannot_write.store(false, Ordering::Relaxed),
            Ok(_) => {}
            Err(CommitError::Unavailable | CommitError::Unknown) => {
                self.cannot_write.store(true, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        committed
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        let query = sqlx::query(tenants::LOG_SIZE).bind(tenant.0.as_slice());
        Ok(self.first(query, |row| number(row, 0)).await?.unwrap_or(0))
    }

    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        self.proofs_of(tenant).await
    }

    async fn gate_row(&self, tenant: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.tenant_with(tenant).await
    }
}

impl Sqlite {
    async fn commit_batch(&self, batch: &Batch) -> Result<Committed, CommitError> {
        // PostgreSQL accepts no NUL in a text, and SQLite's functions stop at one, so SQLite
        // refuses it as PostgreSQL does.
        if contains_nul(batch) {
            tracing::error!("a batch with a NUL in a text was refused");
            return Err(CommitError::Rejected);
        }
        // Before COMMIT, every failure is rolled back.
        let nothing_done = |error: Error| match Failure::of(&error) {
            Failure::Refused | Failure::Malformed => CommitError::Rejected,
            Failure::Temporary | Failure::TimedOut | Failure::Standby | Failure::Busy | Failure::Lost => {
                CommitError::Unavailable
            }
        };
        let mut transaction = self.writer.begin_with(BEGIN).await.map_err(nothing_done)?;
        match changes::apply(&mut transaction, batch).await {
            Ok(committed) => match transaction.commit().await {
                Ok(()) => Ok(committed),
                Err(error) => {
                    Failure::of(&error);
                    self.after_failed_commit(batch).await
                }
            },
            Err(ended) => {
                // Waits for the rollback, which a drop would only queue: the next step must not
                // find the transaction open.
                let rolled_back = transaction.rollback().await;
                match ended {
                    AttemptError::NotAppended => {
                        rolled_back.map_err(nothing_done)?;
                        self.explain_not_appended(batch).await
                    }
                    AttemptError::DekIdTaken => Err(CommitError::Rejected),
                    AttemptError::Driver(error) => Err(nothing_done(error)),
                }
            }
        }
    }

    /// Handles a failed `COMMIT`. The batch was or will be rolled back, unless the log shows that
    /// it was committed.
    async fn after_failed_commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        if batch.entries.is_empty() {
            return Err(CommitError::Unknown);
        }
        match self.explain_not_appended(batch).await {
            Ok(committed) => Ok(committed),
            Err(CommitError::Moved { .. } | CommitError::Fenced) => Err(CommitError::Unavailable),
            Err(_) => Err(CommitError::Unknown),
        }
    }

    /// Determines why nothing was appended: another process was first, this very batch was appended
    /// before, or a requirement of the fence is not met.
    async fn explain_not_appended(&self, batch: &Batch) -> Result<Committed, CommitError> {
        let Some(first) = batch.entries.first() else { return Err(CommitError::Rejected) };
        let tenant = batch.tenant.0.as_slice();
        let place = sqlx::query(PLACE).bind(tenant).bind(signed(batch.base));
        match self.first(place, |row| Ok((required(row.number(0)?)?, row.uuid(1)?))).await {
            Ok(Some((_, Some(id)))) if id == first.id.0 => Ok(Committed {
                applied: replay_outcome(self, batch.tenant, &batch.changes).await?,
                reading: None,
            }),
            Ok(Some((size, _))) if size == signed(batch.base) && batch.is_conditional() => {
                Err(CommitError::Fenced)
            }
            Ok(Some((size, _))) => Err(CommitError::Moved { size: u64::try_from(size).unwrap_or(0) }),
            // A tenant without a head has no log to append to.
            Ok(None) => Err(CommitError::Rejected),
            // This attempt did nothing, but an earlier one may have.
            Err(_) => Err(CommitError::Unknown),
        }
    }
}
