//! A bundle, written: page by page, whatever the range. What is not there as an entry goes in as roots.

use std::io::{self, Write};
use std::ops::Range;

use super::super::checkpoint::{CheckpointKey, SignedCheckpoint};
use super::super::tree::{Tree, TreeError};
use super::super::verify::{Pages, Row, pruned_by};
use super::line::{Bytes, End, Header, Line, Start, Subtrees, Unreadable, roots_of};
use super::{BUNDLE_FORMAT, BundleEntry};
use crate::merkle::Hash;
use crate::model::{Operation, Tenant};
use crate::store::{CheckpointRow, EntryFilter, ReadError, Store};

/// How many checkpoints, or entries that say what was pruned, are read at once.
const PAGE: u32 = 256;
/// More entries that name what was pruned than any retention makes.
const PRUNES: usize = 10_000;

/// What to put into a bundle.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The entries at these places.
    pub places: Range<u64>,
    /// The public keys that the reader is told of.
    pub keys: Vec<CheckpointKey>,
    /// A checkpoint that the reader has, to be shown to be the beginning of this log.
    pub pinned: Option<SignedCheckpoint>,
}

/// What was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The range: what was wanted, as far as the last checkpoint speaks of it.
    pub places: Range<u64>,
    /// How many entries.
    pub entries: u64,
    /// The size of the checkpoint that closes it.
    pub size: u64,
}

/// Why there is no bundle.
#[derive(Debug)]
pub enum ExportError {
    /// The database.
    Store(ReadError),
    /// The file.
    Write(io::Error),
    /// There is no log, or no checkpoint of it that can be read.
    NoCheckpoint,
    /// No checkpoint speaks of these places yet.
    Uncovered {
        /// Up to before this place one does.
        until: u64,
    },
    /// The log is shorter than a checkpoint says: verify it.
    Shorter {
        /// What the checkpoint says.
        size: u64,
    },
    /// The entry at this place is gone, and with it all that could stand for it: verify the log.
    Missing {
        /// The place.
        place: u64,
    },
}

impl From<ReadError> for ExportError {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}

impl From<TreeError> for ExportError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Store(error) => Self::Store(error),
            TreeError::Missing { seq } => Self::Missing { place: seq },
        }
    }
}

/// A bundle that can be written.
pub struct Export<'s> {
    store: &'s dyn Store,
    tenant: &'s Tenant,
    tree: Tree<'s>,
    keys: Vec<CheckpointKey>,
    /// The size of the checkpoint that the reader has.
    pinned: Option<u64>,
    origin: String,
    closing: CheckpointRow,
    places: Range<u64>,
    uncovered: Option<Range<u64>>,
}

