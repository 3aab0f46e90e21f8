//! Posts incidents, checkpoints and the entries of a stream to the operator's webhook, signed
//! according to Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//! Each call posts once; `app` decides when to try again.
//!
//! Requests go only to the configured address: no redirect is followed, and no proxy is taken from
//! the environment. Only the status of the answer is read, not its body. Errors of the HTTP client
//! name the address, so they are not passed on.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt as _;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config;
use crate::config::WebhookKey;
use crate::crypto::{hmac_sha256, sha256_of};
use crate::model::{Incident, Timestamp};

/// The longest time for an attempt, from the lookup of the name to the status.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The operator's webhook.
pub struct Webhook {
    client: Client,
    target: RwLock<Arc<Target>>,
}

struct Target {
    url: Url,
    key: WebhookKey,
}

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Accepted, with any status of 2xx.
    Taken,
    /// No longer wanted: 410 Gone.
    Gone,
    /// Another status, redirects included.
    Status(u16),
    /// No connection, or it broke before the status arrived.
    Unreachable,
    /// No status within [`DEADLINE`].
    Timeout,
}

/// The document of an incident.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    id: String,
    tenant: &'a str,
    key_version: String,
    was: &'static str,
    posture: &'static str,
    class: Option<&'a str>,
    http_status: Option<u16>,
    kms_request_id: Option<&'a str>,
    at: String,
}

/// A checkpoint, as it is posted.
#[derive(Clone, Copy, Serialize)]
pub struct PublishedCheckpoint<'a> {
    /// The tenant's name.
    pub tenant: &'a str,
    /// The name of the log.
    pub origin: &'a str,
    /// The number of leaves.
    pub size: u64,
    /// The root hash, in base64.
    pub root: &'a str,
    /// The signed note.
    pub note: &'a str,
}

#[derive(Serialize)]
struct CheckpointDocument<'a> {
    r#type: &'static str,
    timestamp: String,
    data: &'a PublishedCheckpoint<'a>,
}

/// A delivery of a stream: entries of a tenant's log, in its order.
#[derive(Clone, Copy)]
pub struct StreamedEntries<'a> {
    /// The id by which a receiver distinguishes deliveries.
    pub id: &'a str,
    /// The tenant's name.
    pub tenant: &'a str,
    /// When the last of the entries was made.
    pub at: Timestamp,
    /// An event for each entry, a JSON object as text.
    pub events: &'a [String],
}

impl StreamedEntries<'_> {
    /// The whole body, one JSON object, since receivers' libraries parse the whole body. The events
    /// are inserted unchanged.
    fn document(&self) -> String {
        let tenant = serde_json::Value::from(self.tenant);
        let events = self.events.join(",");
        format!(
            r#"{{"type":"entries","timestamp":"{}","data":{{"tenant":{tenant},"events":[{events}]}}}}"#,
            self.at
        )
    }
}

impl Webhook {
    /// Creates the client without sending anything. `None` if TLS cannot be set up with the
    /// system's certificates.
    pub fn new(settings: config::Webhook) -> Option<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("byok/", env!("CARGO_PKG_VERSION")))
            // Incidents are rare: an idle connection would be dead by the next one.
            .pool_max_idle_per_host(0)
            .build()
            .ok()?;
        Some(Self { client, target: RwLock::new(Arc::new(Target::of(settings))) })
    }

    /// Whether the webhook posts to this address.
    pub fn posts_to(&self, settings: &config::Webhook) -> bool {
        self.target().url == settings.url
    }

    /// Returns a webhook with this address and key, which shares the client.
    pub fn moved_to(&self, settings: config::Webhook) -> Self {
        Self { client: self.client.clone(), target: RwLock::new(Arc::new(Target::of(settings))) }
    }

    /// Replaces the address and the key.
    pub fn replace(&self, settings: config::Webhook) {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Target::of(settings));
    }

    fn target(&self) -> Arc<Target> {
        self.target.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Posts the incident once. `tenant` is the name; `now` is the time of this attempt by the wall
    /// clock, since receivers refuse requests that are minutes off. All attempts have the same id
    /// and the same body.
    pub async fn announce(&self, tenant: &str, incident: &Incident, now: Timestamp) -> Delivery {
        self.post(&incident.id.to_string(), document(tenant, incident), now).await
    }

    /// Posts a checkpoint once. All attempts for a checkpoint have the same id.
    pub async fn publish(&self, checkpoint: &PublishedCheckpoint<'_>, now: Timestamp) -> Delivery {
        let digest = sha256_of(&[checkpoint.note.as_bytes()]);
        let id: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let document =
            CheckpointDocument { r#type: "checkpoint", timestamp: now.to_string(), data: checkpoint };
        let body = serde_json::to_string(&document).expect("texts and numbers can be written as JSON");
        self.post(&format!("checkpoint-{id}"), body, now).await
    }

    /// Posts entries once. All attempts for the same entries have the same id and the same body.
    pub async fn stream(&self, entries: &StreamedEntries<'_>, now: Timestamp) -> Delivery {
        self.post(entries.id, entries.document(), now).await
    }

    /// The kind, and a digest of the address, which may contain a secret.
    pub fn name(&self) -> String {
        let digest = sha256_of(&[self.target().url.as_str().as_bytes()]);
        format!("webhook:{}", digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Posts a JSON document once, signed under this id.
    async fn post(&self, id: &str, body: String, now: Timestamp) -> Delivery {
        let at = now.unix_seconds();
        let target = self.target();
        let signature = signature(target.key.expose(), id, at, &body);
        let request = self
            .client
            .post(target.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(body);
        match timeout(DEADLINE, request.send()).await {
            Ok(Ok(response)) => match response.status() {
                status if status.is_success() => Delivery::Taken,
                StatusCode::GONE => Delivery::Gone,
                status => Delivery::Status(status.as_u16()),
            },
            Ok(Err(_)) => Delivery::Unreachable,
            Err(_) => Delivery::Timeout,
        }
    }
}

/// Why a host is not reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// Its name cannot be resolved.
    Name,
    /// It accepts no connection.
    Connection,
    /// Its certificate is not trusted here, or not for its name.
    Tls,
    /// It does not answer within [`DEADLINE`].
    Timeout,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("the name of its host cannot be resolved"),
            Self::Connection => f.write_str("its host accepts no connection"),
            Self::Tls => f.write_str(
                "no TLS connection with its host: its certificate is not trusted here, or not for its name",
            ),
            Self::Timeout => write!(f, "its host does not answer within {} s", DEADLINE.as_secs()),
        }
    }
}

/// Connects to the host of an address, with TLS if it is https, and hangs up without sending a
/// request.
///
/// # Errors
/// See [`Unreached`].
pub async fn reach(url: &Url) -> Result<(), Unreached> {
    timeout(DEADLINE, connect(url)).await.unwrap_or(Err(Unreached::Timeout))
}

async fn connect(url: &Url) -> Result<(), Unreached> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses: Vec<_> = lookup_host((host, port)).await.map_err(|_| Unreached::Name)?.collect();
    let stream = TcpStream::connect(&addresses[..]).await.map_err(|_| Unreached::Connection)?;
    if url.scheme() == "https" {
        // The same roots as those of the webhook's client.
        let trust = ClientConfig::with_platform_verifier().map_err(|_| Unreached::Tls)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Unreached::Tls)?;
        TlsConnector::from(Arc::new(trust)).connect(name, stream).await.map_err(|_| Unreached::Tls)?;
    }
    Ok(())
}

