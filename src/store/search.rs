//! Finds a page of a log's entries, newest first. It reads only chunks that can match, by their
//! filters, and reads entries that the worker has not reached yet directly. The amount that one
//! call reads is bounded in entries, filters and bytes, whatever is searched for.

use std::ops::Range;

use async_trait::async_trait;

use crate::model::{TenantUid, Timestamp};

use super::candidates::{Candidates, Chunk, Group, Lookup};
use super::derived::WIDTH;
use super::{EntryFilter, Page, PlacedEntry, ReadError};

/// The largest number of chunks whose entries one call reads.
const MAX_CHUNKS: usize = 32;
/// The same for a search by record, and how many chunks are read at once: an entry may have
/// thousands of records, and all of them are read.
const MAX_RECORD_CHUNKS: usize = 16;
const MAX_RECORD_STEP: usize = 4;
/// The number of statements that may end early because entries are large; after that, the call
/// ends. Each of these statements has read about as many bytes as its limit allows.
const MAX_EARLY_ENDS: usize = 8;
/// How often one call looks for chunks to read.
const MAX_LOOKUPS: usize = 24;

/// The range that there is to search.
pub(super) struct Bounds {
    /// The position after the last entry.
    pub(super) end: u64,
    /// The number of chunks that have filters.
    pub(super) indexed: u64,
    /// The position of the first entry, if there is one.
    pub(super) first: Option<u64>,
}

/// Positions to read, and a time range, inclusive at both ends.
pub(super) struct Span {
    pub(super) places: Range<u64>,
    pub(super) earliest: Option<Timestamp>,
    pub(super) latest: Option<Timestamp>,
}

/// An entry of a span that matches the filter, as far as it was checked.
pub(super) enum SearchHit {
    /// The entry matches.
    Matching(Box<PlacedEntry>),
    /// The entry matches except for its record, which was not checked because the entries before it
    /// have reached the limit on bytes. Of the entries that follow, not all were checked.
    Unchecked {
        /// The entry's position.
        seq: u64,
    },
}

/// The reads that a search needs from a database.
#[async_trait]
pub(super) trait SearchReads: Sync {
    /// Returns the range to search, or `None` for a tenant without a log.
    async fn bounds(&self, tenant: TenantUid) -> Result<Option<Bounds>, ReadError>;

    /// Returns up to `limit` of these groups that may have entries in the wanted time, newest
    /// first.
    async fn groups(
        &self,
        tenant: TenantUid,
        groups: Range<u64>,
        lookup: &Lookup,
        limit: usize,
    ) -> Result<Vec<Group>, ReadError>;

    /// Returns up to `limit` of these chunks that may match by their times and filters, newest
    /// first.
    async fn chunks(
        &self,
        tenant: TenantUid,
        chunks: &[u64],
        lookup: &Lookup,
        limit: usize,
    ) -> Result<Vec<Chunk>, ReadError>;

    /// Returns up to `limit` entries of the spans that match the filter (except its times) or were
    /// not checked, newest first. The newest entry that matches except for its record is always
    /// checked, whatever its size.
    async fn entries_of(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        spans: &[Span],
        limit: usize,
    ) -> Result<Vec<SearchHit>, ReadError>;
}

