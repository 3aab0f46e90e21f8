//! The chunks whose entries a search reads: those whose filters, and whose groups' filters, do not
//! say that nothing in them matches. A filter that passes without cause costs a read, never a wrong
//! answer.

use std::ops::Range;

use crate::model::{TenantUid, Timestamp};

use super::derived::{Searchable, WIDTH, filter_values, index_value};
use super::filter::{PROBES, probes};
use super::group_filter::GroupChunks;
use super::search::SearchReads;
use super::{EntryFilter, ReadError};

/// The number of groups whose times are looked at in one statement, and how many of their filters
/// are read at most.
const MOST_GROUPS: u64 = 1_024;
const MOST_GROUP_FILTERS: usize = 64;
/// The same at first, and the factor by which it grows as long as nothing is found.
const FIRST_GROUP_FILTERS: usize = 2;
const GROWTH: usize = 8;
/// How many of the bits of a value are looked at in the filters of groups. They leave about one
/// chunk of a group that lacks the value, and a chunk's own filter is quicker to look at than the
/// rest of the group's.
const GROUP_PROBES: usize = 4;
/// The number of chunks' filters that are looked at in one statement, for each wanted chunk and at
/// most.
const FILTERS_PER_CHUNK: usize = 64;
const MOST_FILTERS: usize = 256;

/// What a chunk must have to be read.
pub(super) struct Lookup {
    pub(super) from: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    /// The positions of filters that must be set.
    pub(super) probes: Vec<i64>,
    /// Other positions, of which all may be set instead: a record may have two names.
    pub(super) or_probes: Option<Vec<i64>>,
}

impl Lookup {
    pub(super) fn of(tenant: TenantUid, filter: &EntryFilter) -> Self {
        let values = filter_values(tenant, filter);
        let with = |record: Option<&String>| {
            let record = record.map(|record| index_value(tenant, Searchable::Record(record)));
            values.iter().copied().chain(record).flat_map(probes).collect()
        };
        let other = filter.record_hash.as_ref().filter(|_| filter.record_id.is_some());
        Self {
            from: filter.from,
            until: filter.until,
            probes: with(filter.record_id.as_ref()),
            or_probes: other.map(|other| with(Some(other))),
        }
    }

    /// Returns the positions that are looked at in filters of groups: of those that must be set,
    /// and then of the others.
    pub(super) fn group_probes(&self) -> Vec<i64> {
        let probes = self.probes.iter().chain(self.or_probes.iter().flatten()).enumerate();
        probes.filter(|(nth, _)| nth % PROBES < GROUP_PROBES).map(|(_, probe)| *probe).collect()
    }

    /// Returns whether every chunk is to be read.
    fn is_empty(&self) -> bool {
        self.from.is_none() && self.until.is_none() && self.probes.is_empty()
    }
}

/// A group in the wanted time.
pub(super) struct Group {
    pub(super) index: u64,
    /// The rows of its filter at [`Lookup::group_probes`], if it has a filter.
    pub(super) rows: Option<Vec<u8>>,
}

impl Group {
    /// Returns the chunks of the group that may match, newest first.
    fn chunks(&self, lookup: &Lookup) -> impl Iterator<Item = u64> {
        let first = self.index * WIDTH;
        let row = WIDTH as usize / 8;
        let rows = self.rows.as_ref().filter(|rows| rows.len() == lookup.group_probes().len() * row);
        let chunks = rows.map_or(GroupChunks::ALL, |rows| {
            let (rows, or_rows) = rows.split_at(lookup.probes.len() / PROBES * GROUP_PROBES * row);
            let chunks = GroupChunks::in_all(rows);
            if lookup.or_probes.is_some() { chunks.or(GroupChunks::in_all(or_rows)) } else { chunks }
        });
        chunks.newest_first().map(move |chunk| first + chunk)
    }
}

/// A chunk that may match, with the time range of its entries as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) index: u64,
    pub(super) earliest: Option<Timestamp>,
    pub(super) latest: Option<Timestamp>,
}

/// Finds the chunks to read.
pub(super) struct Candidates<'s, S> {
    store: &'s S,
    tenant: TenantUid,
    lookup: Lookup,
    /// How many groups' filters are read next.
    group_filters: usize,
}

