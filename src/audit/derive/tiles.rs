//! The tiles of a log's tree.

use tracing::error;

use crate::audit::tree::{Tree, TreeError};
use crate::merkle::Hash;
use crate::store::{Change, TILE_LEVELS, Tile, TileId, WIDTH};

use super::{A_PASS, AT_ONCE, Derived, Pass, left};

impl Pass<'_> {
    /// Derives the tiles that are missing.
    pub(super) async fn tiles(&self) -> Result<Derived, Derived> {
        let log = &self.log;
        let all = log.end.saturating_sub(log.first) / WIDTH;
        let end = all.min(log.next_tile + A_PASS);
        let mut at = log.next_tile;
        while at < end && !self.stop.is_cancelled() {
            let last = end.min(at + AT_ONCE);
            let positions = log.first + at * WIDTH..log.first + last * WIDTH;
            let leaves = self.store.leaves(log.tenant, positions.clone()).await;
            let leaves = leaves.map_err(left)?;
            let there =
                positions.clone().zip(&leaves).take_while(|(position, (seq, _))| position == seq).count();
            let hashes: Vec<Hash> = leaves.into_iter().take(there).map(|(_, leaf)| leaf).collect();
            self.add(0, at, &hashes).await?;
            if (there as u64) < positions.end - positions.start {
                return Err(self.missing(positions.start + there as u64));
            }
            at = last;
        }
        let mut below = at;
        for level in 1..TILE_LEVELS {
            below /= WIDTH;
            if below == 0 {
                break;
            }
            let there = self.store.tiles_end(log.tenant, log.log, level, below).await;
            for index in there.map_err(left)?..below {
                let tiles = index * WIDTH..(index + 1) * WIDTH;
                let roots = self.store.tile_roots(log.tenant, log.log, level - 1, tiles).await;
                let roots = roots.map_err(left)?;
                let roots: Vec<Hash> = roots.into_iter().map(|(_, root)| root).collect();
                self.add(level, index, &roots).await?;
            }
        }
        if at < all {
            return Ok(Derived::More);
        }
        self.check().await.map(|()| Derived::All)
    }

    /// Adds the tiles, from index `first` on, that the hashes fill completely.
    async fn add(&self, level: u32, first: u64, hashes: &[Hash]) -> Result<(), Derived> {
        let log = &self.log;
        let full = (first..).zip(hashes.chunks_exact(WIDTH as usize));
        let tiles: Vec<Tile> = full
            .map(|(index, hashes)| Tile { id: TileId { level, index }, hashes: hashes.to_vec() })
            .collect();
        if tiles.is_empty() {
            return Ok(());
        }
        let end = first + tiles.len() as u64;
        let change = Change::AddTiles { log: log.log, tiles: tiles.clone() };
        if self.commit(vec![change]).await? == end - first {
            return Ok(());
        }
        let stand = self.store.tile_roots(log.tenant, log.log, level, first..end).await;
        for (index, root) in stand.map_err(left)? {
            if root != tiles[(index - first) as usize].root() {
                error!(
                    tenant = ?log.tenant, log = log.log, level, tile = index,
                    "a tile of the audit log's tree does not match its entries"
                );
                return Err(Derived::Wrong);
            }
        }
        Err(Derived::NotHere)
    }

    /// Checks that the tiles and the leaves after them lead to the head, which the commits maintain
    /// without them.
    async fn check(&self) -> Result<(), Derived> {
        let tree = Tree::open(self.store, self.log.tenant).await.map_err(left)?;
        let Some(tree) = tree.filter(|tree| tree.head.log == self.log.log) else { return Ok(()) };
        match tree.frontier_at(tree.head.frontier.size()).await {
            Ok(frontier) if frontier == tree.head.frontier => Ok(()),
            Ok(_) => {
                error!(
                    tenant = ?self.log.tenant, log = self.log.log, size = tree.head.frontier.size(),
                    "the audit log's entries and tiles do not match its head"
                );
                Err(Derived::Wrong)
            }
            Err(TreeError::Missing { seq }) => Err(self.missing(seq)),
            Err(TreeError::Store(error)) => Err(left(error)),
        }
    }

    fn missing(&self, position: u64) -> Derived {
        let tenant = self.log.tenant;
        error!(?tenant, position, "an entry of the audit log is missing: its tree ends there");
        Derived::Wrong
    }
}
