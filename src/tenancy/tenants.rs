//! The tenants that a server serves.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::model::{Tenant, TenantUid};
use crate::store::{KeyRow, KeyState, ReadError, Stage, TenancyReads, TenantRow};

use super::{Key, KeySet, TenantRuntime};

/// How many tenants are kept ready at once, how long without a use, and how long before their rows
/// are read again.
const READY: u64 = 10_000;
const IDLE: Duration = Duration::from_secs(3_600);
const FRESH: Duration = Duration::from_secs(1);

/// Builds the client of the key that a row names; `None` if nothing is bound to its names.
pub type OpenKey = dyn Fn(&Tenant, &KeyRow) -> Option<Key> + Send + Sync;

/// Why a call is not served for the tenant that it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// There is no such claim, or no such tenant.
    Unknown,
    /// Nothing of the tenant may be answered now.
    Locked,
    /// The tenant has no key that may be used now, or more than one that wraps.
    NoKey,
    /// The database could not be read.
    Store(ReadError),
}

impl From<ReadError> for NotServed {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}

/// The tenants that a server serves. Clones share what is known.
#[derive(Clone)]
pub struct Tenants(Form);

#[derive(Clone)]
enum Form {
    Fixed { keys: KeySet, primary: Arc<OnceLock<Arc<TenantRuntime>>> },
    Claimed(Arc<Claimed>),
}

/// Tenants that are named by verified claims.
struct Claimed {
    rows: Arc<dyn TenancyReads>,
    open_key: Box<OpenKey>,
    /// The uid of each tenant that is ready, by the name that a claim holds.
    names: Cache<String, TenantUid>,
    ready: Cache<TenantUid, Ready>,
}

/// A tenant that is ready to be served.
#[derive(Clone)]
struct Ready {
    runtime: Arc<TenantRuntime>,
    /// When its rows were read.
    read: Instant,
}

impl Tenants {
    /// Serves one tenant with these keys, whatever a caller claims. The tenant is not known until
    /// [`Self::open`].
    pub fn fixed(keys: KeySet) -> Self {
        Self(Form::Fixed { keys, primary: Arc::default() })
    }

    /// Serves the tenants of these rows, each with the keys of its own that `open_key` opens.
    pub fn claimed(rows: Arc<dyn TenancyReads>, open_key: Box<OpenKey>) -> Self {
        let names = Cache::builder().max_capacity(READY).time_to_idle(IDLE).build();
        let ready = Cache::builder().max_capacity(READY).time_to_idle(IDLE).build();
        Self(Form::Claimed(Arc::new(Claimed { rows, open_key, names, ready })))
    }

    /// Begins to serve the fixed tenant, once the database has been found to be in the required
    /// state.
    pub fn open(&self, tenant: Tenant) {
        if let Form::Fixed { keys, primary } = &self.0 {
            let runtime = TenantRuntime {
                tenant: Arc::new(tenant),
                stage: Stage::Active,
                revision: None,
                keys: keys.clone(),
            };
            let _ = primary.set(Arc::new(runtime));
        }
    }

    /// Returns what the fixed tenant is served with.
    ///
    /// # Errors
    /// The database has not been reached yet, or tenants are named by claims.
    pub fn primary(&self) -> Result<&Arc<TenantRuntime>, ReadError> {
        match &self.0 {
            Form::Fixed { primary, .. } => primary.get().ok_or(ReadError::Unavailable),
            Form::Claimed(_) => Err(ReadError::Unavailable),
        }
    }

