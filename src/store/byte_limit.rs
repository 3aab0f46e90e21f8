//! How many bytes of the log one statement reads. Entries differ in size by a factor of a million,
//! and a caller decides how large some of them are. If only the number of entries were limited, one
//! caller could make every read of the log exceed the time limit.
//!
//! Sizes are those of the stored form, which the database knows without reading the values.
//! PostgreSQL compresses record ids; the densest text that it makes is about 250 times as long once
//! it is read.

use std::sync::atomic::{AtomicI64, Ordering};

/// The largest number of bytes of entries that a statement reads, in their stored form. The first
/// entry is read whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteLimit(i64);

/// 1 MiB, which is about 1,700 typical entries.
const LARGEST: i64 = 1 << 20;
/// The factor by which the limit shrinks after a statement exceeded the time limit. Each attempt
/// costs that time limit; four of them reach a single entry.
const SHRINK_FACTOR: i64 = 8;
/// So few bytes cannot take long because of their number, only because of a single entry. Also the
/// amount by which the limit grows again.
const SMALL: i64 = 16 << 10;

impl ByteLimit {
    /// The largest limit of any statement.
    pub(super) const LARGEST: Self = Self(LARGEST);

    /// Returns the limit in bytes: an entry is read only if those before it are smaller than this
    /// together.
    pub(super) fn bytes(self) -> i64 {
        self.0
    }

    /// Returns the limit to try after one that took too long, or `None` after a single entry.
    fn smaller(self) -> Option<Self> {
        match self.0 {
            ..=1 => None,
            2..=SMALL => Some(Self(1)),
            bytes => Some(Self(bytes / SHRINK_FACTOR)),
        }
    }

    fn larger(self) -> Self {
        Self(LARGEST.min(self.0 + SMALL))
    }
}

/// The limit up to which the database can read within its time limit, as far as is known. It
/// shrinks as soon as a statement takes too long and then grows slowly, so that a reader of many
/// large entries does not spend the time limit on each.
pub(super) struct AdaptiveByteLimit(AtomicI64);

impl Default for AdaptiveByteLimit {
    fn default() -> Self {
        Self(AtomicI64::new(LARGEST))
    }
}

impl AdaptiveByteLimit {
    /// Returns the limit of the next statement.
    pub(super) fn current(&self) -> ByteLimit {
        ByteLimit(self.0.load(Ordering::Relaxed))
    }

    /// Records that a statement with this limit was in time.
    pub(super) fn in_time(&self, limit: ByteLimit) {
        self.0.store(limit.larger().0, Ordering::Relaxed);
    }

    /// Records that a statement with this limit took too long. Returns the limit to try instead, or
    /// `None` after a single entry.
    pub(super) fn took_too_long(&self, limit: ByteLimit) -> Option<ByteLimit> {
        let smaller = limit.smaller()?;
        self.0.store(smaller.0, Ordering::Relaxed);
        Some(smaller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_limit_shrinks_to_one_byte_in_four_tries() {
        let limit = AdaptiveByteLimit::default();
        let tries = std::iter::successors(Some(limit.current()), |tried| limit.took_too_long(*tried));
        let bytes: Vec<i64> = tries.map(ByteLimit::bytes).collect();
        assert_eq!(bytes, [1 << 20, 128 << 10, 16 << 10, 1]);
    }

    #[test]
    fn the_limit_shrinks_after_a_slow_statement_and_grows_again() {
        let limit = AdaptiveByteLimit::default();
        limit.took_too_long(limit.current());
        assert_eq!(limit.current().bytes(), 128 << 10);
        for _ in 0..100 {
            limit.in_time(limit.current());
        }
        assert_eq!(limit.current(), ByteLimit::LARGEST);
    }
}
