//! One caller that asks for much, reads slowly or sends slowly: its answer is bounded, and other
//! callers are not affected.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::offered::memory;
use crate::support::server::{TestServer, answer};

/// A character that JSON writes in six bytes.
const CONTROL: &str = "\u{1}";

fn address(server: &TestServer) -> std::net::SocketAddr {
    server.base.strip_prefix("http://").unwrap().parse().unwrap()
}

async fn held(server: &TestServer) -> u64 {
    let text = server.client.get(format!("{}/metrics", server.base)).send().await.unwrap();
    let text = text.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("byok_body_bytes_held "));
    line.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

/// A server with bodies of 4 MB, at most 16 MB of them at once, and answers of 8 MB; and a token
/// whose plaintext is 3 MB of JSON.
async fn server() -> (TestServer, String) {
    let server = TestServer::with(&[("BYOK_LOG", "info"), ("BYOK_MAX_BODY_BYTES", "4000000")]).await;
    let token = server.encrypt(&CONTROL.repeat(500_000), "r").await;
    (server, token)
}

fn items(token: &str, count: usize, record: &str) -> Value {
    json!(vec![json!({ "ciphertext": token, record: "r" }); count])
}

async fn last_entry(server: &TestServer) -> Value {
    server.get("/byok/audit?first=1").await.body["entries"][0].clone()
}

#[tokio::test]
async fn a_value_selected_repeatedly_is_refused_before_it_is_made() {
    let (server, token) = server().await;
    let service = server.jwt("service", "mallory");
    let before = memory(server.pid(), "VmRSS");
    let aliases = |field: &str| (0..31).map(|n| format!("a{n}:{field} ")).collect::<String>();
    let decrypt =
        format!("mutation($i:[ByokDecryptItem!]!){{byokDecryptMany(items:$i){{{}}}}}", aliases("plaintext"));
    let refused = server.graphql(&service, &decrypt, json!({ "i": items(&token, 2, "recordId") })).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "BODY_TOO_LARGE", "{}", refused["errors"]);
    let encrypt =
        format!("mutation($i:[ByokEncryptItem!]!){{byokEncryptMany(items:$i){{{}}}}}", aliases("ciphertext"));
    let plain = json!({ "i": [{ "plaintext": "x".repeat(900_000), "recordId": "r" }] });
    let refused = server.graphql(&service, &encrypt, plain).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "BODY_TOO_LARGE", "{}", refused["errors"]);
    let most = memory(server.pid(), "VmHWM");
    assert!(most < before + (96 << 10), "{before} KiB before, {most} at most");
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_and_recorded_so() {
    let (server, token) = server().await;
    let whole = server.post("/byok/decrypt/many", json!({ "items": items(&token, 2, "record_id") })).await;
    assert_eq!(
        (whole.status.as_u16(), &whole.body["items"][1]["plaintext"]),
        (200, &json!(CONTROL.repeat(500_000)))
    );
    let refused = server.post("/byok/decrypt/many", json!({ "items": items(&token, 4, "record_id") })).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (413, &json!("BODY_TOO_LARGE")));
    let entry = last_entry(&server).await;
    assert_eq!(entry["outcome"], "BODY_TOO_LARGE", "{entry}");
    assert!(entry["voids"].is_string(), "{entry}");
    let query = "mutation($i:[ByokDecryptItem!]!){byokDecryptMany(items:$i){plaintext}}";
    let variables = json!({ "i": items(&token, 4, "recordId") });
    let refused = server.graphql(&server.jwt("admin", "a"), query, variables).await;
    assert_eq!(refused["errors"][0]["extensions"]["code"], "BODY_TOO_LARGE", "{}", refused["errors"]);
    let entry = last_entry(&server).await;
    assert!(entry["voids"].is_string() && entry["outcome"] == "BODY_TOO_LARGE", "{entry}");
}

