//! Signs checkpoints of all tenants' logs, and keeps them up to date: who signs, and where
//! checkpoints are published. What is known of one tenant's log is in `tenant_checkpoints`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dashmap::DashMap;
use tracing::warn;

use crate::config::SigningKeys;
use crate::crypto::Ed25519SigningKey;
use crate::model::{Clock, Tenant, TenantUid};
use crate::store::{ReadError, Store};
use crate::tenancy::{Tenants, Turn, Turns};

use super::Jobs;
use super::publication::Destination;
use super::tenant_checkpoints::{CheckpointError, TenantCheckpoints};

/// How long the log of a tenant that is no longer known is kept up to date.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The parts that [`Checkpoints`] are built from.
pub struct CheckpointParts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The name of the deployment, with which origins begin.
    pub deployment: String,
    /// The signing keys, if there are any.
    pub keys: Option<SigningKeys>,
    /// The destinations of published checkpoints.
    pub destinations: Vec<Destination>,
    /// The shortest time between two publications of a log at a destination.
    pub publish_every: Duration,
    /// The source of the current time.
    pub clock: Arc<dyn Clock>,
}

/// The checkpoints of all tenants' logs.
pub struct Checkpoints {
    pub(super) signing: Arc<Signing>,
    logs: DashMap<TenantUid, Arc<TenantCheckpoints>>,
}

/// What the checkpoints of all tenants share.
pub(super) struct Signing {
    pub(super) store: Arc<dyn Store>,
    pub(super) deployment: String,
    keys: RwLock<Option<Arc<SigningKeys>>>,
    pub(super) destinations: Vec<Destination>,
    pub(super) publish_every: Duration,
    pub(super) clock: Arc<dyn Clock>,
    /// The number of checkpoints that this process has made.
    pub(super) made: AtomicU64,
}

/// The state of one destination over all tenants, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationStatus {
    /// The kind: `directory`, `bucket`, `webhook` or `kms`.
    pub kind: &'static str,
    /// The number of attempts that have failed since the last success, of the tenant with most.
    pub failures: u32,
    /// The number of entries that no checkpoint at this destination covers.
    pub unpublished: u64,
}

impl Checkpoints {
    /// Builds the checkpoints from their parts. Reads and sends nothing.
    pub fn new(parts: CheckpointParts) -> Self {
        let CheckpointParts { store, deployment, keys, destinations, publish_every, clock } = parts;
        let keys = RwLock::new(keys.map(Arc::new));
        let made = AtomicU64::new(0);
        let signing = Signing { store, deployment, keys, destinations, publish_every, clock, made };
        Self { signing: Arc::new(signing), logs: DashMap::new() }
    }

    /// Returns the checkpoints of a tenant's logs. From the first call on, [`Jobs`] keeps them up
    /// to date.
    pub fn of(&self, tenant: &Arc<Tenant>) -> Arc<TenantCheckpoints> {
        let new = || Arc::new(TenantCheckpoints::new(tenant.clone(), self.signing.clone()));
        self.logs.entry(tenant.uid).or_insert_with(new).clone()
    }

    /// Returns whether the log of a tenant was found behind a published checkpoint. If so, nothing
    /// may be appended.
    pub fn is_behind(&self, tenant: TenantUid) -> bool {
        self.logs.get(&tenant).is_some_and(|log| log.is_behind())
    }

    /// Returns whether the log of a tenant was checked against what was published of it. Until
    /// then, nothing of it may be served.
    pub fn is_checked(&self, tenant: TenantUid) -> bool {
        self.logs.get(&tenant).is_some_and(|log| log.is_checked())
    }

    /// Returns whether any tenant's log was found behind.
    pub fn any_is_behind(&self) -> bool {
        self.logs.iter().any(|log| log.is_behind())
    }

    /// Returns the tenants whose logs were found behind.
    pub(super) fn behind(&self) -> Vec<Arc<Tenant>> {
        let behind = self.logs.iter().filter(|log| log.is_behind());
        behind.map(|log| log.tenant.clone()).collect()
    }