impl Target {
    fn of(settings: config::Webhook) -> Self {
        Self { url: settings.url, key: settings.key }
    }
}

/// The document of an incident; `docs/incidents.md` describes it.
fn document(tenant: &str, incident: &Incident) -> String {
    let document = Document {
        r#type: "incident",
        timestamp: incident.at.to_string(),
        data: Data {
            id: incident.id.to_string(),
            tenant,
            key_version: incident.key_version.to_string(),
            was: incident.was.as_str(),
            posture: incident.posture.as_str(),
            class: incident.class.as_deref(),
            http_status: incident.http_status,
            kms_request_id: incident.kms_request_id.as_deref(),
            at: incident.at.to_string(),
        },
    };
    serde_json::to_string(&document).expect("texts and numbers can be written as JSON")
}

/// The value of `webhook-signature`: `v1,` and the HMAC-SHA256 of `<id>.<timestamp>.<body>` in
/// base64.
fn signature(key: &[u8], id: &str, at: i64, body: &str) -> String {
    let signed = format!("{id}.{at}.{body}");
    format!("v1,{}", STANDARD.encode(hmac_sha256(key, signed.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, Reader};
    use crate::model::{IncidentId, KeyVersion, Posture};

    #[test]
    fn a_webhook_that_moves_leaves_the_current_delivery_alone() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let at = |url: &str| {
            let secret = format!("whsec_{}", STANDARD.encode([7; 32]));
            let env = Env::from_pairs([
                ("BYOK_INCIDENT_WEBHOOK_URL", url),
                ("BYOK_INCIDENT_WEBHOOK_SECRET", &secret),
            ]);
            config::Webhook::read(&mut Reader::new(&env)).unwrap()
        };
        let (before, after) = ("https://example.com/before", "https://example.com/after");
        let under_way = Webhook::new(at(before)).unwrap();
        let moved = under_way.moved_to(at(after));
        assert!(under_way.posts_to(&at(before)) && moved.posts_to(&at(after)));
    }

    #[test]
    fn the_signature_equals_that_of_another_implementation() {
        // Computed by Python's `hmac` with the test secret and message of the Standard Webhooks
        // libraries.
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_delivery_of_entries_is_one_json_object() {
        let events = [r#"{"n":1}"#.to_owned(), r#"{"n":2}"#.to_owned()];
        let at = Timestamp::parse("2026-11-23T10:00:00.5Z").unwrap();
        let entries = StreamedEntries { id: "1-2", tenant: "a \"tenant\"", at, events: &events };
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&entries.document()).unwrap(),
            serde_json::json!({
                "type": "entries",
                "timestamp": "2026-11-23T10:00:00.5Z",
                "data": { "tenant": "a \"tenant\"", "events": [{ "n": 1 }, { "n": 2 }] }
            })
        );
    }

    #[test]
    fn the_document_has_exactly_the_documented_fields() {
        let incident = Incident {
            id: "0193c4a0-0000-7000-8000-000000000001".parse::<IncidentId>().unwrap(),
            at: Timestamp::parse("2026-11-23T10:00:00.5Z").unwrap(),
            key_version: KeyVersion::new("customer", "3"),
            was: Posture::Active,
            posture: Posture::Revoked,
            class: Some(Arc::from("KeyDisabled")),
            http_status: Some(400),
            kms_request_id: None,
        };
        assert_eq!(
            document("primary", &incident),
            concat!(
                r#"{"type":"incident","timestamp":"2026-11-23T10:00:00.5Z","data":{"#,
                r#""id":"0193c4a0-0000-7000-8000-000000000001","tenant":"primary","key_version":"customer/3","#,
                r#""was":"active","posture":"revoked","class":"KeyDisabled","http_status":400,"#,
                r#""kms_request_id":null,"at":"2026-11-23T10:00:00.5Z"}}"#,
            )
        );
    }
}
