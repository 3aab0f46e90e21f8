//! HashiCorp Vault's and OpenBao's Transit engine.
//!
//! | file | what it holds |
//! |---|---|
//! | `transit` | bodies and answers of the batch endpoints; why no key is ever created |
//! | `errors` | the meaning of Vault's texts |
//! | `auth` | the token, its renewal, logins |
//! | `transport` | one request |
//!
//! The token needs `update` on `<mount>/encrypt/<key>`, `decrypt/<key>` and `rewrap/<key>`, and on
//! `auth/token/renew-self` if it expires. The current key version is learned by wrapping a random
//! value, so metadata is read only for `doctor`.
//!
//! When the token is refused, the request is retried once with another token, if there is one.
//! OpenBao refuses an expired token with the same text as a missing right; `auth/token/lookup-self`
//! distinguishes the two if the token has the policy `default`.

mod auth;
mod errors;
mod transit;
mod transport;

use std::num::NonZeroU64;
use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use crate::config::{ConfigError, KeyVersionStrategy, VaultSettings};
use crate::crypto::Dek;
use crate::kms::budget::Share;
use crate::kms::call::{Call, CallPolicy, Failed, each};
use crate::kms::http::Reply;
use crate::kms::{
    Answer, Asked, Connections, DekBinding, Exposure, Generated, ItemResult, Kms, KmsDiagnosis, KmsError,
    KmsErrorClass, KmsProfile, RequestCounts, RewrapCost,
};
use crate::model::{KeyVersion, Wrapped};

use auth::{Auth, Token};
use transport::Transport;

/// The most items of one request. Measured at Vault 1.21.0: larger batches raise throughput only a
/// little, but latency in proportion. A request is some 20 KiB, far below the 32 MiB that Vault
/// accepts.
const BATCH: usize = 256;
/// A key in a Transit engine.
pub struct VaultTransit {
    vault: Vault,
}

struct Vault {
    transport: Arc<Transport>,
    auth: Auth,
    mount: String,
    key: Arc<str>,
    version: KeyVersionStrategy,
    calls: CallPolicy,
}

impl VaultTransit {
    /// Reads the certificate files that `settings` names. Before the first call, only the renewal
    /// of a configured token is sent, in the background.
    ///
    /// # Errors
    ///
    /// A certificate or key file that cannot be read or used.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, and when no process-wide TLS provider is installed.
    pub fn new(settings: VaultSettings) -> Result<Self, ConfigError> {
        let transport = Arc::new(Transport::new(&settings)?);
        let vault = Vault {
            auth: Auth::new(settings.login, Arc::clone(&transport), settings.timeout),
            transport,
            mount: settings.mount,
            key: settings.key.into(),
            version: settings.version,
            calls: CallPolicy::new("vault-transit", settings.timeout, settings.calls_per_minute),
        };
        Ok(Self { vault })
    }

    /// The counts of this key's requests.
    pub fn request_counts(&self) -> Arc<RequestCounts> {
        self.vault.calls.counts()
    }

    /// The connections to this key's server.
    pub fn connections(&self) -> Arc<dyn Connections> {
        self.vault.transport.clone()
    }

    /// Whether an ordinary encrypt with our token would create a key that is missing: it may
    /// `create` on the path and `disable_upsert` is not known to be set. Ours never do (see
    /// `transit`), but it is worth a warning. `None` if Vault does not say.
    pub async fn upsert_possible(&self) -> Option<bool> {
        #[derive(Deserialize)]
        struct Capabilities {
            capabilities: Vec<String>,
        }
        #[derive(Deserialize)]
        struct KeysConfig {
            data: KeysConfigData,
        }
        #[derive(Deserialize)]
        struct KeysConfigData {
            disable_upsert: bool,
        }

        let vault = &self.vault;
        let deadline = vault.calls.deadline();
        let path = format!("{}/encrypt/{}", vault.mount, vault.key);
        let body = Bytes::from(serde_json::json!({ "paths": [path] }).to_string());
        let reply = vault.request(Method::POST, "sys/capabilities-self", body, deadline).await.ok()?;
        let ours: Capabilities = serde_json::from_slice(&reply.body).ok()?;
        if !ours.capabilities.iter().any(|capability| capability == "create" || capability == "root") {
            return Some(false);
        }
        let path = format!("{}/config/keys", vault.mount);
        let reply = vault.request(Method::GET, &path, Bytes::new(), deadline).await.ok();
        let config = reply.and_then(|reply| serde_json::from_slice::<KeysConfig>(&reply.body).ok());
        Some(!config.is_some_and(|config| config.data.disable_upsert))
    }
}

