//! What is in memory now, for who wants to know before asking: a call that finds all of it waits for nobody.

use std::sync::Arc;

use crate::model::{DekId, TenantUid};

use super::Keyring;

impl Keyring {
    /// Whether the DEKs with these ids are all in memory. It may be another moment later.
    pub fn holds(&self, tenant: TenantUid, ids: &[DekId]) -> bool {
        ids.iter()
            .all(|id| self.cache.get(tenant, *id).is_some_and(|sealed| self.is_current(tenant, &sealed)))
    }

    /// Whether the newest DEKs of these records are all in memory; for `None`, a DEK is always made.
    pub fn holds_records(&self, tenant: TenantUid, records: &[Option<Arc<str>>]) -> bool {
        let held = |record: &Arc<str>| {
            self.cache.get_record(tenant, record).is_some_and(|id| self.holds(tenant, &[id]))
        };
        records.iter().all(|record| record.as_ref().is_some_and(held))
    }
}
