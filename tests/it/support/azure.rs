//! A customer of Azure's: an Entra tenant, a key vault, a managed HSM and a metadata service for
//! one test, in the stand-in `tests/servers/azure`, with the customer's control of them.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use byok::config::{
    AzureAlgorithm, AzureCredential, AzureIdentitySource, AzureKey, AzureService, AzureSettings, SecretSource,
};
use byok::crypto::SecretText;
use byok::kms::AzureKeyVault;
use reqwest::Method;
use serde_json::{Value, json};

use super::pki::{Authority, Files, client};
use super::provider::{Provided, Switch, Turns};

/// The data actions that wrap and unwrap under a vault's key.
pub(crate) const WRAP_AND_UNWRAP: [&str; 2] =
    ["Microsoft.KeyVault/vaults/keys/wrap/action", "Microsoft.KeyVault/vaults/keys/unwrap/action"];
/// The data actions that wrap and unwrap under a managed HSM's key.
pub(crate) const HSM_WRAP_AND_UNWRAP: [&str; 2] =
    ["Microsoft.KeyVault/managedHsm/keys/wrap/action", "Microsoft.KeyVault/managedHsm/keys/unwrap/action"];

/// The 32 bytes that key the MACs of DEK rows.
pub(crate) const ROW_MAC_KEY: &str = "cm93IG1hYyBrZXkgb2YgdGhlIGF6dXJlIHRlc3RzLi4=";

/// The client secret of our application.
pub(crate) const SECRET: &str = "canary-client-secret";

/// The stand-in's process, which runs while any test uses it.
struct Server {
    process: Child,
    first: String,
    authority: Authority,
    files: Files,
}

