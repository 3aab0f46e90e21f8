//! Group commit: what is ready is committed together, and callers wait for their batch. A lane owns its batch, so a caller
//! that hangs up takes nothing with it. The log may over-report, never under-report: a caller is answered only when its
//! entry is known to be durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    rewinds: Arc<AtomicU64>,
}

impl Committer {
    /// Starts `lanes` lanes; they end when the committer and what it holds are gone.
    pub fn start(store: Arc<dyn Store>, clock: Arc<dyn Clock>, lanes: usize) -> Self {
        let rewinds = Arc::new(AtomicU64::new(0));
        let start = |_| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let (store, clock, rewinds) = (store.clone(), clock.clone(), rewinds.clone());
            let lane = Lane { store, clock, heads: BTreeMap::new(), rewinds };
            tokio::spawn(lane.run(receiver));
            sender
        };
        let lanes = (0..lanes.max(1)).map(start).collect();
        Self { lanes, rewinds }
    }

    /// How often a log was found shorter than it had been: then rows that were durable may be gone, and nothing that was
    /// remembered of the database may be used any more.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::SeqCst)
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

/// Where a log ends, as a lane last saw it.
#[derive(Clone, Copy)]
struct Head {
    size: u64,
    /// Whether another replica appends too, so that this lane queues for its turn.
    contended: bool,
}

struct Lane {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// The logs' heads as this lane last saw them; another replica may have moved them.
    heads: BTreeMap<TenantUid, Head>,
    rewinds: Arc<AtomicU64>,
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
        let known = self.head_of(tenant).await?;
        batch.base = known.size;
        let mut in_turn = known.contended;
        let mut unknown = false;
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(50);
        loop {
            let outcome = match in_turn {
                true => self.store.commit_in_turn(batch).await,
                false => self.store.commit(batch).await,
            };
            // Whatever follows, a head behind the one that this lane has seen is a database that went back in time.
            let seen = match outcome {
                Err(CommitError::Moved { size }) => size,
                Ok(_) | Err(CommitError::Rejected | CommitError::Unavailable | CommitError::Unknown) => {
                    batch.base
                }
            };
            if seen < known.size && !batch.entries.is_empty() {
                self.rewound(tenant, known.size, seen);
                return Err(CommitFailed::Unavailable);
            }
            match outcome {
                Ok(committed) => {
                    let size = batch.base + batch.entries.len() as u64;
                    // Others append too as long as the head is not where this lane left it.
                    let contended = in_turn && batch.base != known.size;
                    self.heads.insert(tenant, Head { size, contended });
                    return Ok(committed.applied);
                }
                // Another replica was first. It would be first again: from here on this lane queues.
                Err(CommitError::Moved { .. }) if !in_turn => {
                    in_turn = true;
                    continue;
                }
                // A database whose writers do not queue.
                Err(CommitError::Moved { .. }) => {}
                Err(CommitError::Unknown) => {
                    warn!(%tenant, "the outcome of a commit is unknown: trying the identical batch again");
                    unknown = true;
                    in_turn = false;
                }
                // After an unknown outcome the batch may stand: neither an outage nor a refusal of a later try says
                // that it does not. A database that comes back says which.
                Err(CommitError::Unavailable | CommitError::Rejected) if unknown => {}
                Err(CommitError::Unavailable) => {
                    self.heads.remove(&tenant);
                    return Err(CommitFailed::Unavailable);
                }
                Err(CommitError::Rejected) => {
                    self.heads.remove(&tenant);
                    error!(%tenant, entries = batch.entries.len(), "the database refused a batch");
                    return Err(CommitFailed::Rejected);
                }
            }
            if Instant::now() >= deadline {
                self.heads.remove(&tenant);
                return Err(CommitFailed::Unavailable);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn rewound(&mut self, tenant: TenantUid, known: u64, seen: u64) {
        error!(%tenant, known, seen, "the log is shorter than it was: the database was restored or failed over");
        self.heads.remove(&tenant);
        self.rewinds.fetch_add(1, Ordering::SeqCst);
    }

    async fn head_of(&mut self, tenant: TenantUid) -> Result<Head, CommitFailed> {
        if let Some(head) = self.heads.get(&tenant) {
            return Ok(*head);
        }
        let size = self.store.log_size(tenant).await.map_err(|_| CommitFailed::Unavailable)?;
        Ok(Head { size, contended: false })
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
