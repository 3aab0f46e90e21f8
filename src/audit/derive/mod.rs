//! Derives from the logs the data that proofs and pages read instead of all entries: tiles of the
//! tree, and filters of the values that occur in each chunk. The entries are authoritative: all of
//! this data can be derived again, every replica derives the same, and no commit waits for it. The
//! stored data itself shows how far the derivation is. Tiles are never changed: if one differs from
//! what the entries yield, that is reported. Filters are taken away where entries are erased or
//! dropped, and made again of what is left.

mod filters;
mod tiles;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::model::TenantUid;
use crate::store::{Batch, Change, CommitError, ReadError, Store, UnderivedLog};

/// How long a log is left alone that is damaged, or that another replica works on.
const LEAVE: Duration = Duration::from_secs(5);
/// How many chunks, or tiles, are derived at once.
const AT_ONCE: u64 = 64;
/// How many of each a pass derives of one log at most, so that no tenant waits for another's log.
const A_PASS: u64 = 16 * AT_ONCE;

/// How far a pass came; for several logs, the worst result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Derived {
    /// Everything that there was to derive is derived.
    All,
    /// A log has more than one pass derives.
    More,
    /// Another replica derives the same, or the database is out of reach: do not retry soon.
    NotHere,
    /// An entry is missing or does not have a form that byok writes, or what was derived before
    /// does not lead to a log's head. The server's log says which of these it is. The tree is left
    /// as it is.
    Wrong,
}

/// The derivation of all tenants' logs.
#[derive(Default)]
pub struct Derivation {
    /// The logs that are left alone for a while, and since when.
    left: HashMap<TenantUid, Instant>,
    /// When the database could last not be read at all.
    unread: Option<Instant>,
}

impl Derivation {
    /// Derives what is missing for every tenant's log: as much as one pass may, or until `stop` is
    /// cancelled. A log that is damaged, or that another replica works on, is left alone for
    /// five seconds; the others are not. So is a database that cannot be read.
    pub async fn pass(&mut self, store: &dyn Store, stop: &CancellationToken) -> Derived {
        if self.unread.is_some_and(|since| since.elapsed() < LEAVE) {
            return Derived::NotHere;
        }
        let logs = match store.underived_logs().await {
            Ok(logs) => logs,
            Err(error) => {
                self.unread = Some(Instant::now());
                return left(error);
            }
        };
        self.left.retain(|_, since| since.elapsed() < LEAVE);
        let mut derived = Derived::All;
        for log in logs {
            let tenant = log.tenant;
            if self.left.contains_key(&tenant) {
                continue;
            }
            let pass = Pass { store, log, stop };
            // Neither depends on the other: a missing entry stops the tree, but not the pages.
            for part in [pass.filters().await, pass.tiles().await] {
                let part = part.unwrap_or_else(|left| left);
                if matches!(part, Derived::NotHere | Derived::Wrong) {
                    self.left.insert(tenant, Instant::now());
                }
                derived = derived.max(part);
            }
        }
        derived
    }
}

/// One log's part of a pass. The error is the reason why the log is left for now.
struct Pass<'s> {
    store: &'s dyn Store,
    log: UnderivedLog,
    stop: &'s CancellationToken,
}

impl Pass<'_> {
    /// Commits changes, and returns how many rows the last of them added. Data that is not known to
    /// be committed is derived again.
    async fn commit(&self, changes: Vec<Change>) -> Result<u64, Derived> {
        let tenant: TenantUid = self.log.tenant;
        let batch = Batch::of_changes(tenant, changes);
        let committed = self.store.commit(&batch).await.map_err(|error| {
            if error == CommitError::Rejected {
                error!("the database refuses what is derived from the audit log");
            }
            Derived::NotHere
        })?;
        Ok(committed.applied.last().copied().unwrap_or(0))
    }
}

fn left(error: ReadError) -> Derived {
    match error {
        ReadError::Unavailable | ReadError::Busy => Derived::NotHere,
        // The cause is the schema or a missing privilege: nothing is known to be wrong with the
        // log.
        ReadError::Rejected => {
            error!("the database refuses reads: nothing more is derived from the audit log");
            Derived::NotHere
        }
        ReadError::Malformed => {
            error!(
                "an entry of the audit log, or a tile of its tree, cannot be read: nothing more is derived from it"
            );
            Derived::Wrong
        }
    }
}
