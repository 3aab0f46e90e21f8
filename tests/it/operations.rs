//! Operational concerns: TLS, traces, process limits, and documents generated from the code.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::needed;
use crate::support::pki::{Authority, client};
use crate::support::server::{TestServer, answer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::stub::{self, Stub};

#[tokio::test]
async fn inbound_tls_is_spoken_when_a_certificate_is_named() {
    let authority = Authority::new();
    let files = authority.server();
    let server = TestServer::with(&[
        ("BYOK_TLS_CERT_FILE", files.certificate.to_str().unwrap()),
        ("BYOK_TLS_KEY_FILE", files.key.to_str().unwrap()),
    ])
    .await;
    let https = server.base.replace("http://", "https://");
    let answered = answer(client(&authority.file(), None).get(format!("{https}/live"))).await;
    assert_eq!(answered.status, 200);
    assert!(
        server.client.get(format!("{}/live", server.base)).send().await.is_err(),
        "plain HTTP is not spoken"
    );
}

#[tokio::test]
async fn a_client_that_sends_nothing_holds_up_nobody() {
    let server = TestServer::start().await;
    let address = server.base.strip_prefix("http://").unwrap();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let answered = tokio::time::timeout(Duration::from_secs(5), server.get("/live")).await.unwrap();
    assert_eq!(answered.status, 200);
}

#[tokio::test]
async fn a_trace_that_a_caller_began_is_continued_to_the_collector() {
    let collector = Stub::start(|_, _| stub::answer(200, "{}")).await;
    let mut server = TestServer::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.address)]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = server
        .client
        .get(format!("{}/live", server.base))
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(answer(request).await.status, 200);
    assert_eq!(server.stop().await, Some(0), "what is left is sent at the stop");
    let seen = collector.seen();
    let bodies: Vec<Value> = seen
        .iter()
        .filter(|one| one.path == "/v1/traces")
        .filter_map(|one| serde_json::from_slice(&one.body).ok())
        .collect();
    assert!(json!(bodies).to_string().contains(trace), "{bodies:?}");
}

#[tokio::test]
async fn the_process_leaves_no_core_dump() {
    let server = TestServer::start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().nth(4), Some("0"), "{line}");
}

#[tokio::test]
async fn what_the_process_holds_is_locked_in_memory_where_permitted() {
    let server = TestServer::start().await;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", server.pid())).unwrap();
    let (status, limits) = (read("status"), read("limits"));
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    const IPC_LOCK: u64 = 1 << 14;
    let is_capable = u64::from_str_radix(&field("CapEff:"), 16).unwrap() & IPC_LOCK != 0;
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let is_permitted = is_capable || limit.split_whitespace().nth(3) == Some("unlimited");
    let (locked, resident): (u64, u64) = (field("VmLck:").parse().unwrap(), field("VmRSS:").parse().unwrap());
    assert_eq!(locked > 0, is_permitted, "{status}");
    // Memory is locked page by page on first use: the rest is only address space.
    assert!(resident < 256 << 10, "{resident} KiB");
}

#[tokio::test]
async fn a_stranger_cannot_make_the_server_read_a_large_body() {
    let server = TestServer::start().await;
    let large = vec![b'x'; 8 << 20];
    for path in ["/byok/encrypt", "/graphql"] {
        let request = server
            .client
            .post(format!("{}{path}", server.base))
            .header("content-type", "application/json")
            .body(large.clone());
        // The server may hang up before the whole body is sent, which counts as a refusal too.
        if let Ok(response) = request.send().await {
            let text = response.text().await.unwrap_or_default();
            assert!(text.contains("invalid-headers"), "{text}");
        }
    }
    assert_eq!(server.get("/live").await.status, 200);
}

