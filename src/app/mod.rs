//! The use cases. The caller is a parameter of every one of them, and the order is always the same: *meter → authorize →
//! unwrap or take from the cache → act → commit → answer*. Nothing is answered before its entry is durable; if the entry
//! cannot be written, the operation fails. An answer that stands on keys goes out with a [`Release`], which says how long
//! it may.

mod answer;
mod arrival;
mod audit;
mod checkpoint;
mod context;
mod decrypt;
mod encrypt;
mod health;
mod inquiry;
mod limits;
mod listing;
mod meter;
mod permit;
mod places;
mod record;
mod release;
mod replaced;
mod rotate;
mod rotation_command;
mod state_reads;
mod ungiven;

use std::sync::{Arc, RwLock};

use http::{Extensions, HeaderMap};
use tokio::sync::watch;

use crate::audit::Committer;
use crate::auth::{Authenticator, Policy};
use crate::config::Limits;
use crate::jobs::Stream;
use crate::keyring::Keyring;
use crate::kms::{Kms, RequestCounts, Requests};
use crate::model::{Caller, Clock, ErrorCode, Identity, Peer, Posture, Refusal, RequestId, Tenant};
use crate::store::Store;
use crate::telemetry::{PoolCounts, Rereads};
use crate::tenancy::Primary;

pub use answer::{answer_too_large, no_room, write_json};
pub use arrival::{Arrival, Room, Unbounded};
pub use audit::{AuditPage, AuditQuery};
pub use context::context_of;
pub use decrypt::{DecryptItem, Decrypted};
pub use encrypt::{EncryptItem, Encrypted};
pub use health::{Health, HealthStatus, Unready};
pub use release::{Answered, Committed, Release};
pub use rotate::Rotation;

// What the use cases take and give; the fronts know no other room below.
pub use crate::crypto::{Context, Plaintext, SecretText};
pub use crate::jobs::{CheckpointShown, Checkpoints, StreamShown};
pub use crate::keyring::Standing;
pub use crate::store::EntryFilter;

/// How often a call begins anew when the posture of a key moves while it runs.
const TRIES: usize = 3;

/// What the use cases stand on.
pub struct App {
    tenant: Primary,
    store: Arc<dyn Store>,
    kms: Arc<dyn Kms>,
    kms_requests: Arc<RequestCounts>,
    keyring: Arc<Keyring>,
    committer: Arc<Committer>,
    authenticator: watch::Sender<Arc<Authenticator>>,
    policy: RwLock<Arc<Policy>>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    checkpoints: Arc<Checkpoints>,
    streams: Arc<[Stream]>,
    meters: limits::Meters,
    kms_places: places::KmsPlaces,
    health: health::Memory,
    state_reads: state_reads::StateReads,
    settling: ungiven::Settling,
    rereads: Rereads,
}

/// What an [`App`] is made of.
pub struct Parts {
    /// The tenant of the single-tenant form.
    pub tenant: Primary,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The tenant's KMS.
    pub kms: Arc<dyn Kms>,
    /// The counts of the requests to it.
    pub kms_requests: Arc<RequestCounts>,
    /// The DEKs in memory.
    pub keyring: Arc<Keyring>,
    /// What makes entries durable.
    pub committer: Arc<Committer>,
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// Who may do what.
    pub policy: Policy,
    /// How much, and how often.
    pub limits: Limits,
    /// How many calls are worked on at once.
    pub in_flight: usize,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The checkpoints of the tenant's log.
    pub checkpoints: Arc<Checkpoints>,
    /// Where entries are streamed to, if anywhere.
    pub streams: Arc<[Stream]>,
}

impl App {
    /// Of these parts. To be called on the runtime of the committer.
    pub fn new(parts: Parts) -> Self {
        let Parts { tenant, store, kms, keyring, committer, authenticator, policy, .. } = parts;
        let Parts { kms_requests, limits, in_flight, clock, checkpoints, streams, .. } = parts;
        Self {
            meters: limits::Meters::new(&limits),
            kms_places: places::KmsPlaces::new(in_flight),
            health: health::Memory::default(),
            state_reads: state_reads::StateReads::default(),
            settling: ungiven::Settling::here(),
            tenant,
            store,
            kms,
            kms_requests,
            keyring,
            committer,
            authenticator: watch::Sender::new(authenticator),
            policy: RwLock::new(Arc::new(policy)),
            rereads: Rereads::default(),
            limits,
            clock,
            checkpoints,
            streams,
        }
    }

    /// Begins to serve, once the database was found to be as it has to be. Before this nobody who calls is answered.
    pub fn open(&self, tenant: Tenant) {
        self.tenant.is(tenant);
    }

    /// Who calls, by the headers of the request. A refusal here leaves no entry: nobody is known who could be named. The
    /// [`Peer`] in the request's extensions, where the listener put one, is known from then on.
    ///
    /// # Errors
    /// One of Hasura's own codes, or `Unavailable` where the identity provider's keys cannot be had; `STORE_UNAVAILABLE`
    /// where the database was not reached since the start.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: RequestId,
    ) -> Result<Caller, Refusal> {
        let identity = self.authenticator().authenticate(headers)?;
        self.recognised(identity, extensions, request_id)
    }

    /// The same; waits some seconds for a key of the identity provider's that is not known yet.
    ///
    /// # Errors
    /// As of [`Self::authenticate`].
    pub async fn recognise(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: RequestId,
    ) -> Result<Caller, Refusal> {
        let identity = self.authenticator().recognise(headers).await?;
        self.recognised(identity, extensions, request_id)
    }

    fn recognised(
        &self,
        identity: Identity,
        extensions: &Extensions,
        request_id: RequestId,
    ) -> Result<Caller, Refusal> {
        // PostgreSQL's text cannot hold a NUL: refused here, it cannot spoil a batch of entries.
        if identity.role.contains('\0') || identity.user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err(ErrorCode::JwtInvalidClaims.into());
        }
        if let Some(peer) = extensions.get::<Peer>() {
            peer.set_authenticated();
        }
        self.caller(identity, request_id)
    }

    /// The caller of one request. In the single-tenant form everybody belongs to the one tenant.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE` before [`Self::open`].
    pub fn caller(&self, identity: Identity, request_id: RequestId) -> Result<Caller, Refusal> {
        let tenant = self.tenant.get().map_err(record::read_refusal)?.clone();
        Ok(Caller { tenant, identity, request_id })
    }

    /// What a call may ask for; the fronts bound what they read by it.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How far the streams of the log are.
    pub fn streams_shown(&self) -> Vec<StreamShown> {
        self.streams.iter().map(Stream::shown).collect()
    }

    /// What became of the DEKs that were made ahead of need.
    pub fn dek_pool(&self) -> PoolCounts {
        self.keyring.pool()
    }

    /// The requests to the KMS since the start.
    pub fn kms_requests(&self) -> Requests {
        self.kms_requests.snapshot()
    }

    /// How many DEKs are in memory, about.
    pub fn cached_deks(&self) -> u64 {
        self.keyring.cached()
    }

    /// How each key version is that this server has met, for who watches it.
    pub fn key_standing(&self) -> Vec<Standing> {
        self.tenant.uid().map(|tenant| self.keyring.standing(tenant)).unwrap_or_default()
    }

    /// How many probes of keys this server has made since its start, by what they met.
    pub fn probes(&self) -> [(&'static str, u64); 3] {
        self.keyring.probes()
    }

    /// How many incidents this server has written down since its start, by what the posture became.
    pub fn incidents(&self) -> [(Posture, u64); 3] {
        self.keyring.incidents()
    }
}
