//! Handles a restored database: ends a tenant's log and opens another one. Its first entry names
//! where the old log ended, and its next entries name each published head that is lost. This is one
//! commit, and only the owner of the tables may make it.

use crate::audit::pack;
use crate::model::{Entry, Operation, TenantUid};
use crate::store::{Batch, Change, CommitError, EntryRow, LogHead, ReadError};

use super::tenant_checkpoints::{SignedHead, TenantCheckpoints};

/// The number of attempts if the log is appended to meanwhile, or the outcome is unknown.
const TRIES: usize = 10;

/// The reason why no other log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreFailed {
    /// The log holds everything that was published.
    NothingLost,
    /// A destination of checkpoints cannot be read, so it is not known what is published there.
    Unread(&'static str),
    /// The log is constantly appended to.
    Moving,
    /// The database is out of reach.
    Unavailable,
    /// The database refuses the commit, because the role lacks the rights.
    Refused,
    /// The log's head, or a row that is needed, does not have the format that the server writes.
    Malformed,
}

impl From<ReadError> for RestoreFailed {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable | ReadError::Busy => Self::Unavailable,
            ReadError::Rejected => Self::Refused,
            ReadError::Malformed => Self::Malformed,
        }
    }
}

/// The log that was ended, and the log that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The origin, size and root of the log that has ended.
    pub ended: String,
    /// The origin, size and root of each published head that it does not hold.
    pub lost: Vec<String>,
    /// The origin of the log that continues.
    pub opened: String,
}

impl TenantCheckpoints {
    /// Ends the log and opens another one. `operator` is recorded as the user in its entries. With
    /// `anyway`, this is done even if nothing is known to be lost, or a destination cannot be read.
    ///
    /// # Errors
    /// See [`RestoreFailed`]. Nothing was changed then, unless the database went out of reach
    /// during the commit.
    pub async fn restored(&self, operator: Option<&str>, anyway: bool) -> Result<Restored, RestoreFailed> {
        let checked = self.check().await?;
        if let Some(destination) = checked.unread.first().filter(|_| !anyway) {
            return Err(RestoreFailed::Unread(destination));
        }
        if checked.holds && !anyway {
            return Err(RestoreFailed::NothingLost);
        }
        let lost = self.missing_heads().await;
        let tenant = self.tenant.uid;
        let mut unknown: Option<(Batch, Restored)> = None;
        for _ in 0..TRIES {
            let (batch, restored) = match unknown.take() {
                Some(again) => again,
                None => {
                    let head = self.signing.store.log_head(tenant).await?.ok_or(RestoreFailed::Refused)?;
                    self.opening(tenant, &head, &lost, operator)
                }
            };
            match self.signing.store.commit(&batch).await {
                Ok(_) => return Ok(restored),
                Err(CommitError::Unknown) => unknown = Some((batch, restored)),
                Err(CommitError::Moved { .. } | CommitError::Rewound) => {}
                Err(CommitError::Unavailable) => return Err(RestoreFailed::Unavailable),
                Err(CommitError::Rejected | CommitError::Fenced) => return Err(RestoreFailed::Refused),
            }
        }
        Err(if unknown.is_some() { RestoreFailed::Unavailable } else { RestoreFailed::Moving })
    }

    fn opening(
        &self,
        tenant: TenantUid,
        head: &LogHead,
        lost: &[SignedHead],
        operator: Option<&str>,
    ) -> (Batch, Restored) {
        let described = |head: &SignedHead| format!("{} {} {}", self.origin(head.log), head.size, head.root);
        let ended = described(&SignedHead::of(head));
        let lost_heads: Vec<_> = lost.iter().map(described).collect();
        let details = lost_heads.iter().map(|lost| format!("lost {lost}"));
        let entries = std::iter::once(format!("restore {ended}")).chain(details);
        let entries: Vec<_> = entries.map(|detail| self.entry(tenant, detail, operator)).collect();
        // The new log's number is higher than that of every log of which anybody was shown a head.
        let last = lost.iter().map(|lost| lost.log).fold(head.log, u32::max);
        let log = last.saturating_add(1);
        let changes = vec![Change::OpenLog { from: head.clone(), log }];
        let batch = Batch { tenant, base: head.end(), entries, changes, gate: None, fence: Vec::new() };
        (batch, Restored { ended, lost: lost_heads, opened: self.origin(log) })
    }

    fn entry(&self, tenant: TenantUid, detail: String, operator: Option<&str>) -> EntryRow {
        let (at, user) = (self.signing.clock.now(), operator.map(str::to_owned));
        let entry = Entry::of_operator(at, Operation::Restore, user, Some(detail.into()));
        pack(tenant, &entry)
    }
}
