//! Vault as a customer sets it up: a Transit mount for one test in the shared server, or a server
//! for one test that seals it, limits it or gives it certificates.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use byok::config::{KeyVersionStrategy, VaultLogin, VaultSettings};
use byok::crypto::SecretText;
use byok::kms::VaultTransit;
use reqwest::Method;
use serde_json::{Value, json};

use super::needed;

/// The customer's access to a Vault.
#[derive(Clone)]
pub(crate) struct Vault {
    pub(crate) address: String,
    pub(crate) root: String,
    pub(crate) http: reqwest::Client,
}

/// A Transit mount with the key `byok`, and a policy that lets us wrap with it and nothing more.
#[derive(Clone)]
pub(crate) struct Transit {
    pub(crate) vault: Vault,
    pub(crate) mount: String,
    pub(crate) policy: String,
}

impl Vault {
    /// The server that all tests share.
    pub(crate) fn shared() -> Self {
        let (address, root) = (needed("BYOK_TEST_VAULT_ADDR"), needed("BYOK_TEST_VAULT_TOKEN"));
        Self { address, root, http: reqwest::Client::new() }
    }

    /// The answer of Vault to the holder of the root token: status and body.
    pub(crate) async fn answer(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.answer_to(&self.root, method, path, body).await
    }

    /// The answer of Vault to the holder of a token.
    pub(crate) async fn answer_to(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let request = self.http.request(method, format!("{}/v1/{path}", self.address));
        let response =
            request.header("X-Vault-Token", token).json(&body).send().await.expect("Vault answers");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// The answer to a write of the customer's, which must succeed.
    pub(crate) async fn write(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.answer(Method::POST, path, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    /// The answer to a read of the customer's, which must succeed.
    pub(crate) async fn read(&self, path: &str) -> Value {
        let (status, answer) = self.answer(Method::GET, path, json!({})).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    /// A token with these policies; `more` is added to the request that creates it.
    pub(crate) async fn token(&self, policies: &[&str], more: Value) -> String {
        let mut body = json!({ "policies": policies, "ttl": "1h" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = self.write("auth/token/create", body).await;
        answer["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// A new Transit mount. As Vault does by default, it creates a key when it encrypts with an
    /// unknown name.
    pub(crate) async fn transit(&self) -> Transit {
        let mount = format!("customers/t-{}", uuid::Uuid::now_v7().simple());
        let policy = mount.replace('/', "-");
        self.write(&format!("sys/mounts/{mount}"), json!({ "type": "transit" })).await;
        let transit = Transit { vault: self.clone(), mount, policy };
        transit.write("keys/byok", json!({})).await;
        transit.allow(true).await;
        transit
    }
}

impl Transit {
    pub(crate) async fn write(&self, path: &str, body: Value) -> Value {
        self.vault.write(&format!("{}/{path}", self.mount), body).await
    }

    /// The names of all keys.
    pub(crate) async fn keys(&self) -> Value {
        self.vault.read(&format!("{}/keys?list=true", self.mount)).await["data"]["keys"].clone()
    }

    /// Lets our policy wrap, or takes that right away: the customer's switch.
    pub(crate) async fn allow(&self, allowed: bool) {
        let rule =
            |path: &str| format!("path \"{}/{path}/*\" {{ capabilities = [\"update\"] }}\n", self.mount);
        let rules = ["encrypt", "decrypt", "rewrap"].map(rule).concat();
        let policy =
            if allowed { rules } else { "path \"nothing\" { capabilities = [\"read\"] }".to_owned() };
        self.vault.write(&format!("sys/policies/acl/{}", self.policy), json!({ "policy": policy })).await;
    }

    /// A token with our policy.
    pub(crate) async fn token(&self) -> String {
        self.vault.token(&[&self.policy], json!({})).await
    }

    /// Our client, with a token that has our policy.
    pub(crate) async fn kms(&self) -> VaultTransit {
        self.kms_as(&self.token().await)
    }

    /// Our client, with this token.
    pub(crate) fn kms_as(&self, token: &str) -> VaultTransit {
        self.kms_with(token, |_| ())
    }

    /// Our client, with this token and changed settings.
    pub(crate) fn kms_with(&self, token: &str, change: impl FnOnce(&mut VaultSettings)) -> VaultTransit {
        let mut settings = self.settings(VaultLogin::Token(SecretText::new(token.to_owned())));
        change(&mut settings);
        VaultTransit::new(settings).expect("the settings are good")
    }

    pub(crate) fn settings(&self, login: VaultLogin) -> VaultSettings {
        VaultSettings { mount: self.mount.clone(), ..settings(&self.vault.address, login) }
    }
}

/// Settings for a Vault at this address.
pub(crate) fn settings(address: &str, login: VaultLogin) -> VaultSettings {
    let _ = rustls::crypto::ring::default_provider().install_default();
    VaultSettings {
        address: address.parse().expect("an address"),
        namespace: None,
        mount: "transit".to_owned(),
        key: "byok".to_owned(),
        version: KeyVersionStrategy::Latest,
        login,
        ca_file: None,
        client: None,
        timeout: Duration::from_secs(5),
        calls_per_minute: None,
    }
}

/// A server for one test, with its files on disk, so that it can be sealed and unsealed. It stops
/// when it is dropped.
pub(crate) struct OwnServer {
    pub(crate) vault: Vault,
    unseal_key: String,
    process: Child,
    _files: tempfile::TempDir,
}

impl OwnServer {
    /// Starts one over plain HTTP.
    pub(crate) async fn start() -> Self {
        Self::with_listener("http", "tls_disable = true", super::http()).await
    }

    /// Starts one with these lines in its listener's configuration, reached by `scheme` with
    /// `http`.
    pub(crate) async fn with_listener(scheme: &str, lines: &str, http: reqwest::Client) -> Self {
        let binary = needed("BYOK_TEST_VAULT");
        let files = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let configuration = format!(
            "storage \"file\" {{ path = \"{0}/data\" }}\nlistener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n {lines}\n}}\n\
             disable_mlock = true\napi_addr = \"{scheme}://127.0.0.1:{port}\"\n",
            files.path().display()
        );
        let process = run(&binary, files.path(), &configuration);
        let address = format!("{scheme}://127.0.0.1:{port}");
        let mut vault = Vault { address, root: String::new(), http };
        wait_until_it_answers(&vault).await;
        let keys = vault.write("sys/init", json!({ "secret_shares": 1, "secret_threshold": 1 })).await;
        vault.root = keys["root_token"].as_str().expect("a token").to_owned();
        let unseal_key = keys["keys_base64"][0].as_str().expect("a key").to_owned();
        let server = Self { vault, unseal_key, process, _files: files };
        server.unseal().await;
        server
    }

    pub(crate) async fn seal(&self) {
        self.vault.write("sys/seal", json!({})).await;
    }

    pub(crate) async fn unseal(&self) {
        self.vault.write("sys/unseal", json!({ "key": self.unseal_key })).await;
        // Mounts are ready only a moment after the answer to the unseal.
        for _ in 0..200 {
            if self.vault.answer(Method::GET, "sys/mounts", json!({})).await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("Vault did not come up after its unsealing");
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(binary: &str, folder: &Path, configuration: &str) -> Child {
    let path = folder.join("vault.hcl");
    std::fs::write(&path, configuration).expect("the configuration is written");
    let log = std::fs::File::create(folder.join("log")).expect("a log");
    Command::new(binary)
        .args(["server", "-config"])
        .arg(path)
        .env_clear()
        .env("HOME", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone().expect("a handle")))
        .stderr(Stdio::from(log))
        .spawn()
        .expect("Vault starts")
}

async fn wait_until_it_answers(vault: &Vault) {
    for _ in 0..600 {
        let seen = vault.http.get(format!("{}/v1/sys/seal-status", vault.address)).send().await;
        if seen.is_ok_and(|response| response.status() == 200) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("Vault did not answer within 30 s");
}

/// A free port below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    loop {
        let port = 10_240 + u16::from_be_bytes(byok::crypto::random()) % 22_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
