//! The lane of one tenant, which commits what is ready in groups, one after the other.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::model::{Clock, TenantUid};
use crate::store::{Batch, CommitError, Commits, FenceReading};

use super::group::{Pending, divide, merge, part, refuse, within_bytes, without_overtaken};
use super::{CommitFailed, Durable, FenceReceipt, Shared, Unit};

/// The most units of one commit: beyond that, a larger batch gains nothing, and a retry costs more.
const MAX_UNITS: usize = 1_024;
/// How many rounds a group is tried before the units that the fence keeps out are refused.
const ROUNDS: usize = 3;
/// How long a group waits at most for the callers that can run already.
const GATHERING: Duration = Duration::from_millis(1);
/// How long a lane without units lives.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How long a commit is retried if its outcome is unknown, or if another replica has taken its
/// position.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of a log, as a lane last saw it.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) size: u64,
    /// Whether another replica appends too, so that this lane queues for its turn.
    pub(super) contended: bool,
}

/// The lane of one tenant.
pub(super) struct Lane {
    pub(super) tenant: TenantUid,
    pub(super) store: Arc<dyn Commits>,
    pub(super) clock: Arc<dyn Clock>,
    /// The runtime that callers run on.
    pub(super) callers: Handle,
    /// The head of the log as this lane last saw it; another replica may have moved it.
    pub(super) head: Option<Head>,
    /// Gone when the committer was dropped.
    pub(super) shared: Weak<Shared>,
}

impl Lane {
    pub(super) async fn run(mut self, mut ready: mpsc::Receiver<Pending>) {
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
                        // From now on, a caller that finds the lane closed starts another one.
                        // Units that were sent before are still received.
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

    /// Leaves the head to the next lane, which must notice, too, that the database went back in
    /// time.
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
                        let (entries, is_fenced) = (Vec::from_iter(entry), !fence.is_empty());
                        let mut alone = Batch { tenant, base: 0, entries, changes, gate, fence };
                        let outcome = self.commit_batch(&mut alone).await;
                        let _ = done.send(outcome.map_err(|failed| match failed {
                            CommitFailed::Fenced if !is_fenced => CommitFailed::Gated,
                            failed => failed,
                        }));
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
        let row = if group.iter().any(|pending| pending.unit.gate.is_some()) {
            self.store.gate_row(self.tenant).await
        } else {
            Ok(None)
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
            let outcome =
                if in_turn { self.store.commit_in_turn(batch).await } else { self.store.commit(batch).await };
            // Whatever the outcome: if the head is behind the one that this lane has seen, the
            // database went back in time.
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

    /// Returns what a fence finds now, for a batch that passed it at an unknown time. Returns
    /// `None` also if the batch would not pass the gate any more.
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
            // From here on, the log as it is now counts.
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
