//! Kept-alive connections: how long an idle one lives, how its end is announced, and that no number
//! of them stops the service.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::guarded::Deployment;
use crate::support::server::TestServer;

/// The start of an HTTP/2 connection (RFC 9113, section 3.4), and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET /live` on stream 1: HEADERS that end both the headers and the stream, with indexed fields
/// and a literal `:path` (RFC 7541).
const GET_LIVE: &[u8] = b"\0\0\x09\x01\x05\0\0\0\x01\x82\x86\x04\x05/live";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect(server.base.strip_prefix("http://").unwrap()).await.unwrap()
}

/// The type and payload of the next frame, if there is one.
async fn frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    let (kind, flags) = (head[3], head[4]);
    if kind == PING && flags == 0 {
        let acknowledged = [&[0, 0, 8, PING, 1, 0, 0, 0, 0], payload.as_slice()].concat();
        stream.write_all(&acknowledged).await.ok()?;
    }
    Some((kind, payload))
}

async fn get(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: byok\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = vec![0; 4_096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8(answer[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn an_http_2_client_is_told_how_much_it_may_send() {
    let one = Deployment::new().await.replica().await;
    let mut stream = TcpStream::connect(one.serve(None).await).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let (kind, settings) = frame(&mut stream).await.unwrap();
    assert_eq!(kind, SETTINGS);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    let settings: Vec<_> = settings.chunks(6).map(|one| (number(&one[..2]), number(&one[2..]))).collect();
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE (RFC 9113, section 6.5.2).
    for setting in [(3, 128), (4, 256 << 10), (6, 16 << 10)] {
        assert!(settings.contains(&setting), "{setting:?} of {settings:?}");
    }
    let window = loop {
        if let (WINDOW_UPDATE, more) = frame(&mut stream).await.unwrap() {
            break 65_535 + number(&more);
        }
    };
    assert_eq!(window, 512 << 10);
}

#[tokio::test]
async fn an_idle_http_2_connection_is_ended_with_goaway() {
    let server = TestServer::with(&[("BYOK_IDLE_SECONDS", "3")]).await;
    let mut stream = connect(&server).await;
    stream.write_all(&[PREFACE, GET_LIVE].concat()).await.unwrap();
    let began = Instant::now();
    let mut went_away = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some((kind, payload)) = frame(&mut stream).await {
            if kind == GOAWAY {
                went_away.push((began.elapsed(), payload[4..8].to_vec()));
            }
        }
    });
    ended.await.expect("it is closed");
    let (after, error) = went_away.first().expect("it is announced");
    assert!(*after >= Duration::from_secs(3), "{after:?}");
    assert_eq!(error, &[0; 4], "NO_ERROR: what was asked for has been answered");
}

#[tokio::test]
async fn an_idle_http_1_connection_still_serves_and_slow_heads_end() {
    let server = TestServer::start().await;
    let mut kept = connect(&server).await;
    let answer = get(&mut kept, "/live").await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close"), "{answer}");
    let mut slow = connect(&server).await;
    assert!(get(&mut slow, "/live").await.starts_with("HTTP/1.1 200"));

    let began = Instant::now();
    let closed = async {
        // An occasional byte does not keep the connection open.
        let (mut reading, mut writing) = slow.split();
        let drip = async {
            loop {
                if writing.write_all(b"G").await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let mut rest = Vec::new();
        tokio::select! {
            () = drip => {}
            _ = reading.read_to_end(&mut rest) => {}
        }
        assert_eq!(rest, b"");
        assert!((8..25).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    };
    let idle = tokio::time::sleep(Duration::from_secs(30));
    tokio::join!(closed, idle);
    assert!(get(&mut kept, "/live").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_idle_http_1_connection_is_closed_and_not_reset() {
    let server = TestServer::with(&[("BYOK_IDLE_SECONDS", "2")]).await;
    let mut stream = connect(&server).await;
    assert!(get(&mut stream, "/live").await.starts_with("HTTP/1.1 200"));
    let began = Instant::now();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut [0; 16])).await;
    assert_eq!(read.expect("it is closed").unwrap(), 0);
    assert!(began.elapsed() >= Duration::from_millis(1_900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn idle_connections_end_no_service_where_few_files_may_be_open() {
    let server = TestServer::with_files(512).await;
    let token = server.encrypt("p", "r").await;
    let mut idle = Vec::new();
    for _ in 0..1_100 {
        let mut stream = connect(&server).await;
        // Connections beyond the limit are closed at once.
        let _ = stream.write_all(&[PREFACE, GET_LIVE].concat()).await;
        idle.push(stream);
    }
    let known = server.decrypt(&token, "r").await;
    assert_eq!(known.body["plaintext"], "p", "existing connections continue: {}", known.body);
    // A later caller, which opens a new connection for each call.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let began = Instant::now();
    let mut served = 0;
    while served < 20 {
        let request = client
            .post(format!("{}/byok/encrypt", server.base))
            .bearer_auth(server.jwt("admin", "a"))
            .json(&json!({ "plaintext": "p", "record_id": format!("r-{served}") }));
        match request.send().await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                served += 1;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{served} were served");
    }
    assert_eq!(server.get("/ready").await.status, 200);
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    assert!(open < 512 - 64, "{open} files are open");
    drop(idle);
}

#[tokio::test]
async fn a_strangers_dripping_body_ends_soon_with_many_connections() {
    let server = TestServer::with_files(512).await;
    let request = format!(
        "POST /byok/decrypt HTTP/1.1\r\nhost: byok\r\nauthorization: Bearer {}\r\ncontent-length: 2\r\n\r\n{{}}",
        server.jwt("admin", "a")
    );
    // Callers with credentials take more than three quarters of the connections.
    let mut known = Vec::new();
    for _ in 0..310 {
        let mut stream = connect(&server).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_ne!(stream.read(&mut [0; 4_096]).await.unwrap(), 0);
        known.push(stream);
    }
    // One request waits for its body; the other is refused after its headers, and the server still
    // reads its body.
    for path in ["/graphql", "/byok/encrypt"] {
        let mut stream = connect(&server).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: byok\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let began = Instant::now();
        let (mut reading, mut writing) = stream.split();
        let drip = async {
            while writing.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            std::future::pending::<()>().await;
        };
        let ended = async {
            let mut answer = [0; 4_096];
            while reading.read(&mut answer).await.is_ok_and(|length| length > 0) {}
        };
        tokio::select! {
            () = drip => {}
            () = ended => {}
        }
        // The request's time is 30 s.
        assert!(began.elapsed() < Duration::from_secs(25), "{path}: {:?}", began.elapsed());
    }
    let mut first = known.swap_remove(0);
    first.write_all(request.as_bytes()).await.unwrap();
    assert_ne!(first.read(&mut [0; 4_096]).await.unwrap(), 0, "a caller's connection stays open");
}