/// A connection with a request of this user's that reads nothing of the answer.
async fn slow_reader(server: &TestServer, user: &str, path: &str, body: &Value) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(address(server)).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: byok\r\ncontent-type: application/json\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        server.jwt("service", user),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_slow_reader_holds_half_of_the_rest_at_most() {
    let (server, token) = server().await;
    let body = json!({ "items": items(&token, 2, "record_id") });
    let _slow = slow_reader(&server, "mallory", "/byok/decrypt/many", &body).await;
    for _ in 0..600 {
        if held(&server).await >= 6_000_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = |user: &str| {
        let asked = server.client.post(format!("{}/byok/decrypt/many", server.base));
        answer(asked.bearer_auth(server.jwt("service", user)).json(&body))
    };
    let refused = asked("mallory").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("UNAVAILABLE")));
    let other = json!({ "items": items(&token, 1, "record_id") });
    for _ in 0..10 {
        let asked = server.client.post(format!("{}/byok/decrypt/many", server.base));
        let served = answer(asked.bearer_auth(server.jwt("service", "alice")).json(&other)).await;
        assert_eq!(served.status, 200, "another user is affected: {}", served.body);
    }
}

#[tokio::test]
async fn bodies_that_are_announced_and_never_come_keep_nobody_out() {
    let settings = [("BYOK_MAX_BODY_BYTES", "1000000"), ("BYOK_MAX_BYTES_IN_FLIGHT", "4000000")];
    let server = TestServer::with(&settings).await;
    let mut kept = Vec::new();
    let mut announce = async |role: &str| {
        let mut stream = TcpStream::connect(address(&server)).await.unwrap();
        let head = format!(
            "POST /graphql HTTP/1.1\r\nhost: byok\r\ncontent-type: application/json\r\nauthorization: Bearer {}\r\ncontent-length: 1000000\r\n\r\n",
            server.jwt(role, "mallory")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b' '; 100_000]).await;
        kept.push(stream);
    };
    for _ in 0..40 {
        announce("nobody").await;
        announce("service").await;
    }
    for _ in 0..20 {
        let asked = server.client.post(format!("{}/byok/encrypt", server.base));
        let body = json!({ "plaintext": "x".repeat(400_000), "record_id": "r" });
        let served = answer(asked.bearer_auth(server.jwt("service", "alice")).json(&body)).await;
        assert_eq!(served.status, 200, "{}", served.body);
    }
    assert!(held(&server).await <= 2_000_000);
}

#[tokio::test]
async fn a_long_body_of_a_role_without_rights_is_not_read() {
    let server = TestServer::start().await;
    let query = format!("{{byokReveal(ciphertext:\"{}\"){{value}}}}", "x".repeat(100_000));
    let denied = server.graphql(&server.jwt("nobody", "u"), &query, json!(null)).await;
    assert_eq!(denied["errors"][0]["extensions"]["code"], "PERMISSION_DENIED", "{denied}");
    let entry = last_entry(&server).await;
    assert_eq!((&entry["outcome"], &entry["role"]), (&json!("PERMISSION_DENIED"), &json!("nobody")));
}

#[tokio::test]
async fn what_the_audit_log_holds_is_answered_once() {
    let server = TestServer::start().await;
    let items: Vec<Value> =
        (0..2_000).map(|n| json!({ "plaintext": "", "record_id": format!("{n:0500}") })).collect();
    for _ in 0..2 {
        assert_eq!(server.post("/byok/encrypt/many", json!({ "items": items })).await.status, 200);
    }
    let admin = server.jwt("admin", "a");
    let page = |of: &str| format!("byokAudit(first:9){{edges{{node{{items{{{of}}}}}}}}}");
    let once = server.graphql(&admin, &format!("{{{}}}", page("recordId dekId")), json!(null)).await;
    assert_eq!(once["data"]["byokAudit"]["edges"][0]["node"]["items"].as_array().unwrap().len(), 2_000);
    let aliases: String = (0..31).map(|n| format!("a{n}:recordId ")).collect();
    for query in [
        format!("{{{}}}", page(&aliases)),
        format!("{{{}}}", (0..5).map(|n| format!("p{n}:{}", page("recordId"))).collect::<String>()),
    ] {
        let refused = server.graphql(&admin, &query, json!(null)).await;
        assert_eq!(refused["errors"][0]["extensions"]["code"], "QUERY_INVALID", "{}", refused["errors"]);
    }
}
