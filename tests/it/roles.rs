//! Every operation, tried by a caller without credentials, with the wrong role, and with headers
//! that anybody can send.

use std::collections::BTreeSet;

use byok::model::Operation;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{TestServer, answer};

/// The operation that a role must be granted to call each route and each GraphQL field.
const MATRIX: [(&str, Operation); 25] = [
    ("POST /byok/encrypt", Operation::Encrypt),
    ("POST /byok/encrypt/many", Operation::Encrypt),
    ("POST /byok/decrypt", Operation::Decrypt),
    ("POST /byok/decrypt/many", Operation::Decrypt),
    ("POST /byok/rotate", Operation::Rotate),
    ("GET /byok/rotate/{id}", Operation::Rotate),
    ("POST /byok/rotate/{id}/pause", Operation::Rotate),
    ("POST /byok/rotate/{id}/resume", Operation::Rotate),
    ("POST /byok/rotate/{id}/cancel", Operation::Rotate),
    ("GET /byok/audit", Operation::Audit),
    ("GET /byok/audit/checkpoint", Operation::Audit),
    ("GET /byok/audit/keys", Operation::Audit),
    ("byokEncrypt", Operation::Encrypt),
    ("byokEncryptMany", Operation::Encrypt),
    ("byokDecrypt", Operation::Decrypt),
    ("byokDecryptMany", Operation::Decrypt),
    ("byokRotate", Operation::Rotate),
    ("byokPauseRotation", Operation::Rotate),
    ("byokResumeRotation", Operation::Rotate),
    ("byokCancelRotation", Operation::Rotate),
    ("byokReveal", Operation::Reveal),
    ("byokRevealMany", Operation::Reveal),
    ("byokAudit", Operation::Audit),
    ("byokAuditCheckpoint", Operation::Audit),
    ("byokRotation", Operation::Rotate),
];

/// Health needs no credentials on either front, and no role needs a grant for it.
const OPEN: (&str, Operation) = ("byokHealth", Operation::Health);

/// The name of a call in the matrix.
fn name_of(method: &Method, path: &str, body: Option<&Value>) -> String {
    match body.and_then(|body| body["query"].as_str()) {
        Some(query) => {
            let mut words = query.split(|c: char| !c.is_alphanumeric());
            words.find(|word| word.starts_with("byok")).expect("a field of ours").to_owned()
        }
        None => format!("{method} {}", path.replace("00000000-0000-7000-8000-000000000000", "{id}")),
    }
}

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
        (Method::GET, "/byok/audit/checkpoint", None),
        (Method::GET, "/byok/audit/keys", None),
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
        (Method::POST, "/graphql", graphql("{ byokAuditCheckpoint { note } }")),
        (
            Method::POST,
            "/graphql",
            graphql(r#"{ byokRotation(id: "00000000-0000-7000-8000-000000000000") { id } }"#),
        ),
    ]
}

/// Whether an answer is only a refusal.
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

#[test]
fn the_matrix_has_every_operation_of_both_fronts() {
    let matrix: BTreeSet<String> = MATRIX.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(matrix.len(), MATRIX.len(), "each once");
    let calls = operations("byok:v1:");
    let called = calls.iter().map(|(method, path, body)| name_of(method, path, body.as_ref()));
    assert_eq!(called.collect::<BTreeSet<_>>(), matrix, "the calls");

    let document = byok::rest::document();
    let mut served = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["security"] == json!([{ "bearer": [] }]) {
                served.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let sdl = byok::graphql::sdl();
    for root in ["Query", "Mutation"] {
        let fields = sdl.split(&format!("\ntype {root} {{\n")).nth(1).unwrap().split("\n}\n").next().unwrap();
        for line in fields.lines().filter_map(|line| line.strip_prefix("  byok")) {
            let end = line.find(|c: char| !c.is_alphanumeric()).unwrap();
            served.insert(format!("byok{}", &line[..end]));
        }
    }
    assert!(served.remove(OPEN.0), "{} is served", OPEN.0);
    assert_eq!(served, matrix, "what the fronts serve");

    let guarded = MATRIX.iter().chain([&OPEN]).map(|(_, operation)| *operation);
    assert_eq!(guarded.collect::<BTreeSet<_>>(), BTreeSet::from(Operation::CALLED), "what can be granted");
}

#[tokio::test]
async fn a_role_that_was_granted_one_operation_may_do_that_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut rules = "roles:\n  admin: { all: true }\n".to_owned();
    for operation in Operation::CALLED.map(Operation::as_str) {
        rules.push_str(&format!("  only_{operation}: {{ {operation}: true }}\n"));
    }
    std::fs::write(file.path(), rules).unwrap();
    let server = TestServer::with(&[("BYOK_PERMISSIONS_FILE", file.path().to_str().unwrap())]).await;
    let token = server.encrypt("secret-plaintext", "r").await;
    for granted in Operation::CALLED {
        let jwt = server.jwt(&format!("only_{}", granted.as_str()), "u");
        for (method, path, body) in operations(&token) {
            let name = name_of(&method, path, body.as_ref());
            let needed = MATRIX.iter().find(|(of, _)| *of == name).unwrap().1;
            // A role without a grant for reveal uses the one for decrypt.
            let may = needed == granted || (needed, granted) == (Operation::Reveal, Operation::Decrypt);
            let answered = server.call(method, path, &jwt, body).await.body;
            // One of them reads the audit log, which contains the code too.
            let found = if path == "/graphql" { answered.to_string() } else { answered["code"].to_string() };
            let denied = found.contains("PERMISSION_DENIED");
            assert_eq!(denied, !may, "{granted:?} {name}: {answered}");
        }
    }
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
async fn a_permission_bound_to_a_session_variable_holds_for_its_record() {
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
