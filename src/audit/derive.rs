//! Derives from the logs the data that proofs and pages read instead of all entries: tiles of the
//! tree, chunks, and the values that occur in each chunk. The entries are authoritative: all of
//! this data can be derived again, every replica derives the same, and no commit waits for it. The
//! stored data itself shows how far the derivation is. Stored data is never changed: if it differs
//! from what the entries yield, that is reported.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};
use crate::store::{
    Batch, Change, Chunk, ChunkValue, CommitError, ReadError, Store, TILE_LEVELS, Tile, TileId, UnderivedLog,
    WIDTH,
};

use super::tree::{Tree, TreeError};

/// How long a log is left alone that is damaged, or that another replica works on.
const LEAVE: Duration = Duration::from_secs(5);
/// How many chunks, or tiles, are derived and committed at once.
const AT_ONCE: u64 = 64;
/// How many of each a pass derives of one log at most, so that no tenant waits for another's log.
const A_PASS: u64 = 16 * AT_ONCE;
/// About how many items' records are held at once, and how many values one commit contains. An
/// entry may have tens of thousands of items.
const ITEMS: u32 = 65_536;
const VALUES: usize = 32_768;

/// How far a pass came; for several logs, the worst result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Derived {
    /// Everything that there was to derive is derived.
    All,
    /// A log has more than one pass derives.
    More,
    /// Another replica derives the same, or the database is out of reach: do not retry soon.
    NotHere,
    /// An entry is missing or does not have a form that byok writes, or what was derived before
    /// does not lead to a log's head. The server's log says which of these it is. The tree is left
    /// as it is.
    Wrong,
}

/// The derivation of all tenants' logs.
#[derive(Default)]
pub struct Derivation {
    /// The logs that are left alone for a while, and since when.
    left: HashMap<TenantUid, Instant>,
    /// When the database could last not be read at all.
    unread: Option<Instant>,
}

impl Derivation {
    /// Derives what is missing for every tenant's log: as much as one pass may, or until `stop` is
    /// cancelled. A log that is damaged, or that another replica works on, is left alone for
    /// five seconds; the others are not. So is a database that cannot be read.
    pub async fn pass(&mut self, store: &dyn Store, stop: &CancellationToken) -> Derived {
        if self.unread.is_some_and(|since| since.elapsed() < LEAVE) {
            return Derived::NotHere;
        }
        let logs = match store.underived_logs().await {
            Ok(logs) => logs,
            Err(error) => {
                self.unread = Some(Instant::now());
                return left(error);
            }
        };
        self.left.retain(|_, since| since.elapsed() < LEAVE);
        let mut derived = Derived::All;
        for log in logs {
            let tenant = log.tenant;
            if self.left.contains_key(&tenant) {
                continue;
            }
            let pass = Pass { store, log, stop };
            // Neither depends on the other: a missing entry stops the tree, but not the pages.
            for part in [pass.chunks().await, pass.tiles().await] {
                let part = part.unwrap_or_else(|left| left);
                if matches!(part, Derived::NotHere | Derived::Wrong) {
                    self.left.insert(tenant, Instant::now());
                }
                derived = derived.max(part);
            }
        }
        derived
    }
}

/// One log's part of a pass. The error is the reason why the log is left for now.
struct Pass<'s> {
    store: &'s dyn Store,
    log: UnderivedLog,
    stop: &'s CancellationToken,
}

impl Pass<'_> {
    async fn chunks(&self) -> Result<Derived, Derived> {
        let log = &self.log;
        let all = log.end / WIDTH;
        let end = all.min(log.next_chunk + A_PASS);
        let mut at = log.next_chunk;
        while at < end && !self.stop.is_cancelled() {
            let last = end.min(at + AT_ONCE);
            let mut times: Vec<Option<(Timestamp, Timestamp)>> = vec![None; (last - at) as usize];
            let mut values = BTreeSet::new();
            let mut position = at * WIDTH;
            while position < last * WIDTH {
                let read = self.store.entry_values(log.tenant, position..last * WIDTH, ITEMS).await;
                let entries = read.map_err(left)?;
                let Some(latest) = entries.last() else { break };
                position = latest.seq + 1;
                for entry in entries {
                    let index = entry.seq / WIDTH;
                    let time = times[(index - at) as usize].get_or_insert((entry.at, entry.at));
                    *time = (time.0.min(entry.at), time.1.max(entry.at));
                    values.extend(entry.values.into_iter().map(|value| ChunkValue { value, chunk: index }));
                }
                if values.len() > VALUES {
                    let values: Vec<ChunkValue> = std::mem::take(&mut values).into_iter().collect();
                    for piece in values.chunks(VALUES) {
                        self.commit(vec![Change::AddChunkValues(piece.to_vec())]).await?;
                    }
                }
            }
            // A chunk whose entries are gone gets an index too.
            let chunk = |(index, time): (u64, Option<(Timestamp, Timestamp)>)| {
                let (earliest, latest) = time.unwrap_or((Timestamp(0), Timestamp(0)));
                Chunk { index, earliest, latest }
            };
            let chunks: Vec<Chunk> = (at..).zip(times).map(chunk).collect();
            let values = Change::AddChunkValues(values.into_iter().collect());
            if self.commit(vec![values, Change::AddChunks(chunks)]).await? < last - at {
                return Err(Derived::NotHere);
            }
            at = last;
        }
        Ok(if at < all { Derived::More } else { Derived::All })
    }

    async fn tiles(&self) -> Result<Derived, Derived> {
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
            let there = self.store.tiles_end(log.tenant, log.log, level).await;
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

    /// Commits changes, and returns how many rows the last of them added. Data that is not known to
    /// be committed is derived again.
    async fn commit(&self, changes: Vec<Change>) -> Result<u64, Derived> {
        let tenant: TenantUid = self.log.tenant;
        let batch = Batch::of_changes(tenant, changes);
        let committed = self.store.commit(&batch).await.map_err(|error| {
            if error == CommitError::Rejected {
                error!("the database refuses what is derived from the audit log");
            }
            Derived::NotHere
        })?;
        Ok(committed.applied.last().copied().unwrap_or(0))
    }
}

fn left(error: ReadError) -> Derived {
    match error {
        ReadError::Unavailable | ReadError::Busy => Derived::NotHere,
        // The cause is the schema or a missing privilege: nothing is known to be wrong with the
        // log.
        ReadError::Rejected => {
            error!("the database refuses reads: nothing more is derived from the audit log");
            Derived::NotHere
        }
        ReadError::Malformed => {
            error!(
                "an entry of the audit log, or a tile of its tree, cannot be read: nothing more is derived from it"
            );
            Derived::Wrong
        }
    }
}
