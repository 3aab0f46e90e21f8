//! The prober: shows once in a while that each key version whose DEKs are in some replica's memory
//! still works, by unwrapping a canary. Replicas share the work: the replica that updates a proof
//! row first does that probe. Only the results of probes change a posture. Of the DEKs in memory
//! the prober knows only that it can drop them ([`DropDeks`]).

mod counts;
mod first_use;
mod incident;
mod on_demand;
mod probe;
mod proof_rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use futures_util::future::join_all;
use moka::sync::Cache;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::audit::Committer;
use crate::config::KeyGuard;
use crate::kms::{DekBinding, Purpose};
use crate::model::{BootTime, Canary, Clock, KeyVersion, Posture, TenantUid};
use crate::store::{KeyringStore, Snapshot, Watched};
use crate::tenancy::Tenants;

use super::dek::KeyringError;
use super::key_state::{KeyState, KeyStates};

pub(super) use counts::ProbeCounts;
pub(super) use first_use::BatchEpochs;
pub(super) use proof_rows::NEED_LASTS;

/// How often rows are checked when no replica needs any.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// What the prober can do with the DEKs in memory.
pub(super) trait DropDeks: Send + Sync {
    /// Makes all DEKs of a tenant that are in memory unusable.
    fn drop_tenant_deks(&self, tenant: TenantUid);

    /// Drops the DEKs of a tenant that were made ahead of need.
    fn drop_pooled_deks(&self, tenant: TenantUid);
}

/// The turn to probe a key version or to use it first, which one caller has at a time. It holds
/// what the next caller needs to know about the one before.
#[derive(Default)]
struct ProbeTurn {
    /// When the last failed first use began, and its error.
    failed: Option<(BootTime, KeyringError)>,
}

type ProbeTurns = Cache<(TenantUid, KeyVersion), Arc<Mutex<ProbeTurn>>>;

/// How long a turn is kept without a use. Longer than what is done in one turn.
const TURN_IDLE: Duration = Duration::from_secs(600);
/// The prober of this process.
pub(super) struct Prober {
    store: Arc<dyn KeyringStore>,
    tenants: Tenants,
    committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    settings: KeyGuard,
    states: Arc<KeyStates>,
    deks: Arc<dyn DropDeks>,
    /// The name of this process in proof rows, for as long as it lives.
    replica: Uuid,
    /// The lock for each key version under which this process probes it.
    turns: ProbeTurns,
    /// How often each log went back in time, as far as this prober has acted on it.
    rewinds: DashMap<TenantUid, u64>,
    counts: ProbeCounts,
}

/// The parts of a [`Prober`].
pub(super) struct ProberParts {
    pub(super) store: Arc<dyn KeyringStore>,
    pub(super) tenants: Tenants,
    pub(super) committer: Arc<Committer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: KeyGuard,
    pub(super) states: Arc<KeyStates>,
    pub(super) deks: Arc<dyn DropDeks>,
}

impl Prober {
    pub(super) fn new(parts: ProberParts) -> Arc<Self> {
        let ProberParts { store, tenants, committer, clock, settings, states, deks } = parts;
        let turns = Cache::builder().time_to_idle(TURN_IDLE).build();
        let (rewinds, counts) = Default::default();
        let replica = Uuid::now_v7();
        Arc::new(Self {
            store,
            tenants,
            committer,
            clock,
            settings,
            states,
            deks,
            replica,
            turns,
            rewinds,
            counts,
        })
    }

