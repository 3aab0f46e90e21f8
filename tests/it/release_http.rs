//! The server over real sockets, with clients that read answers for longer than the key works:
//! after the bound nothing more is sent, over HTTP/1.1 and HTTP/2, also over TLS. While the key
//! works, answers arrive completely.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::guarded::{Behaviour, Deployment, Replica, SECRET, until};
use crate::support::pki::Authority;
use crate::support::relay::acceptor;

/// A time after A, and after a replica's allowance for its own clock.
const PAST_THE_BOUND: u64 = 3_200;
/// The kernel's buffer as docs/kill-switch.md states it, and the client's own kernel buffer in
/// these tests.
const IN_FLIGHT: usize = (192 + 64) << 10;
const MIB: usize = 1 << 20;
const PATH: &str = "/byok/decrypt/many";

/// One value of a large answer.
fn text() -> String {
    "x".repeat(1_000_000)
}

/// The address of a replica, and the body of a request whose answer has 15 MB.
async fn served(cache_seconds: u64, authority: Option<&Authority>) -> (Replica, SocketAddr, Vec<u8>) {
    let one = Deployment::new().await.replica_with(cache_seconds).await;
    let tls = authority.map(|authority| acceptor(&authority.server()));
    let address = one.serve(tls).await;
    let token = encrypt(&one, address, authority, &text()).await;
    let item = json!({ "ciphertext": token, "record_id": "r" });
    let body = json!({ "items": vec![item; 15] }).to_string().into_bytes();
    (one, address, body)
}

async fn encrypt(one: &Replica, address: SocketAddr, authority: Option<&Authority>, text: &str) -> String {
    let scheme = if authority.is_some() { "https" } else { "http" };
    let client = match authority {
        Some(authority) => crate::support::pki::client(&authority.file(), None),
        None => crate::support::http(),
    };
    let request = client
        .post(format!("{scheme}://127.0.0.1:{}/byok/encrypt", address.port()))
        .header("x-byok-secret", SECRET)
        .header("x-hasura-role", "admin")
        .json(&json!({ "plaintext": text, "record_id": "r" }));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert!(one.app.cached_deks() <= 1);
    answer["ciphertext"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A connection of a client with a small kernel buffer.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(address).await.unwrap()
}

async fn connect_tls(address: SocketAddr, authority: &Authority) -> impl AsyncRead + AsyncWrite + Unpin {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, connect(address).await).await.unwrap()
}

/// Sends a request over HTTP/1.1.
async fn send(stream: &mut (impl AsyncWrite + Unpin), path: &str, body: &[u8]) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: byok\r\nx-byok-secret: {SECRET}\r\nx-hasura-role: admin\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
}

/// Sends the request over HTTP/1.1 and reads the first bytes of the answer.
async fn begin(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), body: &[u8], first: usize) {
    send(stream, PATH, body).await;
    let mut read = vec![0; first];
    stream.read_exact(&mut read).await.unwrap();
    assert!(read.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&read[..200.min(first)]));
}

/// The number of bytes that arrive until the connection ends.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> usize {
    let mut rest = Vec::new();
    // A reset is one of the ways in which the connection ends.
    let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await.unwrap();
    rest.len()
}

