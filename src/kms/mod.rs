//! The seam to the customer's KMS. It wraps and unwraps DEKs and never sees a plaintext; wrap and unwrap are all that is
//! *needed*, every read of metadata is optional. What the provider said in an error goes to nobody: not to the caller,
//! not to the audit log, not to our own log. Its request id, HTTP status and our class do.
//!
//! | provider | `BYOK_PROVIDER` | what wrap scheme 1 is |
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
mod tally;
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
pub use tally::{Asked, BUCKETS, Requests, RequestsMade, RequestsWithheld};
pub use vault::VaultTransit;

/// What a DEK is bound to. A provider that takes associated data binds it there too, so that it shows in the customer's
/// own KMS log; the commitment in every token binds it whatever the provider supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekBinding {
    /// Whose it is.
    pub tenant: TenantUid,
    /// Which it is.
    pub dek_id: DekId,
    /// What it is for.
    pub purpose: Purpose,
}

/// How far a tenant's log had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which of the tenant's logs.
    pub log: u32,
    /// How many leaves it had.
    pub size: u64,
    /// Their root.
    pub root: Hash,
}

impl fmt::Display for Mark {
    /// `<log> <size> <root, base64>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.log, self.size, self.root)
    }
}

/// What a DEK is for. A probe's is bound as such where a provider takes associated data, so that the customer tells the
/// two apart in their own log: it opens for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A record is encrypted under it.
    Record,
    /// A record will be encrypted under it, if one comes in time: bound as [`Self::Record`], but made when nobody waits for
    /// it, so that callers go before it.
    RecordAhead,
    /// It only shows whether the key works. Its calls count in the budget and are never refused by it.
    Probe,
    /// It is thrown away: the request is made so that what the provider logs of it says how far our own log had come, where
    /// it logs the context of a request ([`Kms::logs_context`]). Called as [`Self::Probe`].
    Checkpoint(Mark),
    /// A record is encrypted under it, and now it shows whether the key works: bound as [`Self::Record`], called as
    /// [`Self::Probe`].
    RecordProbed,
}

/// What a KMS answered for one item, with the provider's own id of the request that it came by.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// The request id by which the provider's log has the call, for a cross-check with it.
    pub request_id: Option<Arc<str>>,
}

/// What became of one item of a batch.
pub type ItemResult<T> = Result<Answer<T>, KmsError>;

/// A fresh DEK, plain and wrapped.
pub struct Generated {
    /// Plain; lives in memory only.
    pub dek: Dek,
    /// Wrapped; goes to the store.
    pub wrapped: Wrapped,
}

/// A key management service that holds one tenant's KEK. Batches come first: a provider with batch endpoints makes one
/// call, the others bounded concurrent ones. Answers come in the order of the items, one for each.
///
/// Every call ends within the provider's configured deadline, retries included.
#[async_trait]
pub trait Kms: Send + Sync {
    /// Makes a DEK for each binding, wrapped under the current (or pinned) key version.
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>>;

    /// Wraps DEKs that exist under the current (or pinned) key version.
    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>>;

    /// Unwraps; the key version is the one that each wrapped DEK names.
    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>>;

    /// Wraps anew under `to`, with the KMS's own operation where there is one, so that no plain DEK is seen.
    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>>;

    /// The version that [`Self::wrap`] uses now: the pinned one, or the KMS's latest.
    async fn current_version(&self) -> Result<KeyVersion, KmsError>;

    /// Whether another version of the key would have another name than this one. Where it would not, a rotation of the key does
    /// not show.
    fn tells_versions(&self, _version: &KeyVersion) -> bool {
        true
    }

    /// Ends the connections that wait for their next call: their buffers hold what was answered last, plain DEKs among it.
    fn hang_up(&self);

    /// Whether the provider's own log shows the context of a request in the clear: then it can hold what we say in one
    /// ([`Purpose::Checkpoint`]).
    fn logs_context(&self) -> bool {
        false
    }

    /// Whether wrapping takes no secret, as with a public key: then a wrapped DEK in our database may be of anybody's making.
    fn anybody_wraps(&self) -> bool {
        false
    }

    /// How many items one call takes at most; what rotation sizes its batches and its forecast by.
    fn batch_limit(&self) -> usize;

    /// How many KMS calls [`Self::rewrap`] makes for `items` DEKs; what a rotation's forecast says.
    fn rewrap_calls(&self, items: u64) -> u64;

    /// Whether the KMS knows our credential, where its refusal of a call does not tell a credential that has ended from a right
    /// that is missing; `None` where it does not say. For `doctor`.
    async fn knows_credential(&self) -> Option<bool> {
        None
    }

    /// The requests that were made since the start, and what came of them. None where none leaves this process.
    fn requests(&self) -> Requests {
        Requests::default()
    }

    /// What works, but leaves something unprotected at the KMS, as far as our identity may look. For `doctor`.
    async fn exposure(&self) -> Vec<Exposure>;
}

/// Something that a KMS leaves unprotected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// What it is.
    pub what: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}