#[async_trait]
impl Kms for VaultTransit {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        let deks: Vec<_> = bindings.iter().map(|_| Dek::generate()).collect();
        let share = Share::of(bindings.iter().map(|binding| binding.purpose));
        let wrapped = self.vault.wrap(&deks.iter().collect::<Vec<_>>(), share).await;
        let pairs = deks.into_iter().zip(wrapped);
        pairs
            .map(|(dek, outcome)| {
                let Answer { value: wrapped, request_id } = outcome?;
                Ok(Answer { value: Generated { dek, wrapped }, request_id })
            })
            .collect()
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        let share = Share::of(deks.iter().map(|(binding, _)| binding.purpose));
        self.vault.wrap(&deks.iter().map(|(_, dek)| *dek).collect::<Vec<_>>(), share).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        let deadline = self.vault.calls.deadline();
        let share = Share::of(wrapped.iter().map(|(binding, _)| binding.purpose));
        let call = Call { asked: Asked::Unwrap, share, deadline };
        let decrypted = |batch| self.vault.of_ciphertexts("decrypt", batch, None, call, transit::dek);
        each(wrapped.chunks(BATCH), decrypted).await.into_iter().flatten().collect()
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        let version = to.version.parse::<NonZeroU64>().ok().filter(|_| to.key == self.vault.key);
        let Some(version) = version else {
            return wrapped.iter().map(|_| Err(KmsError::local(KmsErrorClass::Misconfigured))).collect();
        };
        let (key, version) = (&self.vault.key, Some(version));
        let share = Share::of_rewrap(wrapped.iter().map(|(binding, _)| binding.purpose));
        let call = Call { asked: Asked::Rewrap, share, deadline: self.vault.calls.deadline() };
        let rewrapped = |batch| {
            let read = move |item: &transit::Item<'_>| transit::wrapped(item, key, version);
            self.vault.of_ciphertexts("rewrap", batch, version, call, read)
        };
        each(wrapped.chunks(BATCH), rewrapped).await.into_iter().flatten().collect()
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let probe = self.vault.wrap(&[&Dek::generate()], Share::Caller).await.pop();
        let answer = probe.unwrap_or_else(|| Err(KmsError::local(KmsErrorClass::Internal)))?;
        Ok(answer.value.key_version)
    }

    fn profile(&self) -> KmsProfile {
        KmsProfile {
            batch_limit: BATCH,
            rewrap_cost: RewrapCost::PerBatch(BATCH),
            logs_context: false,
            anybody_wraps: false,
            unnamed_version: None,
        }
    }
}

#[async_trait]
impl KmsDiagnosis for VaultTransit {
    async fn knows_credential(&self) -> Option<bool> {
        let vault = &self.vault;
        let deadline = vault.calls.deadline();
        match vault.request(Method::GET, "auth/token/lookup-self", Bytes::new(), deadline).await {
            Ok(_) => Some(true),
            Err(error) if error.class == KmsErrorClass::CredentialInvalid => Some(false),
            // OpenBao gives this answer to an expired token, and to one without the policy
            // `default`.
            Err(_) => None,
        }
    }

    async fn exposure(&self) -> Vec<Exposure> {
        let mut found = self.vault.key_exposure().await;
        if self.upsert_possible().await == Some(true) {
            found.push(Exposure {
                what: "key: with this token, Vault would create a key that is missing",
                remedy: "grant `update` and not `create`, and set `disable_upsert=true` in the mount's config/keys",
            });
        }
        found
    }
}

impl Vault {
    /// The exposures in the key's own description, if we may read it
    /// (<https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key>).
    async fn key_exposure(&self) -> Vec<Exposure> {
        #[derive(Deserialize)]
        struct Described {
            data: Key,
        }
        #[derive(Deserialize)]
        struct Key {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            derived: bool,
            #[serde(default)]
            exportable: bool,
            #[serde(default)]
            allow_plaintext_backup: bool,
        }

        let path = format!("{}/keys/{}", self.mount, self.key);
        let reply = self.request(Method::GET, &path, Bytes::new(), self.calls.deadline()).await.ok();
        let described = reply.and_then(|reply| serde_json::from_slice::<Described>(&reply.body).ok());
        let Some(Described { data: key }) = described else { return Vec::new() };
        let weak = matches!(&*key.kind, "aes128-gcm96" | "rsa-2048" | "rsa-3072" | "rsa-4096");
        let another = "before anything is encrypted, make one of type aes256-gcm96 under another name; Vault cannot change a key's type";
        let found = [
            (weak, "key: its type is weaker than the DEKs that it wraps, which have 256 bits", another),
            (
                key.derived,
                "key: it was made with `derived=true`: each call needs a context, which byok does not send",
                "make one without `derived` under another name; Vault cannot change this setting",
            ),
            (
                key.exportable || key.allow_plaintext_backup,
                "key: anyone who may export or back it up can take it out of Vault (`exportable`, `allow_plaintext_backup`)",
                "grant nobody `read` on the mount's export and backup paths; Vault cannot turn these settings off",
            ),
        ];
        let found = found.into_iter().filter(|(is_so, ..)| *is_so);
        found.map(|(_, what, remedy)| Exposure { what, remedy }).collect()
    }

