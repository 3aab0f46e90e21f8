//! The DEK cache.

use std::time::Duration;

use super::Reader;

/// The limits on the number of DEKs in memory and on their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekCache {
    /// `BYOK_DEK_CACHE_SECONDS`: how long a DEK stays in memory. Zero turns the cache off.
    pub time_to_live: Duration,
    /// `BYOK_DEK_CACHE_ENTRIES`: the largest number of DEKs. One takes about 500 bytes.
    pub entries: u64,
}

impl DekCache {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            time_to_live: Duration::from_secs(reader.number("BYOK_DEK_CACHE_SECONDS", 300, 0..=86_400)),
            entries: reader.number("BYOK_DEK_CACHE_ENTRIES", 100_000, 1..=100_000_000),
        }
    }
}
