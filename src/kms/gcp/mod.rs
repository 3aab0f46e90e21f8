//! Google Cloud KMS, REST v1.
//!
//! | file | what it holds |
//! |---|---|
//! | `wire` | bodies and answers, the data that a DEK is bound to, checksums |
//! | `errors` | the meaning of Google's errors |
//! | `login` | the exchange of a credential for a token |
//!
//! Our identity needs `cloudkms.cryptoKeyVersions.useToEncrypt` and `useToDecrypt` on the key, and
//! nothing else. The current version is learned by encrypting a random value, because reads of keys
//! have a separate, low quota (300 a minute). There is no batch endpoint and no re-encryption: each
//! DEK is a call, and a re-wrap is a decrypt and an encrypt under the new version, so the plain DEK
//! is in our memory in between.
//!
//! Two answers cause one immediate retry: a refused token, with another token; and a refused
//! argument, because Google returns the same code for a request that was corrupted on its way. An
//! answer that was corrupted on its way to us is never used, and retried like any failure inside
//! the provider.

mod errors;
mod login;
mod wire;

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use async_trait::async_trait;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::Bytes;
use reqwest::Url;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::config::{
    ConfigError, GcpCredentials, GcpIdentity, GcpKey, GcpSettings, KeyVersionStrategy, SecretSource,
    read_text,
};
use crate::crypto::Dek;
use crate::kms::budget::Share;
use crate::kms::call::{Call, CallPolicy, Failed, each};
use crate::kms::http::{Http, HttpSettings, Reply};
use crate::kms::renewal::Renewer;
use crate::kms::{
    Answer, Connections, DekBinding, Exposure, Generated, ItemResult, Kms, KmsDiagnosis, KmsError,
    KmsErrorClass, KmsProfile, Purpose, RequestCounts, RewrapCost,
};
use crate::model::{KeyVersion, Wrapped};

use errors::Asked;
use login::{Login, Token};

/// The DEKs that a rotation takes at a time: 128 calls, some seconds at 16 concurrent ones and
/// Google's latencies.
const BATCH: usize = 64;
/// The requests of a re-wrap: a decrypt and an encrypt.
const REWRAP_CALLS: NonZeroU32 = NonZeroU32::new(2).expect("two");

/// Rights that byok does not need. With them, somebody who has our credential could turn the key
/// off, destroy it or give others access to it.
const TOO_MUCH: [&str; 4] = [
    "cloudkms.cryptoKeys.setIamPolicy",
    "cloudkms.cryptoKeys.update",
    "cloudkms.cryptoKeyVersions.destroy",
    "cloudkms.cryptoKeyVersions.update",
];

/// A key in Google Cloud KMS.
pub struct GcpKms {
    google: Google,
}

struct Google {
    http: Arc<Http>,
    tokens: Renewer<Login>,
    calls: CallPolicy,
    endpoint: Url,
    key: GcpKey,
    version: Option<NonZeroU64>,
    /// Whether we act with a person's credential.
    personal: bool,
}

impl GcpKms {
    /// Reads the files that `settings` names. Nothing is sent before the first call.
    ///
    /// # Errors
    ///
    /// A certificate or credential file that cannot be read or used.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, and when no process-wide TLS provider is installed.
    pub fn new(settings: GcpSettings) -> Result<Self, ConfigError> {
        let (origins, personal) = identity_of(&settings)?;
        let http = Arc::new(Http::new(HttpSettings {
            origins,
            ca_file: settings.ca_file.as_deref().map(|path| ("BYOK_GCP_CA_FILE", path)),
            client: None,
            timeout: settings.timeout,
        })?);
        let login = Login {
            identity: settings.identity,
            impersonate: settings.impersonate,
            iam_endpoint: settings.iam_endpoint,
            http: Arc::clone(&http),
        };
        let google = Google {
            tokens: Renewer::start(login, Login::rules(settings.timeout)),
            http,
            calls: CallPolicy::new("gcp-kms", settings.timeout, settings.calls_per_minute),
            endpoint: settings.endpoint,
            key: settings.key,
            version: match settings.version {
                KeyVersionStrategy::Latest => None,
                KeyVersionStrategy::Pinned(version) => Some(version),
            },
            personal,
        };
        Ok(Self { google })
    }

