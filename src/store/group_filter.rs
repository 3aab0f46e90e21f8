//! The filters of a group of 256 chunks in one, turned: a row of 256 bits for each position, with
//! the bit that each chunk's filter has there. A few rows tell which of the chunks may have a
//! value, and no other part of the filters is read for that.

use super::WIDTH;
use super::filter::{Filter, SMALLEST};

/// The number of bytes of a row: a bit for each chunk.
const ROW: usize = WIDTH as usize / 8;
/// The largest number of rows. The filter of a chunk with very many values is folded to that, and
/// is looked at itself where it passes.
const MOST_ROWS: usize = 1 << 17;

/// Makes the filter of a group.
#[derive(Default)]
pub struct GroupFilterBuilder {
    filters: Vec<Option<Filter>>,
    bits: usize,
}

impl GroupFilterBuilder {
    /// Adds the filter of the next chunk. Without one, the chunk may have any value.
    pub fn push(&mut self, filter: Option<Filter>) {
        self.bits += filter.as_ref().map_or(0, Filter::bits);
        self.filters.push(filter.map(|filter| filter.folded_to(MOST_ROWS)));
    }

    /// Returns the group's filter: as many rows as the longest filter has bits, as long as they are
    /// not more than twice as large as the filters together.
    pub fn finish(self) -> Vec<u8> {
        let longest = self.filters.iter().flatten().map(Filter::bits).max().unwrap_or(0);
        let rows = 1 << longest.min(2 * self.bits / WIDTH as usize).max(SMALLEST * 8).ilog2();
        let mut turned = vec![0; rows * ROW];
        for (column, filter) in self.filters.into_iter().enumerate().take(WIDTH as usize) {
            let filter = filter.map(|filter| filter.folded_to(rows));
            for (position, row) in turned.chunks_exact_mut(ROW).enumerate() {
                if filter.as_ref().is_none_or(|filter| filter.bit(position as i64)) {
                    row[column / 8] |= 1 << (column % 8);
                }
            }
        }
        turned
    }
}

/// The chunks of a group that may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupChunks([u8; ROW]);

impl GroupChunks {
    /// All of the chunks.
    pub(super) const ALL: Self = Self([u8::MAX; ROW]);

    /// Returns the chunks that have a bit in each of these rows.
    pub(super) fn in_all(rows: &[u8]) -> Self {
        let mut all = Self::ALL.0;
        for row in rows.chunks_exact(ROW) {
            all.iter_mut().zip(row).for_each(|(all, row)| *all &= row);
        }
        Self(all)
    }

    /// Returns the chunks that are in either.
    pub(super) fn or(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(one, other)| *one |= other);
        self
    }

    /// Returns the chunks, counted within the group, from the last one.
    pub(super) fn newest_first(self) -> impl Iterator<Item = u64> {
        (0..WIDTH).rev().filter(move |chunk| self.0[(chunk / 8) as usize] & (1 << (chunk % 8)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::filter::{FilterBuilder, probes};
    use super::*;

    fn filter(values: impl IntoIterator<Item = i64>) -> Filter {
        let mut builder = FilterBuilder::default();
        builder.extend(values);
        builder.finish()
    }

    fn value(n: u64) -> i64 {
        i64::from_be_bytes(*crate::crypto::sha256_of(&[&n.to_be_bytes()]).first_chunk().unwrap())
    }

    /// Which chunks may have the value, as a search reads it.
    fn chunks_with(turned: &[u8], value: i64) -> Vec<u64> {
        let rows = turned.len() / ROW;
        let read: Vec<u8> = probes(value)
            .flat_map(|probe| &turned[(probe as usize % rows) * ROW..][..ROW])
            .copied()
            .collect();
        GroupChunks::in_all(&read).newest_first().collect()
    }

    #[test]
    fn the_rows_of_a_value_tell_the_chunks_that_have_it() {
        // Filters of many sizes: from 1 value to 510.
        let mut builder = GroupFilterBuilder::default();
        for chunk in 0..256 {
            builder.push(Some(filter((0..=chunk * 2).map(|n| value(chunk * 1_000 + n)))));
        }
        let turned = builder.finish();
        for chunk in [0, 1, 7, 8, 100, 255] {
            let found = chunks_with(&turned, value(chunk * 1_000));
            assert!(found.contains(&chunk) && found.len() < 3, "{chunk}: {found:?}");
        }
    }

    #[test]
    fn a_chunk_of_very_many_values_does_not_enlarge_the_others() {
        let mut builder = GroupFilterBuilder::default();
        for chunk in 0..255 {
            builder.push(Some(filter((0..300).map(|n| value(chunk * 1_000 + n)))));
        }
        builder.push(Some(filter((0..10_000).map(|n| value(1_000_000 + n)))));
        let turned = builder.finish();
        assert!(turned.len() <= 1 << 20, "{}", turned.len());
        assert!(chunks_with(&turned, value(1_005_000)).contains(&255));
        assert!(chunks_with(&turned, value(7_000)).contains(&7));
    }

    #[test]
    fn a_chunk_without_a_filter_may_have_any_value() {
        let mut builder = GroupFilterBuilder::default();
        builder.push(Some(filter([value(1)])));
        builder.push(None);
        assert_eq!(chunks_with(&builder.finish(), value(2)), [1]);
        let of_none = GroupFilterBuilder::default();
        assert_eq!(chunks_with(&of_none.finish(), value(2)), [0; 0]);
    }
}
