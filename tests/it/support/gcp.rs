//! Google Cloud KMS as a customer sets it up: the stand-in of `tests/servers/gcp`, one for each
//! test, with a key, a service account that may use it, and the customer's control of both.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use byok::config::{self, Env, GcpSettings, Reader};
use byok::kms::GcpKms;
use reqwest::Method;
use serde_json::{Value, json};

use super::provider::{Switch, Turns};

pub(crate) const RING: &str = "projects/p/locations/global/keyRings/r";
pub(crate) const KEY: &str = "projects/p/locations/global/keyRings/r/cryptoKeys/byok";
pub(crate) const ACCOUNT: &str = "byok@p.iam.gserviceaccount.com";
pub(crate) const ROLE: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
/// The key of every service account here, since generating one would take longer than most tests.
const PRIVATE_KEY: &str = include_str!("../../../src/auth/jwt/testdata/rsa2048.private.pem");
const PUBLIC_KEY: &str = include_str!("../../../src/auth/jwt/testdata/rsa2048.public.pem");

/// A running stand-in, which stops when it is dropped.
pub(crate) struct Google {
    pub(crate) address: String,
    http: reqwest::Client,
    process: Child,
}

impl Google {
    /// Starts one with the key [`KEY`] and [`ACCOUNT`], which may use that key and nothing else.
    pub(crate) async fn start() -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/gcp/kms.mjs");
        let mut process = Command::new("node")
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is on PATH");
        let mut address = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut address).expect("its address");
        let google = Self { address: address.trim().to_owned(), http: super::http(), process };
        google.as_customer(Method::POST, "projects/p/locations/global/keyRings?keyRingId=r", json!({})).await;
        google.make_key("byok").await;
        google.account(ACCOUNT).await;
        google.bind(KEY, &[(ROLE, ACCOUNT)]).await;
        google
    }

    /// A request for what only Google could do; see the head of `kms.mjs`.
    pub(crate) async fn control(&self, what: &str, body: Value) -> Value {
        self.send(Method::POST, &format!("control/{what}"), body).await.1
    }

    /// The answer to a request of the customer's, which must succeed.
    pub(crate) async fn as_customer(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, &format!("control/v1/{path}"), body).await;
        assert!(status == 200, "{path}: {status} {answer}");
        answer
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.http.request(method, format!("{}/{path}", self.address)).json(&body);
        let response = request.send().await.expect("the stand-in answers");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Makes a key in [`RING`].
    pub(crate) async fn make_key(&self, name: &str) {
        let path = format!("{RING}/cryptoKeys?cryptoKeyId={name}");
        self.as_customer(Method::POST, &path, json!({ "purpose": "ENCRYPT_DECRYPT" })).await;
    }

    /// Makes a new version of [`KEY`], which encrypts from now on.
    pub(crate) async fn rotate(&self) {
        let made = self.as_customer(Method::POST, &format!("{KEY}/cryptoKeyVersions"), json!({})).await;
        let number = made["name"].as_str().and_then(|name| name.rsplit_once('/')).expect("a name").1;
        self.as_customer(
            Method::POST,
            &format!("{KEY}:updatePrimaryVersion"),
            json!({ "cryptoKeyVersionId": number }),
        )
        .await;
    }

    /// Puts a version of [`KEY`] into this state.
    pub(crate) async fn state(&self, version: usize, state: &str) {
        self.as_customer(
            Method::PATCH,
            &format!("{KEY}/cryptoKeyVersions/{version}"),
            json!({ "state": state }),
        )
        .await;
    }

    /// Puts every version of [`KEY`] into this state.
    pub(crate) async fn all_states(&self, state: &str) {
        for version in 1..=self.versions().await {
            self.state(version, state).await;
        }
    }

    /// The number of versions of [`KEY`], of which the last is the primary one.
    async fn versions(&self) -> usize {
        let all = self.as_customer(Method::GET, &format!("{KEY}/cryptoKeyVersions"), json!({})).await;
        all["cryptoKeyVersions"].as_array().expect("a list").len()
    }

    /// Puts all versions of [`KEY`] except the primary one into this state.
    async fn older_states(&self, state: &str) {
        if self.versions().await < 2 {
            self.rotate().await;
        }
        for version in 1..self.versions().await {
            self.state(version, state).await;
        }
    }

    /// Applies this action (`destroy`, `restore`) to every version of [`KEY`].
    async fn each_version(&self, action: &str) {
        for version in 1..=self.versions().await {
            let path = format!("{KEY}/cryptoKeyVersions/{version}:{action}");
            self.as_customer(Method::POST, &path, json!({})).await;
        }
    }

    async fn disable_account(&self, disabled: bool) {
        self.control("account", json!({ "email": ACCOUNT, "disabled": disabled })).await;
    }

    /// All that Google lets a customer turn off.
    pub(crate) fn switches(self: &Arc<Self>) -> Vec<(Switch, Turns)> {
        let turns = |switch| match switch {
            Switch::Key => Turns::of(
                self,
                |google| Box::pin(google.all_states("DISABLED")),
                |google| Box::pin(google.all_states("ENABLED")),
            ),
            Switch::Policy => Turns::of(
                self,
                |google| Box::pin(google.bind(KEY, &[])),
                |google| Box::pin(google.bind(KEY, &[(ROLE, ACCOUNT)])),
            ),
            Switch::Deletion => Turns::of(
                self,
                |google| Box::pin(google.each_version("destroy")),
                |google| {
                    Box::pin(async {
                        google.each_version("restore").await;
                        // A restored version is disabled.
                        google.all_states("ENABLED").await;
                    })
                },
            ),
            Switch::Version => Turns::of(
                self,
                |google| Box::pin(google.older_states("DISABLED")),
                |google| Box::pin(google.older_states("ENABLED")),
            ),
            Switch::Credential => Turns::of(
                self,
                |google| Box::pin(google.disable_account(true)),
                |google| Box::pin(google.disable_account(false)),
            ),
        };
        Switch::ALL.map(|switch| (switch, turns(switch))).into()
    }

    /// Replaces the bindings of a resource with these: role and account.
    pub(crate) async fn bind(&self, resource: &str, bindings: &[(&str, &str)]) {
        let bindings: Vec<_> = bindings
            .iter()
            .map(|(role, account)| json!({ "role": role, "members": [format!("serviceAccount:{account}")] }))
            .collect();
        let policy = json!({ "policy": { "bindings": bindings } });
        self.as_customer(Method::POST, &format!("{resource}:setIamPolicy"), policy).await;
    }

    /// Registers a service account and returns the JSON of its key file.
    pub(crate) async fn account(&self, email: &str) -> Value {
        let registered = json!({ "email": email, "public_key": PUBLIC_KEY, "kid": "k1" });
        let mut file = self.control("account", registered).await;
        file["private_key"] = PRIVATE_KEY.into();
        file
    }

    /// Makes the next calls of `method` fail as `how` says: one call, unless `how` says how many.
    pub(crate) async fn fault(&self, method: &str, how: Value) {
        let mut fault = json!({ "on": method });
        fault.as_object_mut().expect("an object").extend(how.as_object().expect("an object").clone());
        self.control("fault", fault).await;
    }

    /// The number of calls of `method`.
    pub(crate) async fn count(&self, method: &str) -> u64 {
        self.control("counters", json!({})).await[method].as_u64().unwrap_or(0)
    }

    /// An environment with our account's key file and these variables.
    pub(crate) async fn environment(&self, variables: &[(&str, &str)]) -> Env {
        let file = self.account(ACCOUNT).await.to_string();
        let env = Env::from_pairs([
            ("BYOK_PROVIDER", "gcp-kms"),
            ("BYOK_GCP_KEY_NAME", KEY),
            ("BYOK_GCP_CREDENTIALS_JSON", &file),
            ("BYOK_GCP_ENDPOINT", &self.address),
            ("BYOK_GCP_IAM_ENDPOINT", &self.address),
        ]);
        variables.iter().fold(env, |env, (name, value)| env.with(name, value))
    }

    /// The settings in that environment.
    pub(crate) async fn settings(&self, variables: &[(&str, &str)]) -> GcpSettings {
        let env = self.environment(variables).await;
        let mut reader = Reader::new(&env);
        match config::Kms::read(&mut reader, false) {
            Some(config::Kms::Gcp(settings)) => *settings,
            _ => panic!("{:?}", reader.into_errors()),
        }
    }

    /// Our client, with these variables added.
    pub(crate) async fn kms(&self, variables: &[(&str, &str)]) -> GcpKms {
        GcpKms::new(self.settings(variables).await).expect("the settings are good")
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