async fn is_broken_off(one: &Replica, mut stream: impl AsyncRead + AsyncWrite + Unpin, body: &[u8]) {
    begin(&mut stream, body, MIB).await;
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(PAST_THE_BOUND);
    let rest = rest(&mut stream).await;
    assert!(rest <= IN_FLIGHT, "{rest} bytes came after the bound");
    assert_eq!(one.outcomes(1).await, ["Decrypt Ok"], "some of it was given");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slowly_read_answer_over_http1_ends_with_its_connection() {
    let (one, address, body) = served(300, None).await;
    is_broken_off(&one, connect(address).await, &body).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slowly_read_answer_over_tls_ends_with_its_connection() {
    let authority = Authority::new();
    let (one, address, body) = served(300, Some(&authority)).await;
    is_broken_off(&one, connect_tls(address, &authority).await, &body).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_whole_answer_while_the_key_works() {
    for cache_seconds in [300, 0] {
        let (one, address, body) = served(cache_seconds, None).await;
        one.watch();
        let mut stream = connect(address).await;
        begin(&mut stream, &body, MIB).await;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream.read_exact(&mut vec![0; MIB]).await.unwrap();
        }
        let mut rest = vec![0; 15_000_000 - 6 * MIB];
        stream.read_exact(&mut rest).await.unwrap_or_else(|error| panic!("{cache_seconds}: {error}"));
        one.stop_watching();
    }
}

/// A client that speaks HTTP/2, with windows of these sizes for each stream and for the connection.
async fn http2(address: SocketAddr, stream_window: u32, window: u32) -> SendRequest<Full<Bytes>> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(window)
        .handshake(TokioIo::new(TcpStream::connect(address).await.unwrap()))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, path: &str, body: &[u8]) -> Response<Incoming> {
    let request = Request::post(format!("http://byok{path}"))
        .header("x-byok-secret", SECRET)
        .header("x-hasura-role", "admin")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    sender.send_request(request).await.unwrap()
}

/// Until then bytes may be in the connection's buffers, and the whole connection would end.
async fn until_the_window_is_used_up() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Reads until the stream ends, and returns the number of plaintext bytes and whether it ended
/// properly.
async fn drain(body: &mut Incoming) -> (usize, bool) {
    let mut plaintext = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(60), body.frame()).await.unwrap() {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                plaintext += data.iter().filter(|byte| **byte == b'x').count();
            }
            Some(Err(error)) => {
                let reset = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                assert!(reset.contains("stream error"), "{error:?}");
                return (plaintext, false);
            }
            None => return (plaintext, true),
        }
    }
}