    /// Forgets the logs of tenants that have not been known for a while, because nobody calls for
    /// them. Until then, all of such a log is kept and published; it is checked again before the
    /// tenant is served again. A log that is behind is not forgotten.
    fn forget_idle(&self, tenants: &Tenants) {
        // Unlike a look-up by uid, this does not count as a use of the tenants.
        let served: HashSet<TenantUid> = tenants.served().iter().map(|runtime| runtime.tenant.uid).collect();
        self.logs.retain(|tenant, log| {
            let is_idle = log.is_unknown_for(FORGET_AFTER, served.contains(tenant));
            let unpublished = log.published.iter().any(|published| published.unpublished() > 0);
            // A call that has just begun may be checking it.
            let is_in_use = Arc::strong_count(log) > 1;
            !is_idle || unpublished || is_in_use || log.is_behind()
        });
    }

    /// Returns the number of checkpoints that this process has made.
    pub fn made(&self) -> u64 {
        self.signing.made.load(Ordering::Relaxed)
    }

    /// Returns the state of each destination.
    pub fn destinations(&self) -> Vec<DestinationStatus> {
        let of_each = self.signing.destinations.iter().enumerate();
        let statuses = of_each.map(|(at, destination)| DestinationStatus {
            kind: destination.kind(),
            failures: self.logs.iter().map(|log| log.published[at].failures()).max().unwrap_or(0),
            unpublished: self.logs.iter().map(|log| log.published[at].unpublished()).sum(),
        });
        statuses.collect()
    }

    /// Returns whether there is a key to sign with.
    pub fn signs(&self) -> bool {
        self.signing.keys().is_some()
    }

    /// Signs with these keys from now on, if the current signing key is among them. Otherwise this
    /// would be no rotation of keys, and what was signed before would no longer be trusted. Returns
    /// whether the keys were accepted.
    pub fn take_keys(&self, keys: SigningKeys) -> bool {
        let current = |keys: &SigningKeys| keys.parsed().first().map(Ed25519SigningKey::verifying_key);
        let of_now = self.signing.keys().and_then(|keys| current(&keys));
        let goes_on = keys.parsed().iter().any(|key| Some(key.verifying_key()) == of_now);
        if goes_on {
            *self.signing.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        }
        goes_on
    }

    pub(super) fn logs(&self) -> Vec<Arc<TenantCheckpoints>> {
        self.logs.iter().map(|log| log.clone()).collect()
    }
}

impl Signing {
    pub(super) fn keys(&self) -> Option<Arc<SigningKeys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Jobs {
    /// Checks each log against what was published, and makes a checkpoint if the log has moved
    /// since the last one, keeping at most one in a while. To be called every second.
    pub(super) fn keep_checkpoints(self: &Arc<Self>, turns: &mut Turns<TenantUid>) {
        self.checkpoints.forget_idle(&self.tenants);
        turns.start(self.checkpoints.logs().into_iter().map(|log| {
            let (jobs, tenant) = (self.clone(), log.tenant.uid);
            (tenant, move |_: Turn| async move { jobs.keep_checkpoint(&log).await })
        }));
    }

    async fn keep_checkpoint(&self, log: &TenantCheckpoints) {
        // Without a signing key, the only work is to find out whether the log is no longer behind.
        if !self.checkpoints.signs() && !log.is_behind() {
            return;
        }
        match log.renew_in_time().await {
            Ok(()) => log.refused.is_over(),
            Err(
                CheckpointError::Unsigned | CheckpointError::Store(ReadError::Unavailable | ReadError::Busy),
            ) => {}
            // The rows of DEKs that are in memory may be lost.
            Err(CheckpointError::Behind) => self.keyring.clear(log.tenant.uid),
            Err(CheckpointError::Store(ReadError::Rejected | ReadError::Malformed)) => {
                if log.refused.is_due() {
                    warn!(
                        tenant = log.tenant.name,
                        "the database refused to read what a checkpoint is made of, or to store it"
                    );
                }
            }
        }
    }
}
