//! Pruning: old entries are dropped. Their hashes stay, and an entry of the log names them; it is
//! durable before they are dropped.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use crate::audit::{prune_detail, pruned_leaves};
use crate::merkle::Hash;
use crate::model::{Operation, Tenant, TenantUid};
use crate::store::{LogHead, Prunable, PruneError, Retention, TileId, WIDTH};

use super::{AdminError, LogAdmin, length};

/// The number of tiles that are compared with their leaves at once.
const TILES: u64 = 64;
/// The number of entries that are read at once.
const PAGE: u32 = 1_000;
/// The number of attempts at a part of the log that changes while it is to be dropped.
const TRIES: usize = 3;

impl LogAdmin {
    /// The bound for entries of this age, by the earlier of the two clocks (ours and the
    /// database's): a clock that runs ahead drops nothing too early.
    ///
    /// # Errors
    /// The errors of the database.
    pub async fn older_than(&self, age: Duration, exported_only: bool) -> Result<Retention, AdminError> {
        // No tenant has this uid: the read is made for the database's time alone.
        let database_time = self.database.proofs(TenantUid([0; 16])).await?.now;
        Ok(Retention { before: self.clock.now().min(database_time).minus(age), exported_only })
    }

    /// The entries that may be dropped, oldest first.
    ///
    /// # Errors
    /// The errors of the database.
    pub async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, AdminError> {
        Ok(self.database.prunable(retention).await?)
    }

    /// Drops every entry that is old enough, of every tenant, and returns their number. Their
    /// hashes stay, and an entry of each tenant's log names the dropped ones; it is durable before
    /// they are dropped.
    ///
    /// # Errors
    /// See [`AdminError`]; then an entry may name more than was dropped, and the next run drops the
    /// rest.
    pub async fn prune(&self, retention: Retention) -> Result<u64, AdminError> {
        let mut dropped = 0;
        for _ in 0..TRIES {
            let prunable = self.database.prunable(retention).await?;
            let mut changed = false;
            for part in &prunable {
                for (tenant, ranges) in &part.entries {
                    let mut logs = self.database.ended_logs(tenant.uid).await?;
                    logs.extend(self.database.log_head(tenant.uid).await?);
                    let pieces = by_log(&logs, ranges)?;
                    for (log, range) in &pieces {
                        self.check_tiles(tenant.uid, log, range.clone()).await?;
                    }
                    let before = self.pruned_by_entries_in(tenant.uid, &logs, ranges).await?;
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
        Err(AdminError::Changing)
    }

    /// Checks that the tiles have the leaves of these entries: once the entries are dropped, only
    /// the tiles have them.
    async fn check_tiles(
        &self,
        tenant: TenantUid,
        log: &LogHead,
        range: Range<u64>,
    ) -> Result<(), AdminError> {
        let mut tile = (range.start - log.first) / WIDTH;
        while log.first + tile * WIDTH < range.end {
            let ids: Vec<TileId> = (tile..tile + TILES).map(|index| TileId { level: 0, index }).collect();
            let tiles = self.database.tiles(tenant, log.log, &ids).await?;
            let hashes: HashMap<u64, Vec<Hash>> =
                tiles.into_iter().map(|tile| (tile.id.index, tile.hashes)).collect();
            let start = range.start.max(log.first + tile * WIDTH);
            tile += TILES;
            let end = range.end.min(log.first + tile * WIDTH);
            let leaves = self.database.leaves(tenant, start..end).await?;
            let covered = |(seq, leaf): &(u64, Hash)| {
                let index = seq - log.first;
                hashes.get(&(index / WIDTH)).and_then(|tile| tile.get((index % WIDTH) as usize)) == Some(leaf)
            };
            if leaves.len() as u64 != end - start || !leaves.iter().all(covered) {
                return Err(AdminError::Wrong);
            }
        }
        Ok(())
    }

    /// The leaves, with their log, that entries in these ranges say were pruned: once those entries
    /// are dropped, nothing else records it. A server's entry names only leaves before it, so any
    /// other entry is passed over.
    async fn pruned_by_entries_in(
        &self,
        tenant: TenantUid,
        logs: &[LogHead],
        ranges: &[Range<u64>],
    ) -> Result<Vec<(u32, Range<u64>)>, AdminError> {
        let was_there = |(of, leaves): &(u32, Range<u64>), seq: u64| {
            logs.iter()
                .any(|log| log.log == *of && log.first.saturating_add(leaves.end) <= seq.min(log.end()))
        };
        let mut pruned = Vec::new();
        for range in ranges {
            let mut next = range.start;
            while next < range.end {
                let rows = self.database.entries_from(tenant, next, PAGE).await?;
                let Some(last) = rows.last() else { break };
                next = last.seq + 1;
                for placed in rows.iter().filter(|placed| range.contains(&placed.seq)) {
                    let named = pruned_leaves(tenant, &placed.row);
                    pruned.extend(named.filter(|leaves| was_there(leaves, placed.seq)));
                }
            }
        }
        Ok(pruned)
    }

    /// Records in the log which leaves of which log are dropped, and repeats those that the dropped
    /// entries record as dropped before.
    async fn announce(
        &self,
        tenant: &Tenant,
        pieces: &[(LogHead, Range<u64>)],
        before: Vec<(u32, Range<u64>)>,
    ) -> Result<(), AdminError> {
        let leaves = |(head, range): &(LogHead, Range<u64>)| {
            (head.log, range.start - head.first..range.end - head.first)
        };
        for (log, leaves) in joined(pieces.iter().map(leaves).chain(before).collect()) {
            let detail = prune_detail(log, &leaves);
            let unit = self.unit(tenant.uid, Operation::Prune, &detail, Vec::new());
            self.committer.commit(unit).await?;
        }
        Ok(())
    }
}

/// The ranges, split by log, each piece with its log.
fn by_log(logs: &[LogHead], ranges: &[Range<u64>]) -> Result<Vec<(LogHead, Range<u64>)>, AdminError> {
    let of = |log: &LogHead, range: &Range<u64>| range.start.max(log.first)..range.end.min(log.end());
    let pieces: Vec<_> = ranges
        .iter()
        .flat_map(|range| logs.iter().map(move |log| (log.clone(), of(log, range))))
        .filter(|(_, range)| !range.is_empty())
        .collect();
    let held: u64 = pieces.iter().map(|(_, range)| length(range)).sum();
    let asked: u64 = ranges.iter().map(length).sum();
    if held == asked { Ok(pieces) } else { Err(AdminError::Wrong) }
}

/// The same leaves, in order, in as few ranges as possible.
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
