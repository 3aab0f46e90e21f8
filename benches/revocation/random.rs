//! Pseudorandom numbers from a seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

use std::time::Duration;

pub(crate) struct Random(u64);

impl Random {
    /// The sequence of these names, which does not depend on what else is measured in the same run.
    pub(crate) fn of(seed: u64, names: [&str; 2]) -> Self {
        let hash = byok::crypto::sha256(names.join("/").as_bytes());
        let own = hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self(seed ^ own)
    }

    /// A uniformly distributed duration shorter than this one.
    pub(crate) fn below(&mut self, length: Duration) -> Duration {
        // An `f64` holds 53 bits.
        length.mul_f64((self.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// The next number, of all 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
