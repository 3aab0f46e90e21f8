//! Group commit: the units of a tenant that are ready are committed together, and callers wait for
//! their batch. Each tenant has a lane of its own, so a log that is damaged, contended or slow
//! delays no other tenant's commits. A lane owns its batch, so a caller that hangs up does not
//! affect it. The log may over-report, but never under-report: a caller is answered only when its
//! entry is known to be durable.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::model::{BootTime, Clock, KeyVersion, TenantUid, Timestamp};
use crate::store::{Batch, Change, CommitError, Commits, EntryRow, Fence, FenceReading, Gate};

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
/// How long a lane without units lives.
const IDLE: Duration = Duration::from_secs(60);
/// How often a unit is handed to a lane: the first one may have ended in that moment.
const HANDINGS: usize = 3;
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
    /// The condition on the tenant's row, if the unit depends on it; checked only if there is an
    /// entry.
    pub gate: Option<Gate>,
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
    pub receipt: Option<Arc<FenceReceipt>>,
}

/// How a batch passed the fence.
#[derive(Clone, Debug)]
pub struct FenceReceipt {
    /// The conditions that were checked.
    pub fence: Vec<Fence>,
    /// What was found.
    pub reading: FenceReading,
    /// A time on this machine before the statement that checked them was sent.
    pub sent: BootTime,
    /// A time after its answer arrived.
    pub received: BootTime,
}

impl FenceReceipt {
    /// Returns when this key version was last shown to work, as the fence found it, by the
    /// database's clock.
    pub fn proven_at(&self, key_version: &KeyVersion) -> Option<Timestamp> {
        let mut found = self.fence.iter().zip(&self.reading.proven_at);
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
    /// The tenant was locked, or its stage or keys have changed.
    Gated,
}

struct Pending {
    unit: Unit,
    done: oneshot::Sender<Result<Durable, CommitFailed>>,
}

/// Commits units in groups, in one lane for each tenant.
pub struct Committer {
    shared: Arc<Shared>,
    /// The runtime that the lanes run on.
    runtime: Handle,
}

/// What the lanes share.
struct Shared {
    store: Arc<dyn Commits>,
    clock: Arc<dyn Clock>,
    /// The runtime that callers run on.
    callers: Handle,
    lanes: DashMap<TenantUid, mpsc::Sender<Pending>>,
    /// Where the lanes that have ended left their logs.
    heads: DashMap<TenantUid, Head>,
    rewinds: DashMap<TenantUid, u64>,
}

impl Committer {
    /// Starts a committer on the current runtime, for callers on the same one. Its lanes end when it
    /// is dropped and the units that they hold are done.
    pub fn start(store: Arc<dyn Commits>, clock: Arc<dyn Clock>) -> Self {
        Self::start_for(Handle::current(), store, clock)
    }

    /// Does the same as [`Committer::start`], for callers that mostly run on another runtime.
    pub fn start_for(callers: Handle, store: Arc<dyn Commits>, clock: Arc<dyn Clock>) -> Self {
        let (lanes, heads, rewinds) = (DashMap::new(), DashMap::new(), DashMap::new());
        let shared = Arc::new(Shared { store, clock, callers, lanes, heads, rewinds });
        Self { shared, runtime: Handle::current() }
    }

    /// Returns how often the log of a tenant was found shorter than it had been. Rows of this tenant
    /// that were durable may then be gone, and nothing that was remembered of them may be used any
    /// more.
    pub fn rewinds(&self, tenant: TenantUid) -> u64 {
        self.shared.rewinds.get(&tenant).map_or(0, |rewinds| *rewinds)
    }

    /// Returns the same for each tenant whose log was ever found shorter.
    pub fn rewound(&self) -> Vec<(TenantUid, u64)> {
        self.shared.rewinds.iter().map(|rewinds| (*rewinds.key(), *rewinds.value())).collect()
    }

    /// Makes a unit durable.
    ///
    /// # Errors
    /// [`CommitFailed`]: the unit must then be treated as not done, although its entry may be in
    /// the log.
    pub async fn commit(&self, unit: Unit) -> Result<Durable, CommitFailed> {
        let tenant = unit.tenant;
        let (done, outcome) = oneshot::channel();
        let mut pending = Pending { unit, done };
        for _ in 0..HANDINGS {
            pending = match self.lane(tenant).send(pending).await {
                Ok(()) => return outcome.await.unwrap_or(Err(CommitFailed::Unavailable)),
                Err(SendError(pending)) => pending,
            };
        }
        Err(CommitFailed::Unavailable)
    }

