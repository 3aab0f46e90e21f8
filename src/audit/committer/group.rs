//! Units that are committed together: how they become one batch, and how its outcome is divided
//! among their callers. This file commits nothing.

use tokio::sync::oneshot;

use crate::model::TenantUid;
use crate::store::{Batch, Fence, Gate};

use super::{CommitFailed, Durable, Unit};

/// The most packed bytes of one commit: beyond that, a larger batch gains nothing, and a retry
/// costs more.
const MAX_BYTES: usize = 8 << 20;

/// A unit whose caller waits.
pub(super) struct Pending {
    pub(super) unit: Unit,
    pub(super) done: oneshot::Sender<Result<Durable, CommitFailed>>,
}

/// One caller's share of a batch.
pub(super) struct Share {
    entries: usize,
    changes: usize,
    gate: Option<Gate>,
    fence: Vec<Fence>,
    done: oneshot::Sender<Result<Durable, CommitFailed>>,
}

/// Merges all units into one batch, and returns how to split it again. A condition that two units
/// share is checked once.
pub(super) fn merge(tenant: TenantUid, group: Vec<Pending>) -> (Batch, Vec<Share>) {
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
pub(super) fn without_overtaken(group: Vec<Pending>) -> Vec<Pending> {
    let newest = group.iter().filter_map(|pending| pending.unit.gate).max();
    let is_overtaken = |pending: &Pending| pending.unit.gate.is_some_and(|gate| Some(gate) < newest);
    // Almost always: moving the units costs each commit.
    if !group.iter().any(is_overtaken) {
        return group;
    }
    let (overtaken, rest) = group.into_iter().partition(is_overtaken);
    refuse(overtaken, CommitFailed::Gated);
    rest
}

/// Splits a batch into the units that it was made of.
pub(super) fn part(batch: Batch, shares: Vec<Share>) -> Vec<Pending> {
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
pub(super) fn divide(outcome: Result<Durable, CommitFailed>, shares: Vec<Share>) {
    let receipt = outcome.as_ref().ok().and_then(|durable| durable.receipt.clone());
    let mut applied = outcome.map(|durable| durable.applied.into_iter());
    for share in shares {
        let own = applied.as_mut().map(|applied| applied.take(share.changes).collect());
        let own = own.map(|applied| Durable { applied, receipt: receipt.clone() });
        let _ = share.done.send(own.map_err(|failed| *failed));
    }
}

/// Refuses all units of a group.
pub(super) fn refuse(group: Vec<Pending>, failed: CommitFailed) {
    for pending in group {
        let _ = pending.done.send(Err(failed));
    }
}

/// Returns how many of the units, at least one, fit into the bytes of one commit.
pub(super) fn within_bytes(waiting: &[Pending]) -> usize {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|pending| {
        bytes += pending.unit.entry.as_ref().map_or(0, |entry| entry.items.len() + entry.records.len() + 256);
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}
