//! Every operation tried as a stranger, as the wrong role, and with headers that anybody can send.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{TestServer, answer};

/// Every operation of both fronts that needs a caller: method, path, body.
fn operations(token: &str) -> Vec<(Method, &'static str, Option<Value>)> {
    let graphql = |query: &str| Some(json!({ "query": query, "variables": { "c": token } }));
    vec![
        (Method::POST, "/byok/encrypt", Some(json!({ "plaintext": "p", "record_id": "r" }))),
        (
            Method::POST,
            "/byok/encrypt/many",
            Some(json!({ "items": [{ "plaintext": "p", "record_id": "r" }] })),
        ),
        (Method::POST, "/byok/decrypt", Some(json!({ "ciphertext": token, "record_id": "r" }))),
        (
            Method::POST,
            "/byok/decrypt/many",
            Some(json!({ "items": [{ "ciphertext": token, "record_id": "r" }] })),
        ),
        (Method::POST, "/byok/rotate", Some(json!({}))),
        (Method::GET, "/byok/rotate/00000000-0000-7000-8000-000000000000", None),
        (Method::POST, "/byok/rotate/00000000-0000-7000-8000-000000000000/pause", None),
        (Method::POST, "/byok/rotate/00000000-0000-7000-8000-000000000000/resume", None),
        (Method::POST, "/byok/rotate/00000000-0000-7000-8000-000000000000/cancel", None),
        (Method::GET, "/byok/audit", None),
        (
            Method::POST,
            "/graphql",
            graphql(r#"mutation { byokEncrypt(plaintext: "p", recordId: "r") { ciphertext } }"#),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(
                r#"mutation { byokEncryptMany(items: [{plaintext: "p", recordId: "r"}]) { ciphertext error { code } } }"#,
            ),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(r#"mutation($c: String!) { byokDecrypt(ciphertext: $c, recordId: "r") { plaintext } }"#),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(
                r#"mutation($c: String!) { byokDecryptMany(items: [{ciphertext: $c, recordId: "r"}]) { plaintext error { code } } }"#,
            ),
        ),
        (Method::POST, "/graphql", graphql("mutation { byokRotate { id } }")),
        (
            Method::POST,
            "/graphql",
            graphql(r#"mutation { byokPauseRotation(id: "00000000-0000-7000-8000-000000000000") { id } }"#),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(r#"mutation { byokResumeRotation(id: "00000000-0000-7000-8000-000000000000") { id } }"#),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(r#"mutation { byokCancelRotation(id: "00000000-0000-7000-8000-000000000000") { id } }"#),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(
                r#"query($c: String!) { byokReveal(ciphertext: $c, recordId: "r") { value error { code } } }"#,
            ),
        ),
        (
            Method::POST,
            "/graphql",
            graphql(
                r#"query($c: String!) { byokRevealMany(items: [{ciphertext: $c, recordId: "r"}]) { value error { code } } }"#,
            ),
        ),
        (Method::POST, "/graphql", graphql("{ byokAudit { edges { node { id } } } }")),
        (
            Method::POST,
            "/graphql",
            graphql(r#"{ byokRotation(id: "00000000-0000-7000-8000-000000000000") { id } }"#),
        ),
    ]
}

/// Whether an answer gives nothing but a refusal.
fn refused(status: u16, body: &Value) -> bool {
    let text = body.to_string();
    let gives =
        text.contains("byok:v1:") || text.contains("secret-plaintext") || text.contains("\"entries\"");
    let data = body["data"].as_object().is_some_and(|data| {
        data.values().any(|value| match value {
            Value::Null => false,
            Value::Array(rows) => rows.iter().any(|row| row["error"].is_null()),
            row => row["error"].is_null(),
        })
    });
    !gives && !data && (status >= 400 || body.get("errors").is_some() || text.contains("PERMISSION_DENIED"))
}

#[tokio::test]
async fn every_operation_refuses_a_stranger() {
    let server = TestServer::with(&[("BYOK_HASURA_SECRET", "the-shared-secret-of-the-tests")]).await;
    let token = server.encrypt("secret-plaintext", "r").await;
    let forged = [
        vec![],
        vec![("x-hasura-role", "admin"), ("x-hasura-user-id", "1")],
        vec![("x-hasura-admin-secret", "x"), ("x-hasura-role", "admin")],
        vec![("x-byok-secret", "wrong"), ("x-hasura-role", "admin")],
        vec![("x-byok-secret", ""), ("x-hasura-role", "admin")],
        vec![("authorization", "Bearer x")],
        vec![("authorization", "Basic YWRtaW46YWRtaW4=")],
        vec![("cookie", "token=x")],
    ];
    for headers in forged {
        for (method, path, body) in operations(&token) {
            let mut request = server.client.request(method, format!("{}{path}", server.base));
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answered = answer(request).await;
            assert!(
                refused(answered.status.as_u16(), &answered.body),
                "{path} {body:?} {headers:?}: {}",
                answered.body
            );
        }
    }
}

#[tokio::test]
async fn a_role_that_was_granted_nothing_may_do_nothing() {
    let server = TestServer::start().await;
    let token = server.encrypt("secret-plaintext", "r").await;
    for role in ["user", "anonymous", "Admin", "support", "auditor"] {
        let jwt = server.jwt(role, "u");
        for (method, path, body) in operations(&token) {
            let answered = server.call(method, path, &jwt, body.clone()).await;
            assert!(
                refused(answered.status.as_u16(), &answered.body),
                "{role} {path} {body:?}: {}",
                answered.body
            );
        }
    }
}

#[tokio::test]
async fn the_role_service_may_encrypt_and_decrypt_and_nothing_else() {
    let server = TestServer::start().await;
    let token = server.encrypt("secret-plaintext", "r").await;
    let service = server.jwt("service", "s");
    for (method, path, body) in operations(&token) {
        let answered = server.call(method, path, &service, body.clone()).await;
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let granted = path.contains("crypt") || text.contains("crypt") || text.contains("byokReveal");
        assert_eq!(
            !refused(answered.status.as_u16(), &answered.body),
            granted,
            "{path} {text}: {}",
            answered.body
        );
    }
}

#[tokio::test]
async fn every_refusal_of_a_known_caller_leaves_an_entry() {
    let server = TestServer::start().await;
    let user = server.jwt("user", "nosy");
    let body = json!({ "plaintext": "p", "record_id": "r" });
    assert_eq!(server.call(Method::POST, "/byok/encrypt", &user, Some(body)).await.status, 403);
    let audit = server.get("/byok/audit?user=nosy").await.body;
    let entry = &audit["entries"][0];
    assert_eq!((&entry["outcome"], &entry["role"]), (&json!("PERMISSION_DENIED"), &json!("user")));
}

#[tokio::test]
async fn a_permission_that_is_bound_to_a_session_variable_holds_for_that_record_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rules = "roles:\n  admin: { all: true }\n  user:\n    encrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }\n    decrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }\n";
    std::fs::write(file.path(), rules).unwrap();
    let server = TestServer::with(&[("BYOK_PERMISSIONS_FILE", file.path().to_str().unwrap())]).await;
    let own = server.encrypt("own", "u-1").await;
    let foreign = server.encrypt("secret-plaintext", "u-2").await;
    let user = server.jwt("user", "u-1");
    let decrypt = async |token: &str, record: &str| {
        server
            .call(
                Method::POST,
                "/byok/decrypt",
                &user,
                Some(json!({ "ciphertext": token, "record_id": record })),
            )
            .await
    };
    assert_eq!(decrypt(&own, "u-1").await.body["plaintext"], "own");
    assert_eq!(decrypt(&foreign, "u-2").await.body["code"], "PERMISSION_DENIED");
    assert_eq!(decrypt(&foreign, "u-1").await.body["code"], "DECRYPT_FAILED");
    let reveal = "query($a: String!, $b: String!) { own: byokReveal(ciphertext: $a, recordId: \"u-1\") { value form } foreign: byokReveal(ciphertext: $b, recordId: \"u-2\") { value error { code } } }";
    let rows = server.graphql(&user, reveal, json!({ "a": own, "b": foreign })).await;
    assert_eq!(rows["data"]["own"]["value"], "own", "{rows}");
    assert_eq!(rows["data"]["foreign"], json!({ "value": null, "error": { "code": "PERMISSION_DENIED" } }));
}

