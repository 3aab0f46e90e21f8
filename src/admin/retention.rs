//! Old entries that are dropped. Their hashes stay, and an entry of the log that is durable before says which they are.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use crate::audit::{prune_detail, pruned_leaves};
use crate::merkle::Hash;
use crate::model::{Operation, Tenant, TenantUid};
use crate::store::{LogHead, Prunable, PruneError, Retention, TileId, WIDTH};

use super::{AdminError, LogAdmin, length};

/// How many tiles are held against their leaves at once.
const TILES: u64 = 64;
/// How many entries are read at once.
const PAGE: u32 = 1_000;
/// How often a part of the log is listed anew that changed while it was to be dropped.
const TRIES: usize = 3;

impl LogAdmin {
    /// What is older than that, by whichever clock says less: one that runs ahead drops nothing before its time.
    ///
    /// # Errors
    /// The database's.
    pub async fn older_than(&self, age: Duration, exported_only: bool) -> Result<Retention, AdminError> {
        // Nobody's proofs: asked for the database's time.
        let theirs = self.database.proofs(TenantUid([0; 16])).await?.now;
        Ok(Retention { before: self.clock.now().min(theirs).minus(age), exported_only })
    }

    /// What may be dropped, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn prunable(&self, retention: Retention) -> Result<Vec<Prunable>, AdminError> {
        Ok(self.database.prunable(retention).await?)
    }

    /// Drops every entry that is old enough, of every tenant; how many. Their hashes stay, and an entry of each tenant's
    /// log says which are gone; it is durable before they are.
    ///
    /// # Errors
    /// See [`AdminError`]; then an entry may speak of more than is gone, which the next time makes good.
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
        Err(AdminError::Changing)
    }

    /// Whether the tiles that stay hold what these entries' leaves are: they are all that is left of them.
    async fn hold_tiles_against(
        &self,
        tenant: TenantUid,
        log: &LogHead,
        places: Range<u64>,
    ) -> Result<(), AdminError> {
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
                return Err(AdminError::Wrong);
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
    ) -> Result<Vec<(u32, Range<u64>)>, AdminError> {
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
    ) -> Result<(), AdminError> {
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
}

/// The same places, each piece with the log that it is of.
fn by_log(logs: &[LogHead], ranges: &[Range<u64>]) -> Result<Vec<(LogHead, Range<u64>)>, AdminError> {
    let of = |log: &LogHead, range: &Range<u64>| range.start.max(log.first)..range.end.min(log.end());
    let pieces: Vec<_> = ranges
        .iter()
        .flat_map(|range| logs.iter().map(move |log| (log.clone(), of(log, range))))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    let held: u64 = pieces.iter().map(|(_, places)| length(places)).sum();
    let asked: u64 = ranges.iter().map(length).sum();
    if held == asked { Ok(pieces) } else { Err(AdminError::Wrong) }
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
