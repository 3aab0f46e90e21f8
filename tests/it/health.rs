//! Health: what it reports about the key, what it costs, and what `/ready`, `/live` and `/metrics`
//! report.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guarded::Deployment;
use crate::support::server::{TestServer, answer};
use crate::support::stub::{self, Stub};

const QUERY: &str = "{ byokHealth { status keyVersion error posture worstPosture lastSuccess lastSuccessSecondsAgo boundSeconds } }";

async fn by_graphql(server: &TestServer) -> Value {
    server.graphql(&server.jwt("user", "u"), QUERY, json!({})).await["data"]["byokHealth"].clone()
}

/// Asks until the answer is as expected.
async fn until(server: &TestServer, path: &str, right: impl Fn(StatusCode, &Value) -> bool) -> Value {
    for _ in 0..600 {
        let answered = server.get(path).await;
        if right(answered.status, &answered.body) {
            return answered.body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} never had the expected answer: {}", server.get(path).await.body)
}

#[tokio::test]
async fn both_fronts_give_the_keys_state_and_the_watchs_bound() {
    let server = TestServer::with(&[("BYOK_KEY_PROBE_TIMEOUT_MS", "1500")]).await;
    let fresh = server.get("/byok/health").await.body;
    assert_eq!((&fresh["status"], &fresh["posture"]), (&json!("OK"), &json!(null)), "nothing was used yet");
    assert_eq!(fresh["bound_seconds"], 2.5);
    assert!(fresh["last_success"].as_str().is_some_and(|at| at.ends_with('Z')), "{fresh}");
    server.encrypt("p", "r").await;
    let rest = server.get("/byok/health").await.body;
    assert_eq!((&rest["posture"], &rest["worst_posture"]), (&json!("active"), &json!("active")));
    assert!(
        rest["last_success_seconds_ago"].as_f64().is_some_and(|age| (0.0..30.0).contains(&age)),
        "{rest}"
    );
    let graphql = by_graphql(&server).await;
    assert_eq!(graphql["keyVersion"], format!("{}/1", server.key.name));
    assert_eq!((&graphql["posture"], &graphql["worstPosture"]), (&json!("ACTIVE"), &json!("ACTIVE")));
    assert_eq!((&graphql["boundSeconds"], &graphql["error"]), (&json!(2.5), &json!(null)));
    assert!(graphql["lastSuccess"].is_string() && graphql["lastSuccessSecondsAgo"].is_number(), "{graphql}");
}

#[tokio::test]
async fn a_passing_check_claims_nothing_while_dark_and_ready_still_passes() {
    let server = TestServer::with(&[("BYOK_KEY_RESUME_SECONDS", "600")]).await;
    let token = server.encrypt("p", "r").await;
    let policy = async |operations: &[&str]| {
        let rule = |operation: &&str| {
            format!("path \"transit/{operation}/{}\" {{ capabilities = [\"update\"] }}\n", server.key.name)
        };
        let body = json!({ "policy": operations.iter().map(rule).collect::<String>() });
        server.key.admin(Method::PUT, &format!("sys/policies/acl/{}", server.key.name), body).await;
    };
    assert_eq!(server.get("/byok/health").await.body["status"], "OK");
    policy(&["encrypt"]).await;
    until(&server, "/byok/audit?operation=incident", |_, body| body["entries"][0].is_object()).await;
    let revoked = server.get("/byok/health").await;
    assert_eq!((revoked.status.as_u16(), &revoked.body["status"]), (503, &json!("REVOKED")), "cached or not");
    // The key works again, but is used only after it has worked for ten minutes, and health says
    // so.
    policy(&["encrypt", "decrypt"]).await;
    let passes = until(&server, "/byok/health", |_, body| body["kms_latency_ms"].is_number()).await;
    assert_eq!((&passes["status"], &passes["error"]), (&json!("REVOKED"), &json!("KMS_ACCESS_DENIED")));
    assert_eq!(by_graphql(&server).await["posture"], "REVOKED");
    assert_eq!(server.decrypt(&token, "r").await.body["code"], "KMS_ACCESS_DENIED");
    assert_eq!(server.get("/ready").await.status, 200, "a revoked tenant does not make the server unready");
    assert_eq!(server.get("/live").await.status, 200);
}

#[tokio::test]
async fn another_version_than_the_current_one_shows_as_the_worst() {
    let server = TestServer::start().await;
    let token = server.encrypt("p", "r").await;
    server.key.rotate().await;
    server.key.refuse_below(2).await;
    let health = until(&server, "/byok/health", |_, body| body["worst_posture"] == "revoked").await;
    assert_eq!(server.decrypt(&token, "r").await.body["code"], "KMS_ACCESS_DENIED");
    let health = if health["key_version"] == format!("{}/2", server.key.name) {
        health
    } else {
        // The cached answer was that of the first version.
        until(&server, "/byok/health", |_, body| body["status"] == "OK").await
    };
    assert_eq!((&health["status"], &health["posture"]), (&json!("OK"), &json!(null)), "{health}");
    assert_eq!(health["key_version"], format!("{}/2", server.key.name));
}

#[tokio::test]
async fn many_who_ask_at_once_cost_one_pair_of_calls() {
    let kms = Stub::start(|_, _| {
        std::thread::sleep(Duration::from_millis(20));
        stub::answer(403, r#"{"errors":["permission denied"]}"#)
    })
    .await;
    let server = TestServer::with(&[("BYOK_VAULT_ADDR", &kms.address)]).await;
    let asked = (0..400).map(|n| {
        let client = &server.client;
        let request = match n % 2 {
            0 => client.get(format!("{}/byok/health", server.base)).bearer_auth(server.jwt("user", "u")),
            _ => client
                .post(format!("{}/graphql", server.base))
                .bearer_auth(server.jwt("user", "u"))
                .json(&json!({ "query": "{ a: byokHealth { status } b: byokHealth { status } }" })),
        };
        answer(request)
    });
    let began = Instant::now();
    let answers = futures_util::future::join_all(asked).await;
    let within = began.elapsed();
    assert!(answers.iter().all(|answer| [200, 503].contains(&answer.status.as_u16())));
    let most = 4 * (1 + within.as_secs() as usize / 5);
    assert!(kms.seen().len() <= most, "{} calls in {within:?}", kms.seen().len());
}

#[tokio::test]
async fn endless_health_requests_by_one_caller_cost_the_database_little() {
    let one = Deployment::new().await.replica().await;
    one.encrypt("r").await.unwrap();
    let caller = one.caller();
    let (before, began) = (one.store.reads.load(Ordering::SeqCst), Instant::now());
    for _ in 0..500 {
        one.app.health(&caller.runtime).await;
    }
    let (reads, within) = (one.store.reads.load(Ordering::SeqCst) - before, began.elapsed());
    // Health checks the database once a second, the prober reads proofs four times a second, and
    // nobody else reads here.
    assert!(reads <= 5 * (1 + within.as_secs() as usize), "{reads} reads in {within:?}");
}

#[tokio::test]
async fn a_stopping_server_is_not_ready_while_it_finishes_its_calls() {
    // A KMS that accepts connections and does not answer.
    let kms = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", kms.local_addr().unwrap());
    let mut server =
        TestServer::with(&[("BYOK_VAULT_ADDR", &address), ("BYOK_KMS_TIMEOUT_MS", "5000")]).await;
    assert_eq!(server.get("/ready").await.status, 200);
    let slow = server
        .client
        .post(format!("{}/byok/encrypt", server.base))
        .bearer_auth(server.jwt("admin", "a"))
        .json(&json!({ "plaintext": "p", "record_id": "r" }));
    let slow = tokio::spawn(answer(slow));
    let _silent = [kms.accept().await.unwrap(), kms.accept().await.unwrap()];
    let pid = rustix::process::Pid::from_raw(server.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // Like a kubelet, which opens a new connection for each request.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let ask = async |path: &str| answer(client.get(format!("{}{path}", server.base))).await.status;
    while ask("/ready").await != 503 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask("/live").await, 200);
    assert!(!slow.is_finished());
    let slow = slow.await.unwrap();
    assert_eq!(slow.body["code"], "KMS_UNAVAILABLE", "what was in flight is answered");
    assert_eq!(slow.headers["connection"], "close", "and no other request may follow it");
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn the_metrics_show_postures_probes_and_incidents() {
    let server = TestServer::start().await;
    server.encrypt("p", "r").await;
    let of = |name: &str, rest: &str| format!("{name}{{key_version=\"{}/1\"{rest}}}", server.key.name);
    let age = of("byok_key_proof_age_seconds", "");
    let active = of("byok_key_posture", ",posture=\"active\"") + " 1";
    let text = until(&server, "/metrics", |_, body| {
        let text = body.as_str().unwrap_or_default();
        text.contains(&active)
            && text.contains(&age)
            && !text.contains("byok_probes_total{outcome=\"works\"} 0")
    })
    .await;
    assert!(text.as_str().unwrap().contains("byok_incidents_total{posture=\"revoked\"} 0"), "{text}");
    server.key.revoke_token().await;
    let revoked = of("byok_key_posture", ",posture=\"revoked\"") + " 1";
    until(&server, "/metrics", |_, body| {
        let text = body.as_str().unwrap_or_default();
        text.contains(&revoked) && text.contains("byok_incidents_total{posture=\"revoked\"} 1")
    })
    .await;
    let health = until(&server, "/byok/health", |status, _| status == 503).await;
    assert_eq!((&health["status"], &health["error"]), (&json!("REVOKED"), &json!("KMS_ACCESS_DENIED")));
    assert_eq!((&health["posture"], &health["worst_posture"]), (&json!("revoked"), &json!("revoked")));
    assert_eq!(server.get("/ready").await.status, 200, "a revoked tenant does not make the server unready");
}

/// The answer to a caller without credentials: status and body.
async fn of_stranger(server: &TestServer, path: &str) -> (u16, Value) {
    let answered = answer(server.client.get(format!("{}{path}", server.base))).await;
    (answered.status.as_u16(), answered.body)
}

#[tokio::test]
async fn a_stranger_gets_what_is_known_without_a_call_to_kms() {
    let kms = Stub::start(|_, _| stub::answer(403, r#"{"errors":["permission denied"]}"#)).await;
    let server = TestServer::with(&[("BYOK_VAULT_ADDR", &kms.address)]).await;
    let query = json!({ "query": "{ byokHealth { status kmsLatencyMs } }" });
    let by_graphql = async || {
        let request = server.client.post(format!("{}/graphql", server.base)).json(&query);
        answer(request).await.body["data"]["byokHealth"].clone()
    };
    for _ in 0..20 {
        let (status, health) = of_stranger(&server, "/byok/health").await;
        assert_eq!((status, &health["status"], &health["database"]), (200, &json!("OK"), &json!("OK")));
        assert_eq!((&health["kms_latency_ms"], &health["last_success"]), (&json!(null), &json!(null)));
        assert_eq!(by_graphql().await, json!({ "status": "OK", "kmsLatencyMs": null }));
    }
    assert_eq!(kms.seen().len(), 0, "nothing is known, and nobody is asked");
    assert_eq!(server.get("/byok/health").await.status, 503);
    let (seen, since) = (kms.seen().len(), std::time::Instant::now());
    assert!(seen > 0, "a caller's request triggers an attempt");
    while since.elapsed() < Duration::from_secs(6) {
        let (status, health) = of_stranger(&server, "/byok/health").await;
        assert_eq!(
            (status, &health["error"]),
            (503, &json!("KMS_ACCESS_DENIED")),
            "the version is known now: {health}"
        );
        assert_eq!(by_graphql().await["status"], "REVOKED");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(kms.seen().len(), seen, "not even when that is too old for a caller");
}

#[tokio::test]
async fn while_the_key_is_off_only_its_own_health_says_so() {
    let server = TestServer::start().await;
    server.encrypt("p", "r").await;
    server.key.revoke_token().await;
    let refused = |status: StatusCode, _: &Value| status == 503;
    assert_eq!(until(&server, "/byok/health", refused).await["status"], "REVOKED");
    for path in ["/health", "/healthz"] {
        let (status, health) = of_stranger(&server, path).await;
        let migrations = &health["migrations"];
        assert_eq!((status, &health["status"]), (200, &json!("OK")), "{path}: {health}");
        assert!(migrations["applied"].as_u64().is_some_and(|applied| applied > 0), "{health}");
        assert_eq!(migrations["applied"], migrations["expected"]);
    }
    assert_eq!(of_stranger(&server, "/byok/health").await.0, 503);
    assert_eq!((of_stranger(&server, "/ready").await.0, of_stranger(&server, "/live").await.0), (200, 200));
}

/// Runs `byok health` with these arguments, in the environment of a server that listens there.
async fn byok_health(arguments: &[&str], listen: &str) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"));
    command.arg("health").args(arguments).env_clear().env("BYOK_LISTEN", listen);
    let output = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_command_line_asks_a_running_server() {
    let mut server = TestServer::start().await;
    let port = server.base.rsplit_once(':').unwrap().1.to_owned();
    // In a container, the server listens on all addresses.
    let everywhere = format!("0.0.0.0:{port}");
    let (code, report, _) = byok_health(&[], &everywhere).await;
    assert!(
        code == Some(0) && report.starts_with("OK, ") && report.ends_with(" migrations applied"),
        "{report}"
    );
    let (code, report, _) = byok_health(&["--json", "--url", &server.base], "not an address").await;
    let answer: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &answer["status"]), (Some(0), &json!("OK")), "the URL goes before BYOK_LISTEN");
    assert_eq!(byok_health(&[], "not an address").await.0, Some(3));

    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, server.jwt("admin", "a")).unwrap();
    let asking = ["--key", "--token-file", token_file.to_str().unwrap()];
    let (code, report, _) = byok_health(&asking, &everywhere).await;
    assert!(code == Some(0) && report.contains(&format!("key version {}/1", server.key.name)), "{report}");
    server.encrypt("p", "r").await;
    server.key.revoke_token().await;
    until(&server, "/byok/health", |status, _| status == 503).await;
    let (code, report, complained) = byok_health(&["--key"], &everywhere).await;
    assert!((code, report.as_str()) == (Some(1), "") && complained.contains("REVOKED"), "{complained}");
    let (code, report, _) = byok_health(&["--key", "--json"], &everywhere).await;
    assert!(code == Some(1) && report.contains("KMS_ACCESS_DENIED"), "{report}");
    assert_eq!(byok_health(&[], &everywhere).await.0, Some(0), "the server itself is well");

    assert_eq!(server.stop().await, Some(0));
    let (code, _, complained) = byok_health(&[], &everywhere).await;
    assert!(code == Some(1) && complained.contains("does not answer"), "{complained}");
}