    /// Watches over all key versions until `stop` is cancelled.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(self.run_probes(&stop), self.run_drops(&stop));
    }

    pub(super) fn settings(&self) -> &KeyGuard {
        &self.settings
    }

    pub(super) fn counts(&self) -> &ProbeCounts {
        &self.counts
    }

    /// Drops the DEKs of a tenant in memory. What was known of its key versions is read again,
    /// because a database that went back in time may hold earlier epochs, or none.
    pub(super) fn clear(&self, tenant: TenantUid) {
        self.deks.drop_tenant_deks(tenant);
        self.states.forget(tenant);
    }

    /// Has a timer of its own, so that a database that hangs does not keep DEKs in memory that may
    /// not be used.
    async fn run_drops(&self, stop: &CancellationToken) {
        while timeout(self.settings.probe_every / 4, stop.cancelled()).await.is_err() {
            self.drop_unproven_deks();
        }
    }

    async fn run_probes(self: &Arc<Self>, stop: &CancellationToken) {
        loop {
            let any_watched = self.run_round().await;
            let pause = if any_watched {
                self.settings.probe_every / 4
            } else {
                IDLE_INTERVAL.min(self.settings.probe_every)
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.states.deks_arrived() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Announces to the other replicas which versions are needed, reads their results, starts the
    /// probes that are due, and drops the DEKs of keys that were not shown to work in time. Returns
    /// whether anything is watched.
    async fn run_round(self: &Arc<Self>) -> bool {
        for (tenant, rewinds) in self.committer.rewound() {
            if self.rewinds.insert(tenant, rewinds) != Some(rewinds) {
                self.clear(tenant);
            }
        }
        let mut needed: BTreeMap<TenantUid, Vec<KeyVersion>> = BTreeMap::new();
        for (tenant, version) in self.due_announcements() {
            needed.entry(tenant).or_default().push(version);
        }
        // Concurrently, and not for long: a row of one tenant that cannot be written must not make
        // the probes of all tenants late. What was not announced is announced in the next round.
        let announced =
            join_all(needed.iter().map(|(tenant, versions)| self.announce_need(*tenant, versions)));
        let _ = timeout(self.settings.probe_every / 2, announced).await;
        let watched = self.read_watched().await;
        if let Some((seen, requested)) = &watched {
            self.start_due_probes(seen, *requested);
            self.read_unwatched(seen).await;
        }
        self.drop_unproven_deks();
        watched.is_none_or(|(seen, _)| !seen.rows.is_empty())
    }

    /// Reads the versions that this replica believes to be unusable or has in memory, but that are
    /// no longer watched as such: another replica has seen the key come back, or has re-wrapped the
    /// last DEK under it.
    async fn read_unwatched(&self, seen: &Snapshot<Watched>) {
        let now = self.boot();
        let is_watched = |tenant: TenantUid, version: &KeyVersion| {
            seen.rows.iter().any(|row| row.tenant.uid == tenant && row.proof.key_version == *version)
        };
        let unwatched: BTreeSet<TenantUid> = self
            .states
            .all()
            .into_iter()
            .filter(|(tenant, version, state)| {
                (state.posture != Posture::Active || state.is_in_memory(now)) && !is_watched(*tenant, version)
            })
            .map(|(tenant, ..)| tenant)
            .collect();
        join_all(unwatched.into_iter().map(|tenant| self.read_proofs(tenant))).await;
    }

    /// Drops the DEKs of keys that were not shown to work in time: they may not be used, so they
    /// are not kept.
    fn drop_unproven_deks(&self) {
        let now = self.boot();
        let unproven: HashSet<TenantUid> = self
            .states
            .all()
            .into_iter()
            .filter(|(.., state)| state.is_in_memory(now) && state.proof_age(now) > self.settings.bound())
            .map(|(tenant, ..)| tenant)
            .collect();
        for tenant in unproven {
            warn!(%tenant, "a key was not shown to work in time: its DEKs are dropped from memory");
            self.drop_tenant_deks(tenant);
        }
    }

    /// Drops what is in memory of a tenant. The states are changed first: a DEK that arrives before
    /// the memory is dropped is dropped too, and at worst its version is watched needlessly.
    fn drop_tenant_deks(&self, tenant: TenantUid) {
        self.states.note_dropped(tenant);
        self.deks.drop_tenant_deks(tenant);
    }

    fn is_proven(&self, state: &KeyState) -> bool {
        state.proof_age(self.boot()) <= self.settings.bound()
    }

    fn turn(&self, tenant: TenantUid, version: &KeyVersion) -> Arc<Mutex<ProbeTurn>> {
        self.turns.get_with((tenant, version.clone()), Arc::default)
    }

    fn boot(&self) -> BootTime {
        self.clock.boot()
    }
}

/// Returns the binding of a canary.
fn binding_of(tenant: TenantUid, canary: &Canary) -> DekBinding {
    let purpose = if canary.made_for_probes { Purpose::Probe } else { Purpose::RecordProbed };
    DekBinding { tenant, dek_id: canary.dek_id, purpose }
}
