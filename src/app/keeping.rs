//! What an operator does with the log itself: legal holds, erasures, and old entries that are dropped. Each is an entry of
//! the log, written before or with what it does. Needs no key, and no caller: whoever has the database's owner is the
//! operator.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::{CommitFailed, Committer, Unit, pack, prune_detail, pruned_leaves, recorded_id};
use crate::crypto::{hmac_sha256, random};
use crate::merkle::Hash;
use crate::model::{Clock, Entry, Operation, Tenant, TenantUid};
use crate::store::{
    Change, Database, LogHead, Personal, Prunable, PruneError, ReadError, Retention, TileId, WIDTH,
};

/// How many entries one erasure's statement looks at, and how many bytes of them, as they are stored, but for the last of
/// them: an entry may have ten thousand items, and a statement has seconds.
const STEP: u64 = WIDTH;
const STEP_BYTES: u64 = 256 << 10;
/// How many tiles are held against their leaves at once.
const TILES: u64 = 64;
/// How many entries are read at once.
const PAGE: u32 = 1_000;
/// How often a part of the log is listed anew that changed while it was to be dropped.
const TRIES: usize = 3;

/// Why something was not done with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepingFailed {
    /// The tenant is on legal hold.
    OnHold,
    /// The log changed all the while.
    Changing,
    /// The tree that would be left is not that of the entries.
    Wrong,
    /// The database is out of reach.
    Unavailable,
    /// The database refuses it: the role has not the rights.
    Refused,
    /// A row is damaged, or not of the form that the server writes.
    Malformed,
}

/// What an erasure set to null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// In how many entries of the log.
    pub entries: u64,
    /// In how many rows of DEKs; 0 for a user.
    pub deks: u64,
}

impl From<ReadError> for KeepingFailed {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable | ReadError::Busy => Self::Unavailable,
            ReadError::Rejected => Self::Refused,
            ReadError::Malformed => Self::Malformed,
        }
    }
}

impl From<CommitFailed> for KeepingFailed {
    fn from(error: CommitFailed) -> Self {
        match error {
            CommitFailed::Unavailable => Self::Unavailable,
            CommitFailed::Rejected | CommitFailed::Fenced => Self::Refused,
        }
    }
}

/// Keeps the log, for an operator.
pub struct Keeper {
    pub(super) database: Arc<dyn Database>,
    pub(super) committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    /// Who, if it is said.
    operator: Option<String>,
}

impl Keeper {
    /// Of these parts.
    pub fn new(
        database: Arc<dyn Database>,
        committer: Arc<Committer>,
        clock: Arc<dyn Clock>,
        operator: Option<String>,
    ) -> Self {
        Self { database, committer, clock, operator }
    }

    /// Puts a tenant on legal hold, or lifts it. Whether that changed anything; only then there is an entry of it.
    ///
    /// # Errors
    /// See [`KeepingFailed`].
    pub async fn hold(&self, tenant: TenantUid, on: bool) -> Result<bool, KeepingFailed> {
        if self.database.on_hold(tenant).await? == on {
            return Ok(false);
        }
        let detail = if on { "hold on" } else { "hold off" };
        let unit = self.unit(tenant, Operation::Hold, detail, vec![Change::Hold { on }]);
        self.committer.commit(unit).await?;
        Ok(true)
    }

    /// Sets a personal value to null wherever the tenant's log has it, and a record's id in the rows of its DEKs as well. The
    /// log still verifies: its leaves cover only HMACs. What was encrypted for the record still decrypts, as its ciphertexts
    /// name their DEK; a later encrypt for that id finds none and makes another. An erasure that was cut off is done again
    /// from the start.
    ///
    /// # Errors
    /// See [`KeepingFailed`].
    pub async fn erase(&self, tenant: TenantUid, personal: &Personal) -> Result<Erased, KeepingFailed> {
        if self.database.on_hold(tenant).await? {
            return Err(KeepingFailed::OnHold);
        }
        let end = self.database.log_size(tenant).await?;
        // With the entry only what shows the rights, and what is quick: an entry holds the log's head until its commit.
        let mut changes = vec![Change::Erase { personal: personal.clone(), places: 0..0, in_index: false }];
        let what = match personal {
            Personal::User(_) => "user",
            Personal::Record(record) => {
                let hmac = hmac_sha256(&random::<16>(), record.as_bytes());
                changes.push(Change::EraseFromDeks { record_id: record.as_str().into(), hmac });
                "record"
            }
        };
        let entry = self.unit(tenant, Operation::Erase, &format!("erase {what} 0 {end}"), changes);
        let deks = self.committer.commit(entry).await?.applied.iter().sum();
        let mut entries = self.erase_before(tenant, personal, end).await?;
        if let Personal::Record(record) = personal
            && let Cow::Owned(hash) = recorded_id(record)
        {
            entries += self.erase_before(tenant, &Personal::Record(hash), end).await?;
        }
        if self.database.on_hold(tenant).await? {
            return Err(KeepingFailed::OnHold);
        }
        Ok(Erased { entries, deks })
    }

