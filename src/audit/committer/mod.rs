//! Group commit: the units of a tenant that are ready are committed together, and callers wait for
//! their batch. Each tenant has a lane of its own, so a log that is damaged, contended or slow
//! delays no other tenant's commits. A lane owns its batch, so a caller that hangs up does not
//! affect it. The log may over-report, but never under-report: a caller is answered only when its
//! entry is known to be durable.

mod group;
mod lane;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};

use crate::model::{BootTime, Clock, KeyVersion, TenantUid, Timestamp};
use crate::store::{Change, Commits, EntryRow, Fence, FenceReading, Gate};

use group::Pending;
use lane::{Head, Lane};

/// How many units wait in a lane before callers are held back.
const QUEUE: usize = 4_096;
/// How often a unit is handed to a lane: the first one may have ended in that moment.
const HANDINGS: usize = 3;

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

impl Unit {
    /// Returns a unit that depends on neither the tenant's row nor a key.
    pub fn unconditional(tenant: TenantUid, entry: Option<EntryRow>, changes: Vec<Change>) -> Self {
        Self { tenant, entry, changes, gate: None, fence: Vec::new() }
    }
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
    /// Starts a committer on the current runtime, for callers on the same one. Its lanes end when
    /// it is dropped and the units that they hold are done.
    pub fn start(store: Arc<dyn Commits>, clock: Arc<dyn Clock>) -> Self {
        Self::start_for(Handle::current(), store, clock)
    }

    /// Does the same as [`Committer::start`], for callers that mostly run on another runtime.
    pub fn start_for(callers: Handle, store: Arc<dyn Commits>, clock: Arc<dyn Clock>) -> Self {
        let (lanes, heads, rewinds) = (DashMap::new(), DashMap::new(), DashMap::new());
        let shared = Arc::new(Shared { store, clock, callers, lanes, heads, rewinds });
        Self { shared, runtime: Handle::current() }
    }

    /// Returns how often the log of a tenant was found shorter than it had been. Rows of this
    /// tenant that were durable may then be gone, and nothing that was remembered of them may be
    /// used any more.
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
