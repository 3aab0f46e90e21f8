//! The filters of a log's chunks, and of groups of them. A group's row counts how often entries of
//! the group were erased or dropped. That count is read before the entries are, and what was made
//! of them is added only if the count is the same: no erasure is undone.

use std::ops::Range;

use crate::model::Timestamp;
use crate::store::{
    Change, EntryValues, Filter, FilterBuilder, FilterLevel, FilterRow, GroupFilterBuilder, WIDTH,
};

use super::{A_PASS, AT_ONCE, Derived, Pass, left};

/// About how many items' records are held at once. An entry may have tens of thousands of items.
const ITEMS: u32 = 65_536;
/// How many bytes of filters one commit has, but for the last of them.
const BYTES: usize = 1 << 20;

impl Pass<'_> {
    /// Derives the filters that are missing, and those that were taken away.
    pub(super) async fn filters(&self) -> Result<Derived, Derived> {
        let all = self.log.end / WIDTH;
        let end = self.fill(self.log.next_chunk..all.min(self.log.next_chunk + A_PASS)).await?;
        let unfilled = self.store.unfilled(self.log.tenant, end, A_PASS).await.map_err(left)?;
        let mut more = end < all || unfilled.len() as u64 == A_PASS;
        let of_level = |wanted| {
            let unfilled = unfilled.iter().filter(move |(level, _)| *level == wanted);
            unfilled.map(|(_, index)| *index)
        };
        for chunks in runs(of_level(FilterLevel::Chunk)) {
            more |= self.fill(chunks.clone()).await? < chunks.end;
        }
        for group in of_level(FilterLevel::Group) {
            more |= self.stop.is_cancelled() || !self.fill_group(group).await?;
        }
        Ok(if more { Derived::More } else { Derived::All })
    }

    /// Makes the filters of these chunks. Returns how far it came.
    async fn fill(&self, chunks: Range<u64>) -> Result<u64, Derived> {
        let mut at = chunks.start;
        while at < chunks.end && !self.stop.is_cancelled() {
            let group = at / WIDTH;
            let end = chunks.end.min(at + AT_ONCE).min((group + 1) * WIDTH);
            let erasures = self.erasures(group).await?;
            self.fill_in_group(at..end, group, erasures).await?;
            at = end;
        }
        Ok(at)
    }

    /// Makes the filters of chunks of one group.
    async fn fill_in_group(&self, chunks: Range<u64>, group: u64, erasures: u64) -> Result<(), Derived> {
        let mut rows = Vec::new();
        let mut making = ChunkInMaking { index: chunks.start, ..ChunkInMaking::default() };
        let (mut position, end) = (chunks.start * WIDTH, chunks.end * WIDTH);
        while position < end {
            let read = self.store.entry_values(self.log.tenant, position..end, ITEMS).await;
            let entries = read.map_err(left)?;
            position = entries.last().map_or(end, |entry| entry.seq + 1);
            for entry in entries {
                making.finish_before(entry.seq / WIDTH, &mut rows);
                making.add(entry);
            }
            let bytes: usize = rows.iter().filter_map(|row| row.filter.as_ref()).map(Vec::len).sum();
            if bytes >= BYTES {
                self.add_filters(group, erasures, FilterLevel::Chunk, std::mem::take(&mut rows)).await?;
            }
        }
        making.finish_before(chunks.end, &mut rows);
        self.add_filters(group, erasures, FilterLevel::Chunk, rows).await
    }

    /// Makes the filter of a group from those of its chunks. Returns whether all of these were
    /// there; makes some of those that were not.
    async fn fill_group(&self, group: u64) -> Result<bool, Derived> {
        let erasures = self.erasures(group).await?;
        let (mut at, end) = (group * WIDTH, (group + 1) * WIDTH);
        let mut builder = GroupFilterBuilder::default();
        let mut times: Option<(Timestamp, Timestamp)> = None;
        while at < end {
            let rows = self.store.chunk_filters(self.log.tenant, at..end).await.map_err(left)?;
            if rows.is_empty() {
                self.fill(at..end).await?;
                return Ok(false);
            }
            for row in rows {
                let Some(filter) = row.filter.filter(|_| row.index == at) else {
                    self.fill(at..row.index.max(at + 1)).await?;
                    return Ok(false);
                };
                builder.push(Filter::from_bytes(filter));
                let (earliest, latest) = times.unwrap_or((row.earliest, row.latest));
                times = Some((earliest.min(row.earliest), latest.max(row.latest)));
                at += 1;
            }
        }
        let (earliest, latest) = times.unwrap_or((Timestamp(0), Timestamp(0)));
        let row = FilterRow { index: group, earliest, latest, filter: Some(builder.finish()) };
        self.add_filters(group, erasures, FilterLevel::Group, vec![row]).await.map(|()| true)
    }

    /// Returns how often entries of the group were erased or dropped. Adds its row if there is
    /// none.
    async fn erasures(&self, group: u64) -> Result<u64, Derived> {
        let read = async || self.store.erasures(self.log.tenant, group).await.map_err(left);
        if let Some(erasures) = read().await? {
            return Ok(erasures);
        }
        self.commit(vec![Change::OpenGroup { group }]).await?;
        read().await?.ok_or(Derived::NotHere)
    }

    /// Adds filters. Fails if another replica has added some of them, or if entries were erased
    /// meanwhile.
    async fn add_filters(
        &self,
        group: u64,
        erasures: u64,
        level: FilterLevel,
        filters: Vec<FilterRow>,
    ) -> Result<(), Derived> {
        let count = filters.len() as u64;
        let change = Change::AddFilters { group, erasures, level, filters };
        if count > 0 && self.commit(vec![change]).await? < count {
            return Err(Derived::NotHere);
        }
        Ok(())
    }
}

/// The filter of a chunk while its entries are read.
#[derive(Default)]
struct ChunkInMaking {
    index: u64,
    times: Option<(Timestamp, Timestamp)>,
    values: FilterBuilder,
}

impl ChunkInMaking {
    fn add(&mut self, entry: EntryValues) {
        let (earliest, latest) = self.times.unwrap_or((entry.at, entry.at));
        self.times = Some((earliest.min(entry.at), latest.max(entry.at)));
        self.values.extend(entry.values);
    }

    /// Gives the filters of the chunks before this one. A chunk whose entries are gone gets one
    /// that matches nothing.
    fn finish_before(&mut self, end: u64, rows: &mut Vec<FilterRow>) {
        while self.index < end {
            let next = Self { index: self.index + 1, ..Self::default() };
            let Self { index, times, values } = std::mem::replace(self, next);
            let (earliest, latest) = times.unwrap_or((Timestamp(0), Timestamp(0)));
            rows.push(FilterRow { index, earliest, latest, filter: Some(values.finish().into_bytes()) });
        }
    }
}

/// Returns numbers in order as ranges of consecutive ones.
fn runs(numbers: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_are_one_range() {
        assert_eq!(runs([3, 4, 5, 9, 11, 12].into_iter()), [3..6, 9..10, 11..13]);
        assert_eq!(runs([].into_iter()), []);
    }
}
