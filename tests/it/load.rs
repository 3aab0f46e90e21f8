//! Overload: the server refuses what it cannot do, and stays responsive. `docs/load.md` has the
//! rules.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::support::needed;
use crate::support::offered::{Offered, memory};
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::toxics::{Fault, Way};

/// One value in the metrics, by the text before it.
async fn metric(server: &TestServer, name: &str) -> u64 {
    let text =
        server.client.get(format!("{}/metrics", server.base)).send().await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

/// Waits until a metric has the expected value.
async fn until(server: &TestServer, name: &str, right: impl Fn(u64) -> bool) {
    for _ in 0..1_200 {
        if right(metric(server, name).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} stays {}", metric(server, name).await);
}

/// A client that speaks HTTP/2 from the first byte.
fn http2() -> Client {
    Client::builder().http2_prior_knowledge().build().unwrap()
}

fn encrypt(server: &TestServer, client: &Client, plaintext: &str) -> reqwest::RequestBuilder {
    let body = json!({ "plaintext": plaintext, "record_id": "r" });
    client.post(format!("{}/byok/encrypt", server.base)).bearer_auth(server.jwt("admin", "a")).json(&body)
}

/// Asserts that an answer tells the client to come back later, in the front's own format: a problem
/// document, or GraphQL's errors.
async fn is_refused(response: Response) {
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    let body: Value = response.json().await.unwrap();
    match body["errors"].get(0) {
        None => {
            assert_eq!((&body["code"], &body["retryable"]), (&json!("UNAVAILABLE"), &json!(true)), "{body}")
        }
        Some(error) => {
            assert_eq!(error["extensions"]["code"], "UNAVAILABLE", "{body}");
            assert_eq!(error["extensions"]["retryAfterSeconds"], 1, "{body}");
        }
    }
}

/// A server that has only the DEK of `hot` in memory, and whose KMS hangs.
struct Hanging {
    server: TestServer,
    way: Way,
    hot: String,
    cold: Vec<String>,
}

impl Hanging {
    async fn with(settings: &[(&str, &str)], cold: usize) -> Self {
        let key = VaultKey::create().await;
        let (way, address) = Way::to_url(&key.address).await;
        let settings = [
            &[
                ("BYOK_VAULT_ADDR", address.as_str()),
                ("BYOK_KMS_TIMEOUT_MS", "60000"),
                // The last proof from before the KMS hung covers `hot` for half a minute.
                ("BYOK_KEY_PROBE_TIMEOUT_MS", "30000"),
                ("BYOK_REQUEST_TIMEOUT_SECONDS", "90"),
            ],
            settings,
        ]
        .concat();
        let first = TestServer::on(key, create_database(&needed("DATABASE_URL")).await, &settings).await;
        let hot = first.encrypt("hot", "hot").await;
        let mut tokens = Vec::new();
        for n in 0..cold {
            tokens.push(first.encrypt("cold", &format!("cold-{n}")).await);
        }
        let server = first.replica().await;
        assert_eq!(server.decrypt(&hot, "hot").await.status, 200);
        server.encrypt("hot", "hot").await;
        way.spoil(Fault::Hung).await;
        Self { server, way, hot, cold: tokens }
    }

    fn decrypt(&self, token: &str, record: &str) -> JoinHandle<Response> {
        let body = json!({ "ciphertext": token, "record_id": record });
        let url = format!("{}/byok/decrypt", self.server.base);
        let request = self.server.client.post(url).bearer_auth(self.server.jwt("admin", "a")).json(&body);
        tokio::spawn(async move { request.send().await.unwrap() })
    }

    /// Decrypts a record whose DEK is not in memory, which takes as long as the KMS hangs.
    fn cold(&self, n: usize) -> JoinHandle<Response> {
        self.decrypt(&self.cold[n], &format!("cold-{n}"))
    }
}

/// A server with one slot, which is taken until the KMS can be reached again.
async fn full() -> (Hanging, JoinHandle<Response>) {
    let hanging = Hanging::with(&[("BYOK_MAX_IN_FLIGHT", "1")], 1).await;
    let taken = hanging.cold(0);
    until(&hanging.server, "byok_places_taken", |slots| slots == 1).await;
    (hanging, taken)
}

#[tokio::test]
async fn a_full_server_refuses_in_each_fronts_form_and_keeps_connections() {
    let (Hanging { server, way, .. }, taken) = full().await;
    for client in [server.client.clone(), http2()] {
        for size in [10, 100_000, 6_000_000] {
            is_refused(encrypt(&server, &client, &"x".repeat(size)).send().await.unwrap()).await;
            let query =
                json!({ "query": "{ byokHealth { status } }", "variables": { "x": "x".repeat(size) } });
            let graphql = client.post(format!("{}/graphql", server.base)).json(&query);
            is_refused(graphql.send().await.unwrap()).await;
        }
        let audit = client.get(format!("{}/byok/audit", server.base)).bearer_auth(server.jwt("admin", "a"));
        is_refused(audit.send().await.unwrap()).await;
    }
    assert_eq!(metric(&server, r#"byok_requests_shed_total{full="places"}"#).await, 14);
    taken.abort();
    until(&server, "byok_places_taken", |slots| slots == 0).await;
    way.mend(Fault::Hung).await;
    let answer = encrypt(&server, &server.client, "x").send().await.unwrap();
    assert_eq!(answer.status(), 200, "it serves again at once");
}

#[tokio::test]
async fn whoever_watches_a_full_server_is_answered() {
    let (Hanging { server, .. }, taken) = full().await;
    for path in ["/ready", "/readyz", "/live", "/livez", "/metrics", "/version", "/capabilities"] {
        let response = server.client.get(format!("{}{path}", server.base)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    let health = server.client.get(format!("{}/byok/health", server.base));
    let health = tokio::spawn(health.bearer_auth(server.jwt("admin", "a")).send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!health.is_finished(), "it was not refused, but asks the KMS");
    taken.abort();
}

#[tokio::test]
async fn a_client_that_expects_continue_is_refused_without_its_body() {
    let (Hanging { server, .. }, taken) = full().await;
    let head = "POST /byok/encrypt HTTP/1.1\r\nhost: byok\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n";
    let mut stream = TcpStream::connect(server.base.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    taken.abort();
}

#[tokio::test]
async fn while_the_kms_hangs_hot_records_are_served_cold_ones_bounded() {
    let hanging = Hanging::with(&[("BYOK_MAX_IN_FLIGHT", "8")], 12).await;
    let waiting: Vec<_> = (0..4).map(|n| hanging.cold(n)).collect();
    until(&hanging.server, "byok_places_taken", |slots| slots == 4).await;
    for n in 4..12 {
        is_refused(hanging.cold(n).await.unwrap()).await;
    }
    let new = encrypt(&hanging.server, &hanging.server.client, "a record that has no DEK");
    is_refused(new.send().await.unwrap()).await;
    for _ in 0..100 {
        let answer = hanging.decrypt(&hanging.hot, "hot").await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap()["plaintext"], "hot");
        let again = json!({ "plaintext": "again", "record_id": "hot" });
        assert_eq!(hanging.server.post("/byok/encrypt", again).await.status, 200);
    }
    assert!(waiting.iter().all(|cold| !cold.is_finished()), "the KMS still hangs");
    hanging.way.mend(Fault::Hung).await;
    waiting.iter().for_each(JoinHandle::abort);
    until(&hanging.server, "byok_places_taken", |slots| slots == 0).await;
    for _ in 0..100 {
        let answer: Value = hanging.cold(11).await.unwrap().json().await.unwrap();
        if answer["plaintext"] == "cold" {
            return;
        }
        // The route's own connections break when the fault ends.
        assert_eq!(answer["code"], "KMS_UNAVAILABLE");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("cold records are not served again");
}

/// A connection on which the server received a `POST` to encrypt, with this announced body length,
/// except for the last `missing` bytes.
async fn sends(server: &TestServer, length: usize, missing: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.base.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /byok/encrypt HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\n\r\n",
        server.jwt("admin", "a")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length - missing]).await.unwrap();
    stream
}

#[tokio::test]
async fn bodies_are_refused_past_the_bytes_that_a_user_may_hold() {
    let server =
        TestServer::with(&[("BYOK_MAX_BODY_BYTES", "1000000"), ("BYOK_MAX_BYTES_IN_FLIGHT", "2001000")])
            .await;
    let one = sends(&server, 1_000_000, 1).await;
    until(&server, "byok_body_bytes_held", |bytes| bytes >= 1_000_000).await;
    for client in [server.client.clone(), http2()] {
        for size in [1_500, 100_000, 900_000] {
            is_refused(encrypt(&server, &client, &"x".repeat(size)).send().await.unwrap()).await;
        }
        let chunks = (0..90).map(|_| Ok::<_, std::io::Error>(vec![b' '; 10_000]));
        let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        is_refused(encrypt(&server, &client, "").body(chunked).send().await.unwrap()).await;
    }
    assert_eq!(metric(&server, r#"byok_requests_shed_total{full="share"}"#).await, 8);
    drop(one);
    until(&server, "byok_body_bytes_held", |bytes| bytes == 0).await;
    assert_eq!(encrypt(&server, &server.client, &"x".repeat(500_000)).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_sends_slowly_holds_no_place_and_is_given_up() {
    let server =
        TestServer::with(&[("BYOK_MAX_IN_FLIGHT", "1"), ("BYOK_REQUEST_TIMEOUT_SECONDS", "13")]).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(sends(&server, 1_000, 1).await);
    }
    let mut trickling = sends(&server, 1_000_000, 900_000).await;
    // Only what has arrived counts, not what was announced.
    until(&server, "byok_body_bytes_held", |bytes| bytes >= 131_072).await;
    assert!(metric(&server, "byok_body_bytes_held").await < 1_000_000);
    assert_eq!(metric(&server, "byok_places_taken").await, 0);
    server.encrypt("x", "r").await;
    let trickled = tokio::spawn(async move {
        let (mut reader, mut writer) = trickling.split();
        let mut answer = String::new();
        let trickle = async {
            while writer.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            _ = reader.read_to_string(&mut answer) => {}
            () = trickle => {}
        }
        answer
    });
    for stream in &mut silent {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("The body did not arrive in time."), "{answer}");
    }
    let answer = trickled.await.unwrap();
    assert!(answer.is_empty() || answer.contains("The body did not arrive in time."), "{answer}");
    until(&server, "byok_body_bytes_held", |bytes| bytes == 0).await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_dropped_and_its_bytes_freed() {
    let server =
        TestServer::with(&[("BYOK_MAX_PLAINTEXT_BYTES", "16000000"), ("BYOK_REQUEST_TIMEOUT_SECONDS", "6")])
            .await;
    let text = "x".repeat(15_000_000);
    let body = json!({ "plaintext": text, "record_id": "r" }).to_string();

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream =
        socket.connect(server.base.strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap();
    let head = format!(
        "POST /byok/encrypt HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        server.jwt("admin", "a"),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    // With HTTP/2 the connection itself is not blocked and answers pings; only the stream's window
    // is exhausted.
    let window =
        Client::builder().http2_prior_knowledge().http2_initial_stream_window_size(65_535).build().unwrap();
    let held = encrypt(&server, &window, &text).send().await.unwrap();
    assert_eq!(held.status(), 200);

    until(&server, "byok_body_bytes_held", |bytes| bytes > 40_000_000).await;
    assert_eq!(metric(&server, "byok_places_taken").await, 0);
    until(&server, "byok_body_bytes_held", |bytes| bytes == 0).await;
    assert!(held.bytes().await.is_err(), "the rest of the answer is gone");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.unwrap();
    assert!(read.is_err() || rest.len() < 20_000_000, "the rest of the answer is gone");
    server.encrypt("x", "r").await;
}

/// The result of a minute of overload.
#[derive(Debug)]
struct Overload {
    /// The calls a second that the server answers without overload.
    capacity: f64,
    /// The calls a second that the server answers under overload.
    served: f64,
    shed: usize,
    /// The resident memory in KiB: before, and at most.
    before: u64,
    most: u64,
}

/// Measures the server's capacity, then offers three times that.
async fn overload(settings: &[(&str, &str)], length: Duration) -> (TestServer, Overload) {
    let server = TestServer::with(&[&[("BYOK_LOG", "info")], settings].concat()).await;
    let body = json!({ "plaintext": "x".repeat(100_000), "record_id": "r" }).to_string();
    let calls = Offered::post(&server.base, "/byok/encrypt", &server.jwt("admin", "a"), &body);
    server.encrypt("x", "r").await;
    let mut capacity = calls.in_turn(8, Duration::from_secs(5)).await;
    let (before, served_before) = (memory(server.pid(), "VmRSS"), calls.answered("200"));
    let slice = Duration::from_secs(3);
    let slices = length.as_secs() / slice.as_secs();
    for _ in 0..slices {
        let served = calls.answered("200");
        calls.at_rate(3.0 * capacity, slice).await;
        // Other processes use this machine: when they leave it more, more is offered.
        capacity = capacity.max((calls.answered("200") - served) as f64 / slice.as_secs_f64());
    }
    let served = (calls.answered("200") - served_before) as f64 / (slices * slice.as_secs()) as f64;
    calls.quiet().await;
    let (most, shed) = (memory(server.pid(), "VmHWM"), calls.answered("503"));
    let overload = Overload { capacity, served, shed, before, most };
    let answers = calls.answers.lock().unwrap().clone();
    assert!(answers.keys().all(|what| what == "200" || what == "503"), "{answers:?} {overload:?}");
    (server, overload)
}

#[tokio::test]
async fn three_times_the_possible_load_is_shed_within_bounded_memory() {
    let (server, overload) = overload(
        &[("BYOK_MAX_IN_FLIGHT", "32"), ("BYOK_MAX_BODY_BYTES", "1000000")],
        Duration::from_secs(60),
    )
    .await;
    assert!(overload.shed > 0, "{overload:?}");
    assert!(overload.served > overload.capacity / 5.0, "{overload:?}");
    assert!(overload.most < overload.before + 128 * 1_024, "{overload:?}");
    for n in 0..20 {
        let token = server.encrypt("after", &format!("after-{n}")).await;
        assert_eq!(server.decrypt(&token, &format!("after-{n}")).await.body["plaintext"], "after");
    }
}