    /// The counts of this key's requests.
    pub fn request_counts(&self) -> Arc<RequestCounts> {
        self.google.calls.counts()
    }

    /// The connections to this key's server.
    pub fn connections(&self) -> Arc<dyn Connections> {
        self.google.http.clone()
    }
}

/// The origins that requests may go to, and whether the credential is a person's.
fn identity_of(settings: &GcpSettings) -> Result<(Vec<Url>, bool), ConfigError> {
    let mut origins = vec![settings.endpoint.clone(), settings.iam_endpoint.clone()];
    let credentials = match &settings.identity {
        GcpIdentity::Metadata(address) => {
            origins.push(address.clone());
            return Ok((origins, false));
        }
        GcpIdentity::Credentials(SecretSource::Text(json)) => GcpCredentials::parse(json.expose()),
        GcpIdentity::Credentials(SecretSource::File(path)) => match read_text(path) {
            Ok(json) => GcpCredentials::parse(&json),
            Err(_) => Err("cannot be read"),
        },
    };
    let credentials = credentials.map_err(|problem| ConfigError {
        variable: "BYOK_GCP_CREDENTIALS_JSON".to_owned(),
        problem: problem.to_owned(),
    })?;
    origins.push(credentials.token_uri().clone());
    let source = match credentials {
        GcpCredentials::Impersonated { source, endpoint, .. } => {
            origins.extend(endpoint);
            *source
        }
        credentials => credentials,
    };
    Ok((origins, matches!(source, GcpCredentials::User { .. })))
}

#[async_trait]
impl Kms for GcpKms {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        let deadline = self.google.calls.deadline();
        each(bindings, |binding| async {
            let dek = Dek::generate();
            let wrapped = self
                .google
                .encrypt(*binding, &dek, self.google.version, binding.purpose.into(), deadline)
                .await?;
            Ok(answer(Generated { dek, wrapped }))
        })
        .await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        let deadline = self.google.calls.deadline();
        each(deks, |(binding, dek)| async {
            self.google
                .encrypt(*binding, dek, self.google.version, binding.purpose.into(), deadline)
                .await
                .map(answer)
        })
        .await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        let deadline = self.google.calls.deadline();
        each(wrapped, |(binding, wrapped)| async {
            self.google.decrypt(*binding, wrapped, binding.purpose.into(), deadline).await.map(answer)
        })
        .await
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        let version = wire::version_number(to).filter(|_| *to.key == *self.google.key.key);
        let Some(version) = version else {
            return wrapped.iter().map(|_| Err(KmsError::local(KmsErrorClass::Misconfigured))).collect();
        };
        let deadline = self.google.calls.deadline();
        each(wrapped, |(binding, wrapped)| async {
            let share = self.google.calls.prepay_rewrap(binding.purpose, REWRAP_CALLS)?;
            let dek = self.google.decrypt(*binding, wrapped, share, deadline).await?;
            self.google.encrypt(*binding, &dek, Some(version), share, deadline).await.map(answer)
        })
        .await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let google = &self.google;
        let (tenant, dek_id) = (crate::model::TenantUid([0; 16]), crate::model::DekId::new());
        let binding = DekBinding { tenant, dek_id, purpose: Purpose::Record };
        let deadline = google.calls.deadline();
        let wrapped =
            google.encrypt(binding, &Dek::generate(), google.version, Share::Caller, deadline).await?;
        Ok(wrapped.key_version)
    }

    fn profile(&self) -> KmsProfile {
        KmsProfile {
            batch_limit: BATCH,
            rewrap_cost: RewrapCost::PerDek(REWRAP_CALLS.get()),
            logs_context: false,
            anybody_wraps: false,
            unnamed_version: None,
        }
    }
}

#[async_trait]
impl KmsDiagnosis for GcpKms {
    async fn exposure(&self) -> Vec<Exposure> {
        let mut found = Vec::new();
        if self.google.personal {
            found.push(Exposure {
                what: "key: we act as a person, whose credential gives access to everything that the person has access to",
                remedy: "use a service account: through the metadata server, by impersonation, or with a key of its own",
            });
        }
        if self.google.held(&TOO_MUCH).await.is_ok_and(|held| held > 0) {
            found.push(Exposure {
                what: "key: our identity may change the key, its policy or its versions, not only use it",
                remedy: "grant it only what `byok policy gcp-kms` prints",
            });
        }
        found
    }
}

