//! What is known of the tenants: what the latest read of each one's rows has shown, and the settings
//! that the tenants' calls are bound by. Reads nothing itself.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use crate::model::TenantUid;
use crate::store::TenantRow;
use crate::tenancy::not_served::Served;
use crate::tenancy::{NotServed, TenantRuntime, TenantSettings};

use super::opened_keys::OpenedKeys;

/// How many tenants are known at once, and how long without a use.
pub(super) const TENANTS: u64 = 10_000;
pub(super) const IDLE: Duration = Duration::from_secs(3_600);
/// How long a tenant is served before its rows are read again. A commit checks the revision, so this
/// bounds only how long a tenant that makes no entry is served with what has changed.
const FRESH: Duration = Duration::from_secs(30);
/// How long a tenant that is locked, or has no key, is refused before its rows are read again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// What is known of the tenants.
pub(super) struct Known {
    /// Held for reading while what is known changes, so that nothing with the previous settings comes
    /// after [`Self::update_settings`]. No call that finds its tenant here takes it.
    settings: RwLock<Arc<TenantSettings>>,
    tenants: Cache<TenantUid, Arc<Reading>>,
}

/// What a read of a tenant's rows has shown.
#[derive(Clone)]
struct Reading {
    revision: u64,
    /// When the read began; `None` once it is forgotten.
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

    /// Returns what a tenant is served with, if its rows were read a short time ago.
    pub(super) fn fresh(&self, uid: TenantUid) -> Option<Served> {
        let reading = self.tenants.get(&uid)?;
        let fresh = match reading.found {
            Found::Served { .. } => FRESH,
            Found::Refused(_) => REFUSED_FOR,
        };
        reading.began.filter(|began| began.elapsed() < fresh).map(|_| reading.served())
    }

    /// Returns what a tenant was last served with, however long ago.
    pub(super) fn runtime(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        self.tenants.get(&uid).and_then(|reading| reading.served().ok())
    }

    /// Returns what all tenants were last served with.
    pub(super) fn runtimes(&self) -> Vec<Arc<TenantRuntime>> {
        self.tenants.iter().filter_map(|(_, reading)| reading.served().ok()).collect()
    }

    /// Returns what is known by a newer row than this one, if anything is.
    pub(super) fn by_newer_row(&self, row: &TenantRow) -> Option<Served> {
        let reading = self.tenants.get(&row.tenant.uid)?;
        (reading.began.is_some() && reading.revision > row.revision).then(|| reading.served())
    }

    /// Returns the keys that a tenant was last served with, and the revision.
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

    /// Drops all that is known of a tenant that there is not any more.
    pub(super) fn remove(&self, uid: TenantUid) {
        let _settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        self.tenants.invalidate(&uid);
    }

    /// Forgets how new is what is known of a tenant: the next read takes its place, whatever its
    /// revision. The keys stay until then.
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
