//! The kill switch and answers that take long to send: documents with other slow fields, and
//! clients that read slowly.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::needed;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::switch::{A, Switch, eventually};
use crate::support::toxics::{Fault, Way};

/// The allowance of a replica for its own clock and for scheduling a thread, and of this test for a
/// busy machine.
const SLACK: Duration = Duration::from_millis(1_100);
/// The kernel's buffer as docs/kill-switch.md states it, and the client's own kernel buffer in
/// these tests.
const IN_FLIGHT: usize = (192 + 64) << 10;

/// The entries of one request, oldest first.
async fn entries(server: &TestServer, request_id: &str) -> Vec<Value> {
    let page = server.get("/byok/audit?first=500").await.body["entries"].clone();
    page.as_array().unwrap().iter().rev().filter(|entry| entry["request_id"] == request_id).cloned().collect()
}

/// Asserts that an answer was withheld whole: it has one error, with one of these codes, and no
/// data.
fn is_withheld(answer: &Value, codes: &[&str]) -> String {
    assert!(!answer.to_string().contains("hot-plaintext"), "{answer}");
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer.get("data"), None, "{answer}");
    let extensions = &answer["errors"][0]["extensions"];
    assert!(codes.contains(&extensions["code"].as_str().unwrap()), "{answer}");
    extensions["requestId"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plaintext_before_many_slow_fields_is_withheld_with_the_answer() {
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let (server_part, name) = database_url.rsplit_once('/').unwrap();
    let (user, address) = server_part.rsplit_once('@').unwrap();
    let way = Way::to(address).await;
    let slow = format!("{user}@{}/{name}", way.address);
    let server =
        TestServer::on(VaultKey::create().await, database_url.clone(), &[("DATABASE_URL", &slow)]).await;
    let (switch, database) = (Switch::of(&server.key).await, server.database().await);
    let token = server.encrypt("hot-plaintext", "hot").await;
    assert_eq!(server.decrypt(&token, "hot").await.status, 200);
    let junk: String = (0..150)
        .map(|n| format!(" b{n}: byokDecryptMany(items: [{{ ciphertext: \"junk\", recordId: \"r\" }}]) {{ plaintext error {{ code }} }}"))
        .collect();
    let query = format!(
        "mutation {{ a: byokDecrypt(ciphertext: \"{token}\", recordId: \"hot\") {{ plaintext }}{junk} }}"
    );
    let count = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM np_byok_audit").fetch_one(&database).await.unwrap()
    };
    let before = count().await;
    // Each field needs a commit, so together they take longer than the bound.
    way.delay(Duration::from_millis(60)).await;
    let jwt = server.jwt("admin", "a");
    let answering = server.graphql(&jwt, &query, Value::Null);
    let turning_off = async {
        eventually("the first field is committed", async || count().await > before).await;
        switch.off().await
    };
    let (answer, off) = tokio::join!(answering, turning_off);
    assert!(off.elapsed() > A + SLACK, "the document took less than the bound: {:?}", off.elapsed());
    way.delay(Duration::ZERO).await;
    let request_id = is_withheld(&answer, &["KMS_ACCESS_DENIED"]);
    let entries = entries(&server, &request_id).await;
    assert_eq!(entries.len(), 152, "one for each field, and one for the refusal of the first");
    let (first, last) = (&entries[0], &entries[151]);
    assert_eq!((&first["outcome"], &last["outcome"]), (&json!("OK"), &json!("KMS_ACCESS_DENIED")));
    assert_eq!(last["voids"], first["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plaintext_beside_a_health_check_that_hangs_is_withheld() {
    let key = VaultKey::create().await;
    let (way, address) = Way::to_url(&key.address).await;
    let settings = [("BYOK_VAULT_ADDR", address.as_str()), ("BYOK_KMS_TIMEOUT_MS", "6000")];
    let server = TestServer::on(key, create_database(&needed("DATABASE_URL")).await, &settings).await;
    let token = server.encrypt("hot-plaintext", "hot").await;
    assert_eq!(server.decrypt(&token, "hot").await.status, 200);
    way.spoil(Fault::Hung).await;
    let query = format!(
        "{{ byokReveal(ciphertext: \"{token}\", recordId: \"hot\") {{ value error {{ code }} }} byokHealth {{ status }} }}"
    );
    let began = Instant::now();
    let answer = server.graphql(&server.jwt("admin", "a"), &query, Value::Null).await;
    assert!(began.elapsed() > A + SLACK, "{:?}", began.elapsed());
    let request_id = is_withheld(&answer, &["KMS_UNAVAILABLE"]);
    let entries = entries(&server, &request_id).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!((&entries[0]["outcome"], &entries[1]["outcome"]), (&json!("OK"), &json!("KMS_UNAVAILABLE")));
    assert_eq!(entries[1]["voids"], entries[0]["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_to_the_servers_stop_is_recorded_as_refused() {
    let key = VaultKey::create().await;
    let (way, address) = Way::to_url(&key.address).await;
    let settings = [("BYOK_VAULT_ADDR", address.as_str()), ("BYOK_DRAIN_SECONDS", "0")];
    let mut server = TestServer::on(key, create_database(&needed("DATABASE_URL")).await, &settings).await;
    let (token, database) = (server.encrypt("hot-plaintext", "hot").await, server.database().await);
    assert_eq!(server.decrypt(&token, "hot").await.status, 200);
    let reveals = async || -> Vec<String> {
        sqlx::query_scalar("SELECT outcome FROM np_byok_audit WHERE operation = 'reveal' ORDER BY seq")
            .fetch_all(&database)
            .await
            .unwrap()
    };
    way.spoil(Fault::Hung).await;
    let query = format!(
        "{{ byokReveal(ciphertext: \"{token}\", recordId: \"hot\") {{ value }} byokHealth {{ status }} }}"
    );
    let request = server
        .client
        .post(format!("{}/graphql", server.base))
        .bearer_auth(server.jwt("admin", "a"))
        .json(&json!({ "query": query }));
    let asked = tokio::spawn(request.send());
    eventually("the value's entry is durable", async || reveals().await == ["OK"]).await;
    assert_eq!(server.stop().await, Some(0));
    assert!(asked.await.unwrap().is_err(), "nothing was answered");
    assert_eq!(reveals().await, ["OK", "UNAVAILABLE"]);
}

/// The part of a large answer that arrived, with times.
struct Taken {
    /// The time and length of each piece.
    pieces: Vec<(Instant, usize)>,
    whole: bool,
}

impl Taken {
    fn bytes(&self) -> usize {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// Asserts that only what was in flight arrived after the bound, and that the answer is
    /// incomplete.
    fn ended_in_time(&self, off: Instant) {
        let late = self.pieces.iter().filter(|(at, _)| *at > off + A + SLACK);
        let late: usize = late.map(|(_, length)| length).sum();
        assert!(late <= IN_FLIGHT, "{late} bytes came after the bound");
        assert!(!self.whole && self.bytes() < 10_000_000, "{} bytes came", self.bytes());
    }
}

/// Reads of this size give 64 KiB a second.
const READ: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(250);

async fn slowly_over_http1(
    server: &TestServer,
    body: &str,
    first_mib: tokio::sync::oneshot::Sender<()>,
) -> Taken {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let address = server.base.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let head = format!(
        "POST /byok/decrypt/many HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        server.jwt("admin", "a"),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let (mut taken, mut first_mib) = (Taken { pieces: Vec::new(), whole: false }, Some(first_mib));
    let mut piece = vec![0; READ];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        taken.pieces.push((Instant::now(), length));
        if taken.bytes() >= 1 << 20 {
            first_mib.take().map(|first_mib| first_mib.send(()));
        }
        taken.whole = taken.bytes() > 15_000_000;
        tokio::time::sleep(PAUSE * length as u32 / READ as u32).await;
    }
    taken
}

async fn slowly_over_http2(
    server: &TestServer,
    body: &str,
    first_mib: tokio::sync::oneshot::Sender<()>,
) -> Taken {
    let address = server.base.strip_prefix("http://").unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .handshake(TokioIo::new(TcpStream::connect(address).await.unwrap()))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("{}/byok/decrypt/many", server.base))
        .header("authorization", format!("Bearer {}", server.jwt("admin", "a")))
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let mut answer = sender.send_request(request).await.unwrap();
    let (mut taken, mut first_mib) = (Taken { pieces: Vec::new(), whole: false }, Some(first_mib));
    loop {
        match answer.body_mut().frame().await {
            Some(Ok(frame)) => {
                let length = frame.into_data().unwrap().len();
                taken.pieces.push((Instant::now(), length));
                if taken.bytes() >= 1 << 20 {
                    first_mib.take().map(|first_mib| first_mib.send(()));
                }
                tokio::time::sleep(PAUSE * length as u32 / READ as u32).await;
            }
            Some(Err(_)) => break,
            None => {
                taken.whole = true;
                break;
            }
        }
    }
    let request = Request::get(format!("{}/live", server.base)).body(Full::default()).unwrap();
    assert_eq!(sender.send_request(request).await.expect("the connection goes on").status(), 200);
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_to_a_slow_reader_ends_at_the_bound() {
    let server = TestServer::with(&[("BYOK_REQUEST_TIMEOUT_SECONDS", "120")]).await;
    let switch = Switch::of(&server.key).await;
    let token = server.encrypt(&"x".repeat(1_000_000), "r").await;
    let item = json!({ "ciphertext": token, "record_id": "r" });
    let body = json!({ "items": vec![item; 15] }).to_string();
    let ((first, http1_has), (second, http2_has)) =
        (tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel());
    let turning_off = async {
        http1_has.await.expect("the first MiB comes, which takes longer than the bound");
        http2_has.await.expect("the first MiB comes, which takes longer than the bound");
        switch.off().await
    };
    let (http1, http2, off) = tokio::join!(
        slowly_over_http1(&server, &body, first),
        slowly_over_http2(&server, &body, second),
        turning_off
    );
    http1.ended_in_time(off);
    http2.ended_in_time(off);
    let message = "an answer was broken off: the key was not shown to work any more while it left";
    assert_eq!(server.logged().matches(message).count(), 2);
}
