//! The cache of tenants: the result of the latest read of each one's rows, and the settings
//! of their calls. This file reads nothing itself.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use crate::model::TenantUid;
use crate::store::TenantRow;
use crate::tenancy::not_served::Served;
use crate::tenancy::{NotServed, TenantRuntime, TenantSettings};

use super::opened_keys::OpenedKeys;

/// The most tenants in the cache, and the time for which an unused one stays there.
pub(super) const TENANTS: u64 = 10_000;
pub(super) const IDLE: Duration = Duration::from_secs(3_600);
/// The time after which a tenant's rows are read again. A commit checks the revision, so an
/// outdated runtime is used for this long only by calls that make no entry.
const FRESH: Duration = Duration::from_secs(30);
/// The time after which the rows of a tenant that is locked, or has no key, are read again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// The cache of tenants.
pub(super) struct Known {
    /// The settings. Their lock is held for reading while the cache changes, so that no runtime
    /// with the previous settings is added after [`Self::update_settings`]. A call that finds its
    /// tenant in the cache does not take it.
    settings: RwLock<Arc<TenantSettings>>,
    tenants: Cache<TenantUid, Arc<Reading>>,
}

/// The result of reading a tenant's rows.
#[derive(Clone)]
struct Reading {
    revision: u64,
    /// The time when the read began; `None` once it is forgotten.
    began: Option<Instant>,
    found: Found,
}

#[derive(Clone)]
enum Found {
    Served { runtime: Arc<TenantRuntime>, keys: OpenedKeys },
    Refused(NotServed),
}

impl Known {
    pub(super) fn new(settings: TenantSettings) -> Self {
        let tenants = Cache::builder().max_capacity(TENANTS).time_to_idle(IDLE).build();
        Self { settings: RwLock::new(Arc::new(settings)), tenants }
    }

    /// Returns the runtime of a tenant, or its refusal, if its rows were read a short time ago.
    pub(super) fn fresh(&self, uid: TenantUid) -> Option<Served> {
        let reading = self.tenants.get(&uid)?;
        let fresh = match reading.found {
            Found::Served { .. } => FRESH,
            Found::Refused(_) => REFUSED_FOR,
        };
        reading.began.filter(|began| began.elapsed() < fresh).map(|_| reading.served())
    }

    /// Returns the last runtime of a tenant, however old.
    pub(super) fn runtime(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        self.tenants.get(&uid).and_then(|reading| reading.served().ok())
    }

    /// Returns the last runtimes of all tenants.
    pub(super) fn runtimes(&self) -> Vec<Arc<TenantRuntime>> {
        self.tenants.iter().filter_map(|(_, reading)| reading.served().ok()).collect()
    }

    /// Returns the result of a newer row than this one, if one was read.
    pub(super) fn by_newer_row(&self, row: &TenantRow) -> Option<Served> {
        let reading = self.tenants.get(&row.tenant.uid)?;
        (reading.began.is_some() && reading.revision > row.revision).then(|| reading.served())
    }

    /// Returns the keys of a tenant's last runtime, and their revision.
    pub(super) fn keys(&self, uid: TenantUid) -> Option<(u64, OpenedKeys)> {
        let reading = self.tenants.get(&uid)?;
        match &reading.found {
            Found::Served { keys, .. } => Some((reading.revision, keys.clone())),
            Found::Refused(_) => None,
        }
    }

    /// Serves the tenant of this row with these keys. The read of the row began at `began`.
    pub(super) fn serve(&self, row: TenantRow, keys: OpenedKeys, began: Instant) -> Arc<TenantRuntime> {
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let (uid, revision) = (row.tenant.uid, row.revision);
        let runtime = Arc::new(TenantRuntime {
            tenant: Arc::new(row.tenant),
            stage: row.stage,
            revision: Some(revision),
            keys: keys.keys.clone(),
            settings: settings.clone(),
        });
        let found = Found::Served { runtime: runtime.clone(), keys };
        self.tenants.insert(uid, Arc::new(Reading { revision, began: Some(began), found }));
        runtime
    }

    /// Refuses the tenant of this row, which cannot be served for this reason, and drops its keys.
    pub(super) fn refuse(&self, row: &TenantRow, why: NotServed, began: Instant) {
        let _settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let reading = Reading { revision: row.revision, began: Some(began), found: Found::Refused(why) };
        self.tenants.insert(row.tenant.uid, Arc::new(reading));
    }

    /// Removes a tenant that no longer exists.
    pub(super) fn remove(&self, uid: TenantUid) {
        let _settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        self.tenants.invalidate(&uid);
    }

    /// Marks a tenant as outdated: the next read replaces it, whatever the revision. The keys stay
    /// until then.
    pub(super) fn forget(&self, uid: TenantUid) {
        let _settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = self.tenants.get(&uid) {
            self.tenants.insert(uid, Arc::new(Reading { began: None, ..(*reading).clone() }));
        }
    }

    /// Returns the settings of the deployment.
    pub(super) fn settings(&self) -> Arc<TenantSettings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the settings of the deployment, and so those of every tenant, from now on.
    pub(super) fn update_settings(&self, update: impl FnOnce(&mut TenantSettings)) {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        update(Arc::make_mut(&mut settings));
        let known: Vec<_> = self.tenants.iter().collect();
        for (uid, reading) in known {
            if let Found::Served { runtime, keys } = &reading.found {
                let runtime = Arc::new(TenantRuntime { settings: settings.clone(), ..(**runtime).clone() });
                let found = Found::Served { runtime, keys: keys.clone() };
                self.tenants.insert(*uid, Arc::new(Reading { found, ..(*reading).clone() }));
            }
        }
    }
}

impl Reading {
    fn served(&self) -> Served {
        match &self.found {
            Found::Served { runtime, .. } => Ok(runtime.clone()),
            Found::Refused(why) => Err(*why),
        }
    }
}
