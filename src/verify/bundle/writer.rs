//! Writes the walk of a bundle: the entries of the range with the checkpoints among them, and roots
//! for the rest.

use std::collections::VecDeque;
use std::io::Write;
use std::ops::Range;

use super::export::ExportError;
use super::line::{Line, Subtrees, Unreadable, roots_of};
use crate::audit::Tree;
use crate::merkle::Hash;
use crate::model::{Operation, Tenant};
use crate::store::{EntryFilter, LogHead, LogReads};
use crate::verify::encoding::Bytes;
use crate::verify::entry::BundleEntry;
use crate::verify::pages::{Pages, Row};
use crate::verify::pruned_by;

/// The number of checkpoints, or of entries about prunes, that are read at once.
const PAGE: u32 = 256;
/// The limit of entries that name pruned ranges. More than any retention makes.
const PRUNES: usize = 10_000;

pub(super) struct Writer<'s, 'o> {
    pub(super) store: &'s dyn LogReads,
    pub(super) tenant: &'s Tenant,
    pub(super) tree: Tree<'s>,
    pub(super) out: &'o mut (dyn Write + Send),
    /// A size at which the walk has to stop.
    pub(super) pinned: Option<u64>,
    /// The number of leaves that the walk has passed.
    pub(super) size: u64,
    pub(super) entries: u64,
    pub(super) gaps: Vec<Range<u64>>,
}

impl Writer<'_, '_> {
    pub(super) fn line(&mut self, line: &Line) -> Result<(), ExportError> {
        let mut text = serde_json::to_vec(line).map_err(|error| ExportError::Write(error.into()))?;
        text.push(b'\n');
        self.out.write_all(&text).map_err(ExportError::Write)
    }

    pub(super) async fn skip_to(&mut self, size: u64) -> Result<(), ExportError> {
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

    /// Writes the entries up to that size, with the checkpoints among them.
    pub(super) async fn range(
        &mut self,
        to: u64,
        log: u32,
        closing: u64,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<(), ExportError> {
        let (first, from) = (self.tree.head.first, self.size);
        let mut checkpoints = VecDeque::new();
        let mut read_from = Some(from);
        let mut pages = Pages::new(self.store, self.tenant.uid, first + from..first + to);
        loop {
            let row = pages.next().await?;
            let position = row.as_ref().map_or(first + to, Row::position);
            if position > first + self.size {
                self.pruned_to(position - first).await?;
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
                    // The closing checkpoint comes last.
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
                Some(Row::Unreadable { position, leaf }) => {
                    self.line(&Line::Unreadable(Unreadable { position, leaf: Bytes(leaf.0) }))?;
                    self.size = self.size.max(position + 1 - first);
                }
                None => return Ok(()),
            }
            if position.is_multiple_of(256) {
                progress(self.size - from, to - from);
            }
        }
    }

    fn entry(&mut self, entry: BundleEntry) -> Result<(), ExportError> {
        self.size = self.size.max(entry.position + 1 - self.tree.head.first);
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

    /// Writes the walk from the end of the range to the last checkpoint. It stops at the pinned
    /// size, and includes the entries that say what was pruned.
    pub(super) async fn rest(&mut self, size: u64) -> Result<(), ExportError> {
        let first = self.tree.head.first;
        let named = self.prunes(first + self.size..first + size).await?;
        let mut stops: Vec<u64> = named.iter().map(|entry| entry.position - first).collect();
        stops.extend(self.pinned);
        stops.retain(|stop| (self.size..size).contains(stop));
        stops.sort_unstable();
        stops.dedup();
        let mut named = named.into_iter().peekable();
        for stop in stops {
            self.skip_to(stop).await?;
            if let Some(entry) = named.next_if(|entry| entry.position == first + stop) {
                self.entry(entry)?;
            }
        }
        self.skip_to(size).await
    }

    /// Returns the entries at these positions that name a gap, by position.
    async fn prunes(&self, range: Range<u64>) -> Result<Vec<BundleEntry>, ExportError> {
        let mut found = Vec::new();
        let filter = EntryFilter { operation: Some(Operation::Prune), ..EntryFilter::default() };
        let mut before = Some(range.end);
        while !self.gaps.is_empty() && found.len() < PRUNES {
            let page = self.store.entries(self.tenant.uid, &filter, before, PAGE).await?;
            for placed in page.entries.into_iter().filter(|placed| placed.seq >= range.start) {
                let entry = BundleEntry::of(placed.seq, &placed.row);
                let LogHead { log, first, .. } = self.tree.head;
                let names = |leaves: Range<u64>| {
                    let range = first.saturating_add(leaves.start)..first.saturating_add(leaves.end);
                    self.gaps.iter().any(|gap| gap.start < range.end && range.start < gap.end)
                };
                found.extend(entry.filter(|entry| pruned_by(entry, log).is_some_and(names)));
            }
            match page.next.filter(|next| *next > range.start) {
                Some(next) => before = Some(next),
                None => break,
            }
        }
        found.reverse();
        Ok(found)
    }
}
