//! After a restore: ends a tenant's log and opens another one, whose first entry names where the old one ended, and whose
//! next ones name each published head that is lost. One commit, and only the tables' owner may make it.

use crate::audit::pack;
use crate::model::{Entry, Operation, TenantUid};
use crate::store::{Batch, Change, CommitError, EntryRow, LogHead, ReadError};

use super::checkpoints::{Checkpoints, SignedHead};

/// How often it is begun anew when the log is appended to meanwhile, or the outcome is unknown.
const TRIES: usize = 10;

/// Why no other log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreFailed {
    /// The log holds all that was published.
    NothingLost,
    /// A place of checkpoints cannot be read: what is published there is not known.
    Unread(&'static str),
    /// The log is appended to all the while.
    Moving,
    /// The database is out of reach.
    Unavailable,
    /// The database refuses it: the role has not the rights.
    Refused,
    /// The log's head, or a row that is needed, is not of the form that the server writes.
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

/// What was ended, and what was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Origin, size and root of the log that has ended.
    pub ended: String,
    /// The same of each published head that it does not hold.
    pub lost: Vec<String>,
    /// The origin of the log that goes on.
    pub opened: String,
}

impl Checkpoints {
    /// Ends the log and opens another one. `operator` stands in its entries as the user. `anyway`: also where nothing is
    /// known to be lost, or a place cannot be read.
    ///
    /// # Errors
    /// See [`RestoreFailed`]; then nothing was changed, unless the database went out of reach while it was asked.
    pub async fn restored(&self, operator: Option<&str>, anyway: bool) -> Result<Restored, RestoreFailed> {
        let checked = self.check().await?;
        if let Some(place) = checked.unread.first().filter(|_| !anyway) {
            return Err(RestoreFailed::Unread(place));
        }
        if checked.holds && !anyway {
            return Err(RestoreFailed::NothingLost);
        }
        let lost = self.unheld().await;
        let tenant = self.tenant.uid()?;
        let mut unknown: Option<(Batch, Restored)> = None;
        for _ in 0..TRIES {
            let (batch, restored) = match unknown.take() {
                Some(again) => again,
                None => {
                    let head = self.store.log_head(tenant).await?.ok_or(RestoreFailed::Refused)?;
                    self.opening(tenant, &head, &lost, operator)
                }
            };
            match self.store.commit(&batch).await {
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
        let said = |head: &SignedHead| format!("{} {} {}", self.origin(head.log), head.size, head.root);
        let ended = said(&SignedHead::of(head));
        let lost_said: Vec<_> = lost.iter().map(said).collect();
        let details = lost_said.iter().map(|lost| format!("lost {lost}"));
        let entries = std::iter::once(format!("restore {ended}")).chain(details);
        let entries: Vec<_> = entries.map(|detail| self.entry(tenant, detail, operator)).collect();
        // After every log that anybody was shown a head of.
        let last = lost.iter().map(|lost| lost.log).fold(head.log, u32::max);
        let log = last.saturating_add(1);
        let changes = vec![Change::OpenLog { from: head.clone(), log }];
        let batch = Batch { tenant, base: head.end(), entries, changes, fence: Vec::new() };
        (batch, Restored { ended, lost: lost_said, opened: self.origin(log) })
    }

    fn entry(&self, tenant: TenantUid, detail: String, operator: Option<&str>) -> EntryRow {
        let (at, user) = (self.clock.now(), operator.map(str::to_owned));
        let entry = Entry::of_operator(at, Operation::Restore, user, Some(detail.into()));
        pack(tenant, &entry)
    }
}
