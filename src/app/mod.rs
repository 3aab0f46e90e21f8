//! The use cases. The caller is a parameter of every one of them, and the order is always the same: *meter → authorize →
//! unwrap or take from the cache → act → commit → answer*. Nothing is answered before its entry is durable; if the entry
//! cannot be written, the operation fails.

mod audit;
mod context;
mod decrypt;
mod encrypt;
mod health;
mod places;
mod record;
mod rotate;
mod rotation_work;

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;

use crate::audit::Committer;
use crate::auth::{Authenticator, Policy};
use crate::config::Limits;
use crate::keyring::Keyring;
use crate::kms::Kms;
use crate::model::{Caller, Clock, ErrorCode, Identity, Operation, Refusal, RequestId, Tenant, TenantUid};
use crate::store::Store;

pub use audit::{AuditPage, AuditQuery};
pub use context::context_of;
pub use decrypt::{DecryptItem, Decrypted};
pub use encrypt::{EncryptItem, Encrypted};
pub use health::{Health, HealthStatus};
pub use rotate::Rotation;

// What the use cases take and give; the fronts know no other room below.
pub use crate::crypto::{Context, Plaintext, SecretText};
pub use crate::store::EntryFilter;

/// Calls a minute, by tenant.
type Meter = DefaultKeyedRateLimiter<TenantUid>;

/// What the use cases stand on.
pub struct App {
    tenant: Arc<Tenant>,
    store: Arc<dyn Store>,
    kms: Arc<dyn Kms>,
    keyring: Arc<Keyring>,
    committer: Committer,
    authenticator: Arc<Authenticator>,
    policy: Policy,
    limits: Limits,
    clock: Arc<dyn Clock>,
    encrypt_meter: Meter,
    decrypt_meter: Meter,
    other_meter: Meter,
    refusal_meter: Meter,
    kms_places: places::KmsPlaces,
    health: health::Memory,
}

/// What an [`App`] is made of.
pub struct Parts {
    /// The tenant of the single-tenant form.
    pub tenant: Tenant,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The tenant's KMS.
    pub kms: Arc<dyn Kms>,
    /// The DEKs in memory.
    pub keyring: Arc<Keyring>,
    /// What makes entries durable.
    pub committer: Committer,
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
}

impl App {
    /// Of these parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { tenant, store, kms, keyring, committer, authenticator, policy, limits, in_flight, clock } =
            parts;
        let meter = |per_minute| {
            RateLimiter::keyed(Quota::per_minute(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN)))
        };
        Self {
            encrypt_meter: meter(limits.encrypt_per_minute),
            decrypt_meter: meter(limits.decrypt_per_minute),
            other_meter: meter(limits.decrypt_per_minute),
            refusal_meter: meter(limits.decrypt_per_minute),
            kms_places: places::KmsPlaces::new(in_flight),
            health: health::Memory::default(),
            tenant: Arc::new(tenant),
            store,
            kms,
            keyring,
            committer,
            authenticator,
            policy,
            limits,
            clock,
        }
    }

    /// Who calls, by the headers of the request. A refusal here leaves no entry: nobody is known who could be named.
    ///
    /// # Errors
    /// One of Hasura's own codes.
    pub fn authenticate(&self, headers: &HeaderMap, request_id: RequestId) -> Result<Caller, Refusal> {
        let identity = self.authenticator.authenticate(headers)?;
        // PostgreSQL's text cannot hold a NUL: refused here, it cannot spoil a batch of entries.
        if identity.role.contains('\0') || identity.user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err(ErrorCode::JwtInvalidClaims.into());
        }
        Ok(self.caller(identity, request_id))
    }

    /// The caller of one request. In the single-tenant form everybody belongs to the one tenant.
    pub fn caller(&self, identity: Identity, request_id: RequestId) -> Caller {
        Caller { tenant: self.tenant.clone(), identity, request_id }
    }

    /// What a call may ask for; the fronts bound what they read by it.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many DEKs are in memory, about.
    pub fn cached_deks(&self) -> u64 {
        self.keyring.cached()
    }

    /// Meters a call and asks whether its role may ever do this. A call is one, however many items it has; the burst is
    /// a whole minute's worth. Calls that are refused here have a bucket of their own, so that who may do nothing can
    /// neither use up the tenant's budget nor flood its log: past that, a refusal leaves no entry.
    async fn enter(&self, caller: &Caller, operation: Operation) -> Result<(), Refusal> {
        if !self.policy.may_ever(&caller.identity, operation) {
            return Err(self.refuse(caller, operation, ErrorCode::PermissionDenied.into()).await);
        }
        let meter = match operation {
            Operation::Encrypt => &self.encrypt_meter,
            Operation::Decrypt | Operation::Reveal => &self.decrypt_meter,
            Operation::Rotate | Operation::Audit | Operation::Health => &self.other_meter,
        };
        pass(meter, caller)
    }
}

fn pass(meter: &Meter, caller: &Caller) -> Result<(), Refusal> {
    meter.check_key(&caller.tenant.uid).map_err(|until| {
        let wait = until.wait_time_from(DefaultClock::default().now());
        Refusal::from(ErrorCode::RateLimited).after(wait)
    })
}
