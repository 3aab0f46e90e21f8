//! A key in Azure Key Vault or a managed HSM, by Microsoft's own clients.
//!
//! | file | what it holds |
//! |---|---|
//! | `wire` | bodies and answers of `wrapkey` and `unwrapkey` |
//! | `errors` | the meaning of the services' error codes |
//! | `token` | the access token: our identity, and how a token is fetched |
//! | `transport` | one request, the challenge, and the answer |
//!
//! Our identity needs `wrapKey` and `unwrapKey` on the one key, and nothing else. None of Azure's
//! algorithms binds a wrapped DEK to anything: the commitment in every token does that. The current
//! version is learned by wrapping a random value, so no metadata is read. One item is one request;
//! a re-wrap is two, since Azure has no operation for it.

mod errors;
mod token;
mod transport;
mod wire;

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions, Transport as Sent};
use azure_security_keyvault_keys::models::{
    KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions, KeyClientWrapKeyOptions,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use crate::config::{AzureKey, AzureSettings, ConfigError, is_azure_version};
use crate::crypto::Dek;
use crate::kms::budget::Share;
use crate::kms::call::{Call, CallPolicy, Failed, each};
use crate::kms::http::Reply;
use crate::kms::{
    Answer, Asked, Connections, DekBinding, Exposure, Generated, ItemResult, Kms, KmsDiagnosis, KmsError,
    KmsErrorClass, KmsProfile, RequestCounts, RewrapCost,
};
use crate::model::{KeyVersion, Wrapped};

use token::Tokens;
use transport::{Exchange, Transport};

/// The DEKs that a rotation takes at a time: a few rounds of concurrent requests.
const BATCH: usize = 64;
/// The requests of a re-wrap: an unwrap and a wrap.
const REWRAP_CALLS: NonZeroU32 = NonZeroU32::new(2).expect("two");

/// A key in Azure Key Vault or a managed HSM.
pub struct AzureKeyVault {
    client: KeyClient,
    transport: Arc<Transport>,
    tokens: Tokens,
    key: AzureKey,
    name: Arc<str>,
    calls: CallPolicy,
}

/// The operation on one item, with the key version; `None` is the current one.
#[derive(Clone, Copy)]
enum Operation<'a> {
    Wrap(Option<&'a str>),
    Unwrap(&'a str),
    Read,
}

impl Operation<'_> {
    fn asked(self) -> Asked {
        match self {
            Self::Wrap(_) => Asked::Wrap,
            Self::Unwrap(_) => Asked::Unwrap,
            Self::Read => Asked::Describe,
        }
    }
}

impl AzureKeyVault {
    /// Reads the certificate file that `settings` names. Nothing is sent before the first call.
    ///
    /// # Errors
    ///
    /// A certificate file that cannot be read or used.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, and when no process-wide TLS provider is installed.
    pub fn new(settings: AzureSettings) -> Result<Self, ConfigError> {
        let transport = Arc::new(Transport::new(&settings)?);
        let key = settings.key.clone();
        let calls = CallPolicy::new("azure-key-vault", settings.timeout, settings.calls_per_minute);
        let tokens = Tokens::new(settings, Arc::clone(&transport));
        // If the vault has a name to compare, the client also compares the host of a challenge with
        // it.
        let named = key.resource.strip_prefix("https://").zip(key.vault.host_str());
        let verify = named.is_some_and(|(resource, host)| host.ends_with(&format!(".{resource}")));
        let options = KeyClientOptions {
            client_options: ClientOptions {
                retry: RetryOptions::none(),
                transport: Some(Sent::with_policy(transport.clone())),
                ..ClientOptions::default()
            },
            verify_challenge_resource: Some(verify),
            ..KeyClientOptions::default()
        };
        let client =
            KeyClient::new(key.vault.as_str(), Arc::new(tokens.clone()), Some(options)).map_err(|_| {
                let problem = "is not an address that Azure's client accepts".to_owned();
                ConfigError { variable: "BYOK_AZURE_KEY_ID".to_owned(), problem }
            })?;
        let name = key.name.as_str().into();
        Ok(Self { client, transport, tokens, key, name, calls })
    }

    /// The counts of this key's requests.
    pub fn request_counts(&self) -> Arc<RequestCounts> {
        self.calls.counts()
    }

    /// The connections to this key's server.
    pub fn connections(&self) -> Arc<dyn Connections> {
        self.transport.clone()
    }

    async fn wrap_one(
        &self,
        dek: &Dek,
        version: Option<&str>,
        share: Share,
        deadline: Instant,
    ) -> ItemResult<Wrapped> {
        let body = Bytes::from_owner(wire::body(self.key.algorithm, dek.expose()));
        self.call(Operation::Wrap(version), body, share, deadline, |answer| {
            answer.wrapped(&self.key, &self.name, version)
        })
        .await
    }

    async fn unwrap_one(&self, wrapped: &Wrapped, share: Share, deadline: Instant) -> ItemResult<Dek> {
        let (version, bytes) = wire::checked(&self.key, wrapped).map_err(KmsError::local)?;
        let body = Bytes::from_owner(wire::body(self.key.algorithm, bytes));
        let read = |answer: &wire::Answer<'_>| answer.dek(&self.key, version);
        self.call(Operation::Unwrap(version), body, share, deadline, read).await
    }

    /// Makes one call. An answer that `read` rejects is an error, and the call is retried.
    async fn call<T>(
        &self,
        operation: Operation<'_>,
        body: Bytes,
        share: Share,
        deadline: Instant,
        read: impl Fn(&wire::Answer<'_>) -> Option<T>,
    ) -> ItemResult<T> {
        self.calls
            .run(Call { asked: operation.asked(), share, deadline }, || async {
                let reply = self.attempt(operation, &body, share, deadline).await?;
                let value = wire::Answer::read(&reply.body).and_then(|answer| read(&answer));
                match value {
                    Some(value) => Ok(Answer { value, request_id: errors::request_id(&reply) }),
                    None => Err(errors::error(KmsErrorClass::Internal, &reply).into()),
                }
            })
            .await
    }

    /// Makes one request, or a second one if the vault refuses a token that can be replaced.
    async fn attempt(
        &self,
        operation: Operation<'_>,
        body: &Bytes,
        share: Share,
        deadline: Instant,
    ) -> Result<Reply, Failed> {
        let first = Exchange::new(deadline);
        let outcome = self.send(operation, body, &first).await;
        let refused = matches!(&outcome, Err(failed)
            if failed.error.class == KmsErrorClass::CredentialInvalid && failed.error.http_status == Some(401));
        match first.token() {
            Some(token) if refused && self.tokens.replace(&token, deadline).await? => {
                self.calls.one_more(share)?;
                self.send(operation, body, &Exchange::new(deadline)).await
            }
            _ => outcome,
        }
    }

    async fn send(
        &self,
        operation: Operation<'_>,
        body: &Bytes,
        exchange: &Arc<Exchange>,
    ) -> Result<Reply, Failed> {
        let method_options = ClientMethodOptions { context: exchange.context() };
        let name = &self.key.name;
        // The outcome is in the exchange.
        let _ = match operation {
            Operation::Wrap(version) => {
                let key_version = version.map(str::to_owned);
                let options = KeyClientWrapKeyOptions { key_version, method_options };
                self.client.wrap_key(name, body.clone().into(), Some(options)).await.map(drop)
            }
            Operation::Unwrap(version) => {
                let options = KeyClientUnwrapKeyOptions { method_options };
                self.client.unwrap_key(name, version, body.clone().into(), Some(options)).await.map(drop)
            }
            Operation::Read => {
                let options = KeyClientGetKeyOptions { method_options, ..KeyClientGetKeyOptions::default() };
                self.client.get_key(name, Some(options)).await.map(drop)
            }
        };
        exchange.reply()
    }
}

#[async_trait]
impl Kms for AzureKeyVault {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        let (version, deadline) = (self.key.version.as_deref(), self.calls.deadline());
        each(bindings, |binding| async move {
            let dek = Dek::generate();
            let Answer { value: wrapped, request_id } =
                self.wrap_one(&dek, version, binding.purpose.into(), deadline).await?;
            Ok(Answer { value: Generated { dek, wrapped }, request_id })
        })
        .await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        let (version, deadline) = (self.key.version.as_deref(), self.calls.deadline());
        each(deks, |(binding, dek)| self.wrap_one(dek, version, binding.purpose.into(), deadline)).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        let deadline = self.calls.deadline();
        each(wrapped, |(binding, wrapped)| self.unwrap_one(wrapped, binding.purpose.into(), deadline)).await
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        if *to.key != *self.key.name || !is_azure_version(&to.version) {
            return wrapped.iter().map(|_| Err(KmsError::local(KmsErrorClass::Misconfigured))).collect();
        }
        let deadline = self.calls.deadline();
        each(wrapped, |(binding, wrapped)| async move {
            let share = self.calls.prepay_rewrap(binding.purpose, REWRAP_CALLS)?;
            let dek = self.unwrap_one(wrapped, share, deadline).await?.value;
            self.wrap_one(&dek, Some(&to.version), share, deadline).await
        })
        .await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let version = self.key.version.as_deref();
        let deadline = self.calls.deadline();
        let answer = self.wrap_one(&Dek::generate(), version, Share::Caller, deadline).await?;
        Ok(answer.value.key_version)
    }

    fn profile(&self) -> KmsProfile {
        KmsProfile {
            batch_limit: BATCH,
            rewrap_cost: RewrapCost::PerDek(REWRAP_CALLS.get()),
            logs_context: false,
            anybody_wraps: self.key.algorithm.anybody_wraps(),
            unnamed_version: None,
        }
    }
}

#[async_trait]
impl KmsDiagnosis for AzureKeyVault {
    async fn exposure(&self) -> Vec<Exposure> {
        #[derive(Deserialize)]
        struct Key {
            attributes: Attributes,
            key: Material,
        }
        #[derive(Deserialize)]
        struct Material {
            /// The modulus of an RSA key, in base64url (RFC 7518, section 6.3.1.1).
            #[serde(default)]
            n: String,
        }
        #[derive(Deserialize)]
        struct Attributes {
            exp: Option<i64>,
            #[serde(rename = "recoveryLevel", default)]
            recovery_level: String,
        }

        let (deadline, nothing) = (self.calls.deadline(), Bytes::new());
        let once = || self.attempt(Operation::Read, &nothing, Share::Probe, deadline);
        let call = Call { asked: Operation::Read.asked(), share: Share::Probe, deadline };
        let read = self.calls.run(call, once).await;
        // We may lack the right to read the key. That is no exposure.
        let Some(key) = read.ok().and_then(|reply| serde_json::from_slice::<Key>(&reply.body).ok()) else {
            return Vec::new();
        };
        let mut exposures = Vec::new();
        // "Deletion recovery level": without purge protection it ends in `Purgeable`.
        if key.attributes.recovery_level.ends_with("Purgeable") || key.attributes.recovery_level.is_empty() {
            exposures.push(Exposure {
                what: "key: anyone with the right to purge a deleted key can destroy it, and all data with it, before its retention ends",
                remedy: "turn on the vault's purge protection",
            });
        }
        // 2048 bits are 342 digits of base64url; 3072 are 512.
        if (1..512).contains(&key.key.n.len()) {
            exposures.push(Exposure {
                what: "key: it is an RSA key of less than 3072 bits, weaker than what it wraps",
                remedy: "make a new version of it with `--size 3072` or more (`az keyvault key create` once more), and run `byok rotate`",
            });
        }
        if key.attributes.exp.is_some() {
            exposures.push(Exposure {
                what: "key: its current version expires; after that nothing can be encrypted until there is a new one",
                remedy: "make a new version before that, or let a rotation policy do so",
            });
        }
        exposures
    }
}
