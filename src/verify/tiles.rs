//! Checks the stored tiles of a log's tree against the leaves that the walk has seen and against
//! each other. Proofs are read from tiles, so an altered tile breaks the proofs of entries that
//! nobody touched. A missing tile is no finding, because its content can be derived from the level
//! below. The check only reads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::finding::Finding;
use super::report::Report;
use crate::merkle::Hash;
use crate::model::TenantUid;
use crate::store::{LogHead, LogReads, ReadError, TILE_LEVELS, Tile, TileId, WIDTH};

/// The number of tiles that are read at once: half a mebibyte of hashes.
const AT_ONCE: u64 = 64;

pub(super) struct Tiles<'s> {
    store: &'s dyn LogReads,
    tenant: TenantUid,
    log: u32,
    /// The first tile of level 0 whose leaves are held in `leaves`.
    first: u64,
    /// The leaves of [`AT_ONCE`] tiles from there on; `None` if an entry was pruned, is missing, or
    /// is still to come.
    leaves: Vec<Option<Hash>>,
    wrong: BTreeSet<TileId>,
}

impl<'s> Tiles<'s> {
    pub(super) fn new(store: &'s dyn LogReads, tenant: TenantUid, log: u32) -> Self {
        let leaves = vec![None; (AT_ONCE * WIDTH) as usize];
        Self { store, tenant, log, first: 0, leaves, wrong: BTreeSet::new() }
    }

    /// Takes in the leaf at this index of the log. Indexes come in order; if one comes twice, the
    /// first leaf counts.
    pub(super) async fn leaf(&mut self, index: u64, leaf: Hash) -> Result<(), ReadError> {
        let first = index / (AT_ONCE * WIDTH) * AT_ONCE;
        if self.first < first {
            self.compare_leaves().await?;
            // There are no leaves in between, however far away this one was put.
            self.first = first;
        }
        if let Some(held) = self.leaves.get_mut((index - self.first * WIDTH) as usize) {
            held.get_or_insert(leaf);
        }
        Ok(())
    }

    /// Called after the last leaf. Reports each tile that is wrong.
    pub(super) async fn finish(mut self, head: &LogHead, report: &mut Report) -> Result<(), ReadError> {
        self.compare_leaves().await?;
        for level in 0..TILE_LEVELS {
            let end = self.store.tiles_end(self.tenant, self.log, level, u64::MAX).await?;
            self.compare_level(level, end).await?;
            if end > 0 {
                self.compare_end(level, end, head).await?;
            }
        }
        for id in self.wrong {
            let leaves = WIDTH.saturating_pow(id.level + 1);
            let start = head.first.saturating_add(id.index.saturating_mul(leaves));
            let range = start..start.saturating_add(leaves);
            report.find(Finding::Tile { id, range });
        }
        Ok(())
    }

    /// Compares the tiles of level 0 with the known leaves, and forgets these.
    async fn compare_leaves(&mut self) -> Result<(), ReadError> {
        for tile in self.read(0, self.first..self.first + AT_ONCE).await? {
            let at = ((tile.id.index - self.first) * WIDTH) as usize;
            let leaves = &self.leaves[at..at + WIDTH as usize];
            if leaves.iter().zip(&tile.hashes).any(|(leaf, hash)| leaf.is_some_and(|leaf| leaf != *hash)) {
                self.wrong.insert(tile.id);
            }
        }
        self.leaves.fill(None);
        Ok(())
    }

    /// Checks all tiles of a level below this index. Steps over indexes without tiles get longer
    /// and longer, so that a tile that was put far behind the others does not keep the check busy
    /// for ever.
    async fn compare_level(&mut self, level: u32, end: u64) -> Result<(), ReadError> {
        let (mut at, mut step) = (0, AT_ONCE);
        while at < end {
            let tiles = at..end.min(at.saturating_add(step));
            if step > AT_ONCE {
                match self.store.tile_roots(self.tenant, self.log, level, tiles.clone()).await {
                    Ok(none) if none.is_empty() => {}
                    Ok(_) | Err(ReadError::Malformed) => {
                        step = AT_ONCE;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            } else if self.compare_roots(level, tiles.clone()).await? {
                at = tiles.end;
                continue;
            }
            at = tiles.end;
            step = step.saturating_mul(2);
        }
        Ok(())
    }

    /// Checks that each tile's stored root matches its hashes, and that its hashes are the roots of
    /// the tiles below. Returns whether there are any.
    async fn compare_roots(&mut self, level: u32, tiles: Range<u64>) -> Result<bool, ReadError> {
        let roots = self.roots(level, tiles.clone()).await?;
        for tile in self.read(level, tiles).await? {
            let root = roots.iter().find(|(index, _)| *index == tile.id.index);
            let mut holds = root.is_some_and(|(_, root)| *root == tile.root());
            if let Some(below) = level.checked_sub(1) {
                let start = tile.id.index.saturating_mul(WIDTH);
                let made_of = self.roots(below, start..start.saturating_add(WIDTH)).await?;
                holds &= made_of.iter().all(|(index, root)| tile.hashes[(index - start) as usize] == *root);
            }
            if !holds {
                self.wrong.insert(tile.id);
            }
        }
        Ok(!roots.is_empty())
    }

    /// Checks that there is no tile for which the log is too short. `end` is one more than the last
    /// tile's index.
    async fn compare_end(&mut self, level: u32, end: u64, head: &LogHead) -> Result<(), ReadError> {
        let now = match self.store.log_head(self.tenant).await? {
            Some(now) if now.log == head.log => now,
            _ => head.clone(),
        };
        if end > now.frontier.size() / WIDTH.saturating_pow(level + 1) {
            self.wrong.insert(TileId { level, index: end - 1 });
        }
        Ok(())
    }

    /// Reads these tiles. Tiles that do not have a valid format are marked as wrong, and left out.
    async fn read(&mut self, level: u32, tiles: Range<u64>) -> Result<Vec<Tile>, ReadError> {
        let ids: Vec<TileId> = tiles.map(|index| TileId { level, index }).collect();
        match self.store.tiles(self.tenant, self.log, &ids).await {
            Err(ReadError::Malformed) => {}
            read => return read,
        }
        let mut tiles = Vec::new();
        for id in ids {
            match self.store.tiles(self.tenant, self.log, &[id]).await {
                Ok(tile) => tiles.extend(tile),
                Err(ReadError::Malformed) => drop(self.wrong.insert(id)),
                Err(error) => return Err(error),
            }
        }
        Ok(tiles)
    }

    /// Reads the stored roots of these tiles. Roots that do not have a valid format are marked as
    /// wrong, and left out.
    async fn roots(&mut self, level: u32, tiles: Range<u64>) -> Result<Vec<(u64, Hash)>, ReadError> {
        match self.store.tile_roots(self.tenant, self.log, level, tiles.clone()).await {
            Err(ReadError::Malformed) => {}
            read => return read,
        }
        let mut roots = Vec::new();
        for index in tiles {
            match self.store.tile_roots(self.tenant, self.log, level, index..index + 1).await {
                Ok(root) => roots.extend(root),
                Err(ReadError::Malformed) => drop(self.wrong.insert(TileId { level, index })),
                Err(error) => return Err(error),
            }
        }
        Ok(roots)
    }
}
