//! The key version that each tenant's KMS wraps under now, as far as this replica knows.

use std::time::Duration;

use dashmap::DashMap;

use crate::model::{BootTime, KeyVersion, TenantUid};

struct Current {
    version: KeyVersion,
    /// When the KMS was last asked for another version although this one cannot be used.
    retried: Option<BootTime>,
}

/// The version under which the last DEK of each tenant was made.
#[derive(Default)]
pub(super) struct CurrentVersions(DashMap<TenantUid, Current>);

impl CurrentVersions {
    pub(super) fn get(&self, tenant: TenantUid) -> Option<KeyVersion> {
        self.0.get(&tenant).map(|current| current.version.clone())
    }

    pub(super) fn is(&self, tenant: TenantUid, version: &KeyVersion) -> bool {
        self.0.get(&tenant).is_some_and(|current| current.version == *version)
    }

    pub(super) fn set(&self, tenant: TenantUid, version: &KeyVersion) {
        let version = version.clone();
        let retried = self.0.get(&tenant).and_then(|current| current.retried);
        self.0.insert(tenant, Current { version, retried });
    }

    pub(super) fn forget(&self, tenant: TenantUid) {
        self.0.remove(&tenant);
    }

    /// Returns whether it is time to ask the KMS under which version it wraps now, although the
    /// known one cannot be used: at most once in this interval.
    pub(super) fn may_retry(&self, tenant: TenantUid, now: BootTime, interval: Duration) -> bool {
        self.0.get_mut(&tenant).is_some_and(|mut current| {
            let is_due = current.retried.is_none_or(|retried| now.since(retried) >= interval);
            if is_due {
                current.retried = Some(now);
            }
            is_due
        })
    }
}
