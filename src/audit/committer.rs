//! Group commit: the units that are ready are committed together, and callers wait for their batch.
//! A lane owns its batch, so a caller that hangs up does not affect it. The log may over-report,
//! but never under-report: a caller is answered only when its entry is known to be durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::model::{BootTime, Clock, KeyVersion, TenantUid, Timestamp};
use crate::store::{Batch, Change, CommitError, EntryRow, Fence, Passed, Store};

/// The most units of one commit, and the most packed bytes: beyond that, a larger batch gains
/// nothing, and a retry costs more.
const MAX_UNITS: usize = 1_024;
const MAX_BYTES: usize = 8 << 20;
/// How many units wait in a lane before callers are held back.
const QUEUE: usize = 4_096;
/// How many rounds a group is tried before the units that the fence keeps out are refused.
const ROUNDS: usize = 3;
/// How long a group waits at most for the callers that can run already.
const GATHERING: Duration = Duration::from_millis(1);
/// How long a commit is retried if its outcome is unknown, or if another replica has taken its
/// position.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one call makes durable: its entry, and the changes that are committed or dropped with it.
pub struct Unit {
    /// The tenant that owns the unit.
    pub tenant: TenantUid,
    /// The entry; `None` only for a job's lease, which is no caller's operation.
    pub entry: Option<EntryRow>,
    /// The changes, applied in the same transaction.
    pub changes: Vec<Change>,
    /// The conditions on the keys that the unit depends on; checked only if there is an entry.
    pub fence: Vec<Fence>,
}

/// The result of a unit that is durable.
#[derive(Clone, Debug)]
pub struct Durable {
    /// How many rows each of its changes affected.
    pub applied: Vec<u64>,
    /// How its batch passed the fence. `None` if the batch had no fence, or if it is not known what
    /// the fence found and the fence no longer holds: then no answer that depends on a key may be
    /// given.
    pub passage: Option<Arc<Passage>>,
}

/// How a batch passed the fence.
#[derive(Clone, Debug)]
pub struct Passage {
    /// The conditions that were checked.
    pub fence: Vec<Fence>,
    /// What was found.
    pub passed: Passed,
    /// A time on this machine before the statement that checked them was sent.
    pub sent: BootTime,
    /// A time after its answer arrived.
    pub heard: BootTime,
}

impl Passage {
    /// Returns when this key version was last shown to work, as the fence found it, by the
    /// database's clock.
    pub fn proven_at(&self, key_version: &KeyVersion) -> Option<Timestamp> {
        let mut found = self.fence.iter().zip(&self.passed.proven_at);
        found.find(|(fence, _)| fence.key_version == *key_version).map(|(_, proven_at)| *proven_at)
    }
}

/// Why a unit is not known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFailed {
    /// The database is out of reach, or did not report the outcome of the batch in time.
    Unavailable,
    /// The database refused this unit.
    Rejected,
    /// A condition of its fence does not hold.
    Fenced,
}

struct Pending {
    unit: Unit,
    done: oneshot::Sender<Result<Durable, CommitFailed>>,
}

/// Commits units in groups, in one of several lanes: the first byte of the tenant's uid selects the
/// lane.
pub struct Committer {
    lanes: Vec<mpsc::Sender<Pending>>,
    rewinds: Arc<AtomicU64>,
}

impl Committer {
    /// Starts `lanes` lanes, for callers on the current runtime. They end when the committer is
    /// dropped and the units that it holds are done.
    pub fn start(store: Arc<dyn Store>, clock: Arc<dyn Clock>, lanes: usize) -> Self {
        Self::start_for(Handle::current(), store, clock, lanes)
    }

    /// Does the same as [`Committer::start`], for callers that mostly run on another runtime.
    pub fn start_for(callers: Handle, store: Arc<dyn Store>, clock: Arc<dyn Clock>, lanes: usize) -> Self {
        let rewinds = Arc::new(AtomicU64::new(0));
        let start = |_| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let (store, clock, rewinds) = (store.clone(), clock.clone(), rewinds.clone());
            let lane = Lane { store, clock, callers: callers.clone(), heads: BTreeMap::new(), rewinds };
            tokio::spawn(lane.run(receiver));
            sender
        };
        let lanes = (0..lanes.max(1)).map(start).collect();
        Self { lanes, rewinds }
    }

    /// Returns how often a log was found shorter than it had been. Rows that were durable may then
    /// be gone, and nothing that was remembered of the database may be used any more.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::SeqCst)
    }

    /// Makes a unit durable.
    ///
    /// # Errors
    /// [`CommitFailed`]: the unit must then be treated as not done, although its entry may be in
    /// the log.
    pub async fn commit(&self, unit: Unit) -> Result<Durable, CommitFailed> {
        let lane = usize::from(unit.tenant.0[0]) % self.lanes.len();
        let (done, outcome) = oneshot::channel();
        self.lanes[lane].send(Pending { unit, done }).await.map_err(|_| CommitFailed::Unavailable)?;
        outcome.await.unwrap_or(Err(CommitFailed::Unavailable))
    }
}