impl<'s> Export<'s> {
    /// Looks at what there is.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub async fn prepare(
        store: &'s dyn Store,
        tenant: &'s Tenant,
        wanted: Wanted,
    ) -> Result<Self, ExportError> {
        let tree = Tree::open(store, tenant.uid).await?.ok_or(ExportError::NoCheckpoint)?;
        let (first, log, has) = (tree.head.first, tree.head.log, tree.head.frontier.size());
        let closing = store.latest_checkpoint(tenant.uid, log).await?.ok_or(ExportError::NoCheckpoint)?;
        let note = SignedCheckpoint::parse(&closing.note).map_err(|_| ExportError::NoCheckpoint)?;
        let pinned = wanted.pinned.as_ref().map(|pinned| pinned.checkpoint.size);
        if let Some(size) = [Some(closing.size), pinned].into_iter().flatten().find(|size| *size > has) {
            return Err(ExportError::Shorter { size });
        }
        let until = first + closing.size;
        let places = wanted.places.start.max(first)..wanted.places.end.min(until);
        if places.is_empty() || pinned.is_some_and(|pinned| pinned > closing.size) {
            return Err(ExportError::Uncovered { until });
        }
        let uncovered = until..wanted.places.end.min(tree.head.end());
        let uncovered = Some(uncovered).filter(|uncovered| !uncovered.is_empty());
        let origin = note.checkpoint.origin;
        Ok(Self { store, tenant, tree, keys: wanted.keys, pinned, origin, closing, places, uncovered })
    }

    /// The range: what was wanted, as far as the last checkpoint speaks of it.
    pub fn places(&self) -> Range<u64> {
        self.places.clone()
    }

    /// What was wanted, and no checkpoint speaks of yet.
    pub fn uncovered(&self) -> Option<Range<u64>> {
        self.uncovered.clone()
    }

    /// Writes it. `progress` is told how many places of how many are done, from time to time.
    ///
    /// # Errors
    /// See [`ExportError`]; then what was written is no bundle.
    pub async fn write(
        self,
        out: &mut (dyn Write + Send),
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Exported, ExportError> {
        let Self { store, tenant, tree, keys, pinned, origin, closing, places, .. } = self;
        let (first, log, size) = (tree.head.first, tree.head.log, closing.size);
        let (from, to) = (places.start - first, places.end - first);
        let begin = pinned.map_or(from, |pinned| pinned.min(from));
        let mut writer =
            Writer { store, tenant, tree, out, pinned, size: begin, entries: 0, gaps: Vec::new() };
        writer.line(&Line::Header(Header {
            format: BUNDLE_FORMAT.to_owned(),
            origin,
            tenant: tenant.uid.to_string(),
            log,
            first,
            from: places.start,
            to: places.end,
            size,
        }))?;
        for key in &keys {
            writer.line(&Line::Key(key.to_string()))?;
        }
        let roots = writer.tree.cover(0..begin).await?;
        writer.line(&Line::Start(Start { size: begin, roots: roots_of(&roots) }))?;
        writer.skip_to(from).await?;
        writer.range(to, log, size, progress).await?;
        writer.rest(size).await?;
        writer.line(&Line::Checkpoint(closing.note.to_string()))?;
        let entries = writer.entries;
        writer.line(&Line::End(End { entries }))?;
        writer.out.flush().map_err(ExportError::Write)?;
        Ok(Exported { places, entries, size })
    }
}

struct Writer<'s, 'o> {
    store: &'s dyn Store,
    tenant: &'s Tenant,
    tree: Tree<'s>,
    out: &'o mut (dyn Write + Send),
    /// A size that the walk has to stop at.
    pinned: Option<u64>,
    /// How many leaves were walked past.
    size: u64,
    entries: u64,
    gaps: Vec<Range<u64>>,
}

impl Writer<'_, '_> {
    fn line(&mut self, line: &Line) -> Result<(), ExportError> {
        let mut text = serde_json::to_vec(line).map_err(|error| ExportError::Write(error.into()))?;
        text.push(b'\n');
        self.out.write_all(&text).map_err(ExportError::Write)
    }

    async fn skip_to(&mut self, size: u64) -> Result<(), ExportError> {
        if size > self.size {
            let roots = self.tree.cover(self.size..size).await?;
            self.line(&Line::Skip(self.subtrees(size, &roots)))?;
            self.size = size;
        }
        Ok(())
    }

    fn subtrees(&self, size: u64, roots: &[Hash]) -> Subtrees {
        Subtrees { count: size - self.size, roots: roots_of(roots) }
    }

