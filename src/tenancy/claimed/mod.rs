//! Tenants that are named by verified claims, each served with the keys of its own rows. It reads a
//! tenant's rows when they are needed, once for all calls that wait for them. It ignores rows that
//! are older than what is known, and calls no KMS.

mod known;
mod names;
mod opened_keys;
mod single_flight;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::auth::TenantClaim;
use crate::model::TenantUid;
use crate::store::{ReadError, TenancyReads, TenantRow};

use super::not_served::Served;
use super::{NotServed, TenantRuntime, TenantSettings};

use known::Known;
use names::Names;
use opened_keys::OpenedKeys;
use single_flight::SingleFlight;

pub use opened_keys::OpenKey;

/// The time for which an unused turn is kept. Longer than the reads of a turn.
const TURN: Duration = Duration::from_secs(60);

/// Tenants that are named by verified claims.
pub(super) struct Claimed {
    rows: Arc<dyn TenancyReads>,
    open_key: Box<OpenKey>,
    names: Names,
    known: Known,
    by_name: SingleFlight<String, Served>,
    by_uid: SingleFlight<TenantUid, Served>,
    refreshes: SingleFlight<TenantUid, Served>,
    /// The locks under which tenants are prepared, so that each tenant is prepared once at a time.
    turns: Cache<TenantUid, Arc<Mutex<()>>>,
}

impl Claimed {
    pub(super) fn new(rows: Arc<dyn TenancyReads>, open_key: Box<OpenKey>, settings: TenantSettings) -> Self {
        Self {
            rows,
            open_key,
            names: Names::default(),
            known: Known::new(settings),
            by_name: SingleFlight::default(),
            by_uid: SingleFlight::default(),
            refreshes: SingleFlight::default(),
            turns: Cache::builder().max_capacity(known::TENANTS).time_to_idle(TURN).build(),
        }
    }

    /// Returns the runtime of the tenant with this name.
    pub(super) async fn named(self: &Arc<Self>, name: &str) -> Served {
        match self.names.uid(name).and_then(|uid| self.known.fresh(uid)) {
            // The tenant has been renamed since.
            Some(Ok(runtime)) if runtime.tenant.name != name => {}
            Some(served) => return served,
            None => {}
        }
        if name.len() > TenantClaim::LONGEST || self.names.is_unknown(name) {
            return Err(NotServed::Unknown);
        }
        let (claimed, owned) = (self.clone(), name.to_owned());
        let served = self.by_name.run(name.to_owned(), |joinable| async move {
            let _joinable = joinable;
            claimed.read_named(owned).await
        });
        served.await.unwrap_or_else(panicked)
    }

    /// Returns the runtime of the tenant with this uid.
    pub(super) async fn with(self: &Arc<Self>, uid: TenantUid) -> Served {
        if let Some(served) = self.known.fresh(uid) {
            return served;
        }
        let claimed = self.clone();
        let served = self.by_uid.run(uid, |joinable| async move {
            let _joinable = joinable;
            let turn = claimed.turn(uid);
            let _turn = turn.lock().await;
            // Others may have prepared the tenant while this waited for its turn.
            match claimed.known.fresh(uid) {
                Some(served) => served,
                None => claimed.read(uid).await,
            }
        });
        served.await.unwrap_or_else(panicked)
    }

    /// Forgets what is known of a tenant, and returns its runtime according to rows whose read
    /// begins after this call.
    pub(super) async fn refreshed(self: &Arc<Self>, uid: TenantUid) -> Served {
        let claimed = self.clone();
        let served = self.refreshes.run(uid, |joinable| async move {
            let turn = claimed.turn(uid);
            let _turn = turn.lock().await;
            // Later callers may know of a change that this read does not see.
            drop(joinable);
            claimed.known.forget(uid);
            claimed.read(uid).await
        });
        served.await.unwrap_or_else(panicked)
    }

    /// Returns the last runtime of the tenant with this uid.
    pub(super) fn known(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        self.known.runtime(uid)
    }

    /// Returns the last runtimes of all tenants.
    pub(super) fn served(&self) -> Vec<Arc<TenantRuntime>> {
        self.known.runtimes()
    }

    /// Returns the settings of the deployment.
    pub(super) fn settings(&self) -> Arc<TenantSettings> {
        self.known.settings()
    }

    /// Changes the settings of the deployment.
    pub(super) fn update_settings(&self, update: impl FnOnce(&mut TenantSettings)) {
        self.known.update_settings(update);
    }

    async fn read_named(&self, name: String) -> Served {
        let began = Instant::now();
        let Some(row) = self.rows.tenant_named(&name).await? else {
            self.names.note_unknown(name);
            return Err(NotServed::Unknown);
        };
        let uid = row.tenant.uid;
        let turn = self.turn(uid);
        let _turn = turn.lock().await;
        let served = self.prepare(row, began).await;
        match &served {
            // A newer row is known already, with another name.
            Ok(runtime) if runtime.tenant.name != name => return Err(NotServed::Unknown),
            Ok(_) | Err(NotServed::Locked | NotServed::NoKey) => self.names.note(name, uid),
            Err(NotServed::Unknown | NotServed::Store(_)) => {}
        }
        served
    }

    async fn read(&self, uid: TenantUid) -> Served {
        let began = Instant::now();
        let Some(row) = self.rows.tenant_with(uid).await? else {
            self.known.remove(uid);
            return Err(NotServed::Unknown);
        };
        self.prepare(row, began).await
    }

    /// Prepares the tenant of this row, whose read began at `began`. Its keys are read again only
    /// if the revision has changed.
    async fn prepare(&self, row: TenantRow, began: Instant) -> Served {
        if let Some(served) = self.known.by_newer_row(&row) {
            return served;
        }
        if row.locked {
            self.known.refuse(&row, NotServed::Locked, began);
            return Err(NotServed::Locked);
        }
        let keys = match self.known.keys(row.tenant.uid) {
            Some((revision, keys)) if revision == row.revision => keys,
            before => {
                let rows = self.rows.keys(row.tenant.uid).await?;
                let before = before.as_ref().map(|(_, keys)| keys);
                match OpenedKeys::open(&row.tenant, &rows, &*self.open_key, before) {
                    Ok(keys) => keys,
                    Err(why) => {
                        self.known.refuse(&row, why, began);
                        return Err(why);
                    }
                }
            }
        };
        Ok(self.known.serve(row, keys, began))
    }

    fn turn(&self, uid: TenantUid) -> Arc<Mutex<()>> {
        self.turns.get_with(uid, Arc::default)
    }
}

/// The answer to calls that waited for work that panicked.
fn panicked() -> Served {
    Err(NotServed::Store(ReadError::Unavailable))
}
