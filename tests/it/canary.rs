//! No plaintext, key, credential or token is in any log, error or table. Canaries are sent through
//! every operation, well-formed and malformed, and then all logs, errors and tables are searched
//! for them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{TestServer, answer};

const CANARY: &str = "CANARY-plaintext-7f3a";

#[tokio::test]
async fn no_secret_is_in_any_log_error_or_table() {
    let server = TestServer::with(&[
        ("BYOK_LOG", "trace"),
        ("BYOK_HASURA_SECRET", "CANARY-shared-secret-0123456789abcd"),
    ])
    .await;
    let admin = server.jwt("admin", "a");
    let token = server.encrypt(CANARY, "r").await;
    let mut errors = String::new();
    let mut send = async |path: &str, body: Value| {
        let answered = server.call(Method::POST, path, &admin, Some(body)).await;
        if answered.status != 200 || answered.body.get("errors").is_some() {
            errors.push_str(&answered.body.to_string());
        }
    };
    let graphql = |query: String| json!({ "query": query });
    for body in [
        json!({ "plaintext": CANARY }),
        json!({ "plaintext": CANARY, "record_id": "r", "context": "x" }),
        json!({ "plaintext": CANARY, "record_id": "r", "encoding": "BASE64" }),
        json!({ "plaintext": CANARY, "record_id": "r", "more": CANARY }),
        json!({ "plaintext": [CANARY] }),
    ] {
        send("/byok/encrypt", body).await;
    }
    send(
        "/byok/encrypt/many",
        json!({ "items": [{ "plaintext": CANARY, "record_id": "r" }, { "plaintext": CANARY }] }),
    )
    .await;
    send("/byok/decrypt", json!({ "ciphertext": token, "record_id": "other" })).await;
    for query in [
        format!(r#"mutation {{ byokEncrypt(plaintext: "{CANARY}", recordId: "r") {{ ciphertext }} }}"#),
        format!(
            r#"mutation {{ byokEncrypt(plaintext: "{CANARY}", recordId: "r", encoding: BASE64) {{ ciphertext }} }}"#
        ),
        format!(r#"mutation {{ byokEncrypt(plaintext: "{CANARY}" {{ ciphertext }} }}"#),
        format!(r#"mutation {{ byokEncrypt(plaintext: "{CANARY}, recordId: "r") {{ ciphertext }} }}"#),
        format!(r#"mutation {{ byokEncrypt(plaintext: ["{CANARY}"], recordId: 7) {{ ciphertext }} }}"#),
        format!(r#"mutation {{ byokEncrypt(plaintext: {{a: "{CANARY}"}}) {{ nothing }} }}"#),
        format!(
            r#"mutation {{ byokEncrypt(plaintext: "{CANARY}", encoding: "{CANARY}") {{ ciphertext }} }}"#
        ),
        format!(
            r#"mutation {{ byokEncryptMany(items: [{{plaintext: "{CANARY}", recordId: "r"}}, {{plaintext: "{CANARY}"}}]) {{ ciphertext error {{ code }} }} }}"#
        ),
        format!(
            r#"mutation {{ byokEncryptMany(items: [{{plaintext: "{CANARY}", record: "r"}}]) {{ ciphertext }} }}"#
        ),
        format!(
            r#"query CANARY($x: String = "{CANARY}") {{ byokReveal(ciphertext: $x, recordId: "r") {{ value error {{ code }} }} }}"#
        ),
        CANARY.to_owned(),
        format!(r#"{{ {CANARY} }}"#),
    ] {
        send("/graphql", graphql(query)).await;
    }
    let variables = [
        json!({ "p": [CANARY] }),
        json!({ "p": { "a": CANARY } }),
        json!({ "p": 7, "q": CANARY }),
        json!([CANARY]),
    ];
    for variables in variables {
        let query = "mutation($p: String!) { byokEncrypt(plaintext: $p, recordId: \"r\") { ciphertext } }";
        send("/graphql", json!({ "query": query, "variables": variables })).await;
    }
    // Invalid credentials are secrets too.
    for credential in ["Bearer CANARY-token", "Bearer eyJhbGciOiJIUzI1NiJ9.Q0FOQVJZ.CANARY", "Basic CANARY"] {
        let request =
            server.client.post(format!("{}/byok/encrypt", server.base)).header("authorization", credential);
        errors.push_str(&answer(request.json(&json!({ "plaintext": CANARY }))).await.body.to_string());
    }

    assert!(!errors.contains("CANARY"), "an error contains a canary: {errors}");
    let logs = server.logged();
    assert!(logs.contains("answered"), "the server logs");
    let mut secrets = vec![
        "CANARY".to_owned(),
        STANDARD.encode(CANARY),
        token.clone(),
        admin.clone(),
        server.key.token.clone(),
    ];
    secrets.push(URL_SAFE_NO_PAD.encode(CANARY));
    for secret in &secrets {
        assert!(!logs.contains(secret.as_str()), "the log contains {secret}");
    }
    let dump = dump(&server.database().await).await;
    assert!(dump.contains("vault:v1:") || dump.len() > 1_000, "the dump contains the tables");
    for secret in &secrets {
        assert!(!dump.contains(secret.as_str()), "a table contains {secret}");
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!dump.contains(&hex), "a table contains {secret} in binary");
    }
}

/// All of our tables, as text.
pub(crate) async fn dump(database: &sqlx::PgPool) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'np_byok%'",
    )
    .fetch_all(database)
    .await
    .unwrap();
    assert!(tables.len() >= 4, "{tables:?}");
    let mut dump = String::new();
    for table in tables {
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT t::text FROM {table} t")))
                .fetch_all(database)
                .await
                .unwrap();
        dump.push_str(&rows.join("\n"));
    }
    dump
}