/// Returns up to `limit` entries below `before`, newest first.
pub(super) async fn page(
    store: &impl SearchReads,
    tenant: TenantUid,
    filter: &EntryFilter,
    before: Option<u64>,
    limit: u32,
) -> Result<Page, ReadError> {
    let Some(bounds) = store.bounds(tenant).await? else { return Ok(Page::default()) };
    let (chunks_left, largest_step) = match filter.record_id {
        None => (MAX_CHUNKS, MAX_CHUNKS),
        Some(_) => (MAX_RECORD_CHUNKS, MAX_RECORD_STEP),
    };
    let (found, limit) = (Vec::new(), limit as usize);
    let mut search = Search {
        store,
        tenant,
        filter,
        limit,
        found,
        chunks_left,
        early_ends: MAX_EARLY_ENDS,
        step: 1,
        largest_step,
    };
    let mut below = before.unwrap_or(u64::MAX).min(bounds.end);

    // What was dropped is not looked for.
    let lowest = bounds.first.unwrap_or(bounds.end);
    let indexed = lowest.max(bounds.indexed * WIDTH);
    while below > indexed {
        let Some(step) = search.next_step() else { return Ok(search.page_until(below)) };
        let first = below.div_ceil(WIDTH).saturating_sub(step as u64) * WIDTH;
        let first = first.max(indexed);
        match search.read(vec![search.span(first..below, None)]).await? {
            Reached::Limit => return Ok(search.full_page()),
            Reached::End => below = first,
            Reached::Above(seq) => below = seq + 1,
        }
    }

    let mut within = lowest / WIDTH..bounds.indexed.min(below.div_ceil(WIDTH));
    let mut candidates = Candidates::new(store, tenant, filter);
    let mut lookups_left = MAX_LOOKUPS;
    while !within.is_empty() {
        let step = if lookups_left > 0 { search.next_step() } else { None };
        let Some(step) = step else { return Ok(search.page_until(below.min(within.end * WIDTH))) };
        lookups_left -= 1;
        let (chunks, rest) = candidates.next(within.clone(), step).await?;
        search.chunks_left += step - chunks.len();
        let span = |chunk: &Chunk| {
            let first = chunk.index * WIDTH;
            search.span(first..below.min(first + WIDTH), Some(*chunk))
        };
        let spans: Vec<Span> = chunks.iter().map(span).collect();
        match search.read(spans).await? {
            Reached::Limit => return Ok(search.full_page()),
            Reached::End => within = rest,
            Reached::Above(seq) => {
                below = seq + 1;
                within.end = seq / WIDTH + 1;
            }
        }
    }
    Ok(Page { entries: search.found, next: None })
}

/// How far a read came.
enum Reached {
    /// The page is full.
    Limit,
    /// All of the spans were searched.
    End,
    /// Everything above this position was searched, and nothing more matches there.
    Above(u64),
}

struct Search<'s, S> {
    store: &'s S,
    tenant: TenantUid,
    filter: &'s EntryFilter,
    limit: usize,
    found: Vec<PlacedEntry>,
    /// The number of chunks that may still be read.
    chunks_left: usize,
    /// The number of statements that may still end early.
    early_ends: usize,
    /// The number of chunks to read next.
    step: usize,
    /// The largest number of chunks that are read at once.
    largest_step: usize,
}

impl<S: SearchReads> Search<'_, S> {
    /// Returns the number of chunks to read next. It is small at first, because one chunk is often
    /// enough.
    fn next_step(&mut self) -> Option<usize> {
        if self.early_ends == 0 {
            return None;
        }
        let step = self.step.min(self.chunks_left);
        self.chunks_left -= step;
        self.step = self.largest_step.min(self.step * 4);
        (step > 0).then_some(step)
    }

    fn span(&self, places: Range<u64>, chunk: Option<Chunk>) -> Span {
        // Times are whole microseconds.
        let last = self.filter.until.map(|until| Timestamp(until.0.saturating_sub(1)));
        let of_chunk = chunk.map_or((None, None), |chunk| (chunk.earliest, chunk.latest));
        let earliest = [self.filter.from, of_chunk.0].into_iter().flatten().max();
        let latest = [last, of_chunk.1].into_iter().flatten().min();
        Span { places, earliest, latest }
    }

    async fn read(&mut self, spans: Vec<Span>) -> Result<Reached, ReadError> {
        if spans.is_empty() {
            return Ok(Reached::End);
        }
        let wanted = self.limit - self.found.len();
        for hit in self.store.entries_of(self.tenant, self.filter, &spans, wanted).await? {
            match hit {
                SearchHit::Matching(entry) => self.found.push(*entry),
                SearchHit::Unchecked { seq } => {
                    self.early_ends -= 1;
                    return Ok(Reached::Above(seq));
                }
            }
        }
        Ok(if self.found.len() >= self.limit { Reached::Limit } else { Reached::End })
    }

    fn full_page(self) -> Page {
        let last = self.found.last().map_or(0, |entry| entry.seq);
        self.page_until(last)
    }

    fn page_until(self, below: u64) -> Page {
        Page { entries: self.found, next: (below > 0).then_some(below) }
    }
}
