//! The use cases. Each of them takes the caller as a parameter and does its work in the same order:
//! *meter → authorize → unwrap or take from the cache → act → commit → answer*. The server answers
//! nothing before its entry is durable; if the entry cannot be written, the operation fails. An
//! answer that depends on keys goes out with a [`Release`], which says until when it may leave.

mod answer;
mod arrival;
mod audit;
mod checkpoint;
mod context;
mod decrypt;
mod encrypt;
mod health;
mod kms_permits;
mod limits;
mod listing;
mod meter;
mod permit;
mod record;
mod release;
mod replaced;
mod rotate;
mod rotation_command;
mod shared_check;
mod state_reads;
mod unsent;

use std::sync::Arc;

use http::{Extensions, HeaderMap};
use tokio::sync::watch;

use crate::audit::Committer;
use crate::auth::{Authenticator, TenantClaim};
use crate::config::Limits;
use crate::jobs::Stream;
use crate::keyring::Keyring;
use crate::kms::{RequestCounts, Requests};
use crate::model::{Clock, ErrorCode, Identity, Peer, Posture, Refusal, RequestId, Tenant};
use crate::store::RequestReads;
use crate::telemetry::{PoolCounts, Rereads};
use crate::tenancy::{Caller, Tenants};

pub use answer::{answer_too_large, no_room, write_json};
pub use arrival::{Arrival, Room, Unbounded};
pub use audit::{AuditPage, AuditQuery};
pub use context::context_of;
pub use decrypt::{DecryptItem, Decrypted};
pub use encrypt::{EncryptItem, Encrypted};
pub use health::{Health, HealthStatus, Unready};
pub use release::{Answered, Committed, Release};
pub use rotate::Rotation;

// The types that the use cases take and return. The API front ends use no module below this one.
pub use crate::crypto::{Context, Plaintext, SecretText};
pub use crate::jobs::{Checkpoints, CurrentCheckpoint, StreamStatus};
pub use crate::keyring::KeyStatus;
pub use crate::store::EntryFilter;

/// The number of attempts for a call when the posture of a key changes while the call runs.
const TRIES: usize = 3;

/// The use cases, with everything that they depend on.
pub struct App {
    tenants: Tenants,
    store: Arc<dyn RequestReads>,
    kms_requests: Arc<RequestCounts>,
    keyring: Arc<Keyring>,
    committer: Arc<Committer>,
    authenticator: watch::Sender<Arc<Authenticator>>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    checkpoints: Arc<Checkpoints>,
    streams: Arc<[Stream]>,
    meters: limits::Meters,
    kms_permits: kms_permits::KmsPermits,
    health: health::Memory,
    state_reads: state_reads::StateReads,
    settling: unsent::Settling,
    rereads: Rereads,
}

/// The parts that an [`App`] is built from.
pub struct Parts {
    /// The tenants that are served.
    pub tenants: Tenants,
    /// The entries and the rotation jobs in the database.
    pub store: Arc<dyn RequestReads>,
    /// The counts of the requests to the KMS.
    pub kms_requests: Arc<RequestCounts>,
    /// The DEKs in memory.
    pub keyring: Arc<Keyring>,
    /// Makes entries durable.
    pub committer: Arc<Committer>,
    /// Identifies callers.
    pub authenticator: Arc<Authenticator>,
    /// The limits on the size of calls.
    pub limits: Limits,
    /// The maximum number of calls that the server works on at once.
    pub in_flight: usize,
    /// The source of the current time.
    pub clock: Arc<dyn Clock>,
    /// The checkpoints of the tenant's log.
    pub checkpoints: Arc<Checkpoints>,
    /// The streams that receive the entries; empty if there are none.
    pub streams: Arc<[Stream]>,
}