    /// Erases this very value from the entries before a place.
    async fn erase_before(
        &self,
        tenant: TenantUid,
        personal: &Personal,
        end: u64,
    ) -> Result<u64, KeepingFailed> {
        let mut erased = 0;
        let mut start = 0;
        while start < end {
            let step = start..end.min(start + STEP);
            let sizes = self.database.sizes(tenant, step.clone()).await?;
            for places in pieces(step.clone(), &sizes) {
                let in_index = places.end == step.end;
                erased += self.erase_at(tenant, personal, places, in_index).await?;
            }
            start = step.end;
        }
        Ok(erased)
    }

    /// Erases at these places; by halves where that takes too long at once.
    async fn erase_at(
        &self,
        tenant: TenantUid,
        personal: &Personal,
        places: Range<u64>,
        in_index: bool,
    ) -> Result<u64, KeepingFailed> {
        let change = Change::Erase { personal: personal.clone(), places: places.clone(), in_index };
        let unit = Unit { tenant, entry: None, changes: vec![change], fence: Vec::new() };
        match self.committer.commit(unit).await {
            Err(CommitFailed::Unavailable) if length(&places) > 1 => {
                let middle = places.start + length(&places) / 2;
                let first = Box::pin(self.erase_at(tenant, personal, places.start..middle, false)).await?;
                let second = Box::pin(self.erase_at(tenant, personal, middle..places.end, in_index)).await?;
                Ok(first + second)
            }
            committed => Ok(committed?.applied.iter().sum()),
        }
    }

    /// What is older than that, by whichever clock says less: one that runs ahead drops nothing before its time.
    ///
    /// # Errors
    /// The database's.
    pub async fn older_than(&self, age: Duration, exported_only: bool) -> Result<Retention, KeepingFailed> {
        // Nobody's proofs: asked for the database's time.
        let theirs = self.database.proofs(TenantUid([0; 16])).await?.now;
        Ok(Retention { before: self.clock.now().min(theirs).minus(age), exported_only })
    }

