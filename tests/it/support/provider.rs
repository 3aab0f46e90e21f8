//! Each provider as a server uses it: the variables that `byok serve` takes, the hosts behind them,
//! and the customer's control of the key. For behaviour that all four share.
//!
//! What each customer does when a [`Switch`] is turned off, and undoes when it is turned on:
//!
//! | | AWS | Google | Vault | Azure |
//! |---|---|---|---|---|
//! | `Key` | DisableKey | every version disabled: a key as a whole has no such state | an explicit `deny` on its paths: a Transit key cannot be disabled | every version `enabled: false` |
//! | `Policy` | the role's policy deleted | the key's IAM binding removed | the token's policy deleted | the role assignment deleted |
//! | `Deletion` | ScheduleKeyDeletion | every version destroyed, which Google does 30 days later | the key deleted; its backup restored | the key deleted, and recovered |
//! | `Version` | none: a rotated key's material cannot be disabled | all versions but the primary one disabled | `min_decryption_version` | all versions but the newest `enabled: false` |
//! | `Credential` | the access key deactivated and the role's sessions revoked | the service account disabled | the token revoked; root makes it again by its id | the application disabled and its tokens ended |
//!
//! A `Version` is never the newest: a new version is made first if there is only one. Entra's
//! tokens outlive their application by up to an hour unless continuous access evaluation ends them.

use std::path::PathBuf;
use std::sync::Arc;

use byok::config::{self, Env, Reader};
use byok::kms::{AwsKms, AzureKeyVault, GcpKms, Kms, KmsDiagnosis, VaultTransit};
use futures_util::future::BoxFuture;
use serde_json::json;

use super::gcp::{self, Google};
use super::pki::Files;
use super::relay::{Name, Relay};
use super::shared_vault::VaultKey;
use super::toxics::Way;

/// An action of the customer's.
pub(crate) type Action = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Something that the customer can turn off, and on again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The key is disabled.
    Key,
    /// Our right to use the key is removed.
    Policy,
    /// The key is scheduled for deletion, or deleted.
    Deletion,
    /// The version that wrapped the existing DEKs can no longer unwrap them.
    Version,
    /// Our credential is revoked.
    Credential,
}

impl Switch {
    pub(crate) const ALL: [Self; 5] =
        [Self::Key, Self::Policy, Self::Deletion, Self::Version, Self::Credential];
}

/// The action that turns a switch off, and its undo.
pub(crate) struct Turns {
    pub(crate) off: Action,
    pub(crate) on: Action,
}

/// An action on a customer's provider.
type Step<T> = for<'a> fn(&'a T) -> BoxFuture<'a, ()>;

impl Turns {
    pub(crate) fn of<T: Send + Sync + 'static>(customer: &Arc<T>, off: Step<T>, on: Step<T>) -> Self {
        let action = |step: Step<T>| -> Action {
            let customer = Arc::clone(customer);
            Box::new(move || {
                let customer = Arc::clone(&customer);
                Box::pin(async move { step(&customer).await })
            })
        };
        Self { off: action(off), on: action(on) }
    }
}

/// A key at a provider, and how to reach it.
pub(crate) struct Provided {
    /// Everything that the provider needs in the environment.
    pub(crate) variables: Vec<(String, String)>,
    /// The URL of the KMS, as in the variables.
    pub(crate) kms: String,
    /// The URL of the credential's source, if that is another host.
    pub(crate) credential: Option<String>,
    /// The authority that signed the hosts' certificates, and a certificate from it for a relay.
    pub(crate) tls: Option<(PathBuf, Files)>,
    /// The name under which a request to it is counted.
    pub(crate) called: Name,
    /// Credentials.
    pub(crate) secrets: Vec<String>,
    /// The field names of plain DEKs in its protocol.
    pub(crate) plain: &'static [&'static str],
    /// An error in its own format, with this code and text.
    pub(crate) error: fn(&str, &str) -> String,
    /// Error codes that it uses.
    pub(crate) codes: &'static [&'static str],
    /// Makes a new version of the key.
    pub(crate) rotate: Action,
    /// The switches that it gives the customer.
    pub(crate) switches: Vec<(Switch, Turns)>,
}

impl Provided {
    /// A Transit key in the shared Vault.
    pub(crate) async fn vault() -> Self {
        let key = VaultKey::create().await;
        let switches = key.switches();
        let variables = [
            ("BYOK_PROVIDER", "vault-transit"),
            ("BYOK_VAULT_ADDR", &key.address),
            ("BYOK_VAULT_TOKEN", &key.token),
            ("BYOK_VAULT_TRANSIT_KEY", &key.name),
        ];
        Self {
            variables: owned(&variables),
            kms: key.address.clone(),
            credential: None,
            tls: None,
            called: |request| request.uri().path().split('/').nth(3).unwrap_or_default().to_owned(),
            secrets: vec![key.token.clone()],
            plain: &["plaintext"],
            error: |code, text| {
                json!({ "errors": [format!("{code}{text}")], "request_id": text }).to_string()
            },
            codes: &["", "permission denied ", "encryption key not found "],
            rotate: Box::new(move || {
                let key = key.clone();
                Box::pin(async move { key.rotate().await })
            }),
            switches,
        }
    }

