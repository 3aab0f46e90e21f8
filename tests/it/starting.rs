//! A server that starts while its database is down: it answers from the first second, and serves
//! once the database is up.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::support::postgres::{LEVEL, Server, as_user, empty};
use crate::support::server::{TestServer, answer};
use crate::support::shared_vault::VaultKey;

#[tokio::test(flavor = "multi_thread")]
async fn with_the_database_down_it_says_so_and_serves_once_up() {
    let mut database = Server::start();
    database.kill();
    let server = TestServer::starting(VaultKey::create().await, database.url.clone(), &[]).await;
    for path in ["/live", "/livez", "/version", "/capabilities", "/openapi.json", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let health = server.get("/health").await;
    assert_eq!(
        (health.status.as_u16(), &health.body["migrations"]),
        (200, &json!({ "applied": 0, "expected": LEVEL }))
    );
    for path in ["/ready", "/readyz"] {
        let ready = server.get(path).await;
        assert_eq!((ready.status.as_u16(), &ready.body["reason"]), (503, &json!("STARTING")), "{path}");
    }
    let key = answer(server.client.get(format!("{}/byok/health", server.base))).await;
    assert_eq!((key.status.as_u16(), &key.body["database"]), (503, &json!("UNAVAILABLE")));

    let introspection = json!({ "query": "{ __schema { queryType { name } } }" });
    let introspected = server.client.post(format!("{}/graphql", server.base)).json(&introspection);
    assert_eq!(answer(introspected).await.body["data"]["__schema"]["queryType"]["name"], "Query");
    let token = server.jwt("admin", "a");
    let fields = [
        "mutation { byokEncrypt(plaintext: \"p\", recordId: \"r\") { ciphertext } }",
        "{ byokAudit { edges { cursor } } }",
    ];
    for query in fields {
        let refused = server.graphql(&token, query, json!({})).await;
        assert_eq!(refused["errors"][0]["extensions"]["code"], "STORE_UNAVAILABLE", "{refused}");
    }
    let encrypt = json!({ "plaintext": "p", "context": { "record_id": "r" } });
    for (path, body) in [
        ("/byok/encrypt", encrypt.clone()),
        ("/byok/decrypt", json!({ "ciphertext": "byok:v1:AAAA", "context": {} })),
        ("/byok/rotate", json!({})),
    ] {
        let refused = server.post(path, body).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (503, &json!("STORE_UNAVAILABLE")),
            "{path}"
        );
        assert_eq!(refused.body["retryable"], true);
    }
    let stranger = server.call(Method::POST, "/byok/encrypt", "no.jwt.atall", Some(encrypt)).await;
    assert_ne!(
        stranger.body["code"], "STORE_UNAVAILABLE",
        "a bad credential is refused, whatever the database does"
    );

    database.start_again();
    for tries in 0.. {
        if server.get("/ready").await.status == 200 {
            break;
        }
        assert!(tries < 2_400, "it never serves: {}", server.logged());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let token = server.encrypt("p", "r").await;
    assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "p");
    let applied = &server.get("/health").await.body["migrations"];
    assert_eq!((&applied["applied"], &applied["expected"]), (&json!(LEVEL), &json!(LEVEL)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_without_its_database_stops_when_told() {
    let database = Server::start();
    database.kill();
    let mut server = TestServer::starting(VaultKey::create().await, database.url.clone(), &[]).await;
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_for_certain_ends_the_start_and_is_said() {
    let database = empty().await;
    let database_that_is_not = database.url.rsplit_once('/').unwrap().0.to_owned() + "/there_is_none";
    for (url, message) in [
        (as_user(&database.url, "nobody_of_that_name"), "no role of that name and password may log in"),
        (database_that_is_not, "there is no database of that name"),
    ] {
        let server = TestServer::starting(VaultKey::create().await, database.url.clone(), &[]).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
        command.arg("serve").env_clear().envs(server.environment.clone()).env("DATABASE_URL", &url);
        let output = command.output().await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.lines().any(|line| line.starts_with("byok: ") && line.contains(message)), "{error}");
    }
}
