//! Holds the DEKs that are in memory, and decides whether they may be used. A DEK comes from the
//! cache, or from the store and the KMS in one fetch for all callers that wait for it. It is used
//! under a fence that the commit checks, for as long as the prober shows that the key works. A
//! cached DEK needs no KMS call and no read. This module does not decide who may use a DEK.
//!
//! Each file uses only files above it in this table (`tests/it/architecture.rs` checks that), and
//! only this file and those of the last row know [`Keyring`], which puts the others together:
//!
//! | layer | files | purpose |
//! |---|---|---|
//! | types | `dek` | what callers get, and why not |
//! | state | `posture`, `database_clock`, `current_version`, `key_state` | what is known of each key version, and how old that is; no calls |
//! | fence | `fence` | what an answer relies on, what its commit must find, until when it may be given; no calls |
//! | prober | `prober` | probes canaries, writes proofs and incidents; can only drop DEKs |
//! | cache | `cache`, `pool`, `dek_memory` | which DEKs are in memory, and whether they may be used |
//! | rows | `rows`, `lookups` | whether a DEK's row may be used; reads of rows |
//! | calls | `generate`, `fetch`, `records`, `answers`, `pool_fill`, `status` | what use cases and jobs call |

mod answers;
mod cache;
mod current_version;
mod database_clock;
mod dek;
mod dek_memory;
mod fence;
mod fetch;
mod generate;
mod key_state;
mod lookups;
mod pool;
mod pool_fill;
mod posture;
mod prober;
mod records;
mod rows;
mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::Committer;
use crate::config::{DekCache, DekPool, KeyGuard, RowMac};
use crate::model::{Clock, DekId, TenantUid, Wrapped};
use crate::store::{DekRow, KeyringStore, LogReads};
use crate::tenancy::Tenants;

use cache::Cache;
use dek_memory::DekMemory;
use fetch::Fetches;
use key_state::KeyStates;
use lookups::Lookups;
use pool::Pool;
use prober::{Prober, ProberParts};
use rows::RowChecks;

pub use dek::{KeyringError, PlainDek, RecordDek};
pub use fence::{FenceFailure, KeysUsed, Permit};
pub use status::KeyStatus;

/// How long the statement that writes a proof may take in the database, until the database or byok
/// gives it up.
const PROOF_WRITE_TIMEOUT: Duration = Duration::from_secs(6);

/// The DEKs of all tenants.
pub struct Keyring {
    store: Arc<dyn KeyringStore>,
    tenants: Tenants,
    clock: Arc<dyn Clock>,
    states: Arc<KeyStates>,
    prober: Arc<Prober>,
    memory: Arc<DekMemory>,
    rows: Arc<RowChecks>,
    lookups: Lookups,
    fetches: Fetches,
}

/// The parts of a [`Keyring`].
pub struct Parts {
    /// Where wrapped DEKs and proofs are stored.
    pub store: Arc<dyn KeyringStore>,
    /// The log, which rows of DEKs are checked against before they are sealed.
    pub log: Arc<dyn LogReads>,
    /// The tenants, each with its keys.
    pub tenants: Tenants,
    /// The committer, which makes an incident's entry durable.
    pub committer: Arc<Committer>,
    /// The source of the time.
    pub clock: Arc<dyn Clock>,
    /// How much is kept in memory.
    pub cache: DekCache,
    /// How many DEKs are made ahead of need. If there are any, [`Keyring::run_pool`] must run.
    pub pool: DekPool,
    /// How closely the key is watched.
    pub guard: KeyGuard,
    /// What the rows' MACs are made with. If it holds a secret, [`Keyring::run_row_sealing`] must
    /// run.
    pub row_mac: RowMac,
}

impl Keyring {
    /// Makes a keyring of these parts. [`Self::run_prober`] must run beside it.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, log, tenants, committer, clock, cache, pool, guard, row_mac } = parts;
        let states = Arc::new(KeyStates::new(guard.bound() + PROOF_WRITE_TIMEOUT));
        let memory = Arc::new(DekMemory::new(
            Cache::new(cache),
            Pool::new(pool, cache.time_to_live),
            states.clone(),
            tenants.clone(),
            clock.clone(),
        ));
        let prober = Prober::new(ProberParts {
            store: store.clone(),
            tenants: tenants.clone(),
            committer: committer.clone(),
            clock: clock.clone(),
            settings: guard,
            states: states.clone(),
            deks: memory.clone(),
        });
        let rows = RowChecks::new(
            row_mac,
            tenants.clone(),
            store.clone(),
            log,
            committer,
            clock.clone(),
            states.clone(),
        );
        Arc::new(Self {
            store,
            tenants,
            clock,
            states,
            prober,
            memory,
            rows: Arc::new(rows),
            lookups: Lookups::default(),
            fetches: Fetches::default(),
        })
    }

    /// Returns how closely the key is watched.
    pub fn guard(&self) -> &KeyGuard {
        self.prober.settings()
    }

    /// Watches over all key versions until `stop` is cancelled.
    pub async fn run_prober(self: Arc<Self>, stop: CancellationToken) {
        self.prober.clone().run(stop).await;
    }

    /// Keeps the rows of all tenants sealed until `stop` is cancelled. Returns at once if there is
    /// no secret.
    pub async fn run_row_sealing(self: Arc<Self>, stop: CancellationToken) {
        self.rows.clone().run_sealing(stop).await;
    }

    /// Drops DEKs from the cache, such as those that were re-wrapped under another key version.
    pub fn evict(&self, tenant: TenantUid, ids: impl IntoIterator<Item = DekId>) {
        ids.into_iter().for_each(|id| self.memory.cache.remove(tenant, id));
    }

    /// Empties the cache and the pool of a tenant; its sealing key is zeroized. What was known of
    /// its key versions is read again, because a database that went back in time may hold earlier
    /// epochs, or none. What was seen of the rows is kept. Otherwise, anybody who can write to the
    /// database would only have to roll its log back for a moment.
    pub fn clear(&self, tenant: TenantUid) {
        self.prober.clear(tenant);
    }

    /// Returns whether rows can be re-wrapped and are then sealed as these are. They cannot without
    /// the secret if they have MACs, or must have them.
    pub fn can_reseal(&self, tenant: TenantUid, rows: &[DekRow]) -> bool {
        self.rows.can_reseal(tenant, rows)
    }

    /// Returns the MAC of a sealed row that holds these wrapped bytes from now on. A row that was
    /// not sealed is sealed only after it was compared with the log.
    pub fn reseal(&self, tenant: TenantUid, row: &DekRow, to: &Wrapped) -> Option<[u8; 32]> {
        self.rows.reseal(tenant, row, to)
    }
}