/// An answer without a request id: Google gives none.
fn answer<T>(value: T) -> Answer<T> {
    Answer { value, request_id: None }
}

impl Google {
    async fn encrypt(
        &self,
        binding: DekBinding,
        dek: &Dek,
        version: Option<NonZeroU64>,
        share: Share,
        deadline: Instant,
    ) -> Result<Wrapped, KmsError> {
        let body = Bytes::from_owner(wire::encrypt_body(binding, dek));
        let (asked, method) = match version {
            Some(version) => (Asked::EncryptUnder, format!("/cryptoKeyVersions/{version}:encrypt")),
            None => (Asked::Encrypt, ":encrypt".to_owned()),
        };
        let read = |reply: &Reply| wire::wrapped(&reply.body, &self.key, version);
        self.call(asked, &method, body, share, deadline, read).await
    }

    async fn decrypt(
        &self,
        binding: DekBinding,
        wrapped: &Wrapped,
        share: Share,
        deadline: Instant,
    ) -> Result<Dek, KmsError> {
        let ciphertext = wire::ciphertext(wrapped, &self.key).map_err(KmsError::local)?;
        let body = Bytes::from_owner(wire::decrypt_body(binding, ciphertext));
        self.call(Asked::Decrypt, ":decrypt", body, share, deadline, |reply| wire::dek(&reply.body)).await
    }

    /// The number of these rights that we have on the key. The question needs none itself.
    async fn held(&self, permissions: &[&str]) -> Result<usize, KmsError> {
        #[derive(Deserialize)]
        struct Held {
            #[serde(default)]
            permissions: Vec<String>,
        }

        let body = Bytes::from(json!({ "permissions": permissions }).to_string());
        let read = |reply: &Reply| serde_json::from_slice::<Held>(&reply.body).ok();
        let (path, share, deadline) = (":testIamPermissions", Share::Probe, self.calls.deadline());
        Ok(self.call(Asked::Look, path, body, share, deadline, read).await?.permissions.len())
    }

    /// Calls a method of the key. `read` returns `None` for an answer that must not be used.
    async fn call<T>(
        &self,
        asked: Asked,
        method: &str,
        body: Bytes,
        share: Share,
        deadline: Instant,
        read: impl Fn(&Reply) -> Option<T>,
    ) -> Result<T, KmsError> {
        let url = under(&self.endpoint, &format!("v1/{}{method}", self.key.name()))?;
        let once = || async {
            let reply = self.send(&url, &body, share, deadline).await?;
            match reply.status {
                200 => read(&reply).ok_or_else(|| errors::internal(&reply).into()),
                _ => Err(Failed { error: errors::of_reply(asked, &reply), wait: reply.retry_after() }),
            }
        };
        self.calls.run(Call { asked: asked.of_any(), share, deadline }, once).await
    }

    /// Sends a request, and once more if the first answer is one that a retry may avoid.
    async fn send(
        &self,
        url: &Url,
        body: &Bytes,
        share: Share,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        let token = self.tokens.get(Instant::now(), deadline).await?;
        let reply = self.send_as(&token, url, body, deadline).await?;
        if reply.status == 401 && errors::has_status(&reply, "UNAUTHENTICATED") {
            let Some(token) = self.tokens.another(&token, deadline).await? else { return Ok(reply) };
            self.calls.one_more(share)?;
            return self.send_as(&token, url, body, deadline).await;
        }
        if reply.status == 400 && errors::has_status(&reply, "INVALID_ARGUMENT") {
            self.calls.one_more(share)?;
            return self.send_as(&token, url, body, deadline).await;
        }
        Ok(reply)
    }

    async fn send_as(
        &self,
        token: &Token,
        url: &Url,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<Reply, KmsError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        token.sign(&mut headers);
        self.http.send(Method::POST, url.clone(), headers, body.clone(), deadline).await
    }
}

/// The URL of a path under an address that may have a path itself.
fn under(address: &Url, path: &str) -> Result<Url, KmsError> {
    Url::parse(&format!("{}/{path}", address.as_str().trim_end_matches('/')))
        .map_err(|_| KmsError::local(KmsErrorClass::Misconfigured))
}
