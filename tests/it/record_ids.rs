//! Record ids longer than the audit log keeps. Nothing new is encrypted for them; what earlier
//! releases encrypted can be decrypted and is found in the log.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{dev, pasted};

/// Tokens of the database in `tests/vectors/long-record-ids`.
const TOKENS: [(&str, usize, &str); 2] = [
    (
        "r",
        513,
        "byok:v1:AaIr4jNocw-82_AJFEcLLHZNvqODDV6zG3rfJk4gt2jNYWwdcNqsWZOFvZloz6G7vtIY9g_w4Gfo-6-3kfhekO8kKCnZ_dTbDkkYSCVSKZa9SzMaIf-JLXaTNhCfu82LBuL9ICBPi48",
    ),
    (
        "s",
        2_000,
        "byok:v1:AaIr4jN6cu-QFhTB5yaqwxx96kppzGkwRhklwsIx6P95h9qbESZ7Ax_KhfmcSMS21mf0TMAJtD0bbwqdA4iZ-cjBv8vynEiMOdM98ZQpF4aUr1UTzopJBy0gIfonjWaRDi6eUPWieNs",
    ),
];

struct Server {
    _child: tokio::process::Child,
    base: String,
    token: String,
}

impl Server {
    async fn start(folder: &Path) -> Self {
        let (child, report) = dev(folder).await;
        let listen = report[0].split("http://").nth(1).unwrap().split('/').next().unwrap();
        let token = report.iter().find_map(|line| line.strip_prefix("ADMIN_TOKEN: ")).unwrap();
        Self { _child: child, base: format!("http://{listen}"), token: token.to_owned() }
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let (base, token) = (&self.base, &self.token);
        pasted(&format!("curl -X POST {base}{path} -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{body}'")).await
    }

    async fn audit(&self, query: &str) -> Vec<Value> {
        let (base, token) = (&self.base, &self.token);
        let page =
            pasted(&format!("curl '{base}/byok/audit?{query}' -H 'Authorization: Bearer {token}'")).await;
        page["entries"].as_array().unwrap_or_else(|| panic!("{page}")).clone()
    }
}

#[tokio::test]
async fn nothing_is_encrypted_for_a_record_id_above_512_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let longest = "ä".repeat(256);
    let too_long = format!("{longest}x");
    let encrypt = |record_id: &str| json!({ "plaintext": "p", "context": { "record_id": record_id } });
    let answer = server.post("/byok/encrypt", &encrypt(&longest)).await;
    assert!(answer["ciphertext"].is_string(), "{answer}");
    let answer = server.post("/byok/encrypt", &encrypt(&too_long)).await;
    assert_eq!(answer["code"], "CONTEXT_TOO_LARGE", "{answer}");
    let answer =
        server.post("/byok/encrypt/many", &json!({ "items": [encrypt("r"), encrypt(&too_long)] })).await;
    assert!(answer["items"][0]["ciphertext"].is_string(), "{answer}");
    assert_eq!(answer["items"][1]["error"]["code"], "CONTEXT_TOO_LARGE", "{answer}");
    let query = "mutation($r: ID!) { byokEncrypt(plaintext: \"p\", recordId: $r) { ciphertext } }";
    let answer = server.post("/graphql", &json!({ "query": query, "variables": { "r": too_long } })).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "CONTEXT_TOO_LARGE", "{answer}");
    // The refused id is in the log as its hash.
    let recorded = byok::audit::recorded_id(&too_long);
    assert_eq!(server.audit(&format!("record_id={recorded}")).await.len(), 3);
}

#[tokio::test]
async fn what_was_encrypted_for_a_longer_one_is_decrypted_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(".byok");
    std::fs::create_dir(&data).unwrap();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/long-record-ids");
    let key = data.join("local-key.json");
    std::fs::copy(vectors.join("local-key.json"), &key).unwrap();
    // In a checkout others can read the file, which byok refuses.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let dump = std::fs::read_to_string(vectors.join("byok.sql")).unwrap();
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("byok.db")).create_if_missing(true);
    let mut database = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(&mut database).await.unwrap();
    sqlx::Connection::close(database).await.unwrap();

    let server = Server::start(folder.path()).await;
    for (letter, length, token) in TOKENS {
        let record_id = letter.repeat(length);
        let body = json!({ "ciphertext": token, "context": { "record_id": record_id } });
        let answer = server.post("/byok/decrypt", &body).await;
        assert_eq!(answer["plaintext"], "sealed by an earlier release", "{answer}");
        // The release that made the tokens logged the full id, in an encrypt and a decrypt.
        let entries = server.audit(&format!("record_id={record_id}")).await;
        let recorded: Vec<&Value> = entries.iter().map(|entry| &entry["items"][0]["record_id"]).collect();
        let hash = byok::audit::recorded_id(&record_id);
        assert_eq!(recorded, [&json!(hash), &json!(record_id), &json!(record_id)]);
        assert_eq!(server.audit(&format!("record_id={hash}")).await.len(), 1);
    }
}
