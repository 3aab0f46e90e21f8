//! The server that the drill is run against, over REST, as any caller reaches it.

use std::time::Duration;

use reqwest::{Method, Url, header, redirect};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::crypto::SecretText;
use crate::model::{Clock as _, SystemClock};

use super::verdict::{Answer, Sample};

/// The time limit for an answer, which is longer than the server's own limit by default.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running server, and the token to authenticate with.
pub(super) struct Target {
    client: reqwest::Client,
    base: Url,
    token: SecretText,
}

/// A record that was encrypted for the drill.
pub(super) struct Canary {
    pub(super) record_id: String,
    pub(super) key_version: String,
    plaintext: String,
    ciphertext: String,
}

impl Target {
    pub(super) fn new(base: Url, token: SecretText) -> Result<Self, Failure> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build();
        let client = client.map_err(|_| Failure::Running("the HTTP client cannot be built".to_owned()))?;
        Ok(Self { client, base, token })
    }

    /// Sends a request. Returns the status, the request id, and the JSON of the answer.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Option<(u16, String, Value)> {
        let url = self.base.join(path).ok()?;
        let mut request = self.client.request(method, url).bearer_auth(self.token.expose());
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        let id = id.unwrap_or_default().to_owned();
        let text = response.text().await.ok()?;
        Some((status, id, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    async fn asked(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value), Failure> {
        let answered = self.call(method, path, body).await;
        let (status, _, body) =
            answered.ok_or_else(|| Failure::Running(format!("{} does not answer", self.base)))?;
        Ok((status, body))
    }

    /// Returns the answer of `/byok/health`, and the server's version.
    pub(super) async fn health(&self) -> Result<(Value, String), Failure> {
        let (_, health) = self.asked(Method::GET, "byok/health", None).await?;
        let (_, version) = self.asked(Method::GET, "version", None).await?;
        Ok((health, version["version"].as_str().unwrap_or_default().to_owned()))
    }

    /// Encrypts a random text for this record.
    pub(super) async fn encrypt(&self, record_id: String, plaintext: String) -> Result<Canary, Failure> {
        let body = json!({ "plaintext": plaintext, "context": { "record_id": record_id } });
        let (status, answer) = self.asked(Method::POST, "byok/encrypt", Some(&body)).await?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        match (text("ciphertext"), text("key_version")) {
            (Some(ciphertext), Some(key_version)) => {
                Ok(Canary { record_id, key_version, plaintext, ciphertext })
            }
            _ => Err(Failure::Running(format!(
                "the record cannot be encrypted: {}",
                error_text(status, &answer)
            ))),
        }
    }

    /// Decrypts the canary once.
    pub(super) async fn decrypt(&self, canary: &Canary) -> Sample {
        let context = json!({ "record_id": canary.record_id });
        let body = json!({ "ciphertext": canary.ciphertext, "context": context });
        let sent = SystemClock.boot();
        let answered = self.call(Method::POST, "byok/decrypt", Some(&body)).await;
        let received = SystemClock.boot();
        let (status, request_id, answer) = answered.unwrap_or((0, String::new(), Value::Null));
        let answer = match (status, answer["code"].as_str()) {
            (200, _) if answer["plaintext"] == *canary.plaintext => Answer::Plaintext,
            (_, Some(code @ ("KMS_ACCESS_DENIED" | "KMS_UNAVAILABLE"))) => {
                Answer::Refused { status, code: code.to_owned() }
            }
            (429, _) => Answer::Limited,
            (0, _) => Answer::Failed("no answer".to_owned()),
            _ => Answer::Failed(error_text(status, &answer)),
        };
        Sample { sent, received, request_id, answer }
    }

    /// Returns the entries of incidents, newest first; `None` if the log may not be read.
    pub(super) async fn incidents(&self) -> Option<Vec<Value>> {
        let path = "byok/audit?operation=incident&first=100";
        let (_, _, body) = self.call(Method::GET, path, None).await?;
        body["entries"].as_array().cloned()
    }
}

fn error_text(status: u16, answer: &Value) -> String {
    match answer["code"].as_str() {
        Some(code) => format!("HTTP {status} {code}"),
        None => format!("HTTP {status}"),
    }
}
