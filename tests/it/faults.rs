//! What remains when something fails in the middle of work, and what callers see meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::private::Private;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;

/// Encrypts new records from several callers until it is stopped, and returns what was
/// acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(String, String)>>>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(server: &TestServer, name: &str) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let callers = (0..8)
            .map(|caller| {
                let (stop, acknowledged, client) =
                    (stop.clone(), acknowledged.clone(), server.client.clone());
                let (url, token) = (format!("{}/byok/encrypt", server.base), server.jwt("admin", "load"));
                let name = name.to_owned();
                tokio::spawn(async move {
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let record = format!("{name}-{caller}-{n}");
                        let body = json!({ "plaintext": record, "record_id": record });
                        let Ok(response) = client.post(&url).bearer_auth(&token).json(&body).send().await
                        else {
                            continue;
                        };
                        let status = response.status();
                        let body: Value = response.json().await.unwrap_or_default();
                        match body["ciphertext"].as_str() {
                            Some(ciphertext) if status == 200 => {
                                acknowledged.lock().unwrap().push((record, ciphertext.to_owned()));
                            }
                            _ => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    }
                })
            })
            .collect();
        Self { stop, acknowledged, callers }
    }

    async fn end(self) -> Vec<(String, String)> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.acknowledged.lock().unwrap().clone()
    }
}

/// Asserts that every acknowledged encrypt can be decrypted, and has its DEK row and its entry.
async fn nothing_acknowledged_is_lost(server: &TestServer, acknowledged: &[(String, String)]) {
    assert!(!acknowledged.is_empty(), "some calls were acknowledged");
    for chunk in acknowledged.chunks(500) {
        let items: Vec<Value> =
            chunk.iter().map(|(record, token)| json!({ "ciphertext": token, "record_id": record })).collect();
        let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
        for ((record, _), item) in chunk.iter().zip(answer.body["items"].as_array().unwrap()) {
            assert_eq!(item["plaintext"], *record, "{item}");
        }
    }
    let database = server.database().await;
    let recorded: Vec<String> = sqlx::query_scalar(
        "SELECT records->0->>0 FROM np_byok_audit WHERE operation = 'encrypt' AND outcome = 'OK'",
    )
    .fetch_all(&database)
    .await
    .unwrap();
    let recorded: BTreeSet<String> = recorded.into_iter().collect();
    for (record, _) in acknowledged {
        assert!(recorded.contains(record), "{record} has no entry");
    }
    the_log_has_no_gap(server).await;
}

/// Asserts that service resumes by itself, after probes have succeeded for the required time.
async fn comes_back(server: &TestServer, token: &str, record: &str, plaintext: &str) {
    let mut last = Value::Null;
    for _ in 0..100 {
        last = server.decrypt(token, record).await.body;
        if last["plaintext"] == plaintext {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("still refused: {last}");
}

async fn the_log_has_no_gap(server: &TestServer) {
    let database = server.database().await;
    let (count, last, size): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(max(seq), -1), (SELECT coalesce(sum(size), 0)::bigint FROM np_byok_heads) FROM np_byok_audit",
    )
    .fetch_one(&database)
    .await
    .unwrap();
    assert_eq!((count, count), (last + 1, size), "places run from 0 without a gap, up to the head");
}

#[tokio::test]
async fn kill_minus_nine_under_load_loses_nothing_that_was_acknowledged() {
    let mut server = TestServer::start().await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let load = Load::start(&server, &format!("kill-{round}"));
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.kill().await;
        acknowledged.extend(load.end().await);
        server.start_again().await;
    }
    nothing_acknowledged_is_lost(&server, &acknowledged).await;
}

