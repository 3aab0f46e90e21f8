//! The log is streamed to a file and to a webhook: at least once and in order, whatever is killed
//! or down.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::support::{needed, server::TestServer};

const SECRET: &str = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMnIHdlYmhvb2s=";

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not in time");
}

/// The ids of all entries, in the order of the log.
async fn logged(server: &TestServer) -> Vec<String> {
    let database = server.database().await;
    sqlx::query_scalar("SELECT id::text FROM np_byok_audit ORDER BY seq").fetch_all(&database).await.unwrap()
}

/// The events in a text of lines; a line torn by a crash is not JSON.
fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["metadata"]["uid"].as_str().expect("an id").to_owned()).collect()
}

/// The ids in the order of their first occurrences.
fn firsts(ids: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    ids.into_iter().filter(|id| seen.insert(id.clone())).collect()
}

async fn metric(server: &TestServer, name: &str) -> Option<u64> {
    let text =
        server.client.get(format!("{}/metrics", server.base)).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn every_entry_is_a_line_of_the_file_in_log_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let server = TestServer::with(&[("BYOK_AUDIT_STREAM_FILE", path.to_str().unwrap())]).await;
    let token = server.encrypt("a plaintext", "record-1").await;
    assert_eq!(server.decrypt(&token, "record-1").await.status, 200);
    assert_eq!(server.decrypt(&token, "record-2").await.status, 422);
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("a line of each", async || read().lines().count() == 3).await;
    let events = events(&read());
    assert_eq!(ids(&events), logged(&server).await);
    assert_eq!(events[0]["api"]["operation"], "encrypt");
    assert_eq!(events[1]["resources"][0]["uid"], "record-1");
    assert_eq!(events[1]["actor"]["user"]["uid"], "the-admin");
    assert_eq!((&events[2]["status_id"], &events[2]["status_code"]), (&json!(2), &json!("DECRYPT_FAILED")));
    assert!(!read().contains("a plaintext"));

    let rotated = folder.path().join("audit.jsonl.1");
    std::fs::rename(&path, &rotated).unwrap();
    server.encrypt("p", "record-3").await;
    eventually("a new file", async || read().lines().count() == 1).await;
    assert_eq!(std::fs::read_to_string(&rotated).unwrap().lines().count(), 3);
    let behind = r#"byok_audit_stream_behind{stream="file"}"#;
    // The stream's position is stored after the line is written.
    eventually("nothing is left", async || metric(&server, behind).await == Some(0)).await;
    let report = server.doctor().await;
    assert!(report.contains("ok    audit stream file: 0 entries behind the log"), "{report}");
}

#[tokio::test]
async fn killed_replicas_lose_no_line_and_repeats_keep_their_entrys_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut one = TestServer::with(&[("BYOK_AUDIT_STREAM_FILE", path.to_str().unwrap())]).await;
    let mut other = one.replica().await;
    for round in 0..8_u64 {
        for n in 0..20 {
            let server = if n % 2 == 0 { &one } else { &other };
            server.encrypt("p", &format!("record-{round}-{n}")).await;
        }
        let server = if round % 2 == 0 { &mut one } else { &mut other };
        // A different point in the worker's period of one second each time.
        tokio::time::sleep(Duration::from_millis(130 * round)).await;
        server.kill().await;
        // Ends the dead server's lease, instead of waiting half a minute.
        let sql = "UPDATE np_byok_streams SET leased_until = now()";
        sqlx::query(sql).execute(&server.database().await).await.unwrap();
        server.start_again().await;
    }
    let logged = logged(&one).await;
    let all = async || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        firsts(ids(&events(&text))).len() == logged.len()
    };
    eventually("every entry in the file", all).await;
    assert_eq!(firsts(ids(&events(&std::fs::read_to_string(&path).unwrap()))), logged);
}

#[tokio::test]
async fn an_unreadable_entry_is_logged_and_the_stream_left_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let server = TestServer::with(&[("BYOK_AUDIT_STREAM_FILE", path.to_str().unwrap())]).await;
    server.encrypt("p", "record-1").await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default().lines().count();
    eventually("a line", async || lines() == 1).await;
    // An entry as a later release, or a superuser, may have written it.
    let changed =
        "BEGIN; SET LOCAL session_replication_role = replica; UPDATE np_byok_audit SET operation = 'mend';
        UPDATE np_byok_streams SET next = 0; COMMIT";
    sqlx::raw_sql(changed).execute(&server.database().await).await.unwrap();
    let failures = r#"byok_audit_stream_failures_total{stream="file"}"#;
    eventually("a failure", async || metric(&server, failures).await >= Some(1)).await;
    let report = server.doctor().await;
    assert!(report.contains("FAIL  audit stream file: it has failed since"), "{report}");
    let leased = "SELECT leased_until > now() FROM np_byok_streams";
    let leased: bool = sqlx::query_scalar(leased).fetch_one(&server.database().await).await.unwrap();
    assert!(!leased);
}

/// The deliveries that a receiver accepted, and whether it accepts any now.
#[derive(Default)]
struct Inbox {
    open: bool,
    refused: usize,
    ids: Vec<String>,
    events: Vec<Value>,
    /// Headers and body of each delivery.
    deliveries: Vec<Value>,
}