impl App {
    /// Builds an app from its parts. Must be called on the runtime of the committer.
    pub fn new(parts: Parts) -> Self {
        let Parts { tenants, store, keyring, committer, authenticator, .. } = parts;
        let Parts { kms_requests, limits, in_flight, clock, checkpoints, streams, .. } = parts;
        Self {
            meters: limits::Meters::default(),
            kms_permits: kms_permits::KmsPermits::new(in_flight),
            health: health::Memory::default(),
            state_reads: state_reads::StateReads::default(),
            settling: unsent::Settling::here(),
            tenants,
            store,
            kms_requests,
            keyring,
            committer,
            authenticator: watch::Sender::new(authenticator),
            rereads: Rereads::default(),
            limits,
            clock,
            checkpoints,
            streams,
        }
    }

    /// Begins to serve, once the database has been found to be in the required state. Until then
    /// every caller is refused.
    pub fn open(&self, tenant: Tenant) {
        self.tenants.open(tenant);
    }

    /// Identifies the caller by the headers of the request, and finds the tenant that the caller
    /// claims. Waits some seconds for a key of the identity provider that is not known yet. A
    /// refusal here leaves no entry, because there is no log to write it to. Once the caller is
    /// identified, the [`Peer`] in the request's extensions, if the listener put one there, is
    /// marked as authenticated.
    ///
    /// # Errors
    /// One of Hasura's own codes; `Unavailable` if the identity provider's keys cannot be fetched;
    /// `STORE_UNAVAILABLE` if the database has not been reached since the start, or cannot be read;
    /// `PERMISSION_DENIED` if there is no such tenant.
    pub async fn admit(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        request_id: RequestId,
    ) -> Result<Caller, Refusal> {
        let identity = self.authenticator().recognise(headers).await?;
        // PostgreSQL's text type cannot hold a NUL. Refusing it here keeps it from failing a batch
        // of entries.
        if identity.role.contains('\0') || identity.user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err(ErrorCode::JwtInvalidClaims.into());
        }
        // The caller is authenticated even if the tenant cannot be served.
        if let Some(peer) = extensions.get::<Peer>() {
            peer.set_authenticated();
        }
        let runtime = self.tenants.of(TenantClaim::of(&identity)).await.map_err(record::not_served)?;
        if !self.checkpoints.is_checked(runtime.tenant.uid) {
            self.checkpoints.of(&runtime.tenant).check().await.map_err(record::read_refusal)?;
        }
        Ok(Caller { runtime, identity, request_id })
    }

    /// Returns the caller of a command on this machine, which is for the one tenant of the
    /// single-tenant form.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE` before [`Self::open`].
    pub fn caller(&self, identity: Identity, request_id: RequestId) -> Result<Caller, Refusal> {
        let runtime = self.tenants.primary().map_err(record::read_refusal)?;
        Ok(Caller { runtime, identity, request_id })
    }

    /// Returns the limits of a call. The front ends use them to bound what they read.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the progress of each stream of the log.
    pub fn stream_statuses(&self) -> Vec<StreamStatus> {
        self.streams.iter().map(Stream::status).collect()
    }

    /// Returns the counts of the DEKs that were made ahead of need, by what happened to them.
    pub fn dek_pool(&self) -> PoolCounts {
        self.keyring.pool_counts()
    }

    /// Returns the counts of the requests to the KMS since the start.
    pub fn kms_requests(&self) -> Requests {
        self.kms_requests.snapshot()
    }

    /// Returns the approximate number of DEKs in memory.
    pub fn cached_deks(&self) -> u64 {
        self.keyring.cached_count()
    }

    /// Returns the status of each key version that this server knows, for monitoring.
    pub fn key_statuses(&self) -> Vec<KeyStatus> {
        let of_each = self.tenants.served().into_iter();
        of_each.flat_map(|runtime| self.keyring.key_statuses(runtime.tenant.uid)).collect()
    }

    /// Returns the number of probes of keys that this server has made since its start, by their
    /// result.
    pub fn probes(&self) -> [(&'static str, u64); 3] {
        self.keyring.probes()
    }

    /// Returns the number of incidents that this server has recorded since its start, by the
    /// posture that each led to.
    pub fn incidents(&self) -> [(Posture, u64); 3] {
        self.keyring.incidents()
    }
}