impl<'s, S: SearchReads> Candidates<'s, S> {
    pub(super) fn new(store: &'s S, tenant: TenantUid, filter: &EntryFilter) -> Self {
        Self { store, tenant, lookup: Lookup::of(tenant, filter), group_filters: FIRST_GROUP_FILTERS }
    }

    /// Returns up to `wanted` chunks that may match, newest first, and the range that is left to
    /// look at. What one call looks at is bounded: it may return none with a range left.
    pub(super) async fn next(
        &mut self,
        within: Range<u64>,
        wanted: usize,
    ) -> Result<(Vec<Chunk>, Range<u64>), ReadError> {
        if self.lookup.is_empty() {
            let chunks: Vec<u64> = within.clone().rev().take(wanted).collect();
            let end = chunks.last().copied().unwrap_or(within.start);
            let chunks = self.store.chunks(self.tenant, &chunks, &self.lookup, wanted).await?;
            return Ok((chunks, within.start..end));
        }
        let (mut looked_at, mut end) = self.of_groups(within.clone()).await?;
        let most = MOST_FILTERS.min(wanted * FILTERS_PER_CHUNK);
        if looked_at.len() > most {
            looked_at.truncate(most);
            end = looked_at.last().copied().unwrap_or(end);
        }
        let chunks = if looked_at.is_empty() {
            Vec::new()
        } else {
            self.store.chunks(self.tenant, &looked_at, &self.lookup, wanted).await?
        };
        if chunks.is_empty() {
            self.group_filters = MOST_GROUP_FILTERS.min(self.group_filters * GROWTH);
        } else if chunks.len() == wanted {
            end = chunks.last().map_or(end, |chunk| chunk.index);
        }
        Ok((chunks, within.start..end))
    }

    /// Returns the chunks that the filters of their groups let pass, newest first, and the first of
    /// the chunks in the groups that were looked at.
    async fn of_groups(&self, within: Range<u64>) -> Result<(Vec<u64>, u64), ReadError> {
        let past = within.end.div_ceil(WIDTH);
        let first = (within.start / WIDTH).max(past.saturating_sub(MOST_GROUPS));
        let most = self.group_filters;
        let groups = self.store.groups(self.tenant, first..past, &self.lookup, most).await?;
        let last =
            if groups.len() == most { groups.last().map_or(first, |group| group.index) } else { first };
        let chunks = groups.iter().flat_map(|group| group.chunks(&self.lookup));
        Ok((chunks.filter(|chunk| within.contains(chunk)).collect(), within.start.max(last * WIDTH)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for so many values, or others.
    fn lookup(values: usize, or_values: Option<usize>) -> Lookup {
        let or_probes = or_values.map(|count| vec![0; count * PROBES]);
        Lookup { from: None, until: None, probes: vec![0; values * PROBES], or_probes }
    }

    fn chunks(rows: Option<&[[u8; 32]]>, lookup: &Lookup) -> Vec<u64> {
        let rows = rows.map(<[[u8; 32]]>::concat);
        Group { index: 2, rows }.chunks(lookup).collect()
    }

    fn row(bytes: [u8; 2]) -> [u8; 32] {
        let mut row = [0; 32];
        row[..2].copy_from_slice(&bytes);
        row
    }

    #[test]
    fn a_chunk_passes_by_all_rows_of_one_name() {
        let mut rows = [row([0xff, 0xff]); 3 * GROUP_PROBES];
        rows[0] = row([0b11, 0b1]);
        rows[2 * GROUP_PROBES - 1] = row([0b110, 0b1]);
        rows[2 * GROUP_PROBES] = row([0b1000, 0]);
        assert_eq!(chunks(Some(&rows[..2 * GROUP_PROBES]), &lookup(2, None)), [520, 513]);
        assert_eq!(chunks(Some(&rows), &lookup(2, Some(1))), [520, 515, 513]);
    }

    #[test]
    fn without_a_filter_of_the_right_length_every_chunk_passes() {
        let all: Vec<u64> = (512..768).rev().collect();
        assert_eq!(chunks(None, &lookup(2, None)), all);
        assert_eq!(chunks(Some(&[row([1, 0])]), &lookup(2, None)), all);
        assert_eq!(chunks(Some(&[]), &lookup(0, None)), all);
    }
}
