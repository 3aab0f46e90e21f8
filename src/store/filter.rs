//! Bloom filters, with which a search passes over entries that cannot match. A filter says for a
//! value either that it is not among the values it was made of, or that it may be. How many bits it
//! has is a power of two, so that it can be folded: the positions of a value in a filter of half
//! the size are its positions in this one, modulo that size.

/// The number of bits that stand for a value.
pub(super) const PROBES: usize = 8;
/// The sizes of filters, in bytes. In smaller ones the bits of a value would not be independent,
/// and the tables accept no larger ones.
pub(super) const SMALLEST: usize = 64;
const LARGEST: usize = 4 << 20;
/// A filter is folded as long as no more than this part of its bits is set: three in ten, so that
/// no more than one in 15,000 other values passes (`0.3.powi(8)`). A search for a value that never
/// comes looks at forty filters for a log of 10,000 entries, and reads 256 entries for each that it
/// passes.
const FULL: (u64, u64) = (3, 10);
/// The bits for each value before the filter is folded: enough for [`FULL`] if no two are equal.
const BITS_A_VALUE: usize = 32;
/// How many values are held before they go into a filter of the largest size.
const HELD: usize = 1 << 16;

/// A filter. Bit `n` is bit `n % 8` of byte `n / 8`, from the least significant one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<u8>);

impl Filter {
    /// Returns the filter of these bytes, or `None` if they cannot be a filter.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        bytes.len().is_power_of_two().then_some(Self(bytes))
    }

    /// Returns the filter's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Returns whether the value may be among those that the filter was made of.
    pub fn may_contain(&self, value: i64) -> bool {
        probes(value).all(|probe| self.bit(probe))
    }

    /// Returns how many bits there are.
    pub(super) fn bits(&self) -> usize {
        self.0.len() * 8
    }

    /// Returns the bit at a position, which may lie past the end.
    pub(super) fn bit(&self, probe: i64) -> bool {
        let position = self.position(probe);
        self.0[position / 8] & (1 << (position % 8)) != 0
    }

    /// Returns the filter with no more than so many bits.
    pub(super) fn folded_to(mut self, bits: usize) -> Self {
        while self.bits() > bits {
            self.fold();
        }
        self
    }

    fn position(&self, probe: i64) -> usize {
        (probe as u64 & (self.bits() as u64 - 1)) as usize
    }

    fn insert(&mut self, value: i64) {
        for probe in probes(value) {
            let position = self.position(probe);
            self.0[position / 8] |= 1 << (position % 8);
        }
    }

    fn fold(&mut self) {
        let half = self.0.len() / 2;
        let (low, high) = self.0.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low |= *high);
        self.0.truncate(half);
    }

    /// Folds the filter to the size that its load needs.
    fn fold_to_load(mut self) -> Self {
        while self.0.len() > SMALLEST {
            let half = self.0.len() / 2;
            let (low, high) = self.0.split_at(half);
            let set: u64 = low.iter().zip(high).map(|(low, high)| u64::from((low | high).count_ones())).sum();
            if set * FULL.1 > half as u64 * 8 * FULL.0 {
                break;
            }
            self.fold();
        }
        self
    }
}

/// Returns the positions of a value in a filter of the largest size. The value is 64 bits of a
/// cryptographic hash, and its halves serve as two hashes (Kirsch and Mitzenmacher, 2006).
pub(super) fn probes(value: i64) -> impl Iterator<Item = i64> {
    let hash = value as u64;
    let step = hash >> 32 | 1;
    (0..PROBES as u64)
        .map(move |nth| (hash.wrapping_add(nth.wrapping_mul(step)) % (LARGEST as u64 * 8)) as i64)
}

/// Makes a filter of values, however many, within bounded memory.
#[derive(Default)]
pub struct FilterBuilder {
    values: Vec<i64>,
    filter: Option<Filter>,
}

impl FilterBuilder {
    /// Adds values. Some may be repeated.
    pub fn extend(&mut self, values: impl IntoIterator<Item = i64>) {
        for value in values {
            if self.values.len() == HELD {
                self.insert_held(LARGEST);
            }
            self.values.push(value);
        }
    }

    /// Returns the filter of all values.
    pub fn finish(mut self) -> Filter {
        let bytes = (self.values.len() * BITS_A_VALUE / 8).next_power_of_two();
        self.insert_held(bytes.clamp(SMALLEST, LARGEST));
        self.filter.unwrap_or_else(|| Filter(vec![0; SMALLEST])).fold_to_load()
    }

    /// Puts the held values into the filter, which is made with that size if there is none yet.
    fn insert_held(&mut self, bytes: usize) {
        let filter = self.filter.get_or_insert_with(|| Filter(vec![0; bytes]));
        self.values.drain(..).for_each(|value| filter.insert(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values like hashes, the same in every run.
    fn values(from: u64, count: u64) -> impl Iterator<Item = i64> + Clone {
        (from..from + count).map(|n| {
            let digest = crate::crypto::sha256_of(&[&n.to_be_bytes()]);
            i64::from_be_bytes(*digest.first_chunk().unwrap())
        })
    }

    fn filter(values: impl Iterator<Item = i64>) -> Filter {
        let mut builder = FilterBuilder::default();
        builder.extend(values);
        builder.finish()
    }

    #[test]
    fn a_filter_misses_none_of_its_values_and_passes_few_others() {
        for count in [0, 1, 2, 300, 5_000, 70_000] {
            let filter = filter(values(0, count));
            assert!(values(0, count).all(|value| filter.may_contain(value)), "{count}");
            let others = values(1_000_000, 20_000).filter(|value| filter.may_contain(*value)).count();
            assert!(others < 20, "{others} with {count}");
            assert!(filter.bits() as u64 <= 512.max(count * 64), "{} with {count}", filter.bits());
        }
    }

    #[test]
    fn equal_values_take_no_room_however_many() {
        let repeated = filter(values(0, 200).cycle().take(300_000));
        assert_eq!(repeated, filter(values(0, 200)));
    }

    #[test]
    fn a_folded_filter_still_has_its_values() {
        let filter = filter(values(0, 300));
        let folded = filter.clone().folded_to(filter.bits() / 4);
        assert_eq!(folded.bits(), filter.bits() / 4);
        assert!(values(0, 300).all(|value| folded.may_contain(value)));
    }

    #[test]
    fn bytes_of_another_length_are_no_filter() {
        assert_eq!([0, 3, 100].map(|length| Filter::from_bytes(vec![0; length])), [None, None, None]);
    }
}
