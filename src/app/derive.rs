//! Derives from the logs what proofs and pages read instead of all entries: tiles of the tree, chunks, and which values come
//! in them. The entries are what counts: it can all be derived again, gives the same whoever derives it, and no commit waits
//! for it. How far it is stands in what is there.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};
use crate::store::{Batch, Behind, Change, Chunk, ChunkValue, Tile, TileId, WIDTH};

use super::App;

/// How many chunks, or tiles, are derived and committed at once.
const AT_ONCE: u64 = 64;
/// How many items' records are held at once, about, and how many values one commit names: an entry may have tens of thousands.
const ITEMS: u32 = 65_536;
const VALUES: usize = 32_768;
/// As many levels of tiles as the tables take.
const LEVELS: u32 = 8;

/// How far a pass came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// All that was there to derive is derived.
    All,
    /// Another replica derives the same, the database is out of reach, or an entry is missing: not again soon.
    NotHere,
}

/// Why a log is left for now.
struct Left;

impl App {
    /// Derives what is missing of every tenant's log, until there is nothing more or `stop` is cancelled.
    pub async fn derive(&self, stop: &CancellationToken) -> Derived {
        let Ok(logs) = self.store.behind().await else { return Derived::NotHere };
        let mut derived = Derived::All;
        for log in logs {
            // The one does not wait for the other: a missing entry ends a tree, but no page.
            let chunks = self.derive_chunks(&log, stop).await;
            let tiles = self.derive_tiles(&log, stop).await;
            if chunks.is_err() || tiles.is_err() {
                derived = Derived::NotHere;
            }
        }
        derived
    }

    async fn derive_chunks(&self, log: &Behind, stop: &CancellationToken) -> Result<(), Left> {
        let (mut at, end) = (log.chunk, log.end / WIDTH);
        while at < end && !stop.is_cancelled() {
            let last = end.min(at + AT_ONCE);
            let mut times: Vec<Option<(Timestamp, Timestamp)>> = vec![None; (last - at) as usize];
            let mut values = BTreeSet::new();
            let mut place = at * WIDTH;
            while place < last * WIDTH {
                let read = self.store.outlines(log.tenant, place..last * WIDTH, ITEMS).await;
                let outlines = read.map_err(|_| Left)?;
                let Some(latest) = outlines.last() else { break };
                place = latest.seq + 1;
                for outline in outlines {
                    let index = outline.seq / WIDTH;
                    let time = times[(index - at) as usize].get_or_insert((outline.at, outline.at));
                    *time = (time.0.min(outline.at), time.1.max(outline.at));
                    values.extend(outline.values.into_iter().map(|value| ChunkValue { value, chunk: index }));
                }
            }
            let values: Vec<ChunkValue> = values.into_iter().collect();
            let mut pieces = values.chunks(VALUES).peekable();
            while let Some(piece) = pieces.next_if(|_| values.len() > VALUES) {
                self.commit_derived(log.tenant, vec![Change::AddChunkValues(piece.to_vec())]).await?;
            }
            let mut changes: Vec<Change> =
                pieces.map(|piece| Change::AddChunkValues(piece.to_vec())).collect();
            // A chunk whose entries are gone has its place too.
            let chunk = |(index, time): (u64, Option<(Timestamp, Timestamp)>)| {
                let (earliest, latest) = time.unwrap_or((Timestamp(0), Timestamp(0)));
                Chunk { index, earliest, latest }
            };
            changes.push(Change::AddChunks((at..).zip(times).map(chunk).collect()));
            if self.commit_derived(log.tenant, changes).await? == 0 {
                return Err(Left);
            }
            at = last;
        }
        Ok(())
    }

    async fn derive_tiles(&self, log: &Behind, stop: &CancellationToken) -> Result<(), Left> {
        let (mut at, end) = (log.tile, (log.end - log.first) / WIDTH);
        while at < end && !stop.is_cancelled() {
            let last = end.min(at + AT_ONCE);
            let places = log.first + at * WIDTH..log.first + last * WIDTH;
            let leaves = self.store.leaves(log.tenant, places.clone()).await.map_err(|_| Left)?;
            let there =
                places.clone().zip(&leaves).take_while(|(place, (seq, _))| place == seq).count() as u64;
            let hashes: Vec<Hash> = leaves.into_iter().take(there as usize).map(|(_, leaf)| leaf).collect();
            self.add_tiles(log, 0, at, &hashes).await?;
            if there < places.end - places.start {
                error!(
                    place = places.start + there,
                    "an entry of the audit log is missing: its tree ends there"
                );
                return Err(Left);
            }
            at = last;
        }
        for level in 1..LEVELS {
            let at = self.store.tiles_end(log.tenant, log.log, level).await.map_err(|_| Left)?;
            let below = self.store.tiles_end(log.tenant, log.log, level - 1).await.map_err(|_| Left)?;
            if below / WIDTH <= at {
                break;
            }
            for index in at..below / WIDTH {
                let tiles = index * WIDTH..(index + 1) * WIDTH;
                let roots = self.store.tile_roots(log.tenant, log.log, level - 1, tiles).await;
                let roots: Vec<Hash> = roots.map_err(|_| Left)?.into_iter().map(|(_, root)| root).collect();
                self.add_tiles(log, level, index, &roots).await?;
            }
        }
        Ok(())
    }

    /// Adds those tiles from this one on that the hashes are enough for.
    async fn add_tiles(&self, log: &Behind, level: u32, first: u64, hashes: &[Hash]) -> Result<(), Left> {
        let full = (first..).zip(hashes.chunks_exact(WIDTH as usize));
        let tiles: Vec<Tile> = full
            .map(|(index, hashes)| Tile { id: TileId { level, index }, hashes: hashes.to_vec() })
            .collect();
        if tiles.is_empty() {
            return Ok(());
        }
        match self.commit_derived(log.tenant, vec![Change::AddTiles { log: log.log, tiles }]).await? {
            0 => Err(Left),
            _ => Ok(()),
        }
    }

    /// How many rows the last of the changes added. What is not known to be committed is derived again.
    async fn commit_derived(&self, tenant: TenantUid, changes: Vec<Change>) -> Result<u64, Left> {
        let batch = Batch { tenant, base: 0, entries: Vec::new(), changes, fence: Vec::new() };
        let committed = self.store.commit(&batch).await.map_err(|_| Left)?;
        Ok(committed.applied.last().copied().unwrap_or(0))
    }
}
