//! Operations that only the owner of the tables may do with the log: legal holds, erasures, pruning
//! of old entries, new MACs for the rows of DEKs. Each leaves an entry in the log, written before
//! its effect or with it. They need no key and check no caller: the operator is the one who has the
//! rights of the database's owner.

mod erasure;
mod resealed;
mod retention;

use std::ops::Range;
use std::sync::Arc;

use crate::audit::{CommitFailed, Committer, Unit, pack};
use crate::model::{Clock, Entry, Operation, TenantUid};
use crate::store::{Change, Database, ReadError};

pub use erasure::Erased;
pub use resealed::Resealed;

/// The reason why an operation was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// The tenant is on legal hold.
    OnHold,
    /// The log changed at every attempt.
    Changing,
    /// The tiles that would remain do not match the entries.
    Wrong,
    /// The database is out of reach.
    Unavailable,
    /// The database refuses it: the role lacks the rights.
    Refused,
    /// A row is damaged, or not in a format that the server writes.
    Malformed,
}

impl From<ReadError> for AdminError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable | ReadError::Busy => Self::Unavailable,
            ReadError::Rejected => Self::Refused,
            ReadError::Malformed => Self::Malformed,
        }
    }
}

impl From<CommitFailed> for AdminError {
    fn from(error: CommitFailed) -> Self {
        match error {
            CommitFailed::Unavailable => Self::Unavailable,
            CommitFailed::Rejected | CommitFailed::Fenced | CommitFailed::Gated => Self::Refused,
        }
    }
}

/// The operations on the log that are the table owner's.
pub struct LogAdmin {
    database: Arc<dyn Database>,
    committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    /// The name of the operator for the entries, if it is given.
    operator: Option<String>,
}

impl LogAdmin {
    /// An administrator of the logs in this database.
    pub fn new(
        database: Arc<dyn Database>,
        committer: Arc<Committer>,
        clock: Arc<dyn Clock>,
        operator: Option<String>,
    ) -> Self {
        Self { database, committer, clock, operator }
    }

    /// Puts a tenant on legal hold, or lifts the hold. Returns whether that changed anything; only
    /// a change leaves an entry.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn hold(&self, tenant: TenantUid, on: bool) -> Result<bool, AdminError> {
        if self.database.on_hold(tenant).await? == on {
            return Ok(false);
        }
        let detail = if on { "hold on" } else { "hold off" };
        let unit = self.unit(tenant, Operation::Hold, detail, vec![Change::Hold { on }]);
        self.committer.commit(unit).await?;
        Ok(true)
    }

    fn unit(&self, tenant: TenantUid, operation: Operation, detail: &str, changes: Vec<Change>) -> Unit {
        let (at, user) = (self.clock.now(), self.operator.clone());
        let entry = Entry::of_operator(at, operation, user, Some(detail.into()));
        Unit::unconditional(tenant, Some(pack(tenant, &entry)), changes)
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}