#[tokio::test]
async fn hasuras_headers_count_beside_the_shared_secret() {
    let server = TestServer::with(&[("BYOK_HASURA_SECRET", "the-shared-secret-of-the-tests")]).await;
    let request = server
        .client
        .post(format!("{}/byok/encrypt", server.base))
        .header("X-Byok-Secret", "the-shared-secret-of-the-tests")
        .header("X-Hasura-Role", "service")
        .header("X-Hasura-User-Id", "from-hasura")
        .json(&json!({ "plaintext": "p", "record_id": "r" }));
    assert_eq!(answer(request).await.status, 200);
    let audit = server.get("/byok/audit?user=from-hasura").await.body;
    assert_eq!(audit["entries"][0]["authenticated_by"], "hasura_secret");
}

#[tokio::test]
async fn an_admin_token_authenticates_over_rest() {
    let server = TestServer::with(&[("BYOK_ADMIN_TOKEN", "an-admin-token-of-the-tests-0123456789")]).await;
    let body = json!({ "plaintext": "p", "record_id": "r" });
    let good = server
        .call(Method::POST, "/byok/encrypt", "an-admin-token-of-the-tests-0123456789", Some(body.clone()))
        .await;
    assert_eq!(good.status, 200, "{}", good.body);
    let bad = server
        .call(Method::POST, "/byok/encrypt", "an-admin-token-of-the-tests-0123456780", Some(body))
        .await;
    assert_eq!(bad.status, 401);
}