    /// Returns the lane of a tenant. Starts one if there is none.
    fn lane(&self, tenant: TenantUid) -> mpsc::Sender<Pending> {
        if let Some(lane) = self.shared.lanes.get(&tenant).filter(|lane| !lane.is_closed()) {
            return lane.clone();
        }
        let mut lane = self.shared.lanes.entry(tenant).or_insert_with(|| self.start_lane(tenant));
        if lane.is_closed() {
            *lane = self.start_lane(tenant);
        }
        lane.clone()
    }

    fn start_lane(&self, tenant: TenantUid) -> mpsc::Sender<Pending> {
        let (sender, ready) = mpsc::channel(QUEUE);
        let Shared { store, clock, callers, heads, .. } = &*self.shared;
        let (store, clock, callers) = (store.clone(), clock.clone(), callers.clone());
        let head = heads.get(&tenant).map(|head| *head);
        let lane = Lane { tenant, store, clock, callers, head, shared: Arc::downgrade(&self.shared) };
        self.runtime.spawn(lane.run(ready));
        sender
    }
}

/// One caller's share of a batch.
struct Share {
    entries: usize,
    changes: usize,
    gate: Option<Gate>,
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
    tenant: TenantUid,
    store: Arc<dyn Commits>,
    clock: Arc<dyn Clock>,
    /// The runtime that callers run on.
    callers: Handle,
    /// The head of the log as this lane last saw it; another replica may have moved it.
    head: Option<Head>,
    /// Gone when the committer was dropped.
    shared: Weak<Shared>,
}

impl Lane {
    async fn run(mut self, mut ready: mpsc::Receiver<Pending>) {
        let mut waiting = Vec::new();
        loop {
            if waiting.is_empty() {
                match timeout(IDLE, ready.recv_many(&mut waiting, MAX_UNITS)).await {
                    Ok(0) => return self.leave_head(),
                    Ok(_) => {}
                    Err(_) => {
                        self.leave_head();
                        if let Some(shared) = self.shared.upgrade() {
                            shared.lanes.remove(&self.tenant);
                        }
                        // Now whoever finds the lane closed starts another one. What was handed over
                        // before is still received.
                        ready.close();
                        continue;
                    }
                }
            }
            if (2..MAX_UNITS).contains(&waiting.len()) {
                self.let_callers_run().await;
                while waiting.len() < MAX_UNITS
                    && let Ok(pending) = ready.try_recv()
                {
                    waiting.push(pending);
                }
            }
            let rest = waiting.split_off(within_bytes(&waiting));
            self.commit_group(std::mem::replace(&mut waiting, rest)).await;
        }
    }