#[tokio::test]
async fn a_database_that_stops_and_comes_back_under_load_loses_nothing() {
    let postgres = Private::postgres().await;
    let url = create_database(&postgres.variable("DATABASE_URL")).await;
    let server = TestServer::on(VaultKey::create().await, url, &[]).await;
    let token = server.encrypt("before", "before").await;
    let load = Load::start(&server, "outage");
    tokio::time::sleep(Duration::from_millis(500)).await;
    postgres.kill().await;
    let refused = server.decrypt(&token, "before").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("STORE_UNAVAILABLE")));
    assert_eq!(refused.body.get("plaintext"), None);
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.get("/live").await.status, 200);
    postgres.start_again().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let acknowledged = load.end().await;
    assert_eq!(
        server.decrypt(&token, "before").await.body["plaintext"],
        "before",
        "service resumes by itself"
    );
    nothing_acknowledged_is_lost(&server, &acknowledged).await;
}

#[tokio::test]
async fn a_sealed_vault_is_an_outage_a_revoked_token_a_refusal() {
    let vault = Private::vault().await;
    let key = vault.key().await;
    let database = create_database(&crate::support::needed("DATABASE_URL")).await;
    let server = TestServer::on(
        key.clone(),
        database,
        &[("BYOK_DEK_CACHE_SECONDS", "0"), ("BYOK_KMS_TIMEOUT_MS", "2000"), ("BYOK_KEY_RESUME_SECONDS", "1")],
    )
    .await;
    let token = server.encrypt("p", "r").await;

    vault.seal(&key).await;
    let refused = server.decrypt(&token, "r").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KMS_UNAVAILABLE")));
    vault.unseal(&key).await;
    // Nothing needs to be encrypted again.
    comes_back(&server, &token, "r", "p").await;

    key.refuse_below(1).await;
    key.rotate().await;
    key.refuse_below(2).await;
    let refused = server.decrypt(&token, "r").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (403, &json!("KMS_ACCESS_DENIED")));
    key.refuse_below(1).await;
    comes_back(&server, &token, "r", "p").await;

    let database = create_database(&crate::support::needed("DATABASE_URL")).await;
    let other = TestServer::on(vault.key().await, database, &[("BYOK_DEK_CACHE_SECONDS", "0")]).await;
    let of_other = other.encrypt("p", "r").await;
    key.revoke_token().await;
    let refused = server.decrypt(&token, "r").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (403, &json!("KMS_ACCESS_DENIED")));
    let refused = server.post("/byok/encrypt", json!({ "plaintext": "p", "record_id": "new" })).await;
    assert_eq!(refused.body["code"], "KMS_ACCESS_DENIED");

    vault.kill().await;
    let refused = other.decrypt(&of_other, "r").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KMS_UNAVAILABLE")));
    assert_eq!(other.get("/byok/health").await.status, 503);
    assert_ne!(server.decrypt(&token, "r").await.status, 200, "an outage does not soften a revocation");
    let schema =
        server.graphql(&server.jwt("admin", "a"), "{ __schema { queryType { name } } }", json!({})).await;
    assert_eq!(
        schema["data"]["__schema"]["queryType"]["name"], "Query",
        "introspection answers with the KMS down"
    );
    the_log_has_no_gap(&server).await;
}

#[tokio::test]
async fn a_missing_key_is_refused_and_never_created() {
    let server = TestServer::start().await;
    let token = server.encrypt("p", "r").await;
    server.key.delete().await;
    let fresh = server.replica().await;
    for answer in [
        fresh.decrypt(&token, "r").await,
        fresh.post("/byok/encrypt", json!({ "plaintext": "p", "record_id": "n" })).await,
    ] {
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (403, &json!("KMS_ACCESS_DENIED")));
    }
    let keys =
        server.key.admin(reqwest::Method::from_bytes(b"LIST").unwrap(), "transit/keys", json!({})).await;
    assert!(!keys["data"]["keys"].as_array().unwrap().contains(&json!(server.key.name)));
}