    /// A key in the stand-in for Google Cloud KMS, used with a service account's key.
    pub(crate) async fn gcp() -> Self {
        let google = Arc::new(Google::start().await);
        // Two names of one server.
        let credential = google.address.replace("127.0.0.1", "localhost");
        let mut file = google.account(gcp::ACCOUNT).await;
        file["token_uri"] = format!("{credential}/token").into();
        let secrets = file["private_key"].as_str().expect("a key").lines().skip(1).take(2).map(str::to_owned);
        let variables = [
            ("BYOK_PROVIDER", "gcp-kms"),
            ("BYOK_GCP_KEY_NAME", gcp::KEY),
            ("BYOK_GCP_CREDENTIALS_JSON", &file.to_string()),
            ("BYOK_GCP_ENDPOINT", &google.address),
        ];
        Self {
            variables: owned(&variables),
            kms: google.address.clone(),
            credential: Some(credential),
            tls: None,
            called: |request| {
                request.uri().path().rsplit_once([':', '/']).map_or("", |(_, name)| name).to_owned()
            },
            secrets: secrets.chain(["ya29.".to_owned()]).collect(),
            plain: &["plaintext"],
            error: |code, text| {
                let (http_status, status) = code.split_once(' ').expect("both");
                let http_status: u16 = http_status.parse().expect("a number");
                let details = json!([{ "reason": text, "violations": [{ "type": text, "subject": text }] }]);
                let error =
                    json!({ "code": http_status, "status": status, "message": text, "details": details });
                json!({ "error": error, "access_token": text, "error_description": text }).to_string()
            },
            codes: &[
                "403 PERMISSION_DENIED",
                "400 FAILED_PRECONDITION",
                "401 UNAUTHENTICATED",
                "429 RESOURCE_EXHAUSTED",
            ],
            switches: google.switches(),
            rotate: {
                Box::new(move || {
                    let google = google.clone();
                    Box::pin(async move { google.rotate().await })
                })
            },
        }
    }

    /// The client, as the server builds it.
    pub(crate) fn kms(&self) -> Arc<dyn Kms> {
        kms_of(&Env::from_pairs(self.variables.clone()))
    }

    /// The actions of this switch, if the provider has it.
    pub(crate) fn switch(&self, switch: Switch) -> Option<&Turns> {
        self.switches.iter().find_map(|(one, turns)| (*one == switch).then_some(turns))
    }

    /// The variables, in the form that `TestServer` takes.
    pub(crate) fn environment(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Puts a relay in front of each host, in the order of [`Self::kms`], [`Self::credential`].
    pub(crate) async fn relayed(&mut self) -> Vec<Relay> {
        let mut relays = Vec::new();
        for host in self.hosts() {
            let relay = match &self.tls {
                Some((authority, files)) if host.starts_with("https") => {
                    Relay::before_tls(&host, authority, files, self.called).await
                }
                _ => Relay::before(&host, self.called).await,
            };
            self.reroute(&host, &relay.url);
            relays.push(relay);
        }
        relays
    }

    /// Puts a route with faults in front of each host, in the same order.
    pub(crate) async fn by_ways(&mut self) -> Vec<Way> {
        let mut ways = Vec::new();
        for host in self.hosts() {
            let (way, url) = Way::to_url(&host).await;
            self.reroute(&host, &url);
            ways.push(way);
        }
        ways
    }

    fn hosts(&self) -> Vec<String> {
        std::iter::once(self.kms.clone()).chain(self.credential.clone()).collect()
    }

    /// Replaces an address in all variables. It may be part of a value: of a URL, or of a
    /// credential's JSON.
    pub(crate) fn reroute(&mut self, from: &str, to: &str) {
        for (_, value) in &mut self.variables {
            *value = value.replace(from, to);
        }
    }
}

/// The provider that this environment configures.
pub(crate) fn kms_of(env: &Env) -> Arc<dyn Kms> {
    kms_and_diagnosis_of(env).0
}

/// The provider that this environment configures, also in its form for `byok doctor`.
pub(crate) fn kms_and_diagnosis_of(env: &Env) -> (Arc<dyn Kms>, Arc<dyn KmsDiagnosis>) {
    fn both<P: Kms + KmsDiagnosis + 'static>(provider: P) -> (Arc<dyn Kms>, Arc<dyn KmsDiagnosis>) {
        let provider = Arc::new(provider);
        (provider.clone(), provider)
    }

    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut reader = Reader::new(env);
    let mut settings = config::Kms::read(&mut reader, false);
    let rates = config::Rates::read(&mut reader);
    let limits = config::Limits::read(&mut reader, &rates);
    settings.iter_mut().for_each(|settings| settings.limit_calls(limits.kms_calls_per_minute));
    let errors = reader.into_errors();
    match settings {
        Some(config::Kms::Aws(settings)) => both(AwsKms::new(*settings).expect("it is built")),
        Some(config::Kms::Gcp(settings)) => both(GcpKms::new(*settings).expect("it is built")),
        Some(config::Kms::Azure(settings)) => both(AzureKeyVault::new(*settings).expect("it is built")),
        Some(config::Kms::Vault(settings)) => both(VaultTransit::new(*settings).expect("it is built")),
        Some(config::Kms::Local(_)) | None => panic!("{errors:?}"),
    }
}

fn owned(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