    /// Leaves the head to the next lane, which must notice, too, that the database went back in time.
    fn leave_head(&self) {
        if let (Some(shared), Some(head)) = (self.shared.upgrade(), self.head) {
            let mut left = shared.heads.entry(self.tenant).or_insert(head);
            if left.size < head.size {
                *left = head;
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
    async fn commit_group(&mut self, mut group: Vec<Pending>) {
        let tenant = self.tenant;
        for round in 0..=ROUNDS {
            if round == ROUNDS {
                // A unit that passed when it was checked, but not when it was committed, is refused
                // in the end.
                let (fenced, rest): (Vec<_>, Vec<_>) =
                    group.into_iter().partition(|pending| !pending.unit.fence.is_empty());
                let (gated, free) = rest.into_iter().partition(|pending| pending.unit.gate.is_some());
                refuse(fenced, CommitFailed::Fenced);
                refuse(gated, CommitFailed::Gated);
                group = free;
            }
            group = without_overtaken(group);
            if group.is_empty() {
                return;
            }
            let (mut batch, shares) = merge(tenant, group);
            group = match self.commit_batch(&mut batch).await {
                // One bad unit must not fail the others.
                Err(CommitFailed::Rejected) if shares.len() > 1 => {
                    for Pending { unit, done } in part(batch, shares) {
                        let Unit { entry, changes, gate, fence, .. } = unit;
                        let entries = Vec::from_iter(entry);
                        let mut alone = Batch { tenant, base: 0, entries, changes, gate, fence };
                        let _ = done.send(self.commit_batch(&mut alone).await);
                    }
                    return;
                }
                Err(CommitFailed::Fenced) => self.sift(part(batch, shares)).await,
                outcome => return divide(outcome, shares),
            };
        }
    }

    /// Refuses the units that the gate or the fence keeps out, and returns the rest.
    async fn sift(&self, group: Vec<Pending>) -> Vec<Pending> {
        let row = match group.iter().any(|pending| pending.unit.gate.is_some()) {
            true => self.store.gate_row(self.tenant).await,
            false => Ok(None),
        };
        let (Ok(row), Ok(seen)) = (row, self.store.proofs(self.tenant).await) else {
            refuse(group, CommitFailed::Unavailable);
            return Vec::new();
        };
        let passes_gate =
            |unit: &Unit| unit.gate.is_none_or(|gate| row.as_ref().is_some_and(|row| gate.holds(row)));
        let (admitted, gated): (Vec<_>, _) =
            group.into_iter().partition(|pending| passes_gate(&pending.unit));
        refuse(gated, CommitFailed::Gated);
        let passes_fence = |unit: &Unit| FenceReading::of(&unit.fence, &seen).is_some();
        let (passing, fenced) = admitted.into_iter().partition(|pending| passes_fence(&pending.unit));
        refuse(fenced, CommitFailed::Fenced);
        passing
    }

    async fn commit_batch(&mut self, batch: &mut Batch) -> Result<Durable, CommitFailed> {
        let tenant = self.tenant;
        let now = self.clock.now();
        batch.entries.iter_mut().for_each(|entry| entry.at = now);
        let known = self.known_head().await?;
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
                self.rewound(known.size, seen);
                return Err(CommitFailed::Unavailable);
            }
            match outcome {
                Ok(committed) => {
                    let size = batch.base + batch.entries.len() as u64;
                    // Other replicas append too as long as the head is not where this lane left it.
                    let contended = in_turn && batch.base != known.size;
                    self.head = Some(Head { size, contended });
                    let received = self.clock.boot();
                    let receipt = match committed.reading {
                        Some(reading) => {
                            Some(FenceReceipt { fence: batch.fence.clone(), reading, sent, received })
                        }
                        None => self.look_again(batch).await,
                    };
                    return Ok(Durable { applied: committed.applied, receipt: receipt.map(Arc::new) });
                }
                Err(CommitError::Fenced) => return Err(CommitFailed::Fenced),
                Err(CommitError::Rewound) => {
                    self.rewound(known.size, seen);
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
                    self.head = None;
                    return Err(CommitFailed::Unavailable);
                }
                Err(CommitError::Rejected) => {
                    self.head = None;
                    error!(%tenant, entries = batch.entries.len(), "the database refused a batch");
                    return Err(CommitFailed::Rejected);
                }
            }
            if Instant::now() >= deadline {
                self.head = None;
                return Err(CommitFailed::Unavailable);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Returns what a fence finds now, for a batch that passed it at an unknown time. Returns `None`
    /// also if the batch would not pass the gate any more.
    async fn look_again(&self, batch: &Batch) -> Option<FenceReceipt> {
        if batch.fence.is_empty() {
            return None;
        }
        if let Some(gate) = batch.gate {
            self.store.gate_row(batch.tenant).await.ok()?.filter(|row| gate.holds(row))?;
        }
        let sent = self.clock.boot();
        let seen = self.store.proofs(batch.tenant).await.ok()?;
        let reading = FenceReading::of(&batch.fence, &seen)?;
        Some(FenceReceipt { fence: batch.fence.clone(), reading, sent, received: self.clock.boot() })
    }

    fn rewound(&mut self, known: u64, seen: u64) {
        let tenant = self.tenant;
        error!(%tenant, known, seen, "the audit log is not as this server left it: the database was restored or failed over");
        self.head = None;
        if let Some(shared) = self.shared.upgrade() {
            // From here on, the log is the one that it is.
            shared.heads.remove(&tenant);
            *shared.rewinds.entry(tenant).or_default() += 1;
        }
    }

    async fn known_head(&self) -> Result<Head, CommitFailed> {
        if let Some(head) = self.head {
            return Ok(head);
        }
        let size = self.store.log_size(self.tenant).await.map_err(|_| CommitFailed::Unavailable)?;
        Ok(Head { size, contended: false })
    }
}

/// Merges all units into one batch, and returns how to split it again. A condition that two units
/// share is checked once.
fn merge(tenant: TenantUid, group: Vec<Pending>) -> (Batch, Vec<Share>) {
    let mut batch = Batch::of_changes(tenant, Vec::new());
    let mut shares = Vec::with_capacity(group.len());
    for Pending { unit: Unit { entry, changes, mut gate, mut fence, .. }, done } in group {
        if entry.is_none() {
            gate = None;
            fence.clear();
        }
        batch.gate = batch.gate.max(gate);
        for asked in &fence {
            if !batch.fence.contains(asked) {
                batch.fence.push(asked.clone());
            }
        }
        shares.push(Share {
            entries: usize::from(entry.is_some()),
            changes: changes.len(),
            gate,
            fence,
            done,
        });
        batch.entries.extend(entry);
        batch.changes.extend(changes);
    }
    (batch, shares)
}

/// Refuses the units of calls that began before another one's revision of the tenant, and returns
/// the rest: one of the two cannot pass the gate, and a revision only rises.
fn without_overtaken(group: Vec<Pending>) -> Vec<Pending> {
    let newest = group.iter().filter_map(|pending| pending.unit.gate).max();
    let (overtaken, rest) =
        group.into_iter().partition(|pending| pending.unit.gate.is_some_and(|gate| Some(gate) < newest));
    refuse(overtaken, CommitFailed::Gated);
    rest
}

/// Splits a batch into the units that it was made of.
fn part(batch: Batch, shares: Vec<Share>) -> Vec<Pending> {
    let Batch { tenant, entries, changes, .. } = batch;
    let (mut entries, mut changes) = (entries.into_iter(), changes.into_iter());
    let unit = |share: Share| {
        let entry = if share.entries > 0 { entries.next() } else { None };
        let changes = changes.by_ref().take(share.changes).collect();
        let Share { gate, fence, done, .. } = share;
        Pending { unit: Unit { tenant, entry, changes, gate, fence }, done }
    };
    shares.into_iter().map(unit).collect()
}

/// Sends each caller the outcome of its share.
fn divide(outcome: Result<Durable, CommitFailed>, shares: Vec<Share>) {
    let receipt = outcome.as_ref().ok().and_then(|durable| durable.receipt.clone());
    let mut applied = outcome.map(|durable| durable.applied.into_iter());
    for share in shares {
        let own = applied.as_mut().map(|applied| applied.take(share.changes).collect());
        let own = own.map(|applied| Durable { applied, receipt: receipt.clone() });
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::model::{Proof, SystemClock};
    use crate::store::{Committed, ReadError, Snapshot, TenantRow};

    const ONE: TenantUid = TenantUid([1; 16]);
    const OTHER: TenantUid = TenantUid([2; 16]);

    /// The sizes of logs. The commits of a tenant without a log never end.
    #[derive(Default)]
    struct Sizes(Mutex<HashMap<TenantUid, u64>>);

    #[async_trait]
    impl Commits for Sizes {
        async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
            if let Some(size) = self.0.lock().unwrap().get_mut(&batch.tenant) {
                if *size != batch.base {
                    return Err(CommitError::Moved { size: *size });
                }
                *size += batch.entries.len() as u64;
                return Ok(Committed { applied: Vec::new(), reading: None });
            }
            std::future::pending().await
        }

        async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
            Ok(self.0.lock().unwrap().get(&tenant).copied().unwrap_or(0))
        }

        async fn proofs(&self, _: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
            Err(ReadError::Unavailable)
        }

        async fn gate_row(&self, _: TenantUid) -> Result<Option<TenantRow>, ReadError> {
            Err(ReadError::Unavailable)
        }
    }

    fn start(sizes: &Arc<Sizes>) -> Committer {
        Committer::start(sizes.clone(), Arc::new(SystemClock))
    }

    fn unit(tenant: TenantUid) -> Unit {
        let entry =
            crate::model::Entry::of_operator(Timestamp(0), crate::model::Operation::Audit, None, None);
        let entry = Some(crate::audit::pack(tenant, &entry));
        Unit { tenant, entry, changes: Vec::new(), gate: None, fence: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_whose_commits_never_end_delays_no_other() {
        let sizes = Arc::new(Sizes::default());
        sizes.0.lock().unwrap().insert(ONE, 0);
        let committer = start(&sizes);
        let stuck = committer.commit(unit(OTHER));
        tokio::pin!(stuck);
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = &mut stuck => panic!("it never ends"),
                committed = committer.commit(unit(ONE)) => assert!(committed.is_ok()),
            }
        }
        assert_eq!(sizes.0.lock().unwrap()[&ONE], 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_has_ended_is_started_again_and_knows_its_log() {
        let sizes = Arc::new(Sizes(Mutex::new(HashMap::from([(ONE, 0), (OTHER, 0)]))));
        let committer = start(&sizes);
        for tenant in [ONE, ONE, OTHER, OTHER] {
            committer.commit(unit(tenant)).await.unwrap();
        }
        assert_eq!(committer.shared.lanes.len(), 2);
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert!(committer.shared.lanes.is_empty(), "nobody has committed for a while");
        // The database went back in time meanwhile, for one of them.
        sizes.0.lock().unwrap().insert(ONE, 1);
        assert_eq!(committer.commit(unit(ONE)).await.err(), Some(CommitFailed::Unavailable));
        assert!(committer.commit(unit(OTHER)).await.is_ok());
        assert_eq!((committer.rewinds(ONE), committer.rewinds(OTHER)), (1, 0));
        assert_eq!(committer.rewound(), [(ONE, 1)]);
        // From there on it goes on, also in a later lane.
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert!(committer.commit(unit(ONE)).await.is_ok());
        assert_eq!(committer.rewinds(ONE), 1);
    }
}