#[tokio::test]
async fn a_dek_row_that_is_missing_altered_or_swapped_opens_nothing() {
    let server = TestServer::with(&[("BYOK_DEK_CACHE_SECONDS", "0")]).await;
    let (one, two) = (server.encrypt("one", "r-1").await, server.encrypt("two", "r-2").await);
    let database = server.database().await;
    let opens = async |token: &str, record: &str| server.decrypt(token, record).await.body["code"].clone();

    let swap = "UPDATE np_byok_wrapped_deks d SET wrapped = o.wrapped FROM np_byok_wrapped_deks o WHERE d.record_id <> o.record_id";
    sqlx::query(swap).execute(&database).await.unwrap();
    assert_eq!(opens(&one, "r-1").await, "DECRYPT_FAILED", "another record's DEK does not open it");
    sqlx::query(swap).execute(&database).await.unwrap();
    assert_eq!(server.decrypt(&one, "r-1").await.body["plaintext"], "one");

    sqlx::query("UPDATE np_byok_wrapped_deks SET wrapped = overlay(wrapped placing 'AAAA'::bytea from 20)")
        .execute(&database)
        .await
        .unwrap();
    assert_eq!(opens(&one, "r-1").await, "DECRYPT_FAILED");
    sqlx::query("DELETE FROM np_byok_wrapped_deks").execute(&database).await.unwrap();
    assert_eq!(opens(&two, "r-2").await, "DECRYPT_FAILED");
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight() {
    let mut server = TestServer::start().await;
    let load = Load::start(&server, "stop");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.stop().await, Some(0));
    let acknowledged = load.end().await;
    server.start_again().await;
    nothing_acknowledged_is_lost(&server, &acknowledged).await;
}

#[tokio::test]
async fn a_hot_record_costs_no_kms_call() {
    let server = TestServer::start().await;
    let token = server.encrypt("p", "r").await;
    server.key.revoke_token().await;
    assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "p");
    let audit = server.get("/byok/audit?operation=decrypt").await;
    assert_eq!(audit.body["entries"][0]["items"][0]["source"], "cache");
}

#[tokio::test]
async fn two_busy_replicas_share_one_log_and_neither_starves() {
    let server = TestServer::start().await;
    let other = server.replica().await;
    let loads = [Load::start(&server, "one"), Load::start(&other, "two")];
    tokio::time::sleep(Duration::from_secs(3)).await;
    let [one, two] = loads;
    let (one, two) = (one.end().await, two.end().await);
    let (few, many) = (one.len().min(two.len()), one.len().max(two.len()));
    assert!(few * 5 > many, "one replica gets too few: {few} against {many}");
    nothing_acknowledged_is_lost(&server, &[one, two].concat()).await;
}

#[tokio::test]
async fn a_restored_database_is_noticed_before_a_token_is_given() {
    let server = TestServer::start().await;
    server.encrypt("before", "kept").await;
    let database = server.database().await;
    sqlx::raw_sql("CREATE TABLE backup AS SELECT * FROM np_byok_heads").execute(&database).await.unwrap();
    for n in 0..5 {
        server.encrypt("lost", &format!("lost-{n}")).await;
    }
    // The result of restoring an older backup under a running server; only the owner can disable
    // the triggers.
    let restore = "ALTER TABLE np_byok_audit DISABLE TRIGGER USER; DELETE FROM np_byok_audit WHERE seq >= 1; \
                   ALTER TABLE np_byok_audit ENABLE TRIGGER USER; \
                   UPDATE np_byok_heads h SET size = b.size, frontier = b.frontier FROM backup b; \
                   DELETE FROM np_byok_wrapped_deks WHERE record_id LIKE 'lost-%'";
    sqlx::raw_sql(restore).execute(&database).await.unwrap();
    let again = json!({ "plaintext": "again", "record_id": "lost-0" });
    let refused = server.post("/byok/encrypt", again.clone()).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("STORE_UNAVAILABLE")));
    let token = server.post("/byok/encrypt", again).await.body["ciphertext"].as_str().unwrap().to_owned();
    let fresh = server.replica().await;
    assert_eq!(fresh.decrypt(&token, "lost-0").await.body["plaintext"], "again");
}
