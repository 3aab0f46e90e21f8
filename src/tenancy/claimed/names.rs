//! The cache of the names in claims: the tenant of each, and the unknown names.

use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::model::TenantUid;

use super::known::{IDLE, TENANTS};

/// The most unknown names that are remembered, and for how long: a caller with an unknown name must
/// not cause a read at each call.
const UNKNOWN: u64 = 10_000;
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// The names in claims.
pub(super) struct Names {
    uids: Cache<String, TenantUid>,
    /// The time when each of these names was found to be unknown.
    unknown: Cache<String, Instant>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            uids: Cache::builder().max_capacity(TENANTS).time_to_idle(IDLE).build(),
            // The names that were used least recently are evicted first.
            unknown: Cache::builder()
                .max_capacity(UNKNOWN)
                .time_to_live(UNKNOWN_FOR)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }
}

impl Names {
    /// Returns the tenant that had this name when it was last read.
    pub(super) fn uid(&self, name: &str) -> Option<TenantUid> {
        self.uids.get(name)
    }

    /// Returns whether no tenant had this name a moment ago.
    pub(super) fn is_unknown(&self, name: &str) -> bool {
        self.unknown.get(name).is_some_and(|found| found.elapsed() < UNKNOWN_FOR)
    }

    pub(super) fn note(&self, name: String, uid: TenantUid) {
        self.uids.insert(name, uid);
    }

    pub(super) fn note_unknown(&self, name: String) {
        self.uids.invalidate(&name);
        self.unknown.insert(name, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn remembered_unknown_names_are_bounded() {
        let names = Names::default();
        for n in 0..2 * UNKNOWN {
            names.note_unknown(format!("name-{n}"));
        }
        names.unknown.run_pending_tasks();
        assert!(names.unknown.entry_count() <= UNKNOWN);
        assert!(names.is_unknown(&format!("name-{}", 2 * UNKNOWN - 1)));
    }
}