async fn receiver(inbox: Arc<Mutex<Inbox>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/siem", listener.local_addr().unwrap());
    let router = Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
        let mut inbox = inbox.lock().unwrap();
        std::future::ready(if inbox.open {
            inbox.ids.push(verified(&headers, &body));
            let mut document: Value = serde_json::from_slice(&body).expect("one JSON value");
            inbox.events.append(document["data"]["events"].as_array_mut().expect("events"));
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
            let headers: serde_json::Map<_, _> =
                headers.map(|(name, value)| (name.to_owned(), value.into())).collect();
            let body = std::str::from_utf8(&body).unwrap();
            inbox.deliveries.push(json!({ "headers": headers, "body": body }));
            StatusCode::NO_CONTENT
        } else {
            inbox.refused += 1;
            StatusCode::SERVICE_UNAVAILABLE
        })
    });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Verifies a delivery as Standard Webhooks specifies, without the crate's own code, and returns
/// the id.
fn verified(headers: &HeaderMap, body: &Bytes) -> String {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
    let key = STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    let signed = [id.as_bytes(), b".", at.as_bytes(), b".", body].concat();
    ring::hmac::verify(&key, &signed, &signature).expect("the signature is right");
    assert_eq!(header("content-type"), "application/json");
    id
}

#[tokio::test]
async fn a_webhook_that_is_down_delays_no_call_and_catches_up() {
    let inbox = Arc::new(Mutex::new(Inbox::default()));
    let url = receiver(inbox.clone()).await;
    let server = TestServer::with(&[
        ("BYOK_AUDIT_STREAM_WEBHOOK_URL", &url),
        ("BYOK_AUDIT_STREAM_WEBHOOK_SECRET", SECRET),
    ])
    .await;
    for n in 0..40 {
        server.encrypt("p", &format!("record-{n}")).await;
    }
    eventually("a refusal", async || inbox.lock().unwrap().refused > 1).await;
    assert!(metric(&server, r#"byok_audit_stream_behind{stream="webhook"}"#).await >= Some(1));
    assert!(metric(&server, r#"byok_audit_stream_failures_total{stream="webhook"}"#).await >= Some(1));
    let report = server.doctor().await;
    assert!(report.contains("FAIL  audit stream webhook: it has failed since"), "{report}");
    let (again, began) = (inbox.lock().unwrap().refused, Instant::now());
    server.encrypt("p", "meanwhile").await;
    // The call was answered while the webhook refuses, so it did not wait for the webhook.
    let refused = inbox.lock().unwrap().refused - again;
    assert!(refused as u64 <= 3 + began.elapsed().as_secs(), "it backs off");

    inbox.lock().unwrap().open = true;
    let logged = logged(&server).await;
    eventually("all of it", async || inbox.lock().unwrap().events.len() >= logged.len()).await;
    let Inbox { ids: deliveries, events, .. } = std::mem::take(&mut *inbox.lock().unwrap());
    assert_eq!(firsts(ids(&events)), logged);
    assert_eq!(firsts(deliveries.clone()).len(), deliveries.len(), "each delivery has an id of its own");
    assert!(server.doctor().await.contains("ok    audit stream webhook: 0 entries behind the log"));
    assert!(!server.logged().contains(&url), "the address is in no log");
}

/// The output of a program that gets deliveries on standard input.
async fn received(program: &str, script: &str, deliveries: &[Value]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web").join(script);
    let mut receiver = tokio::process::Command::new(program);
    receiver.arg(script).arg(SECRET).env("BYOK_TEST_NODE_MODULES", needed("BYOK_TEST_NODE_MODULES"));
    receiver.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut receiver = receiver.spawn().expect("the receiver runs");
    let mut stdin = receiver.stdin.take().unwrap();
    stdin.write_all(Value::from(deliveries).to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = receiver.wait_with_output().await.unwrap();
    assert!(output.status.success(), "it takes them");
    serde_json::from_slice(&output.stdout).expect("what it parsed")
}

#[tokio::test]
async fn the_libraries_of_standard_webhooks_verify_and_parse_a_delivery() {
    let inbox = Arc::new(Mutex::new(Inbox { open: true, ..Inbox::default() }));
    let url = receiver(inbox.clone()).await;
    let server = TestServer::with(&[
        ("BYOK_AUDIT_STREAM_WEBHOOK_URL", &url),
        ("BYOK_AUDIT_STREAM_WEBHOOK_SECRET", SECRET),
    ])
    .await;
    for record in ["record-1", "a \"record\" of ünicode\u{2028}", "record-3"] {
        server.encrypt("p", record).await;
    }
    eventually("all of it", async || inbox.lock().unwrap().events.len() >= 3).await;
    let Inbox { deliveries, ids, .. } = std::mem::take(&mut *inbox.lock().unwrap());
    let logged = logged(&server).await;
    for (program, script) in
        [(needed("BYOK_TEST_PYTHON").as_str(), "deliveries.py"), ("node", "deliveries.mjs")]
    {
        let parsed = received(program, script, &deliveries).await;
        let events = parsed.iter().flat_map(|one| one["data"]["events"].as_array().unwrap().clone());
        assert_eq!(firsts(self::ids(&events.collect::<Vec<_>>())), logged, "{script}");
        for (delivery, id) in parsed.iter().zip(&ids) {
            assert_eq!(
                (&delivery["type"], &delivery["data"]["tenant"]),
                (&json!("entries"), &json!("primary"))
            );
            let events = delivery["data"]["events"].as_array().unwrap();
            let (first, last) = (events.first().unwrap(), events.last().unwrap());
            assert_eq!(*id, format!("{}-{}", first["metadata"]["uid"].as_str().unwrap(), events.len()));
            assert_eq!(delivery["timestamp"], last["metadata"]["original_time"]);
        }
    }
}