static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    fn shared() -> Arc<Self> {
        let mut shared = SERVER.lock().expect("a lock");
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Self {
        let authority = Authority::new();
        let files = authority.server();
        let mut process = Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/azure/key_vault.mjs"))
            .arg("--cert")
            .arg(&files.certificate)
            .arg("--key")
            .arg(&files.key)
            // The process ends when this pipe closes, however ours ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let addresses: Value = serde_json::from_str(&line).expect("addresses");
        Self { process, first: text(&addresses, "vault"), authority, files }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One customer. The vault has the key `byok`, the managed HSM has `aes` and `byok`; our
/// application may wrap and unwrap with all of them.
pub(crate) struct Azure {
    server: Arc<Server>,
    http: reqwest::Client,
    pub(crate) tenant: String,
    pub(crate) vault: String,
    pub(crate) hsm: String,
    pub(crate) authority: String,
    pub(crate) imds: String,
    /// The client id of our application.
    pub(crate) client_id: String,
    /// The object id of our application, to which roles are assigned.
    pub(crate) oid: String,
}

impl Azure {
    pub(crate) async fn start() -> Self {
        let server = Server::shared();
        let http = client(&server.authority.file(), None);
        let at: Value = control(&http, &server.first, Method::POST, "worlds", json!({})).await;
        let mut azure = Self {
            server,
            http,
            tenant: text(&at, "tenant"),
            vault: text(&at, "vault"),
            hsm: text(&at, "hsm"),
            authority: text(&at, "authority"),
            imds: text(&at, "imds"),
            client_id: String::new(),
            oid: String::new(),
        };
        let ours =
            azure.control(Method::POST, "principals", json!({ "secrets": [{ "value": SECRET }] })).await;
        (azure.client_id, azure.oid) = (text(&ours, "clientId"), text(&ours, "oid"));
        azure.control(Method::POST, "keys/byok", json!({})).await;
        azure.allow(&azure.oid, "/keys/byok").await;
        let aes = json!({ "kty": "oct-HSM", "key_size": 256, "key_ops": ["wrapKey", "unwrapKey"] });
        azure.hsm_control(Method::POST, "keys/aes", aes).await;
        azure.hsm_control(Method::POST, "keys/byok", json!({ "kty": "RSA-HSM" })).await;
        for scope in ["/keys/aes", "/keys/byok"] {
            let role = json!({ "oid": azure.oid, "scope": scope, "actions": HSM_WRAP_AND_UNWRAP });
            azure.hsm_control(Method::POST, "roles", role).await;
        }
        azure
    }

    /// A customer's request to the vault, to Entra, or to the stand-in's counters.
    pub(crate) async fn control(&self, method: Method, path: &str, body: Value) -> Value {
        control(&self.http, &self.vault, method, path, body).await
    }

    /// A customer's request to the managed HSM.
    pub(crate) async fn hsm_control(&self, method: Method, path: &str, body: Value) -> Value {
        control(&self.http, &self.hsm, method, path, body).await
    }

    /// Grants a principal the right to wrap and unwrap in the vault.
    pub(crate) async fn allow(&self, oid: &str, scope: &str) {
        let role = json!({ "oid": oid, "scope": scope, "actions": WRAP_AND_UNWRAP });
        self.control(Method::POST, "roles", role).await;
    }

    /// Takes away all of our application's rights in the vault.
    pub(crate) async fn forbid(&self) {
        self.control(Method::DELETE, &format!("roles/{}", self.oid), json!({})).await;
    }

    /// Changes our application.
    pub(crate) async fn change_principal(&self, change: Value) {
        self.control(Method::PATCH, &format!("principals/{}", self.client_id), change).await;
    }

    /// Changes the vault.
    pub(crate) async fn change_vault(&self, change: Value) {
        self.control(Method::POST, "vault", change).await;
    }

    /// Changes attributes of a version of `byok`; of the current version if none is named.
    pub(crate) async fn attributes(&self, version: Option<&str>, attributes: Value) {
        let body = json!({ "version": version, "attributes": attributes });
        self.control(Method::POST, "keys/byok/attributes", body).await;
    }

    /// The versions of `byok`, oldest first.
    pub(crate) async fn versions(&self) -> Vec<String> {
        let key = self.control(Method::GET, "keys/byok", json!({})).await;
        let versions = key["versions"].as_array().expect("a list").iter();
        versions.map(|version| version.as_str().expect("a text").to_owned()).collect()
    }

    /// Enables or disables the first `count` versions of `byok`.
    async fn enable(&self, count: usize, enabled: bool) {
        for version in self.versions().await.iter().take(count) {
            self.attributes(Some(version), json!({ "enabled": enabled })).await;
        }
    }

    /// Enables or disables all versions of `byok` but the newest.
    async fn enable_older(&self, enabled: bool) {
        if self.versions().await.len() < 2 {
            self.control(Method::POST, "keys/byok", json!({})).await;
        }
        self.enable(self.versions().await.len() - 1, enabled).await;
    }

    /// All that Azure lets a customer turn off.
    fn switches(self: &Arc<Self>) -> Vec<(Switch, Turns)> {
        let turns = |switch| match switch {
            Switch::Key => Turns::of(
                self,
                |azure| Box::pin(azure.enable(usize::MAX, false)),
                |azure| Box::pin(azure.enable(usize::MAX, true)),
            ),
            Switch::Policy => Turns::of(
                self,
                |azure| Box::pin(azure.forbid()),
                |azure| Box::pin(azure.allow(&azure.oid, "/keys/byok")),
            ),
            Switch::Deletion => Turns::of(
                self,
                |azure| Box::pin(async { drop(azure.control(Method::DELETE, "keys/byok", json!({})).await) }),
                |azure| {
                    Box::pin(async {
                        drop(azure.control(Method::POST, "keys/byok/recover", json!({})).await);
                    })
                },
            ),
            Switch::Version => Turns::of(
                self,
                |azure| Box::pin(azure.enable_older(false)),
                |azure| Box::pin(azure.enable_older(true)),
            ),
            Switch::Credential => Turns::of(
                self,
                |azure| {
                    Box::pin(async {
                        azure.change_principal(json!({ "disabled": true })).await;
                        drop(azure.control(Method::DELETE, "tokens", json!({})).await);
                    })
                },
                |azure| Box::pin(azure.change_principal(json!({ "disabled": false }))),
            ),
        };
        Switch::ALL.map(|switch| (switch, turns(switch))).into()
    }

    /// Injects a fault into the next answers; see `control.mjs`.
    pub(crate) async fn fault(&self, fault: Value) {
        self.control(Method::POST, "faults", fault).await;
    }

    pub(crate) async fn mend(&self) {
        self.control(Method::DELETE, "faults", json!({})).await;
    }

    /// The number of requests to a service for an operation.
    pub(crate) async fn count(&self, service: &str, operation: &str) -> u64 {
        self.control(Method::GET, "counters", json!({})).await[service][operation].as_u64().unwrap_or(0)
    }

    pub(crate) async fn forget_counts(&self) {
        self.control(Method::DELETE, "counters", json!({})).await;
    }

    /// The vault's log so far, one line for each record.
    pub(crate) async fn audit_log(&self) -> Vec<String> {
        let records = self.control(Method::GET, "audit", json!({})).await;
        records.as_array().expect("records").iter().map(Value::to_string).collect()
    }

    /// Has the vault unwrap for the application with this client id and our secret, under this
    /// request id.
    pub(crate) async fn unwrap_as(&self, client_id: &str, id: Option<&str>, version: &str, wrapped: &[u8]) {
        let form = format!(
            "grant_type=client_credentials&client_id={client_id}&client_secret={SECRET}&scope=https://vault.azure.net/.default"
        );
        let url = format!("{}/{}/oauth2/v2.0/token", self.authority, self.tenant);
        let answer = self.http.post(url).body(form).send().await.expect("the authority answers");
        let token: Value = answer.json().await.expect("JSON");
        let url = format!("{}/keys/byok/{version}/unwrapkey?api-version=7.6", self.vault);
        let body = json!({ "alg": "RSA-OAEP-256", "value": URL_SAFE_NO_PAD.encode(wrapped) });
        let mut request = self.http.post(url).bearer_auth(text(&token, "access_token")).json(&body);
        if let Some(id) = id {
            request = request.header("x-ms-client-request-id", id);
        }
        assert_eq!(request.send().await.expect("the vault answers").status(), 200);
    }

    /// Asks for the key without a token. The vault refuses that, and logs it.
    pub(crate) async fn unauthenticated_read(&self) {
        let url = format!("{}/keys/byok?api-version=7.6", self.vault);
        assert_eq!(self.http.get(url).send().await.expect("the vault answers").status(), 401);
    }

    /// The environment in which the real binary uses the key `byok` in the vault with our
    /// application's secret.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let key = format!("{}/keys/byok", self.vault);
        let variables = [
            ("BYOK_PROVIDER", "azure-key-vault"),
            ("BYOK_AZURE_KEY_ID", &key),
            ("BYOK_AZURE_TENANT_ID", &self.tenant),
            ("BYOK_AZURE_CLIENT_ID", &self.client_id),
            ("BYOK_AZURE_CLIENT_SECRET", SECRET),
            ("BYOK_AZURE_AUTHORITY_HOST", &self.authority),
            ("BYOK_AZURE_CA_FILE", &self.ca_file()),
            // Under an RSA key nothing is encrypted without it.
            ("BYOK_ROW_MAC_KEY", ROW_MAC_KEY),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The file with the authority that signed its services' certificates.
    pub(crate) fn ca_file(&self) -> String {
        self.server.authority.file().display().to_string()
    }

    /// The credential with our application's secret.
    pub(crate) fn secret(&self) -> AzureCredential {
        let secret = SecretSource::Text(SecretText::new(SECRET.to_owned()));
        AzureCredential::ClientSecret { client_id: self.client_id.clone(), secret }
    }

    /// The credential from the metadata service: the system-assigned identity, or a user-assigned
    /// one.
    pub(crate) fn managed(&self, client_id: Option<&str>) -> AzureCredential {
        let source = AzureIdentitySource::Imds(self.imds.parse().expect("an address"));
        AzureCredential::ManagedIdentity { client_id: client_id.map(str::to_owned), source }
    }

    /// Settings for the key `byok` in the vault.
    pub(crate) fn settings(&self, credential: AzureCredential) -> AzureSettings {
        let _ = rustls::crypto::ring::default_provider().install_default();
        AzureSettings {
            key: AzureKey {
                vault: self.vault.parse().expect("an address"),
                name: "byok".to_owned(),
                version: None,
                service: AzureService::Vault,
                resource: "https://vault.azure.net".to_owned(),
                algorithm: AzureAlgorithm::RsaOaep256,
            },
            tenant: Some(self.tenant.clone()),
            authority: self.authority.parse().expect("an address"),
            credential,
            ca_file: Some(self.server.authority.file()),
            timeout: Duration::from_secs(5),
            calls_per_minute: None,
        }
    }

    /// Our client, with our application's secret.
    pub(crate) fn kms(&self) -> AzureKeyVault {
        self.kms_with(|_| ())
    }

    /// Our client, with changed settings.
    pub(crate) fn kms_with(&self, change: impl FnOnce(&mut AzureSettings)) -> AzureKeyVault {
        let mut settings = self.settings(self.secret());
        change(&mut settings);
        AzureKeyVault::new(settings).expect("the settings are good")
    }

    /// Our client, with a key of the managed HSM.
    pub(crate) fn hsm_kms(&self, key: &str, algorithm: AzureAlgorithm) -> AzureKeyVault {
        self.kms_with(|settings| {
            settings.key = AzureKey {
                vault: self.hsm.parse().expect("an address"),
                name: key.to_owned(),
                version: None,
                service: AzureService::ManagedHsm,
                resource: "https://managedhsm.azure.net".to_owned(),
                algorithm,
            };
        })
    }
}

impl Provided {
    /// The key `byok` in a vault of the stand-in, used with our application's secret.
    pub(crate) async fn azure() -> Self {
        let azure = Arc::new(Azure::start().await);
        let authority = azure.server.authority.file();
        let files = &azure.server.files;
        let files = Files { certificate: files.certificate.clone(), key: files.key.clone() };
        Self {
            variables: azure.variables(),
            kms: azure.vault.clone(),
            credential: Some(azure.authority.clone()),
            tls: Some((authority, files)),
            called: |request| {
                let asked = request.uri().path().rsplit('/').next().unwrap_or_default();
                let challenged =
                    asked.ends_with("wrapkey") && !request.headers().contains_key("authorization");
                (if challenged { "challenge" } else { asked }).to_owned()
            },
            secrets: vec![SECRET.to_owned()],
            plain: &["value", "access_token"],
            error: |code, text| {
                json!({ "error": { "code": code, "message": text, "innererror": { "code": text } } })
                    .to_string()
            },
            codes: &["Forbidden", "KeyNotFound", "BadParameter", "Unauthorized", "Throttled"],
            switches: azure.switches(),
            rotate: Box::new(move || {
                let azure = Arc::clone(&azure);
                Box::pin(async move { drop(azure.control(Method::POST, "keys/byok", json!({})).await) })
            }),
        }
    }
}

async fn control(http: &reqwest::Client, address: &str, method: Method, path: &str, body: Value) -> Value {
    let request = http.request(method, format!("{address}/control/{path}")).json(&body);
    let answer = request.send().await.expect("the stand-in answers");
    let status = answer.status();
    let body: Value = answer.json().await.expect("JSON");
    assert!(status.is_success(), "{path}: {status} {body}");
    body
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().expect("a text").to_owned()
}
