//! Prepares a bundle of the log as it is now, or as it ended: which range of it can be proven, and
//! by which checkpoint. `writer` writes it.

use std::io::{self, Write};
use std::ops::Range;

use super::BUNDLE_FORMAT;
use super::line::{End, Header, Line, Start, roots_of};
use super::writer::Writer;
use crate::audit::{CheckpointKey, SignedCheckpoint, Tree, TreeError};
use crate::model::{Operation, Tenant};
use crate::store::{CheckpointRow, EntryFilter, LogHead, LogReads, ReadError};

/// The contents to put into a bundle.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The head of the ended log to export; `None` for the current log.
    pub ended: Option<LogHead>,
    /// The positions of the entries.
    pub places: Range<u64>,
    /// The public keys to put into the bundle.
    pub keys: Vec<CheckpointKey>,
    /// A checkpoint that the reader has. The bundle must show that this log extends it.
    pub pinned: Option<SignedCheckpoint>,
}

/// The contents of the written bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The range: what was wanted, as far as the last checkpoint covers it.
    pub places: Range<u64>,
    /// The number of entries.
    pub entries: u64,
    /// The size of the closing checkpoint.
    pub size: u64,
}

/// The reason why there is no bundle.
#[derive(Debug)]
pub enum ExportError {
    /// The database failed.
    Store(ReadError),
    /// The file could not be written.
    Write(io::Error),
    /// There is no log, or no readable checkpoint of it.
    NoCheckpoint,
    /// No checkpoint covers these positions yet.
    Uncovered {
        /// The end, exclusive, of the positions that a checkpoint covers.
        until: u64,
    },
    /// The log is shorter than a checkpoint says. Verify it.
    Shorter {
        /// The size in the checkpoint.
        size: u64,
    },
    /// Values were erased while the bundle was written, and the entry that says so is not in it.
    Erased,
    /// The entry at this position is missing, and so is everything that could replace it. Verify
    /// the log.
    Missing {
        /// The position.
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

/// A bundle that is ready to be written.
pub struct Export<'s> {
    store: &'s dyn LogReads,
    tenant: &'s Tenant,
    tree: Tree<'s>,
    keys: Vec<CheckpointKey>,
    /// The size of the checkpoint that the reader has.
    pinned: Option<u64>,
    origin: String,
    closing: CheckpointRow,
    places: Range<u64>,
    uncovered: Option<Range<u64>>,
    erasures_behind: bool,
}

impl<'s> Export<'s> {
    /// Finds out what can be exported.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub async fn prepare(
        store: &'s dyn LogReads,
        tenant: &'s Tenant,
        wanted: Wanted,
    ) -> Result<Self, ExportError> {
        let tree = match wanted.ended {
            Some(head) => Tree::ended(store, tenant.uid, head),
            None => Tree::open(store, tenant.uid).await?.ok_or(ExportError::NoCheckpoint)?,
        };
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
        let erasures_behind = places.end == until && erased_behind(store, tenant, until).await?;
        let keys = wanted.keys;
        Ok(Self { store, tenant, tree, keys, pinned, origin, closing, places, uncovered, erasures_behind })
    }

    /// Returns the range: what was wanted, as far as the last checkpoint covers it.
    pub fn places(&self) -> Range<u64> {
        self.places.clone()
    }

    /// Returns the part of what was wanted that no checkpoint covers yet.
    pub fn uncovered(&self) -> Option<Range<u64>> {
        self.uncovered.clone()
    }

    /// Writes the bundle. From time to time, `progress` receives the number of positions that are
    /// done and the total.
    ///
    /// # Errors
    /// See [`ExportError`]. What was written is not a valid bundle then.
    pub async fn write(
        self,
        out: &mut (dyn Write + Send),
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Exported, ExportError> {
        let Self { store, tenant, tree, keys, pinned, origin, closing, places, erasures_behind, .. } = self;
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
            erasures_behind,
        }))?;
        for key in &keys {
            writer.line(&Line::Key(key.to_string()))?;
        }
        let roots = writer.tree.cover(0..begin).await?;
        writer.line(&Line::Start(Start { size: begin, roots: roots_of(&roots) }))?;
        writer.skip_to(from).await?;
        writer.range(to, log, size, progress).await?;
        // The entry of an erasure is written before any value is removed.
        if to == size && !erasures_behind && erased_behind(store, tenant, first + size).await? {
            return Err(ExportError::Erased);
        }
        writer.rest(size).await?;
        writer.line(&Line::Checkpoint(closing.note.to_string()))?;
        let entries = writer.entries;
        writer.line(&Line::End(End { entries }))?;
        writer.out.flush().map_err(ExportError::Write)?;
        Ok(Exported { places, entries, size })
    }
}

/// Returns whether an entry at this position or after it says that values were erased, in any of
/// the tenant's logs.
async fn erased_behind(store: &dyn LogReads, tenant: &Tenant, position: u64) -> Result<bool, ReadError> {
    let filter = EntryFilter { operation: Some(Operation::Erase), ..EntryFilter::default() };
    let mut before = None;
    loop {
        let page = store.entries(tenant.uid, &filter, before, 1).await?;
        if let Some(latest) = page.entries.first() {
            return Ok(latest.seq >= position);
        }
        match page.next.filter(|next| *next > position) {
            Some(next) => before = Some(next),
            None => return Ok(false),
        }
    }
}
