//! How much of the log one statement reads. Entries differ in size by a factor of a million, and a
//! caller decides how large some of them are. If only the number of entries were bounded, one
//! caller could make every read of the log exceed the time limit.
//!
//! Sizes are those of the stored form, which the database knows without reading the values.
//! PostgreSQL compresses record ids; the densest text that it makes is about 250 times as long once
//! it is read.

use std::sync::atomic::{AtomicI64, Ordering};

/// The largest number of bytes of entries that a statement reads, in their stored form. The first
/// entry is read whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portion(i64);

/// 1 MiB, which is about 1,700 typical entries.
const WHOLE: i64 = 1 << 20;
/// The factor by which a portion shrinks after it exceeded the time limit. Each attempt costs that
/// time limit; four of them reach a single entry.
const SHRINK: i64 = 8;
/// So few bytes cannot take long because of their number, only because of a single entry. Also the
/// amount by which a portion grows again.
const LEAST: i64 = 16 << 10;

impl Portion {
    /// The largest portion that is ever read at once.
    pub(super) const WHOLE: Self = Self(WHOLE);

    /// Returns the limit in bytes: an entry is read only if those before it are smaller than this
    /// together.
    pub(super) fn bytes(self) -> i64 {
        self.0
    }

    /// Returns the portion to try after one that took too long, or `None` after a single entry.
    fn smaller(self) -> Option<Self> {
        match self.0 {
            ..=1 => None,
            2..=LEAST => Some(Self(1)),
            bytes => Some(Self(bytes / SHRINK)),
        }
    }

    fn larger(self) -> Self {
        Self(WHOLE.min(self.0 + LEAST))
    }
}

/// The portion that the database can read within its time limit, as far as is known. It shrinks as
/// soon as one takes too long and then grows slowly, so that a reader of many large entries does
/// not spend the time limit on each.
pub(super) struct Portions(AtomicI64);

impl Default for Portions {
    fn default() -> Self {
        Self(AtomicI64::new(WHOLE))
    }
}

impl Portions {
    /// Returns the portion to read next.
    pub(super) fn next(&self) -> Portion {
        Portion(self.0.load(Ordering::Relaxed))
    }

    /// Records that a portion was read in time.
    pub(super) fn was_read(&self, portion: Portion) {
        self.0.store(portion.larger().0, Ordering::Relaxed);
    }

    /// Records that a portion took too long. Returns the portion to try instead, or `None` after a
    /// single entry.
    pub(super) fn took_too_long(&self, portion: Portion) -> Option<Portion> {
        let smaller = portion.smaller()?;
        self.0.store(smaller.0, Ordering::Relaxed);
        Some(smaller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_that_takes_too_long_shrinks_to_one_in_four_tries() {
        let portions = Portions::default();
        let tries = std::iter::successors(Some(portions.next()), |portion| portions.took_too_long(*portion));
        let bytes: Vec<i64> = tries.map(Portion::bytes).collect();
        assert_eq!(bytes, [1 << 20, 128 << 10, 16 << 10, 1]);
    }

    #[test]
    fn portions_shrink_after_one_that_took_too_long_and_grow_again() {
        let portions = Portions::default();
        portions.took_too_long(portions.next());
        assert_eq!(portions.next().bytes(), 128 << 10);
        for _ in 0..100 {
            portions.was_read(portions.next());
        }
        assert_eq!(portions.next(), Portion::WHOLE);
    }
}
