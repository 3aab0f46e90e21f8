//! AWS KMS.
//!
//! | file | what it holds |
//! |---|---|
//! | `client` | the SDK's clients, and what is turned off in them |
//! | `errors` | the meaning of AWS's codes |
//! | `exposure` | the settings that work and leave something unprotected |
//! | `identity` | our identity: credentials, web identity, the role that we take |
//! | `key` | the operations, and the checks of their answers |
//! | `session` | the credentials that the clients sign with |
//! | `versions` | the names of the key's versions |
//!
//! Our identity needs `kms:GenerateDataKey`, `kms:Encrypt`, `kms:Decrypt`, `kms:ReEncryptFrom` and
//! `kms:ReEncryptTo` on the one key, and nothing else.
//!
//! **One key, in one region.** An alias is resolved by the first call, which generates a data key
//! under it: the answer names the key. From then on we send that key's ARN, and every answer must
//! name it; an alias that is changed to another key has no effect until a restart. A multi-region
//! key is used only in the region of its ARN: disabling it there does not disable its replicas.
//!
//! **Encryption context**, in the clear in the customer's CloudTrail: [`key::TENANT`] (32
//! hexadecimal digits) and [`key::DEK`] (a UUID) for a DEK; [`key::PURPOSE`] with `version` for the
//! data key that is generated, and thrown away, to learn the key or its version, and beside the two
//! others with `probe` for a DEK that only shows whether the key works.

mod client;
mod errors;
mod exposure;
mod identity;
mod key;
mod session;
mod versions;

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::{AwsSettings, ConfigError};
use crate::crypto::Dek;
use crate::kms::budget::Share;
use crate::kms::{
    Connections, DekBinding, Exposure, Generated, ItemResult, Kms, KmsDiagnosis, KmsError, KmsProfile,
    RequestCounts, RewrapCost,
};
use crate::model::{KeyVersion, Wrapped};

use key::{BATCH, Key};
use versions::UNNAMED;

/// A key in AWS KMS.
pub struct AwsKms {
    key: Arc<Key>,
}

impl AwsKms {
    /// Reads the system's certificates. Nothing is sent before the first call.
    ///
    /// # Errors
    ///
    /// There are none; the signature is that of the other providers.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new(settings: AwsSettings) -> Result<Self, ConfigError> {
        Ok(Self { key: Arc::new(Key::new(settings)) })
    }

    /// The counts of this key's requests.
    pub fn request_counts(&self) -> Arc<RequestCounts> {
        self.key.policy.counts()
    }

    /// The connections to this key's server.
    pub fn connections(&self) -> Arc<dyn Connections> {
        self.key.clone()
    }
}

#[async_trait]
impl Kms for AwsKms {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        let (key, deadline) = (&self.key, self.key.policy.deadline());
        let share = Share::of(bindings.iter().map(|binding| binding.purpose));
        key.batch(bindings, share, deadline, |pinned, binding| key.generate(pinned, deadline, binding)).await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        let (key, deadline) = (&self.key, self.key.policy.deadline());
        let share = Share::of(deks.iter().map(|(binding, _)| binding.purpose));
        if !deks.is_empty() {
            key.before_wrap(share, deadline).await;
        }
        key.batch(deks, share, deadline, |pinned, (binding, dek)| key.wrap(pinned, deadline, binding, dek))
            .await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        let (key, deadline) = (&self.key, self.key.policy.deadline());
        let share = Share::of(wrapped.iter().map(|(binding, _)| binding.purpose));
        key.batch(wrapped, share, deadline, |pinned, (binding, wrapped)| {
            key.unwrap(pinned, deadline, binding, wrapped)
        })
        .await
    }

    /// Wraps under the current key material, as AWS always does. If that is not `to`, the answer
    /// names the one that was used.
    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        let (key, deadline) = (&self.key, self.key.policy.deadline());
        let share = Share::of_rewrap(wrapped.iter().map(|(binding, _)| binding.purpose));
        key.batch(wrapped, share, deadline, |pinned, (binding, old)| {
            key.rewrap(pinned, deadline, binding, old, to)
        })
        .await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        self.key.current_version(Share::Caller, self.key.policy.deadline()).await
    }

    fn profile(&self) -> KmsProfile {
        KmsProfile {
            batch_limit: BATCH,
            rewrap_cost: RewrapCost::PerDek(1),
            // CloudTrail shows the encryption context
            // (docs.aws.amazon.com/kms/latest/developerguide/encrypt_context.html).
            logs_context: true,
            anybody_wraps: false,
            unnamed_version: Some(UNNAMED),
        }
    }
}

#[async_trait]
impl KmsDiagnosis for AwsKms {
    async fn exposure(&self) -> Vec<Exposure> {
        self.key.exposure().await
    }
}