    /// Returns what the tenant is served with that a verified claim names.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn of(&self, claim: Option<&str>) -> Result<Arc<TenantRuntime>, NotServed> {
        match &self.0 {
            Form::Fixed { .. } => Ok(self.primary()?.clone()),
            Form::Claimed(tenants) => tenants.named(claim.ok_or(NotServed::Unknown)?).await,
        }
    }

    /// Returns what the tenant with this uid is served with.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn with(&self, uid: TenantUid) -> Result<Arc<TenantRuntime>, NotServed> {
        match &self.0 {
            Form::Fixed { .. } => {
                let primary = self.primary()?;
                if primary.tenant.uid == uid { Ok(primary.clone()) } else { Err(NotServed::Unknown) }
            }
            Form::Claimed(tenants) => tenants.with(uid).await,
        }
    }

    /// Forgets what is known of the tenant with this uid, and returns what its rows say now.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn refreshed(&self, uid: TenantUid) -> Result<Arc<TenantRuntime>, NotServed> {
        if let Form::Claimed(tenants) = &self.0 {
            tenants.ready.invalidate(&uid);
        }
        self.with(uid).await
    }

    /// Does the same without a read: returns `None` if the tenant is not ready.
    pub fn known(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        match &self.0 {
            Form::Fixed { primary, .. } => primary.get().filter(|runtime| runtime.tenant.uid == uid).cloned(),
            Form::Claimed(tenants) => tenants.ready.get(&uid).map(|ready| ready.runtime),
        }
    }

    /// Returns the tenants that this process works for. Empty until the database has been reached.
    pub fn served(&self) -> Vec<Arc<TenantRuntime>> {
        match &self.0 {
            Form::Fixed { primary, .. } => primary.get().cloned().into_iter().collect(),
            Form::Claimed(tenants) => tenants.ready.iter().map(|(_, ready)| ready.runtime).collect(),
        }
    }
}

impl Claimed {
    async fn named(&self, name: &str) -> Result<Arc<TenantRuntime>, NotServed> {
        let ready = self.names.get(name).and_then(|uid| self.fresh(uid));
        // A tenant may have been renamed since.
        if let Some(runtime) = ready.filter(|runtime| runtime.tenant.name == name) {
            return Ok(runtime);
        }
        let row = self.rows.tenant_named(name).await?.ok_or(NotServed::Unknown)?;
        let runtime = self.prepare(row).await?;
        self.names.insert(name.to_owned(), runtime.tenant.uid);
        Ok(runtime)
    }

    async fn with(&self, uid: TenantUid) -> Result<Arc<TenantRuntime>, NotServed> {
        if let Some(runtime) = self.fresh(uid) {
            return Ok(runtime);
        }
        let row = self.rows.tenant_with(uid).await?.ok_or(NotServed::Unknown)?;
        self.prepare(row).await
    }

    fn fresh(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        let ready = self.ready.get(&uid).filter(|ready| ready.read.elapsed() < FRESH);
        ready.map(|ready| ready.runtime)
    }

    /// Makes the tenant of this row ready. Its keys are opened again only if the revision has changed.
    async fn prepare(&self, row: TenantRow) -> Result<Arc<TenantRuntime>, NotServed> {
        let (read, uid, revision) = (Instant::now(), row.tenant.uid, Some(row.revision));
        if row.locked {
            self.ready.invalidate(&uid);
            return Err(NotServed::Locked);
        }
        let known = self.ready.get(&uid).map(|ready| ready.runtime);
        let runtime = match known.filter(|runtime| runtime.revision == revision) {
            Some(runtime) if *runtime.tenant == row.tenant => runtime,
            known => {
                let keys = match known {
                    Some(runtime) => runtime.keys.clone(),
                    None => self.open_keys(&row.tenant).await?,
                };
                let (tenant, stage) = (Arc::new(row.tenant), row.stage);
                Arc::new(TenantRuntime { tenant, stage, revision, keys })
            }
        };
        self.ready.insert(uid, Ready { runtime: runtime.clone(), read });
        Ok(runtime)
    }

    async fn open_keys(&self, tenant: &Tenant) -> Result<KeySet, NotServed> {
        let (mut current, mut others) = (None, Vec::new());
        for key in self.rows.keys(tenant.uid).await? {
            let opened = match key.state {
                KeyState::Draft => None,
                KeyState::Current | KeyState::Retired => (self.open_key)(tenant, &key),
            };
            match (opened, key.state) {
                (Some(_), KeyState::Current) if current.is_some() => return Err(NotServed::NoKey),
                (Some(opened), KeyState::Current) => current = Some(opened),
                (opened, _) => others.extend(opened),
            }
        }
        Ok(KeySet::new(current.ok_or(NotServed::NoKey)?, others))
    }
}
