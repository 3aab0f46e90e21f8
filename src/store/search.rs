//! Finds a page of a log's entries, newest first. It reads only chunks that can match, which it
//! takes from the index, and reads entries that the worker has not reached yet directly. The amount
//! that one call reads is bounded in entries and in bytes, whatever the filter.

use std::ops::Range;

use async_trait::async_trait;

use crate::model::{TenantUid, Timestamp};

use super::derived::{Chunk, Searchable, WIDTH, filter_values, index_value};
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
/// The number of chunks that are looked up in the index for each wanted one, if more than one
/// condition must hold.
const LOOKUPS_PER_CHUNK: usize = 64;

/// The range that there is to search.
pub(super) struct Bounds {
    /// The position after the last entry.
    pub(super) end: u64,
    /// The number of chunks in the index.
    pub(super) indexed: u64,
    /// The range of those chunks that have entries in the wanted time.
    pub(super) chunks: Range<u64>,
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

/// The value by which chunks are looked up.
#[derive(Clone, Copy)]
pub(super) enum Lookup {
    One(i64),
    /// At least one of two values.
    Either(i64, i64),
}

/// The reads that a search needs from a database.
#[async_trait]
pub(super) trait SearchReads: Sync {
    /// Returns the range to search, or `None` for a tenant without a log.
    async fn bounds(&self, tenant: TenantUid, filter: &EntryFilter) -> Result<Option<Bounds>, ReadError>;

    /// Returns up to `limit` chunks, newest first.
    async fn chunks(
        &self,
        tenant: TenantUid,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<Chunk>, ReadError>;

    /// Returns up to `limit` of the chunks in which a value occurs, newest first.
    async fn chunks_with(
        &self,
        tenant: TenantUid,
        value: Lookup,
        within: Range<u64>,
        limit: usize,
    ) -> Result<Vec<u64>, ReadError>;

    /// Returns those of these chunks in which all the values occur, newest first.
    async fn chunks_with_all(
        &self,
        tenant: TenantUid,
        values: &[i64],
        chunks: &[u64],
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
    let Some(bounds) = store.bounds(tenant, filter).await? else { return Ok(Page::default()) };
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

    let indexed = bounds.indexed * WIDTH;
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

    let mut within = bounds.chunks.start..bounds.chunks.end.min(below.div_ceil(WIDTH));
    let (lead, others) = search.values(within.clone()).await?;
    while !within.is_empty() {
        let Some(step) = search.next_step() else {
            return Ok(search.page_until(below.min(within.end * WIDTH)));
        };
        let (chunks, rest) = search.candidates(lead, &others, within.clone(), step).await?;
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
        let earliest = [self.filter.from, chunk.map(|chunk| chunk.earliest)].into_iter().flatten().max();
        let latest = [last, chunk.map(|chunk| chunk.latest)].into_iter().flatten().min();
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

    /// Returns the value that occurs in the fewest chunks, as estimated from a few chunks of each
    /// value, and the other values. A record that has two values comes first, however many chunks
    /// have one of them.
    async fn values(&self, within: Range<u64>) -> Result<(Option<Lookup>, Vec<i64>), ReadError> {
        let mut values = filter_values(self.tenant, self.filter);
        let of = |record: &String| index_value(self.tenant, Searchable::Record(record));
        match (self.filter.record_id.as_ref().map(of), self.filter.record_hash.as_ref().map(of)) {
            (Some(id), Some(hash)) => return Ok((Some(Lookup::Either(id, hash)), values)),
            (id, _) => values.extend(id),
        }
        self.rarest_first(&mut values, within).await?;
        Ok(match values.split_first() {
            None => (None, Vec::new()),
            Some((rarest, others)) => (Some(Lookup::One(*rarest)), others.to_vec()),
        })
    }

    async fn rarest_first(&self, values: &mut [i64], within: Range<u64>) -> Result<(), ReadError> {
        if values.len() < 2 || within.is_empty() {
            return Ok(());
        }
        let mut rarest = (true, u64::MAX, 0);
        for (place, value) in values.iter().enumerate() {
            let value = Lookup::One(*value);
            let chunks =
                self.store.chunks_with(self.tenant, value, within.clone(), LOOKUPS_PER_CHUNK).await?;
            let more = chunks.len() == LOOKUPS_PER_CHUNK;
            let common = if more { chunks.last().copied().unwrap_or(0) } else { chunks.len() as u64 };
            rarest = rarest.min((more, common, place));
        }
        values.swap(0, rarest.2);
        Ok(())
    }

    /// Returns up to `wanted` chunks that can match, newest first, and the range that is left to
    /// search.
    async fn candidates(
        &self,
        lead: Option<Lookup>,
        others: &[i64],
        within: Range<u64>,
        wanted: usize,
    ) -> Result<(Vec<Chunk>, Range<u64>), ReadError> {
        let (from, until) = (self.filter.from, self.filter.until);
        let is_certain = others.is_empty() && from.is_none() && until.is_none();
        let looked_up = if is_certain { wanted } else { wanted * LOOKUPS_PER_CHUNK };
        let (found, last, mut chunks) = match lead {
            None => {
                let chunks = self.store.chunks(self.tenant, within.clone(), looked_up).await?;
                (chunks.len(), chunks.last().map(|chunk| chunk.index), chunks)
            }
            Some(lead) => {
                let found = self.store.chunks_with(self.tenant, lead, within.clone(), looked_up).await?;
                let chunks = if found.is_empty() {
                    Vec::new()
                } else {
                    self.store.chunks_with_all(self.tenant, others, &found).await?
                };
                (found.len(), found.last().copied(), chunks)
            }
        };
        chunks.retain(|chunk| {
            from.is_none_or(|from| chunk.latest >= from) && until.is_none_or(|until| chunk.earliest < until)
        });
        let end = if chunks.len() > wanted {
            chunks.truncate(wanted);
            chunks.last().map_or(within.start, |chunk| chunk.index)
        } else if found == looked_up {
            last.unwrap_or(within.start)
        } else {
            within.start
        };
        Ok((chunks, within.start..end))
    }
}