    async fn wrap(&self, deks: &[&Dek], share: Share) -> Vec<ItemResult<Wrapped>> {
        let call = Call { asked: Asked::Wrap, share, deadline: self.calls.deadline() };
        let batches = each(deks.chunks(BATCH), |batch| self.wrap_batch(batch, call)).await;
        batches.into_iter().flatten().collect()
    }

    async fn wrap_batch(&self, deks: &[&Dek], call: Call) -> Vec<ItemResult<Wrapped>> {
        let version = match self.version {
            KeyVersionStrategy::Latest => None,
            KeyVersionStrategy::Pinned(version) => Some(version),
        };
        let body = transit::encrypt_body(deks.iter().copied(), version);
        let read = |item: &transit::Item<'_>| transit::wrapped(item, &self.key, version);
        let path = format!("{}/encrypt/{}", self.mount, self.key);
        self.batch(&path, Bytes::from_owner(body), deks.len(), call, read).await
    }

    /// Decrypts or re-wraps a batch. An item that cannot be sent fails alone; the others go in one
    /// request.
    async fn of_ciphertexts<T>(
        &self,
        operation: &str,
        batch: &[(DekBinding, Wrapped)],
        version: Option<NonZeroU64>,
        call: Call,
        read: impl Fn(&transit::Item<'_>) -> Option<T>,
    ) -> Vec<ItemResult<T>> {
        let checked: Vec<_> = batch.iter().map(|(_, wrapped)| self.ciphertext(wrapped)).collect();
        let sent = checked.iter().filter(|item| item.is_ok()).count();
        let answers = if sent == 0 {
            Vec::new()
        } else {
            let body = transit::ciphertexts_body(checked.iter().filter_map(|item| item.ok()), version);
            let path = format!("{}/{operation}/{}", self.mount, self.key);
            self.batch(&path, Bytes::from(body), sent, call, read).await
        };
        let mut answers = answers.into_iter();
        checked
            .into_iter()
            .map(|item| match item {
                Ok(_) => answers.next().unwrap_or_else(|| Err(KmsError::local(KmsErrorClass::Internal))),
                Err(class) => Err(KmsError::local(class)),
            })
            .collect()
    }

    /// The ciphertext of a wrapped DEK. The row comes from the database, so its key must be
    /// compared with ours: it must not choose a path in Vault.
    fn ciphertext<'a>(&self, wrapped: &'a Wrapped) -> Result<&'a str, KmsErrorClass> {
        if wrapped.key_version.key != self.key {
            return Err(KmsErrorClass::WrappedByAnotherKey);
        }
        transit::ciphertext(wrapped)
    }

    async fn batch<T>(
        &self,
        path: &str,
        body: Bytes,
        count: usize,
        call: Call,
        read: impl Fn(&transit::Item<'_>) -> Option<T>,
    ) -> Vec<ItemResult<T>> {
        let read = |reply: Reply| transit::read_items(&reply, count, &read);
        let class =
            |items: &Vec<ItemResult<T>>| items.iter().find_map(|item| Some(item.as_ref().err()?.class));
        let answer = self.attempts(Method::POST, path, body, call, class, read);
        answer.await.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }

    /// Makes a request for `doctor`.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        let read = |reply: Reply| if reply.status == 200 { Ok(reply) } else { Err(errors::of_reply(&reply)) };
        let call = Call { asked: Asked::Describe, share: Share::Probe, deadline };
        self.attempts(method, path, body, call, |_| None, read).await
    }

    /// Makes a request until it succeeds, fails for good, or time is up.
    async fn attempts<T>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        call: Call,
        class: impl Fn(&T) -> Option<KmsErrorClass>,
        read: impl Fn(Reply) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let Call { share, deadline, .. } = call;
        let once = || async {
            let (token, reply) = self.attempt(&method, path, &body, deadline).await?;
            let (status, wait) = (reply.status, reply.retry_after());
            let error = match read(reply) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !matches!(status, 401 | 403) || !self.auth.replace(&token, error.class, deadline).await? {
                return Err(Failed { error, wait });
            }
            self.calls.one_more(share)?;
            let (_, reply) = self.attempt(&method, path, &body, deadline).await?;
            let wait = reply.retry_after();
            read(reply).map_err(|error| Failed { error, wait })
        };
        self.calls.run_batch(call, class, once).await
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<(Arc<Token>, Reply), KmsError> {
        let token = self.auth.token(deadline).await?;
        let reply =
            self.transport.send(method.clone(), path, Some(&token.text), body.clone(), deadline).await?;
        Ok((token, reply))
    }
}