/// One caller's share of a batch.
struct Share {
    entries: usize,
    changes: usize,
    fence: Vec<Fence>,
    done: oneshot::Sender<Result<Durable, CommitFailed>>,
}

/// The end of a log, as a lane last saw it.
#[derive(Clone, Copy)]
struct Head {
    size: u64,
    /// Whether another replica appends too, so that this lane queues for its turn.
    contended: bool,
}

struct Lane {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// The runtime that callers run on.
    callers: Handle,
    /// The logs' heads as this lane last saw them; another replica may have moved them.
    heads: BTreeMap<TenantUid, Head>,
    rewinds: Arc<AtomicU64>,
}

impl Lane {
    async fn run(mut self, mut ready: mpsc::Receiver<Pending>) {
        let mut waiting = Vec::new();
        while !waiting.is_empty() || ready.recv_many(&mut waiting, MAX_UNITS).await > 0 {
            if (2..MAX_UNITS).contains(&waiting.len()) {
                self.let_callers_run().await;
                while waiting.len() < MAX_UNITS
                    && let Ok(pending) = ready.try_recv()
                {
                    waiting.push(pending);
                }
            }
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

    /// Waits until the callers that can run already have run, within bounds, so that their units
    /// join the group. On a runtime and threads of its own, a lane wakes as soon as the last group
    /// is durable. On a busy machine that is before most of the callers that were answered have
    /// sent their next unit. Without this wait, groups are a fifth as large (measured: 14 units
    /// instead of 55), and each costs a statement.
    async fn let_callers_run(&self) {
        // A task that yields is polled again after its runtime has polled the tasks that were
        // ready.
        let turn = self.callers.spawn(tokio::task::yield_now());
        let _ = tokio::time::timeout(GATHERING, turn).await;
    }

    /// Commits the units that pass the fence, and leaves out the others.
    async fn commit_group(&mut self, tenant: TenantUid, mut group: Vec<Pending>) {
        for round in 0..=ROUNDS {
            if round == ROUNDS {
                // A unit that passed when it was checked, but not when it was committed, is refused
                // in the end.
                let (fenced, free) = group.into_iter().partition(|pending| !pending.unit.fence.is_empty());
                refuse(fenced, CommitFailed::Fenced);
                group = free;
            }
            if group.is_empty() {
                return;
            }
            let (mut batch, shares) = merge(tenant, group);
            group = match self.commit_batch(&mut batch).await {
                // One bad unit must not fail the others.
                Err(CommitFailed::Rejected) if shares.len() > 1 => {
                    for Pending { unit, done } in part(batch, shares) {
                        let Unit { entry, changes, fence, .. } = unit;
                        let entries = Vec::from_iter(entry);
                        let mut alone = Batch { tenant, base: 0, entries, changes, fence };
                        let _ = done.send(self.commit_batch(&mut alone).await);
                    }
                    return;
                }
                Err(CommitFailed::Fenced) => self.sift(tenant, part(batch, shares)).await,
                outcome => return divide(outcome, shares),
            };
        }
    }

    /// Refuses the units that the fence keeps out, and returns the rest.
    async fn sift(&self, tenant: TenantUid, group: Vec<Pending>) -> Vec<Pending> {
        let seen = self.store.proofs(tenant).await.ok();
        let (passing, refused) = group.into_iter().partition(|pending| {
            seen.as_ref().is_some_and(|seen| Passed::of(&pending.unit.fence, seen).is_some())
        });
        refuse(refused, if seen.is_some() { CommitFailed::Fenced } else { CommitFailed::Unavailable });
        passing
    }

    async fn commit_batch(&mut self, batch: &mut Batch) -> Result<Durable, CommitFailed> {
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
            let sent = self.clock.boot();
            let outcome = match in_turn {
                true => self.store.commit_in_turn(batch).await,
                false => self.store.commit(batch).await,
            };
            // Whatever follows: if the head is behind the one that this lane has seen, the database
            // went back in time.
            let seen = match outcome {
                Err(CommitError::Moved { size }) => size,
                Ok(_) | Err(CommitError::Fenced | CommitError::Rejected) => batch.base,
                Err(CommitError::Unavailable | CommitError::Unknown | CommitError::Rewound) => batch.base,
            };
            if seen < known.size && !batch.entries.is_empty() {
                self.rewound(tenant, known.size, seen);
                return Err(CommitFailed::Unavailable);
            }
            match outcome {
                Ok(committed) => {
                    let size = batch.base + batch.entries.len() as u64;
                    // Other replicas append too as long as the head is not where this lane left it.
                    let contended = in_turn && batch.base != known.size;
                    self.heads.insert(tenant, Head { size, contended });
                    let heard = self.clock.boot();
                    let passage = match committed.passed {
                        Some(passed) => Some(Passage { fence: batch.fence.clone(), passed, sent, heard }),
                        None => self.look_again(batch).await,
                    };
                    return Ok(Durable { applied: committed.applied, passage: passage.map(Arc::new) });
                }
                Err(CommitError::Fenced) => return Err(CommitFailed::Fenced),
                Err(CommitError::Rewound) => {
                    self.rewound(tenant, known.size, seen);
                    return Err(CommitFailed::Unavailable);
                }
                // Another replica was first, and would be first again. From here on, this lane
                // queues.
                Err(CommitError::Moved { .. }) if !in_turn => {
                    in_turn = true;
                    continue;
                }
                // The writers of this database do not queue, so the position was taken again.
                Err(CommitError::Moved { .. }) => {}
                Err(CommitError::Unknown) => {
                    warn!(%tenant, "the outcome of a commit is unknown: trying the identical batch again");
                    unknown = true;
                    in_turn = false;
                }
                // After an unknown outcome, the batch may be in the log. Neither an outage nor a
                // refusal of a later attempt shows that it is not. The database shows it once it is
                // back.
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

    /// Returns what a fence finds now, for a batch that passed it at an unknown time.
    async fn look_again(&self, batch: &Batch) -> Option<Passage> {
        if batch.fence.is_empty() {
            return None;
        }
        let sent = self.clock.boot();
        let seen = self.store.proofs(batch.tenant).await.ok()?;
        let passed = Passed::of(&batch.fence, &seen)?;
        Some(Passage { fence: batch.fence.clone(), passed, sent, heard: self.clock.boot() })
    }

    fn rewound(&mut self, tenant: TenantUid, known: u64, seen: u64) {
        error!(%tenant, known, seen, "the audit log is not as this server left it: the database was restored or failed over");
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

/// Merges all units into one batch, and returns how to split it again. A condition that two units
/// share is checked once.
fn merge(tenant: TenantUid, group: Vec<Pending>) -> (Batch, Vec<Share>) {
    let mut batch = Batch { tenant, base: 0, entries: Vec::new(), changes: Vec::new(), fence: Vec::new() };
    let mut shares = Vec::with_capacity(group.len());
    for Pending { unit: Unit { entry, changes, mut fence, .. }, done } in group {
        if entry.is_none() {
            fence.clear();
        }
        for asked in &fence {
            if !batch.fence.contains(asked) {
                batch.fence.push(asked.clone());
            }
        }
        shares.push(Share { entries: usize::from(entry.is_some()), changes: changes.len(), fence, done });
        batch.entries.extend(entry);
        batch.changes.extend(changes);
    }
    (batch, shares)
}

/// Splits a batch into the units that it was made of.
fn part(batch: Batch, shares: Vec<Share>) -> Vec<Pending> {
    let Batch { tenant, entries, changes, .. } = batch;
    let (mut entries, mut changes) = (entries.into_iter(), changes.into_iter());
    let unit = |share: Share| {
        let entry = if share.entries > 0 { entries.next() } else { None };
        let changes = changes.by_ref().take(share.changes).collect();
        Pending { unit: Unit { tenant, entry, changes, fence: share.fence }, done: share.done }
    };
    shares.into_iter().map(unit).collect()
}

/// Sends each caller the outcome of its share.
fn divide(outcome: Result<Durable, CommitFailed>, shares: Vec<Share>) {
    let passage = outcome.as_ref().ok().and_then(|durable| durable.passage.clone());
    let mut applied = outcome.map(|durable| durable.applied.into_iter());
    for share in shares {
        let own = applied.as_mut().map(|applied| applied.take(share.changes).collect());
        let own = own.map(|applied| Durable { applied, passage: passage.clone() });
        let _ = share.done.send(own.map_err(|failed| *failed));
    }
}

fn refuse(group: Vec<Pending>, failed: CommitFailed) {
    for pending in group {
        let _ = pending.done.send(Err(failed));
    }
}

/// Returns how many of the units, at least one, fit into the bytes of one commit.
fn within_bytes(waiting: &[Pending]) -> usize {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|pending| {
        bytes += pending.unit.entry.as_ref().map_or(0, |entry| entry.items.len() + entry.records.len() + 256);
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}