    /// The entries up to that size, with the checkpoints among them.
    async fn range(
        &mut self,
        to: u64,
        log: u32,
        closing: u64,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<(), ExportError> {
        let (first, from) = (self.tree.head.first, self.size);
        let mut checkpoints = std::collections::VecDeque::new();
        let mut read_from = Some(from);
        let mut pages = Pages::new(self.store, self.tenant.uid, first + from..first + to);
        loop {
            let row = pages.next().await?;
            let place = row.as_ref().map_or(first + to, Row::place);
            if place > first + self.size {
                self.pruned_to(place - first).await?;
            }
            loop {
                if checkpoints.is_empty()
                    && let Some(from) = read_from
                {
                    let rows = self.store.checkpoints_from(self.tenant.uid, log, from, PAGE).await?;
                    read_from = rows.last().map(|row| row.size + 1).filter(|_| rows.len() == PAGE as usize);
                    checkpoints.extend(rows);
                }
                match checkpoints.front() {
                    // The closing one comes last.
                    Some(row) if row.size <= self.size && row.size < closing => {
                        if row.size == self.size {
                            let note = row.note.to_string();
                            self.line(&Line::Checkpoint(note))?;
                        }
                        checkpoints.pop_front();
                    }
                    _ => break,
                }
            }
            match row {
                Some(Row::Entry(entry)) => self.entry(*entry)?,
                Some(Row::Unreadable { place, leaf }) => {
                    self.line(&Line::Unreadable(Unreadable { place, leaf: Bytes(leaf.0) }))?;
                    self.size = self.size.max(place + 1 - first);
                }
                None => return Ok(()),
            }
            if place.is_multiple_of(256) {
                progress(self.size - from, to - from);
            }
        }
    }

    fn entry(&mut self, entry: BundleEntry) -> Result<(), ExportError> {
        self.size = self.size.max(entry.place + 1 - self.tree.head.first);
        self.entries += 1;
        self.line(&Line::Entry(Box::new(entry)))
    }

    async fn pruned_to(&mut self, size: u64) -> Result<(), ExportError> {
        let first = self.tree.head.first;
        self.gaps.push(first + self.size..first + size);
        let pinned = self.pinned.filter(|pinned| self.size < *pinned && *pinned < size);
        for size in pinned.into_iter().chain([size]) {
            let roots = self.tree.cover(self.size..size).await?;
            self.line(&Line::Pruned(self.subtrees(size, &roots)))?;
            self.size = size;
        }
        Ok(())
    }

    /// From behind the range to the last checkpoint: past the size that is pinned, and with the entries that say what was
    /// pruned.
    async fn rest(&mut self, size: u64) -> Result<(), ExportError> {
        let first = self.tree.head.first;
        let named = self.prunes(first + self.size..first + size).await?;
        let mut stops: Vec<u64> = named.iter().map(|entry| entry.place - first).collect();
        stops.extend(self.pinned);
        stops.retain(|stop| (self.size..size).contains(stop));
        stops.sort_unstable();
        stops.dedup();
        let mut named = named.into_iter().peekable();
        for stop in stops {
            self.skip_to(stop).await?;
            if let Some(entry) = named.next_if(|entry| entry.place == first + stop) {
                self.entry(entry)?;
            }
        }
        self.skip_to(size).await
    }

    /// The entries at these places that name a gap, by place.
    async fn prunes(&self, places: Range<u64>) -> Result<Vec<BundleEntry>, ExportError> {
        let mut found = Vec::new();
        let filter = EntryFilter { operation: Some(Operation::Prune), ..EntryFilter::default() };
        let mut before = Some(places.end);
        while !self.gaps.is_empty() && found.len() < PRUNES {
            let page = self.store.entries(self.tenant.uid, &filter, before, PAGE).await?;
            let last = page.last().map(|placed| placed.seq).filter(|seq| *seq > places.start);
            for placed in page.into_iter().filter(|placed| placed.seq >= places.start) {
                let entry = BundleEntry::of(placed.seq, &placed.row);
                let names = |range: &Range<u64>| {
                    self.gaps.iter().any(|gap| gap.start < range.end && range.start < gap.end)
                };
                found.extend(entry.filter(|entry| pruned_by(entry).as_ref().is_some_and(names)));
            }
            match last {
                Some(last) => before = Some(last),
                None => break,
            }
        }
        found.reverse();
        Ok(found)
    }
}
