//! Tells callers in advance what is in memory. A call that finds all of its DEKs there waits for
//! nothing.

use std::sync::Arc;

use crate::model::{DekId, TenantUid};

use super::Keyring;

impl Keyring {
    /// Returns whether the DEKs with these ids are all in memory. That may change a moment later.
    pub fn are_cached(&self, tenant: TenantUid, ids: &[DekId]) -> bool {
        ids.iter()
            .all(|id| self.cache.get(tenant, *id).is_some_and(|sealed| self.is_current(tenant, &sealed)))
    }

    /// Returns whether the newest DEKs of these records are all in memory. `false` if any record is
    /// `None`, because a DEK is always made for it.
    pub fn are_records_cached(&self, tenant: TenantUid, records: &[Option<Arc<str>>]) -> bool {
        let held = |record: &Arc<str>| {
            self.cache.get_record(tenant, record).is_some_and(|id| self.are_cached(tenant, &[id]))
        };
        records.iter().all(|record| record.as_ref().is_some_and(held))
    }
}