    /// What may be dropped, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, KeepingFailed> {
        Ok(self.database.prunable(retention).await?)
    }

    /// Drops every entry that is old enough, of every tenant; how many. Their hashes stay, and an entry of each tenant's
    /// log says which are gone; it is durable before they are.
    ///
    /// # Errors
    /// See [`KeepingFailed`]; then an entry may speak of more than is gone, which the next time makes good.
    pub async fn prune(&self, retention: Retention) -> Result<u64, KeepingFailed> {
        let mut dropped = 0;
        for _ in 0..TRIES {
            let prunable = self.database.prunable(retention).await?;
            let mut changed = false;
            for part in &prunable {
                for (tenant, ranges) in &part.entries {
                    let mut logs = self.database.ended_logs(tenant.uid).await?;
                    logs.extend(self.database.log_head(tenant.uid).await?);
                    let pieces = by_log(&logs, ranges)?;
                    for (log, places) in &pieces {
                        self.hold_tiles_against(tenant.uid, log, places.clone()).await?;
                    }
                    let before = self.pruned_by_entries_at(tenant.uid, &logs, ranges).await?;
                    self.announce(tenant, &pieces, before).await?;
                }
                match self.database.prune(retention, part).await {
                    Ok(()) => {
                        dropped += part.entries.iter().flat_map(|(_, ranges)| ranges).map(length).sum::<u64>()
                    }
                    Err(PruneError::Changed) => changed = true,
                    Err(PruneError::Store(error)) => return Err(error.into()),
                }
            }
            if !changed {
                return Ok(dropped);
            }
        }
        Err(KeepingFailed::Changing)
    }

    /// Whether the tiles that stay hold what these entries' leaves are: they are all that is left of them.
    async fn hold_tiles_against(
        &self,
        tenant: TenantUid,
        log: &LogHead,
        places: Range<u64>,
    ) -> Result<(), KeepingFailed> {
        let mut tile = (places.start - log.first) / WIDTH;
        while log.first + tile * WIDTH < places.end {
            let ids: Vec<TileId> = (tile..tile + TILES).map(|index| TileId { level: 0, index }).collect();
            let tiles = self.database.tiles(tenant, log.log, &ids).await?;
            let hashes: HashMap<u64, Vec<Hash>> =
                tiles.into_iter().map(|tile| (tile.id.index, tile.hashes)).collect();
            let start = places.start.max(log.first + tile * WIDTH);
            tile += TILES;
            let end = places.end.min(log.first + tile * WIDTH);
            let leaves = self.database.leaves(tenant, start..end).await?;
            let covered = |(seq, leaf): &(u64, Hash)| {
                let index = seq - log.first;
                hashes.get(&(index / WIDTH)).and_then(|tile| tile.get((index % WIDTH) as usize)) == Some(leaf)
            };
            if leaves.len() as u64 != end - start || !leaves.iter().all(covered) {
                return Err(KeepingFailed::Wrong);
            }
        }
        Ok(())
    }

    /// What entries at these places say was pruned, each of its log: once they go, nothing else says so. Nothing that no server
    /// has said: an entry speaks of leaves before it.
    async fn pruned_by_entries_at(
        &self,
        tenant: TenantUid,
        logs: &[LogHead],
        places: &[Range<u64>],
    ) -> Result<Vec<(u32, Range<u64>)>, KeepingFailed> {
        let was_there = |(of, leaves): &(u32, Range<u64>), seq: u64| {
            logs.iter()
                .any(|log| log.log == *of && log.first.saturating_add(leaves.end) <= seq.min(log.end()))
        };
        let mut pruned = Vec::new();
        for range in places {
            let mut next = range.start;
            while next < range.end {
                let rows = self.database.entries_from(tenant, next, PAGE).await?;
                let Some(last) = rows.last() else { break };
                next = last.seq + 1;
                for placed in rows.iter().filter(|placed| range.contains(&placed.seq)) {
                    let said = pruned_leaves(tenant, &placed.row);
                    pruned.extend(said.filter(|said| was_there(said, placed.seq)));
                }
            }
        }
        Ok(pruned)
    }

    /// Writes down that these entries go, and again what entries among them say went before: of which log, and which of its
    /// leaves.
    async fn announce(
        &self,
        tenant: &Tenant,
        pieces: &[(LogHead, Range<u64>)],
        before: Vec<(u32, Range<u64>)>,
    ) -> Result<(), KeepingFailed> {
        let leaves = |(head, places): &(LogHead, Range<u64>)| {
            (head.log, places.start - head.first..places.end - head.first)
        };
        for (log, leaves) in joined(pieces.iter().map(leaves).chain(before).collect()) {
            let detail = prune_detail(log, &leaves);
            let unit = self.unit(tenant.uid, Operation::Prune, &detail, Vec::new());
            self.committer.commit(unit).await?;
        }
        Ok(())
    }

    pub(super) fn unit(
        &self,
        tenant: TenantUid,
        operation: Operation,
        detail: &str,
        changes: Vec<Change>,
    ) -> Unit {
        let (at, user) = (self.clock.now(), self.operator.clone());
        let entry = Entry::of_operator(at, operation, user, Some(detail.into()));
        Unit { tenant, entry: Some(pack(tenant, &entry)), changes, fence: Vec::new() }
    }
}

/// The places in pieces of no more than [`STEP_BYTES`], or of one entry.
fn pieces(places: Range<u64>, sizes: &[(u64, u64)]) -> Vec<Range<u64>> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (places.start, 0);
    for (place, size) in sizes {
        if bytes > 0 && bytes + size > STEP_BYTES && *place > start {
            pieces.push(start..*place);
            (start, bytes) = (*place, 0);
        }
        bytes += size;
    }
    pieces.push(start..places.end);
    pieces
}

/// The same places, each piece with the log that it is of.
fn by_log(logs: &[LogHead], ranges: &[Range<u64>]) -> Result<Vec<(LogHead, Range<u64>)>, KeepingFailed> {
    let of = |log: &LogHead, range: &Range<u64>| range.start.max(log.first)..range.end.min(log.end());
    let pieces: Vec<_> = ranges
        .iter()
        .flat_map(|range| logs.iter().map(move |log| (log.clone(), of(log, range))))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    let held: u64 = pieces.iter().map(|(_, places)| length(places)).sum();
    let asked: u64 = ranges.iter().map(length).sum();
    if held == asked { Ok(pieces) } else { Err(KeepingFailed::Wrong) }
}

/// The same leaves in as few ranges as that takes, in order.
fn joined(mut ranges: Vec<(u32, Range<u64>)>) -> Vec<(u32, Range<u64>)> {
    ranges.sort_by_key(|(log, leaves)| (*log, leaves.start));
    let mut joined: Vec<(u32, Range<u64>)> = Vec::new();
    for (log, leaves) in ranges {
        match joined.last_mut() {
            Some((last, before)) if *last == log && leaves.start <= before.end => {
                before.end = before.end.max(leaves.end);
            }
            _ => joined.push((log, leaves)),
        }
    }
    joined
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parted_where_their_entries_are_large() {
        let large = STEP_BYTES / 2 + 1;
        let sizes = [(3, 10), (4, large), (5, large), (6, 3 * large), (9, 10), (10, 10)];
        assert_eq!(pieces(2..12, &sizes), [2..5, 5..6, 6..9, 9..12]);
        assert_eq!(pieces(2..12, &[]).len(), 1);
    }
}
