//! The interface to the customer's KMS. It wraps and unwraps DEKs and never sees a plaintext. Only
//! wrap and unwrap are *needed*; every read of metadata is optional. The text of a provider's error
//! is never passed on: not to the caller, not to the audit log, not to our own log. Its request id,
//! its HTTP status and our error class are.
//!
//! Each user of a provider has an interface of its own: [`Kms`] for those who wrap and unwrap,
//! [`KmsDiagnosis`] for `byok doctor`, [`RequestCounts`] for metrics, [`Connections`] for the code
//! that drops DEKs from memory.
//!
//! | provider | `BYOK_PROVIDER` | wrap scheme 1 |
//! |---|---|---|
//! | [`AwsKms`] | `aws-kms` | the DEK is the plaintext; tenant and DEK id are the encryption context |
//! | [`GcpKms`] | `gcp-kms` | the DEK is the plaintext; tenant and DEK id are its additional authenticated data |
//! | [`VaultTransit`] | `vault-transit` | the DEK is the plaintext; nothing is bound to it |
//! | [`AzureKeyVault`] | `azure-key-vault` | the DEK is the plaintext; nothing is bound to it |
//! | [`LocalKey`] | `local` | a token (see `crypto`) bound to tenant, DEK id and key version |

mod aws;
mod azure;
mod budget;
mod call;
mod distrust;
mod error;
mod failure_log;
mod gcp;
mod http;
mod local;
mod pacing;
mod renewal;
mod request_counts;
mod vault;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::crypto::Dek;
use crate::merkle::Hash;
use crate::model::{DekId, KeyVersion, TenantUid, Wrapped};

pub use aws::AwsKms;
pub use azure::AzureKeyVault;
pub use distrust::Distrust;
pub use error::{KmsError, KmsErrorClass, Stage, Verdict};
pub use failure_log::log_failure;
pub use gcp::GcpKms;
pub use local::LocalKey;
pub use request_counts::{Asked, BUCKETS, RequestCounts, Requests, RequestsMade, RequestsWithheld};
pub use vault::VaultTransit;

/// The values that a DEK is bound to. A provider that takes associated data binds them there too,
/// so that they show in the customer's own KMS log; the commitment in every token binds them
/// whatever the provider supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekBinding {
    /// The tenant that owns the DEK.
    pub tenant: TenantUid,
    /// The DEK's id.
    pub dek_id: DekId,
    /// The purpose of the DEK.
    pub purpose: Purpose,
}

/// A position in a tenant's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// The number of the log among the tenant's logs.
    pub log: u32,
    /// The number of leaves up to this position.
    pub size: u64,
    /// The root of the tree of these leaves.
    pub root: Hash,
}

impl fmt::Display for LogPosition {
    /// Writes `<log> <size> <root, base64>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.log, self.size, self.root)
    }
}

/// The purpose of a DEK. A probe's is bound as such where a provider takes associated data, so that
/// the customer can distinguish probes from records in their own log, and it cannot be unwrapped as
/// anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Encryption of a record.
    Record,
    /// Encryption of a future record: bound as [`Self::Record`], but made while no caller waits for
    /// it, so that callers take precedence.
    RecordAhead,
    /// A test of whether the key works. Its calls count in the budget, which never refuses them.
    Probe,
    /// A note of a log position in the provider's own log, where that shows the context of a
    /// request ([`KmsProfile::logs_context`]). The DEK is thrown away. Called as [`Self::Probe`].
    Checkpoint(LogPosition),
    /// A test of whether the key works, with the DEK of a record: bound as [`Self::Record`], called
    /// as [`Self::Probe`].
    RecordProbed,
}

/// The answer of a KMS for one item, with the provider's own id of the request.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer itself.
    pub value: T,
    /// The id under which the provider's log has the request, for a cross-check with that log.
    pub request_id: Option<Arc<str>>,
}

/// The outcome for one item of a batch.
pub type ItemResult<T> = Result<Answer<T>, KmsError>;

/// A fresh DEK, plain and wrapped.
pub struct Generated {
    /// The plain DEK, which lives in memory only.
    pub dek: Dek,
    /// The wrapped DEK, which goes to the store.
    pub wrapped: Wrapped,
}

/// A key management service that holds one tenant's KEK. Batches come first: a provider with batch
/// endpoints makes one call, the others bounded concurrent ones. Answers come in the order of the
/// items, one for each.
///
/// Every call ends within the provider's configured deadline, retries included.
#[async_trait]
pub trait Kms: Send + Sync {
    /// Makes a DEK for each binding, wrapped under the current (or pinned) key version.
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>>;

    /// Wraps existing DEKs under the current (or pinned) key version.
    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>>;

    /// Unwraps DEKs, each under the key version that it names.
    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>>;

    /// Wraps DEKs again under `to`, with the KMS's own operation where there is one, so that no
    /// plain DEK leaves the KMS.
    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>>;

    /// Returns the version that [`Self::wrap`] uses now: the pinned one, or the KMS's latest.
    async fn current_version(&self) -> Result<KeyVersion, KmsError>;

    /// Returns the facts of this provider.
    fn profile(&self) -> KmsProfile;
}

/// Facts of a provider that do not change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KmsProfile {
    /// The most items of one call; rotation sizes its batches and its forecast by it.
    pub batch_limit: usize,
    /// The number of requests that [`Kms::rewrap`] makes.
    pub rewrap_cost: RewrapCost,
    /// Whether the provider's own log shows the context of a request in the clear, so that it can
    /// hold a log position ([`Purpose::Checkpoint`]).
    pub logs_context: bool,
    /// Whether wrapping takes no secret, as with a public key. A wrapped DEK in our database may
    /// then come from anybody.
    pub anybody_wraps: bool,
    /// The name that every version of the key gets while the provider does not distinguish them.
    pub unnamed_version: Option<&'static str>,
}

impl KmsProfile {
    /// Whether another version of the key would have another name than this one. If not, a rotation
    /// of the key cannot be noticed.
    pub fn tells_apart(&self, version: &KeyVersion) -> bool {
        self.unnamed_version != Some(&*version.version)
    }
}

/// The number of requests that [`Kms::rewrap`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewrapCost {
    /// This many requests for each DEK.
    PerDek(u32),
    /// One request for up to this many DEKs.
    PerBatch(usize),
}

impl RewrapCost {
    /// The number of requests for this many DEKs.
    pub fn calls(self, deks: u64) -> u64 {
        match self {
            Self::PerDek(requests) => deks * u64::from(requests),
            Self::PerBatch(size) => deks.div_ceil(size as u64),
        }
    }
}

/// The questions that only `byok doctor` asks of a provider.
#[async_trait]
pub trait KmsDiagnosis: Send + Sync {
    /// Asks whether the KMS accepts our credential, where its refusal of a call does not
    /// distinguish an expired credential from a missing right; `None` where it does not say.
    async fn knows_credential(&self) -> Option<bool> {
        None
    }

    /// Looks for settings that work but leave something unprotected at the KMS, as far as our
    /// identity may look.
    async fn exposure(&self) -> Vec<Exposure>;
}

/// The open connections of one provider.
pub trait Connections: Send + Sync {
    /// Closes the connections that wait for their next call: their buffers hold the last answers,
    /// with plain DEKs among them.
    fn hang_up(&self);
}

/// Something that a KMS leaves unprotected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The problem.
    pub what: &'static str,
    /// The remedy.
    pub remedy: &'static str,
}
