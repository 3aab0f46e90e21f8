//! Reads the tree of a tenant's log: roots, frontiers and proofs of any part of it, from its tiles
//! if the worker has made them, otherwise from the leaves. It does not check what it reads: altered
//! data gives another root, which a verifier detects.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::merkle::{Frontier, Hash, Node, consistency_ranges, cover, fold, inclusion_ranges, root_of};
use crate::model::TenantUid;
use crate::store::{LogHead, LogReads, ReadError, TileId, WIDTH};

/// The number of levels of the tree in one tile.
const HEIGHT: u32 = WIDTH.trailing_zeros();
/// How many leaves are read at once.
const LEAVES: u64 = 16_384;

/// Why a part of a tree cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// The database refused or failed.
    Store(ReadError),
    /// The leaf at this position of the log is missing.
    Missing {
        /// The position of the entry.
        seq: u64,
    },
}

impl From<ReadError> for TreeError {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}

/// The tree of one log. Leaves are counted from 0 within the log. The entry of leaf n has the
/// position `head.first + n`.
pub struct Tree<'s> {
    store: &'s dyn LogReads,
    tenant: TenantUid,
    /// The head of the log when it was opened.
    pub head: LogHead,
}

impl<'s> Tree<'s> {
    /// Returns the tree of the tenant's current log, or `None` for a tenant without one.
    ///
    /// # Errors
    /// The database's error.
    pub async fn open(store: &'s dyn LogReads, tenant: TenantUid) -> Result<Option<Self>, ReadError> {
        Ok(store.log_head(tenant).await?.map(|head| Self { store, tenant, head }))
    }

    /// Returns the tree of one of the tenant's logs that has ended, with its last head.
    pub fn ended(store: &'s dyn LogReads, tenant: TenantUid, head: LogHead) -> Self {
        Self { store, tenant, head }
    }

    /// Returns the roots of the [`cover`] of these leaves.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn cover(&self, leaves: Range<u64>) -> Result<Vec<Hash>, TreeError> {
        self.nodes(&cover(leaves)).await
    }

    /// Returns the frontier of the tree as it was at that size.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn frontier_at(&self, size: u64) -> Result<Frontier, TreeError> {
        let roots = self.cover(0..size).await?;
        Frontier::new(size, roots).map_err(|_| TreeError::Store(ReadError::Malformed))
    }

    /// Returns the proof that leaf `index` is in the tree of this size.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, TreeError> {
        self.roots(inclusion_ranges(index, size)).await
    }

    /// Returns the proof that the tree of size `from` is the beginning of that of size `to`.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>, TreeError> {
        self.roots(consistency_ranges(from, to)).await
    }

    async fn roots(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Hash>, TreeError> {
        let covers: Vec<Vec<Node>> = ranges.into_iter().map(cover).collect();
        let nodes = self.nodes(&covers.concat()).await?;
        let mut rest = nodes.as_slice();
        let mut roots = Vec::with_capacity(covers.len());
        for cover in covers {
            let (of_range, after) = rest.split_at(cover.len());
            roots.push(fold(of_range));
            rest = after;
        }
        Ok(roots)
    }

    /// Returns the hashes of these nodes. The tiles that contain them are read at once. For a tile
    /// that does not exist, only the hashes that are needed are read from the level below.
    async fn nodes(&self, nodes: &[Node]) -> Result<Vec<Hash>, TreeError> {
        let mut needed: BTreeMap<TileId, Range<u64>> = BTreeMap::new();
        for node in nodes {
            let (tile, positions) = tile_of(*node);
            let range = needed.entry(tile).or_insert(positions.clone());
            *range = range.start.min(positions.start)..range.end.max(positions.end);
        }
        let ids: Vec<TileId> = needed.keys().copied().collect();
        let tiles = if ids.is_empty() {
            Vec::new()
        } else {
            self.store.tiles(self.tenant, self.head.log, &ids).await?
        };
        // The hashes of each tile, with the position of the first one.
        let mut hashes: HashMap<TileId, (u64, Vec<Hash>)> =
            tiles.into_iter().map(|tile| (tile.id, (tile.id.index * WIDTH, tile.hashes))).collect();
        for (tile, positions) in needed {
            if let std::collections::hash_map::Entry::Vacant(vacant) = hashes.entry(tile) {
                let start = positions.start;
                vacant.insert((start, self.hashes(tile.level, positions).await?));
            }
        }
        let hash_of = |node: &Node| {
            let (tile, positions) = tile_of(*node);
            let (first, hashes) = hashes.get(&tile)?;
            let of_node = hashes.get((positions.start - first) as usize..(positions.end - first) as usize)?;
            Some(root_of(of_node.iter().copied()))
        };
        nodes.iter().map(|node| hash_of(node).ok_or(TreeError::Store(ReadError::Malformed))).collect()
    }

    /// Returns the hashes at these positions of a level of tiles, without that level's own tiles:
    /// leaves, or roots of the tiles below. A tile below that does not exist either is computed
    /// from what it would contain.
    async fn hashes(&self, level: u32, positions: Range<u64>) -> Result<Vec<Hash>, TreeError> {
        let Some(below) = level.checked_sub(1) else { return self.leaves(positions).await };
        let found = self.store.tile_roots(self.tenant, self.head.log, below, positions.clone()).await?;
        let mut found = found.into_iter().peekable();
        let mut hashes = Vec::new();
        let mut at = positions.start;
        while at < positions.end {
            if let Some((_, root)) = found.next_if(|(tile, _)| *tile == at) {
                hashes.push(root);
                at += 1;
                continue;
            }
            let next = found.peek().map_or(positions.end, |(tile, _)| *tile);
            let end = next.min(at + if below == 0 { LEAVES / WIDTH } else { 1 });
            let made_of = Box::pin(self.hashes(below, at * WIDTH..end * WIDTH)).await?;
            hashes.extend(made_of.chunks(WIDTH as usize).map(|tile| root_of(tile.iter().copied())));
            at = end;
        }
        Ok(hashes)
    }

    async fn leaves(&self, leaves: Range<u64>) -> Result<Vec<Hash>, TreeError> {
        let positions = self.head.first + leaves.start..self.head.first + leaves.end;
        let found = self.store.leaves(self.tenant, positions.clone()).await?;
        for (position, (seq, _)) in positions.clone().zip(&found) {
            if position != *seq {
                return Err(TreeError::Missing { seq: position });
            }
        }
        match positions.start + found.len() as u64 {
            end if end == positions.end => Ok(found.into_iter().map(|(_, leaf)| leaf).collect()),
            seq => Err(TreeError::Missing { seq }),
        }
    }
}

/// Returns the tile that contains a node, and the positions of the tile's level that the node
/// spans.
fn tile_of(node: Node) -> (TileId, Range<u64>) {
    let level = node.level / HEIGHT;
    let above = node.level % HEIGHT;
    let positions = node.index << above..(node.index + 1) << above;
    (TileId { level, index: positions.start / WIDTH }, positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_in_one_tile() {
        let tile = |level, index| TileId { level, index };
        assert_eq!(tile_of(Node { level: 0, index: 300 }), (tile(0, 1), 300..301));
        assert_eq!(tile_of(Node { level: 7, index: 3 }), (tile(0, 1), 384..512));
        assert_eq!(tile_of(Node { level: 8, index: 3 }), (tile(1, 0), 3..4));
        assert_eq!(tile_of(Node { level: 17, index: 130 }), (tile(2, 1), 260..262));
    }
}
