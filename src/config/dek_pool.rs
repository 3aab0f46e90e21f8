//! The DEK pool.

use super::{DekCache, Reader};

/// How many DEKs are made ahead of need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekPool {
    /// `BYOK_DEK_POOL`: the largest number of DEKs that are kept ready for a tenant; zero turns the
    /// pool off. They stay in memory as long as a DEK stays in the cache
    /// (`BYOK_DEK_CACHE_SECONDS`). One takes about a kilobyte.
    pub size: usize,
}

impl DekPool {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>, cache: &DekCache) -> Self {
        let size: u32 = reader.number("BYOK_DEK_POOL", 0, 0..=10_000);
        if size > 0 && cache.time_to_live.is_zero() {
            let problem =
                "keeps DEKs in memory, and BYOK_DEK_CACHE_SECONDS=0 says that none is: set one of them";
            reader.error("BYOK_DEK_POOL", problem);
        }
        Self { size: size as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> Result<usize, String> {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let cache = DekCache::read(&mut reader);
        let pool = DekPool::read(&mut reader, &cache);
        reader.into_errors().pop().map_or(Ok(pool.size), |error| Err(error.variable))
    }

    #[test]
    fn there_is_no_pool_unless_one_is_asked_for() {
        assert_eq!(read(&[]), Ok(0));
        assert_eq!(read(&[("BYOK_DEK_CACHE_SECONDS", "0")]), Ok(0));
        assert_eq!(read(&[("BYOK_DEK_POOL", "10000")]), Ok(10_000));
    }

    #[test]
    fn a_pool_is_bounded_and_needs_a_cache() {
        let error = Err("BYOK_DEK_POOL".to_owned());
        assert_eq!(read(&[("BYOK_DEK_POOL", "10001")]), error);
        assert_eq!(read(&[("BYOK_DEK_POOL", "1"), ("BYOK_DEK_CACHE_SECONDS", "0")]), error);
    }
}