async fn is_live(sender: &mut SendRequest<Full<Bytes>>) {
    let request = Request::get("http://byok/live").body(Full::default()).unwrap();
    let answer = sender.send_request(request).await.expect("the connection goes on");
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_read_slowly_over_http2_ends_alone() {
    let (one, address, body) = served(300, None).await;
    let mut sender = http2(address, 65_535, 1 << 20).await;
    let mut answer = ask(&mut sender, PATH, &body).await;
    assert_eq!(answer.status(), 200);
    let mut taken = 0;
    while taken < MIB {
        taken += answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    until_the_window_is_used_up().await;
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(PAST_THE_BOUND);
    let (plaintext, whole) = drain(answer.body_mut()).await;
    assert!(!whole && plaintext <= IN_FLIGHT, "{plaintext} bytes came after the bound");
    is_live(&mut sender).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_queued_behind_another_stream_is_withheld_and_recorded() {
    let (one, address, large) = served(300, None).await;
    let token = encrypt(&one, address, None, "xxxxxxxx").await;
    let small = json!({ "ciphertext": token, "record_id": "r" }).to_string();
    // The first answer uses up the connection's window, so nothing of the second is sent.
    let mut sender = http2(address, 1 << 20, 65_535).await;
    let mut first = ask(&mut sender, PATH, &large).await;
    let mut second = ask(&mut sender, "/byok/decrypt", small.as_bytes()).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    assert_eq!(one.outcomes(2).await, ["Decrypt Ok", "Decrypt Ok"]);
    until_the_window_is_used_up().await;
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(PAST_THE_BOUND);
    let (first, second) = tokio::join!(drain(first.body_mut()), drain(second.body_mut()));
    assert!(!first.1 && first.0 <= IN_FLIGHT, "{first:?}");
    assert_eq!(second, (0, false));
    until("it is recorded as refused", async || one.outcomes(1).await[0].starts_with("Decrypt Refused"))
        .await;
    is_live(&mut sender).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_begun_shows_no_more_when_its_window_opens_late() {
    let one = Deployment::new().await.replica().await;
    let address = one.serve(None).await;
    let token = encrypt(&one, address, None, "xxxxxxxx").await;
    let small = json!({ "ciphertext": token, "record_id": "r" }).to_string();
    let mut sender = http2(address, 1, 65_535).await;
    let mut answer = ask(&mut sender, "/byok/decrypt", small.as_bytes()).await;
    until_the_window_is_used_up().await;
    one.kms.set_behaviour(Behaviour::Fail);
    one.clock.sleep(PAST_THE_BOUND);
    assert_eq!(drain(answer.body_mut()).await, (0, false));
    is_live(&mut sender).await;
}

/// A document with two fields: the DEK of the first is in the memory of `one`, that of the second
/// must be unwrapped.
async fn hot_then_cold(one: &Replica, writer: &Replica) -> String {
    let (hot, cold) = (one.encrypt("hot").await.unwrap(), writer.encrypt("cold").await.unwrap());
    format!(
        "mutation {{ a: byokDecrypt(ciphertext: \"{hot}\", recordId: \"hot\") {{ plaintext }}
                     b: byokDecrypt(ciphertext: \"{cold}\", recordId: \"cold\") {{ plaintext }} }}"
    )
}

async fn ask_graphql(address: SocketAddr, query: &str) -> reqwest::Response {
    let request = crate::support::http()
        .post(format!("http://{address}/graphql"))
        .header("x-byok-secret", SECRET)
        .header("x-hasura-role", "admin")
        .json(&json!({ "query": query }));
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graphql_answer_whose_last_field_is_late_is_one_error() {
    let deployment = Deployment::new().await;
    let (one, writer) = (deployment.replica().await, deployment.replica().await);
    let address = one.serve(None).await;
    let query = hot_then_cold(&one, &writer).await;
    // The KMS needs longer for the second field than the first may wait, and then fails.
    *one.kms.asleep.lock().unwrap() = Some((one.clock.clone(), PAST_THE_BOUND));
    *one.kms.on_unwrap.lock().unwrap() = Behaviour::Fail;
    let answer: Value = ask_graphql(address, &query).await.json().await.unwrap();
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["errors"][0]["extensions"]["code"], "KMS_UNAVAILABLE", "{answer}");
    assert_eq!(answer.get("data"), None, "{answer}");
    let page = crate::support::http()
        .get(format!("http://{address}/byok/audit?operation=decrypt"))
        .header("x-byok-secret", SECRET)
        .header("x-hasura-role", "admin");
    let page: Value = page.send().await.unwrap().json().await.unwrap();
    let entries = page["entries"].as_array().unwrap();
    let outcomes: Vec<_> = entries.iter().map(|entry| entry["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["KMS_UNAVAILABLE", "KMS_UNAVAILABLE", "OK"]);
    assert_eq!(entries[0]["voids"], entries[2]["id"], "the refusal names the entry of the first field");
    assert_eq!(entries[1]["voids"], Value::Null);
    assert_eq!(entries[0]["request_id"], entries[2]["request_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plaintext_beside_an_overlong_health_check_is_withheld() {
    let one = Deployment::new().await.replica().await;
    let address = one.serve(None).await;
    let token = one.encrypt("hot").await.unwrap();
    assert_eq!(one.decrypt(&token, "hot").await, Ok(()));
    // The health check generates a DEK and unwraps it.
    *one.kms.on_generate.lock().unwrap() = Behaviour::Dawdle(4_000);
    *one.kms.on_unwrap.lock().unwrap() = Behaviour::Refuse;
    let query = format!(
        "{{ byokReveal(ciphertext: \"{token}\", recordId: \"hot\") {{ value }} byokHealth {{ status }} }}"
    );
    let answer: Value = ask_graphql(address, &query).await.json().await.unwrap();
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["errors"][0]["extensions"]["code"], "KMS_ACCESS_DENIED", "{answer}");
    assert_eq!(answer.get("data"), None, "{answer}");
    let outcomes = one.outcomes(10).await;
    let reveals: Vec<_> = outcomes.iter().filter(|outcome| outcome.starts_with("Reveal")).collect();
    assert_eq!(reveals, ["Reveal Refused(KmsAccessDenied)", "Reveal Ok"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_entry_of_a_timed_out_answer_has_a_refusal() {
    let deployment = Deployment::new().await;
    let (one, writer) = (deployment.replica().await, deployment.replica().await);
    let address = one.serve_with(None, &[("BYOK_REQUEST_TIMEOUT_SECONDS", "1")]).await;
    let query = hot_then_cold(&one, &writer).await;
    *one.kms.on_unwrap.lock().unwrap() = Behaviour::Hang;
    let answer = ask_graphql(address, &query).await;
    assert_eq!(answer.status(), 503);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAVAILABLE", "{answer}");
    let both = ["Decrypt Refused(Unavailable)", "Decrypt Ok"];
    until("the first field is refused", async || one.outcomes(2).await == both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_first_byte_came_counts_as_given_despite_hangup() {
    let one = Deployment::new().await.replica().await;
    let address = one.serve(None).await;
    let token = encrypt(&one, address, None, "xxxxxxxx").await;
    let body = json!({ "ciphertext": token, "record_id": "r" }).to_string();
    let mut stream = connect(address).await;
    send(&mut stream, "/byok/decrypt", body.as_bytes()).await;
    let mut read = vec![0; 1];
    stream.read_exact(&mut read).await.unwrap();
    drop(stream);
    one.app.settled().await;
    assert_eq!(one.outcomes(1).await, ["Decrypt Ok"]);
}