/// On a busy machine a proof may expire before an answer leaves. Then the answer is withheld or
/// broken off, and the call is retried. Waiting for one of our own connections is never an outage
/// of the database.
#[tokio::test]
async fn a_thousand_parallel_calls_are_all_answered() {
    let server = TestServer::start().await;
    let call = async |n: usize| {
        let url = format!("{}/byok/encrypt", server.base);
        let body = json!({ "plaintext": n.to_string(), "record_id": format!("r-{}", n % 50) });
        for _ in 0..60 {
            let request = server.client.post(&url).bearer_auth(server.jwt("service", "u")).json(&body);
            if let Ok(response) = request.send().await {
                let status = response.status();
                if status == 200 {
                    return;
                }
                let refusal: Value = response.json().await.unwrap_or_default();
                let code = refusal["code"].as_str().unwrap_or_default();
                assert!(["KMS_UNAVAILABLE", "UNAVAILABLE", ""].contains(&code), "{refusal}");
                assert_eq!(status, 503, "{refusal}");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("call {n} is never answered: {}", server.logged());
    };
    futures_util::future::join_all((0..1_000).map(call)).await;
}

#[tokio::test]
async fn the_documents_are_the_codes_own() {
    let printed = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_byok")).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let kept =
        |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    assert_eq!(
        kept("docs/errors.md"),
        printed(&["schema", "--errors"]),
        "run `byok schema --errors > docs/errors.md`"
    );
    assert_eq!(kept("schema.graphql"), printed(&["schema"]), "run `byok schema > schema.graphql`");
}

#[tokio::test]
async fn a_serving_role_owning_nothing_suffices_and_health_shows_it() {
    let owner = create_database(&needed("DATABASE_URL")).await;
    let role = format!("serving_{}", uuid::Uuid::now_v7().simple());
    let database = sqlx::PgPool::connect(&owner).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE ROLE {role} LOGIN"))).execute(&database).await.unwrap();
    let serving = owner.replacen("postgres@", &format!("{role}@"), 1);
    assert_ne!(serving, owner);
    let server =
        TestServer::on(VaultKey::create().await, serving, &[("BYOK_MIGRATION_DATABASE_URL", &owner)]).await;
    let token = server.encrypt("p", "r").await;
    server.key.rotate().await;
    let job = server.post("/byok/rotate", json!({})).await;
    let path = job.headers["location"].to_str().unwrap().to_owned();
    while server.get(&path).await.body["state"] != "DONE" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "p");
    assert_eq!(server.get("/byok/audit").await.status, 200);
    assert_eq!(server.get("/byok/health").await.body["audit_protected"], true);
    let serving = sqlx::PgPool::connect(&server.database_url).await.unwrap();
    for forbidden in [
        "UPDATE np_byok_audit SET role = 'x'",
        "DELETE FROM np_byok_audit",
        "DROP TABLE np_byok_audit",
        "TRUNCATE np_byok_audit",
    ] {
        assert!(sqlx::query(forbidden).execute(&serving).await.is_err(), "{forbidden}");
    }
}

#[tokio::test]
async fn a_stranger_cannot_fill_the_metrics_with_methods_of_their_own() {
    let server = TestServer::start().await;
    for n in 0..20 {
        let method = reqwest::Method::from_bytes(format!("M{n}").as_bytes()).unwrap();
        let _ = server.client.request(method, format!("{}/byok/encrypt", server.base)).send().await;
    }
    let metrics = server.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(metrics.contains("method=\"other\"") && !metrics.contains("\"M7\""));
}

#[tokio::test]
async fn a_connection_that_never_says_what_it_wants_is_closed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = TestServer::start().await;
    let address = server.base.strip_prefix("http://").unwrap().to_owned();
    for sent in ["", "PRI * HT", "GET / HT"] {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "still open after {sent:?}");
    }
}

#[tokio::test]
async fn aborted_health_checks_do_not_call_the_kms_repeatedly() {
    let kms = Stub::start(|_, _| {
        std::thread::sleep(Duration::from_millis(50));
        stub::answer(503, r#"{"errors":["Vault is sealed"]}"#)
    })
    .await;
    let server = TestServer::with(&[("BYOK_VAULT_ADDR", &kms.address)]).await;
    for _ in 0..20 {
        let request =
            server.client.get(format!("{}/byok/health", server.base)).timeout(Duration::from_millis(10));
        let request = request.bearer_auth(server.jwt("admin", "a"));
        let _ = request.send().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(kms.seen().len() <= 4, "{} calls", kms.seen().len());
}

#[tokio::test]
async fn a_role_without_rights_neither_uses_budget_nor_floods_the_log() {
    let server = TestServer::with(&[("BYOK_DECRYPT_RATE_RPM", "5")]).await;
    let token = server.encrypt("p", "r").await;
    let nosy = server.jwt("user", "nosy");
    let aliases: String = (0..50).map(|n| format!("a{n}: byokAuditCheckpoint {{ size }} ")).collect();
    server.graphql(&nosy, &format!("{{ {aliases} }}"), json!({})).await;
    let entries: i64 = sqlx::query_scalar("SELECT count(*) FROM np_byok_audit WHERE user_id = 'nosy'")
        .fetch_one(&server.database().await)
        .await
        .unwrap();
    assert_eq!(entries, 5);
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
}

#[tokio::test]
async fn a_jwt_in_a_cookie_serves_no_foreign_pages_form() {
    let secret = json!({ "type": "HS256", "key": crate::support::server::JWT_SECRET, "header": { "type": "Cookie", "name": "jwt" } });
    let server = TestServer::with(&[("HASURA_GRAPHQL_JWT_SECRET", &secret.to_string())]).await;
    let cookie = format!("jwt={}", server.jwt("admin", "a"));
    let post = |kind: &'static str| {
        server
            .client
            .post(format!("{}/byok/encrypt", server.base))
            .header("cookie", &cookie)
            .header("content-type", kind)
            .body(r#"{"plaintext": "p", "record_id": "r"}"#)
    };
    assert_eq!(answer(post("text/plain")).await.status, 400);
    assert_eq!(answer(post("application/json")).await.status, 200);
}
