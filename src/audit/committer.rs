//! Group commit: what is ready is committed together, and callers wait for their batch. A lane owns its batch, so a caller
//! that hangs up takes nothing with it. The log may over-report, never under-report: a caller is answered only when its
//! entry is known to be durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::model::{Clock, TenantUid};
use crate::store::{Batch, Change, CommitError, EntryRow, Store};

/// The most units of one commit, and the most packed bytes: past that, a batch gains nothing and a retry costs more.
const MAX_UNITS: usize = 1_024;
const MAX_BYTES: usize = 8 << 20;
/// How many units wait in a lane before callers are held back.
const QUEUE: usize = 4_096;
/// How long a commit whose outcome is unknown, or whose place was taken, is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one call makes durable: its entry, and the changes that stand or fall with it.
pub struct Unit {
    /// Whose.
    pub tenant: TenantUid,
    /// `None` only for a job's lease, which is no operation of anybody's.
    pub entry: Option<EntryRow>,
    /// Applied in the same transaction.
    pub changes: Vec<Change>,
}

/// Why a unit is not known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFailed {
    /// The database is out of reach, or did not say in time what became of the batch.
    Unavailable,
    /// The database refused this unit.
    Rejected,
}

struct Pending {
    unit: Unit,
    done: oneshot::Sender<Result<Vec<u64>, CommitFailed>>,
}

/// Commits units in groups, one lane for each hash of tenant.
pub struct Committer {
    lanes: Vec<mpsc::Sender<Pending>>,
}

impl Committer {
    /// Starts `lanes` lanes; they end when the committer and what it holds are gone.
    pub fn start(store: Arc<dyn Store>, clock: Arc<dyn Clock>, lanes: usize) -> Self {
        let start = |_| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let lane = Lane { store: store.clone(), clock: clock.clone(), sizes: BTreeMap::new() };
            tokio::spawn(lane.run(receiver));
            sender
        };
        Self { lanes: (0..lanes.max(1)).map(start).collect() }
    }

    /// Makes a unit durable. Answers how many rows each of its changes touched.
    ///
    /// # Errors
    /// [`CommitFailed`]: then the unit must be taken as not done, though its entry may stand in the log.
    pub async fn commit(&self, unit: Unit) -> Result<Vec<u64>, CommitFailed> {
        let lane = usize::from(unit.tenant.0[0]) % self.lanes.len();
        let (done, outcome) = oneshot::channel();
        self.lanes[lane].send(Pending { unit, done }).await.map_err(|_| CommitFailed::Unavailable)?;
        outcome.await.unwrap_or(Err(CommitFailed::Unavailable))
    }
}

/// How much of a batch is one caller's.
struct Share {
    entries: usize,
    changes: usize,
    done: oneshot::Sender<Result<Vec<u64>, CommitFailed>>,
}

struct Lane {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// The log sizes as this lane last saw them; another replica may have moved them.
    sizes: BTreeMap<TenantUid, u64>,
}

impl Lane {
    async fn run(mut self, mut ready: mpsc::Receiver<Pending>) {
        let mut waiting = Vec::new();
        while !waiting.is_empty() || ready.recv_many(&mut waiting, MAX_UNITS).await > 0 {
            let rest = waiting.split_off(within_bytes(&waiting));
            let mut by_tenant: BTreeMap<TenantUid, Vec<Pending>> = BTreeMap::new();
            for pending in std::mem::replace(&mut waiting, rest) {
                by_tenant.entry(pending.unit.tenant).or_default().push(pending);
            }
            for (tenant, group) in by_tenant {
                self.commit_group(tenant, group).await;
            }
        }
    }

    async fn commit_group(&mut self, tenant: TenantUid, group: Vec<Pending>) {
        let mut batch = Batch { tenant, base: 0, entries: Vec::new(), changes: Vec::new() };
        let mut shares = Vec::with_capacity(group.len());
        for Pending { unit: Unit { entry, changes, .. }, done } in group {
            shares.push(Share { entries: usize::from(entry.is_some()), changes: changes.len(), done });
            batch.entries.extend(entry);
            batch.changes.extend(changes);
        }
        let outcome = self.commit_batch(&mut batch).await;
        if outcome == Err(CommitFailed::Rejected) && shares.len() > 1 {
            // One bad unit must not take its neighbours with it.
            for share in shares {
                let entries = batch.entries.drain(..share.entries).collect();
                let changes = batch.changes.drain(..share.changes).collect();
                let alone = self.commit_batch(&mut Batch { tenant, base: 0, entries, changes }).await;
                let _ = share.done.send(alone);
            }
            return;
        }
        let mut applied = outcome.map(Vec::into_iter);
        for share in shares {
            let own = applied.as_mut().map(|applied| applied.take(share.changes).collect());
            let _ = share.done.send(own.map_err(|failed| *failed));
        }
    }

    async fn commit_batch(&mut self, batch: &mut Batch) -> Result<Vec<u64>, CommitFailed> {
        let tenant = batch.tenant;
        let now = self.clock.now();
        batch.entries.iter_mut().for_each(|entry| entry.at = now);
        batch.base = self.size_of(tenant).await?;
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        let mut unknown = false;
        loop {
            match self.store.commit(batch).await {
                Ok(committed) => {
                    self.sizes.insert(tenant, batch.base + batch.entries.len() as u64);
                    return Ok(committed.applied);
                }
                Err(CommitError::Moved { size }) => batch.base = size,
                Err(CommitError::Unknown) => {
                    warn!(%tenant, "the outcome of a commit is unknown: trying the identical batch again");
                    unknown = true;
                    pause = pause.max(Duration::from_millis(50));
                }
                // Nothing was sent yet: the caller may know at once. After an unknown outcome it must not, for the batch
                // may stand; a database that comes back says which.
                Err(CommitError::Unavailable) if !unknown => {
                    self.sizes.remove(&tenant);
                    return Err(CommitFailed::Unavailable);
                }
                Err(CommitError::Unavailable) => {}
                Err(CommitError::Rejected) => {
                    self.sizes.remove(&tenant);
                    error!(%tenant, entries = batch.entries.len(), "the database refused a batch");
                    return Err(CommitFailed::Rejected);
                }
            }
            if Instant::now() >= deadline {
                self.sizes.remove(&tenant);
                return Err(CommitFailed::Unavailable);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn size_of(&mut self, tenant: TenantUid) -> Result<u64, CommitFailed> {
        if let Some(size) = self.sizes.get(&tenant) {
            return Ok(*size);
        }
        let size = self.store.log_size(tenant).await.map_err(|_| CommitFailed::Unavailable)?;
        self.sizes.insert(tenant, size);
        Ok(size)
    }
}

/// How many of the units, at least one, stay within the bytes of one commit.
fn within_bytes(waiting: &[Pending]) -> usize {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|pending| {
        bytes += pending.unit.entry.as_ref().map_or(0, |entry| entry.items.len() + entry.records.len() + 256);
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}
