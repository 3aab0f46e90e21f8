//! Incidents are announced to the operator's webhook: signed, at least once and in order, whatever
//! the receiver does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byok::model::{Incident, Posture, Proof, TenantUid, Timestamp};
use byok::store::{Postgres, TenantReads as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::support::pki::Authority;
use crate::support::postgres::connect;
use crate::support::relay::Relay;
use crate::support::rows::{now, turn, watched, write};
use crate::support::server::TestServer;
use crate::support::{http, needed};

pub(crate) const SECRET: &str = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMnIHdlYmhvb2s=";
const URL: &str = "BYOK_INCIDENT_WEBHOOK_URL";
const SECRET_VARIABLE: &str = "BYOK_INCIDENT_WEBHOOK_SECRET";

/// The answer of a receiver.
#[derive(Clone)]
pub(crate) enum Answer {
    Status(u16),
    RedirectTo(String),
    Nothing,
}

/// A delivery with a valid signature.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) id: String,
    at: i64,
    pub(crate) body: Bytes,
}

#[derive(Default)]
struct Inbox {
    answers: Mutex<VecDeque<Answer>>,
    received: Mutex<Vec<Option<Delivered>>>,
}

/// A receiver that gives scripted answers, then 204. It stops when it is dropped.
pub(crate) struct Receiver {
    pub(crate) url: String,
    inbox: Arc<Inbox>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start(answers: &[Answer]) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    fn on(listener: TcpListener, answers: &[Answer]) -> Self {
        let url = format!("http://{}/incidents", listener.local_addr().unwrap());
        let inbox = Arc::new(Inbox::default());
        inbox.answers.lock().unwrap().extend(answers.iter().cloned());
        let kept = inbox.clone();
        let router = Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
            let inbox = kept.clone();
            async move {
                inbox.received.lock().unwrap().push(verified(&headers, body));
                let answer = inbox.answers.lock().unwrap().pop_front();
                let response = Response::builder();
                match answer.unwrap_or(Answer::Status(204)) {
                    Answer::Status(status) => {
                        response.status(status).body(Body::from("CANARY: what the receiver says"))
                    }
                    Answer::RedirectTo(url) => {
                        response.status(307).header("location", url).body(Body::empty())
                    }
                    Answer::Nothing => std::future::pending().await,
                }
                .unwrap()
            }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, inbox, server }
    }

    /// The deliveries received so far; every signature must be valid.
    fn received(&self) -> Vec<Delivered> {
        let received = self.inbox.received.lock().unwrap();
        received.iter().map(|delivered| delivered.clone().expect("the signature is right")).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.received().into_iter().map(|delivered| delivered.id).collect()
    }

    pub(crate) async fn receive_at_least(&self, count: usize) -> Vec<Delivered> {
        eventually(async || self.received().len() >= count).await;
        self.received()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Verifies a delivery as the specification tells a receiver to, without the crate's own code.
fn verified(headers: &HeaderMap, body: Bytes) -> Option<Delivered> {
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let (id, at) = (header("webhook-id")?, header("webhook-timestamp")?);
    let key = STANDARD.decode(SECRET.strip_prefix("whsec_")?).ok()?;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = STANDARD.decode(header("webhook-signature")?.strip_prefix("v1,")?).ok()?;
    let signed = [id.as_bytes(), b".", at.as_bytes(), b".", &body].concat();
    ring::hmac::verify(&key, &signed, &signature).ok()?;
    let at: i64 = at.parse().ok()?;
    let fresh = (now().unix_seconds() - at).abs() < 300;
    (fresh && header("content-type")? == "application/json").then_some(Delivered { id, at, body })
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "it did not come to that");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A server with a webhook, and access to its database to change postures as the prober does.
struct Bench {
    server: TestServer,
    store: Postgres,
    tenant: TenantUid,
}

impl Bench {
    async fn with(webhook: &str, more: &[(&str, &str)]) -> Self {
        let webhook = [(URL, webhook), (SECRET_VARIABLE, SECRET)];
        let server = TestServer::with(&[&webhook, more].concat()).await;
        let store = connect(&server.database_url);
        let tenant = store.tenant("primary").await.unwrap().unwrap().uid;
        Self { server, store, tenant }
    }

    async fn watched(&self, version: &str) -> Proof {
        watched(&self.store, self.tenant, version).await
    }

    async fn turn(&self, proof: &mut Proof, posture: Posture) -> Incident {
        turn(&self.store, self.tenant, proof, posture).await
    }

    /// Makes one incident.
    async fn revoke(&self, version: &str) -> Incident {
        self.turn(&mut self.watched(version).await, Posture::Revoked).await
    }

    /// The stored state of an announcement: attempts and outcome.
    async fn state(&self, incident: &Incident) -> (i32, Option<String>) {
        sqlx::query_as("SELECT attempts, outcome FROM np_byok_announcements WHERE incident = $1")
            .bind(incident.id.0)
            .fetch_one(&self.server.database().await)
            .await
            .unwrap()
    }

    async fn ended(&self, incident: &Incident, attempts: i32, outcome: &str) {
        eventually(async || self.state(incident).await.1.is_some()).await;
        assert_eq!(self.state(incident).await, (attempts, Some(outcome.to_owned())));
    }

    /// Makes the next attempts due now.
    async fn hurry(&self) {
        let sql = "UPDATE np_byok_announcements SET next_attempt_at = now() WHERE outcome IS NULL";
        sqlx::query(sql).execute(&self.server.database().await).await.unwrap();
    }
}

#[tokio::test]
async fn an_incident_is_delivered_once_signed_and_as_documented() {
    let receiver = Receiver::start(&[]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let mut proof = bench.watched("1").await;
    let incident = bench.turn(&mut proof, Posture::Revoked).await;
    bench.ended(&incident, 1, "announced").await;
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].id, incident.id.to_string());
    assert_eq!(
        serde_json::from_slice::<Value>(&received[0].body).unwrap(),
        json!({
            "type": "incident", "timestamp": incident.at.to_string(), "data": {
                "id": incident.id.to_string(), "tenant": "primary", "key_version": "byok/1", "was": "active",
                "posture": "revoked", "class": "KeyDisabled", "http_status": 400,
                "kms_request_id": "kms-request-7", "at": incident.at.to_string(),
            },
        })
    );
    let recovery = bench.turn(&mut proof, Posture::Active).await;
    bench.ended(&recovery, 1, "announced").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let received = receiver.received();
    assert_eq!(received.len(), 2, "each once");
    let data = &serde_json::from_slice::<Value>(&received[1].body).unwrap()["data"];
    assert_eq!(
        (&data["was"], &data["posture"], &data["class"], &data["http_status"], &data["kms_request_id"]),
        (&json!("revoked"), &json!("active"), &Value::Null, &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn what_fails_is_resent_with_the_same_id_and_body() {
    let receiver = Receiver::start(&[Answer::Status(500), Answer::Status(404)]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let incident = bench.revoke("1").await;
    bench.ended(&incident, 3, "announced").await;
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    for (one, next) in received.iter().zip(&received[1..]) {
        assert_eq!((&one.id, &one.body), (&next.id, &next.body));
    }
    assert!(received[1].at - received[0].at >= 5, "the first pause");
    assert!(received[2].at - received[1].at >= 10, "which doubles");
}

#[tokio::test]
async fn a_key_versions_incidents_arrive_in_order_and_delay_no_other() {
    let receiver = Receiver::start(&[Answer::Status(503)]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let mut proof = bench.watched("1").await;
    let mut ids = Vec::new();
    for posture in [Posture::Degraded, Posture::Revoked, Posture::Active, Posture::Revoked] {
        ids.push(bench.turn(&mut proof, posture).await.id.to_string());
        if ids.len() == 1 {
            receiver.receive_at_least(1).await;
        }
    }
    let other = bench.revoke("2").await;
    bench.ended(&other, 1, "announced").await;
    let received = receiver.receive_at_least(6).await;
    assert_eq!(
        received[..2].iter().map(|received| &received.id).collect::<Vec<_>>(),
        [&ids[0], &other.id.to_string()]
    );
    assert_eq!(receiver.ids()[2..], ids);
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_it_when_it_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let bench = Bench::with(&format!("http://{address}/incidents"), &[]).await;
    let incident = bench.revoke("1").await;
    eventually(async || bench.server.logged().contains("\"status\":\"unreachable\"")).await;
    let receiver = Receiver::on(TcpListener::bind(address).await.unwrap(), &[]);
    eventually(async || bench.state(&incident).await.1.is_some()).await;
    assert_eq!(receiver.ids(), [incident.id.to_string()]);
}

#[tokio::test]
async fn a_receiver_that_hangs_is_left_and_delays_no_rotation() {
    let receiver = Receiver::start(&[Answer::Nothing]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    bench.server.encrypt("p", "r").await;
    bench.server.key.rotate().await;
    let incident = bench.revoke("1").await;
    receiver.receive_at_least(1).await;
    let started = bench.server.post("/byok/rotate", json!({})).await.body;
    let path = format!("/byok/rotate/{}", started["id"].as_str().unwrap());
    eventually(async || bench.server.get(&path).await.body["state"] == "DONE").await;
    assert_eq!(bench.state(&incident).await, (1, None), "it still hangs");
    eventually(async || bench.server.logged().contains("\"status\":\"timeout\"")).await;
    bench.hurry().await;
    bench.ended(&incident, 2, "announced").await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Receiver::start(&[]).await;
    let receiver = Receiver::start(&[Answer::RedirectTo(other.url.clone())]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let incident = bench.revoke("1").await;
    bench.ended(&incident, 2, "announced").await;
    assert_eq!((receiver.received().len(), other.received().len()), (2, 0));
}

#[tokio::test]
async fn after_gone_an_incident_is_not_resent_and_the_next_is() {
    let receiver = Receiver::start(&[Answer::Status(410)]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let mut proof = bench.watched("1").await;
    let unwanted = bench.turn(&mut proof, Posture::Revoked).await;
    let next = bench.turn(&mut proof, Posture::Active).await;
    bench.ended(&unwanted, 1, "refused").await;
    bench.ended(&next, 1, "announced").await;
    bench.hurry().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.ids(), [unwanted.id.to_string(), next.id.to_string()]);
}

#[tokio::test]
async fn an_expired_announcement_is_given_up_and_the_next_is_sent() {
    let receiver = Receiver::start(&[]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let mut proof = bench.watched("1").await;
    let mut old = bench.turn(&mut proof, Posture::Revoked).await;
    bench.ended(&old, 1, "announced").await;
    // As if it had waited for three days.
    old.id = byok::model::IncidentId::new();
    old.at = Timestamp(now().0 - Duration::from_secs(3 * 24 * 3_600 + 60).as_micros() as i64);
    write(&bench.store, bench.tenant, &mut proof, &old).await;
    let fresh = bench.turn(&mut proof, Posture::Revoked).await;
    bench.ended(&fresh, 1, "announced").await;
    assert_eq!(bench.state(&old).await.1.as_deref(), Some("given_up"));
    assert!(!receiver.ids().contains(&old.id.to_string()));
    let logs = bench.server.logged();
    let line = logs.lines().find(|line| line.contains("given up")).expect("it is logged");
    assert!(line.contains(&old.id.to_string()), "{line}");
}

#[tokio::test]
async fn two_replicas_deliver_once_between_them() {
    let receiver = Receiver::start(&[]).await;
    let bench = Bench::with(&receiver.url, &[]).await;
    let other = bench.server.replica().await;
    let mut expected = Vec::new();
    for version in 0..5 {
        let mut proof = bench.watched(&version.to_string()).await;
        for posture in [Posture::Revoked, Posture::Active, Posture::Degraded, Posture::Active] {
            expected.push(bench.turn(&mut proof, posture).await.id.to_string());
        }
    }
    receiver.receive_at_least(expected.len()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let received = receiver.ids();
    for (version, ids) in expected.chunks(4).enumerate() {
        let received: Vec<&String> = received.iter().filter(|id| ids.contains(id)).collect();
        assert_eq!(received, ids.iter().collect::<Vec<_>>(), "version {version}");
    }
    assert!(!other.logged().contains("could not be announced"));
}

#[tokio::test]
async fn what_a_killed_replica_was_sending_another_sends_with_its_id() {
    let receiver = Receiver::start(&[Answer::Nothing]).await;
    let mut bench = Bench::with(&receiver.url, &[]).await;
    let incident = bench.revoke("1").await;
    receiver.receive_at_least(1).await;
    bench.server.kill().await;
    let other = bench.server.replica().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(receiver.received().len(), 1, "nobody else sends it while the lease holds");
    bench.hurry().await;
    bench.ended(&incident, 2, "announced").await;
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!((&received[0].id, &received[0].body), (&received[1].id, &received[1].body));
    assert_eq!(received[0].id, incident.id.to_string());
    drop(other);
}

#[tokio::test]
async fn a_stop_waits_for_no_receiver_and_leaves_work_to_others() {
    let receiver = Receiver::start(&[Answer::Nothing]).await;
    let mut bench = Bench::with(&receiver.url, &[]).await;
    let incident = bench.revoke("1").await;
    receiver.receive_at_least(1).await;
    let began = Instant::now();
    assert_eq!(bench.server.stop().await, Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    bench.server.start_again().await;
    bench.ended(&incident, 2, "announced").await;
}

#[tokio::test]
async fn without_a_webhook_incidents_wait_for_one() {
    let bench = {
        let server = TestServer::start().await;
        let store = connect(&server.database_url);
        let tenant = store.tenant("primary").await.unwrap().unwrap().uid;
        Bench { server, store, tenant }
    };
    let incident = bench.revoke("1").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.state(&incident).await, (0, None));
    let receiver = Receiver::start(&[]).await;
    let webhook = [(URL, receiver.url.as_str()), (SECRET_VARIABLE, SECRET)];
    let (key, database) = (bench.server.key.clone(), bench.server.database_url.clone());
    let _with_webhook = TestServer::on(key, database, &webhook).await;
    bench.ended(&incident, 1, "announced").await;
}

#[tokio::test]
async fn a_receivers_certificate_is_verified_by_the_systems_roots() {
    let (trusted, strange) = (Authority::new(), Authority::new());
    let receiver = Receiver::start(&[]).await;
    let tls = Relay::ending_tls(&receiver.url, &trusted.server(), |_| String::new()).await;
    let trust = |authority: &Authority| authority.file().to_str().unwrap().to_owned();
    let bench = Bench::with(&tls.url, &[("SSL_CERT_FILE", &trust(&strange))]).await;
    let incident = bench.revoke("1").await;
    eventually(async || bench.server.logged().contains("\"status\":\"unreachable\"")).await;
    assert_eq!(receiver.received().len(), 0);
    let environment =
        [(URL, tls.url.as_str()), (SECRET_VARIABLE, SECRET), ("SSL_CERT_FILE", &trust(&trusted))];
    let Bench { server, store, tenant } = bench;
    let replica = TestServer::on(server.key.clone(), server.database_url.clone(), &environment).await;
    drop(server);
    let bench = Bench { server: replica, store, tenant };
    bench.hurry().await;
    eventually(async || bench.state(&incident).await.1.is_some()).await;
    assert_eq!(receiver.ids(), [incident.id.to_string()]);
}

#[tokio::test]
async fn no_secret_address_uid_or_answer_is_in_a_log() {
    let receiver = Receiver::start(&[
        Answer::Status(500),
        Answer::RedirectTo("https://CANARY.example.com/CANARY".to_owned()),
        Answer::Status(410),
        Answer::Status(200),
    ])
    .await;
    let url = format!("{}?token=CANARY-of-the-address", receiver.url);
    let bench = Bench::with(&url, &[("BYOK_LOG", "trace")]).await;
    let mut proof = bench.watched("1").await;
    let first = bench.turn(&mut proof, Posture::Revoked).await;
    let second = bench.turn(&mut proof, Posture::Active).await;
    receiver.receive_at_least(1).await;
    eventually(async || {
        bench.hurry().await;
        bench.state(&second).await.1.is_some()
    })
    .await;
    bench.ended(&first, 3, "refused").await;
    // An address where nobody listens must not be logged either.
    drop(receiver);
    bench.turn(&mut proof, Posture::Revoked).await;
    eventually(async || bench.server.logged().contains("\"status\":\"unreachable\"")).await;
    let logs = bench.server.logged();
    assert!(logs.contains(&first.id.to_string()), "the attempts are logged");
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let key = SECRET.strip_prefix("whsec_").unwrap();
    for secret in
        ["CANARY", key, "the secret of the tests", address, &bench.tenant.to_string(), "kms-request-7"]
    {
        assert!(!logs.contains(secret), "the log holds {secret}");
    }
}

#[tokio::test]
async fn a_secret_of_another_form_is_refused_at_the_start() {
    let server = TestServer::start().await;
    let start = async |webhook: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
        command.arg("serve").env_clear();
        command.envs(server.environment.iter().map(|(name, value)| (name, value)));
        let output = command.envs(webhook.iter().copied()).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(30), output).await.expect("it ends").unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let url = "https://example.com/CANARY";
    for (webhook, variable) in [
        (vec![(URL, url), (SECRET_VARIABLE, "CANARY-CANARY-CANARY-CANARY")], SECRET_VARIABLE),
        (vec![(URL, url), (SECRET_VARIABLE, "whsec_Q0FOQVJZ")], SECRET_VARIABLE),
        (vec![(URL, url)], SECRET_VARIABLE),
        (vec![(SECRET_VARIABLE, SECRET)], URL),
        (vec![(URL, "http://example.com/CANARY"), (SECRET_VARIABLE, SECRET)], URL),
    ] {
        let (code, report) = start(&webhook).await;
        assert_eq!(code, Some(3), "{report}");
        assert!(report.contains(&format!("  {variable}: ")), "{report}");
        assert!(!report.contains("CANARY") && !report.contains("Q0FOQVJZ"), "{report}");
    }
}

#[tokio::test]
async fn the_documented_receiver_accepts_real_deliveries_and_refuses_forged_ones() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/incidents.md")).unwrap();
    let program = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut receiver = Command::new(needed("BYOK_TEST_PYTHON"))
        .args(["-c", program, &port.to_string()])
        .env("WEBHOOK_SECRET", SECRET)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(receiver.stdout.take().unwrap()).lines();
    let url = format!("http://127.0.0.1:{port}/incidents");
    eventually(async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    let bench = Bench::with(&url, &[]).await;
    let incident = bench.revoke("1").await;
    bench.ended(&incident, 1, "announced").await;
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("primary byok/1 active -> revoked"));

    let forged = |signature: &str| {
        let request = http().post(&url).header("webhook-id", "x").header("webhook-signature", signature);
        request.header("webhook-timestamp", now().unix_seconds()).body("{}").send()
    };
    let none = STANDARD.encode([0; 32]);
    for signature in ["", "v1,", &format!("v1,{none}"), &format!("v1a,{none} v1,{none}")] {
        assert_eq!(forged(signature).await.unwrap().status(), 401, "{signature}");
    }
    assert_eq!(http().post(&url).body("{}").send().await.unwrap().status(), 401);
}
