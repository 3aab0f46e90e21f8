//! Attacks by somebody who can write the database but does not hold `BYOK_ROW_MAC_KEY`: no edited
//! row of a DEK is used, and `byok audit verify` names it. And how rows get their MACs: when they
//! are made, by a job, and by `reseal`.

use std::time::{Duration, Instant};

use byok::crypto::{Binding, Context, Dek, RowMacKey, Token, open};
use byok::kms::{DekBinding, Kms as _, Purpose};
use byok::model::{DekId, TenantUid};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::azure::Azure;
use crate::support::postgres::execute;
use crate::support::sealed::Verdict;
use crate::support::server::{Answer, TestServer};

const SETTLE: &str = "BYOK_ROW_MAC_SETTLE_SECONDS";
const KEY: &str = "BYOK_ROW_MAC_KEY";
const PREVIOUS: &str = "BYOK_ROW_MAC_KEY_PREVIOUS";
/// No DEK is served from memory.
const COLD: (&str, &str) = ("BYOK_DEK_CACHE_SECONDS", "0");

fn secret() -> String {
    RowMacKey::generate().expose().to_owned()
}

/// A server that makes MACs of rows, and never concludes that all rows are sealed.
async fn bound() -> TestServer {
    TestServer::with(&[(KEY, &secret()), COLD]).await
}

async fn number(database: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {sql}")))
        .fetch_one(database)
        .await
        .unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn all_are_sealed(database: &PgPool) {
    until("all rows are sealed", async || {
        number(database, "np_byok_wrapped_deks WHERE mac IS NULL").await == 0
    })
    .await;
}

/// Waits until a server has logged that a row without a MAC is refused from now on.
async fn sealing_has_ended(database: &PgPool) {
    until("the log says so", async || number(database, "np_byok_audit WHERE operation = 'seal'").await > 0)
        .await;
}

async fn encrypt(server: &TestServer, record: &str) -> Answer {
    server.post("/byok/encrypt", json!({ "plaintext": "later", "record_id": record })).await
}

fn refused(answer: &Answer, code: &str) {
    assert_eq!(answer.body["code"], code, "{}", answer.body);
}

/// Changes rows as a superuser whom no trigger stops.
async fn edit(server: &TestServer, sql: &str) {
    execute(&server.database_url, &format!("SET session_replication_role = replica; {sql}")).await;
}

/// Runs `byok …` in the server's environment with more variables.
async fn byok(server: &TestServer, arguments: &[&str], more: &[(&str, &str)]) -> Verdict {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"));
    command.args(arguments).env_clear();
    command.envs(server.environment.iter().map(|(name, value)| (name, value))).envs(more.iter().copied());
    Verdict::of(&command.output().await.expect("byok runs"))
}

async fn verify(server: &TestServer) -> Verdict {
    byok(server, &["audit", "verify"], &[]).await
}

fn set(server: &mut TestServer, name: &str, value: Option<&str>) {
    server.environment.retain(|(known, _)| known != name);
    server.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn an_attackers_dek_under_azures_public_key_encrypts_nothing() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let mut environment: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    environment.push(COLD);
    let server = TestServer::with(&environment).await;
    for plant in [
        // The old row's MAC stays.
        "SET session_replication_role = replica; UPDATE np_byok_wrapped_deks SET wrapped = $1",
        // The MAC is removed.
        "SET session_replication_role = replica; UPDATE np_byok_wrapped_deks SET mac = NULL, wrapped = $1",
    ] {
        let record = format!("record-{}", uuid::Uuid::now_v7());
        let token = server.encrypt("before", &record).await;
        let database = server.database().await;
        let row = "SELECT id, tenant FROM np_byok_wrapped_deks WHERE record_id = $1";
        let (id, tenant): (uuid::Uuid, Vec<u8>) =
            sqlx::query_as(row).bind(&record).fetch_one(&database).await.unwrap();
        let own = Dek::generate();
        let (tenant, dek_id) = (TenantUid(tenant.try_into().unwrap()), DekId(id));
        // An attacker could wrap with the public key alone; here the stand-in does it.
        let binding = DekBinding { tenant, dek_id, purpose: Purpose::Record };
        let wrapped = azure.kms().wrap(&[(binding, &own)]).await.pop().unwrap().unwrap().value.bytes;
        let hex: String = wrapped.iter().map(|byte| format!("{byte:02x}")).collect();
        let plant = format!("{} WHERE record_id = '{record}'", plant.replace("$1", &format!("'\\x{hex}'")));
        execute(&server.database_url, &plant).await;

        let answer = encrypt(&server, &record).await;
        assert_ne!(answer.status, 200, "{}", opened_by(&own, tenant, dek_id, &record, &answer.body));
        until("the row is refused", async || {
            encrypt(&server, &record).await.body["code"] == "DECRYPT_FAILED"
        })
        .await;
        refused(&server.decrypt(&token, &record).await, "DECRYPT_FAILED");
        let verdict = verify(&server).await;
        verdict.finds("dek-wrapped", &id.to_string());
        assert_eq!(
            number(&database, &format!("np_byok_wrapped_deks WHERE record_id = '{record}'")).await,
            1,
            "there is no other DEK in its place"
        );
    }
    let incidents = "np_byok_incidents WHERE class IN ('RowAltered', 'RowUnsealed')";
    let database = server.database().await;
    until("an incident is written", async || number(&database, incidents).await >= 1).await;
    until("and its entry", async || {
        number(&database, "np_byok_audit WHERE operation = 'incident'").await >= 1
    })
    .await;
}

#[tokio::test]
async fn a_dek_read_from_a_planted_row_encrypts_nothing_once_restored() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let environment: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let server = TestServer::with(&environment).await;
    let replica = server.replica().await;
    let token = server.encrypt("before", "record-1").await;
    let database = server.database().await;
    let row = "SELECT id, tenant, wrapped, mac FROM np_byok_wrapped_deks WHERE record_id = 'record-1'";
    let (id, tenant, wrapped, mac): (uuid::Uuid, Vec<u8>, Vec<u8>, Vec<u8>) =
        sqlx::query_as(row).fetch_one(&database).await.unwrap();
    let binding = DekBinding {
        tenant: TenantUid(tenant.try_into().unwrap()),
        dek_id: DekId(id),
        purpose: Purpose::Record,
    };
    let planted = azure.kms().wrap(&[(binding, &Dek::generate())]).await.pop().unwrap().unwrap().value.bytes;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let put = |wrapped: &[u8], mac: &str| {
        let row = format!("wrapped = '\\x{}', mac = {mac}", hex(wrapped));
        format!(
            "SET session_replication_role = replica; UPDATE np_byok_wrapped_deks SET {row} WHERE id = '{id}'"
        )
    };
    execute(&server.database_url, &put(&planted, "NULL")).await;
    refused(&replica.decrypt(&token, "record-1").await, "DECRYPT_FAILED");
    execute(&server.database_url, &put(&wrapped, &format!("'\\x{}'", hex(&mac)))).await;

    let answer = encrypt(&replica, "record-1").await;
    assert_eq!(answer.status, 200, "the row is as it was: {}", answer.body);
    let made = answer.body["ciphertext"].as_str().unwrap();
    let opened = server.decrypt(made, "record-1").await;
    assert_eq!(opened.status, 200, "it was encrypted under the planted DEK: {}", opened.body);
}

/// The plaintext that an attacker reads from a token made under their DEK.
fn opened_by(own: &Dek, tenant: TenantUid, id: DekId, record: &str, body: &Value) -> String {
    let context = Context::from_pairs([("record_id", record)]).expect("a context");
    let token = Token::parse(body["ciphertext"].as_str().unwrap_or_default()).expect("a token");
    let binding = Binding::new(&tenant.0, id.as_bytes(), &context.digest());
    let opened = open(own, &binding, &token);
    format!("it was encrypted for the attacker: {:?}", opened.map(|plain| plain.expose().to_vec()).ok())
}

#[tokio::test]
async fn under_azures_rsa_key_nothing_is_encrypted_without_the_secret() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let environment: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut server = TestServer::with(&environment).await;
    let token = server.encrypt("before", "record-1").await;
    server.stop().await;
    set(&mut server, KEY, None);
    server.start_again().await;
    for record in ["record-1", "record-2"] {
        let answer = encrypt(&server, record).await;
        refused(&answer, "ROW_MAC_KEY_REQUIRED");
        assert_eq!(answer.status, 503);
    }
    assert_eq!(server.decrypt(&token, "record-1").await.body["plaintext"], "before");
    let verdict = server.doctor().await;
    assert!(verdict.contains("FAIL  rows: under an RSA key anybody can wrap a DEK"), "{verdict}");

    // It is not re-wrapped either, since the log would then confirm it.
    edit(&server, "UPDATE np_byok_wrapped_deks SET mac = NULL, record_mac = NULL").await;
    azure.control(Method::POST, "keys/byok", json!({})).await;
    let started = server.post("/byok/rotate", json!({})).await;
    let job = format!("/byok/rotate/{}", started.body["id"].as_str().unwrap());
    until("it says why", async || server.get(&job).await.body["stalled"] == "ROW_MAC_KEY_REQUIRED").await;
    let database = server.database().await;
    assert_eq!(number(&database, "np_byok_wrapped_deks WHERE rewrapped_at IS NOT NULL").await, 0);
}

#[tokio::test]
async fn an_edit_that_keeps_the_key_version_is_refused_and_found() {
    let server = bound().await;
    let one = server.encrypt("one", "r-1").await;
    server.encrypt("two", "r-2").await;
    verify(&server).await.holds();
    edit(
        &server,
        "UPDATE np_byok_wrapped_deks d SET wrapped = o.wrapped FROM np_byok_wrapped_deks o
         WHERE d.record_id = 'r-1' AND o.record_id = 'r-2'",
    )
    .await;
    refused(&server.decrypt(&one, "r-1").await, "DECRYPT_FAILED");
    refused(&encrypt(&server, "r-1").await, "DECRYPT_FAILED");
    let verdict = verify(&server).await;
    verdict.finds("dek-mac", "DEK ");
    verdict.finds("dek-wrapped", "DEK ");
    let verdict = server.doctor().await;
    assert!(verdict.contains("FAIL  rows: 1 have wrong MACs"), "{verdict}");
    assert_eq!(encrypt(&server, "r-2").await.status, 200, "the other one is as it was");
}

#[tokio::test]
async fn a_row_moves_to_no_other_record_and_no_other_dek() {
    let server = bound().await;
    let tokens = [server.encrypt("one", "r-1").await, server.encrypt("two", "r-2").await];
    // The row of r-2 is deleted, and that of r-1 takes its record id.
    edit(
        &server,
        "DELETE FROM np_byok_wrapped_deks WHERE record_id = 'r-2';
         UPDATE np_byok_wrapped_deks SET record_id = 'r-2'",
    )
    .await;
    refused(&encrypt(&server, "r-2").await, "DECRYPT_FAILED");
    refused(&server.decrypt(&tokens[0], "r-1").await, "DECRYPT_FAILED");
    edit(&server, "UPDATE np_byok_wrapped_deks SET record_id = 'r-1'").await;
    assert_eq!(server.decrypt(&tokens[0], "r-1").await.body["plaintext"], "one");
    edit(&server, "UPDATE np_byok_wrapped_deks SET id = gen_random_uuid()").await;
    refused(&encrypt(&server, "r-1").await, "DECRYPT_FAILED");
}

#[tokio::test]
async fn a_missing_mac_is_noticed_once_all_rows_were_sealed() {
    let mut server = TestServer::with(&[(KEY, &secret()), COLD, (SETTLE, "0")]).await;
    let token = server.encrypt("one", "r-1").await;
    let database = server.database().await;
    sealing_has_ended(&database).await;
    verify(&server).await.holds();
    edit(&server, "UPDATE np_byok_wrapped_deks SET mac = NULL, record_mac = NULL").await;
    for _ in 0..2 {
        until("it is refused", async || server.decrypt(&token, "r-1").await.body["code"] == "DECRYPT_FAILED")
            .await;
        refused(&encrypt(&server, "r-1").await, "DECRYPT_FAILED");
        // A newly started server does not use it either, and the job does not seal it.
        server.kill().await;
        server.start_again().await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(number(&database, "np_byok_wrapped_deks WHERE mac IS NULL").await, 1);
    verify(&server).await.finds("dek-unsealed", "DEK ");
    let verdict = server.doctor().await;
    assert!(verdict.contains("warn  rows: 1 have no MAC"), "{verdict}");
}

#[tokio::test]
async fn earlier_rows_are_checked_against_the_log_and_sealed_despite_kills() {
    let mut server = TestServer::with(&[COLD]).await;
    let items: Vec<Value> =
        (0..2_500).map(|n| json!({ "plaintext": "p", "record_id": format!("r-{n:04}") })).collect();
    let made = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    let first = made.body["items"][0]["ciphertext"].as_str().unwrap().to_owned();
    let database = server.database().await;
    assert_eq!(number(&database, "np_byok_wrapped_deks WHERE mac IS NULL").await, 2_500);
    // A row that was edited before any MAC could show it.
    edit(&server, "UPDATE np_byok_wrapped_deks SET key_version = '7' WHERE record_id = 'r-0007'").await;

    server.stop().await;
    set(&mut server, KEY, Some(&secret()));
    set(&mut server, SETTLE, Some("0"));
    server.start_again().await;
    assert_eq!(server.decrypt(&first, "r-0000").await.body["plaintext"], "p", "a row from before is used");
    until("some are sealed", async || {
        number(&database, "np_byok_wrapped_deks WHERE mac IS NOT NULL").await > 0
    })
    .await;
    server.kill().await;
    let replica = server.replica().await;
    server.start_again().await;
    until("all but one are sealed", async || {
        number(&database, "np_byok_wrapped_deks WHERE mac IS NULL").await == 1
    })
    .await;
    sealing_has_ended(&database).await;
    assert_eq!(server.decrypt(&first, "r-0000").await.body["plaintext"], "p");
    refused(&encrypt(&replica, "r-0007").await, "DECRYPT_FAILED");
    verify(&server).await.finds("dek-key-version", "DEK ");
}

#[tokio::test]
async fn a_release_without_macs_may_write_until_all_rows_are_sealed() {
    // Without the secret this release writes the same rows as the previous one.
    let mut before = TestServer::with(&[COLD]).await;
    let database = before.database().await;
    let token = before.encrypt("one", "r-1").await;
    set(&mut before, KEY, Some(&secret()));
    set(&mut before, SETTLE, Some("5"));
    let mut after = before.replica().await;
    all_are_sealed(&database).await;
    let beside = before.encrypt("two", "r-2").await;
    assert_eq!(after.decrypt(&beside, "r-2").await.body["plaintext"], "two");
    all_are_sealed(&database).await;

    // It re-wraps the DEK, and leaves the old row's MAC.
    let wrapped: String = sqlx::query_scalar(
        "UPDATE np_byok_wrapped_deks SET wrapped = wrapped || '\\x00' WHERE record_id = 'r-2' RETURNING (mac IS NULL)::text",
    )
    .fetch_one(&database)
    .await
    .unwrap();
    assert_eq!(wrapped, "true", "a MAC of other bytes does not stay");
    sqlx::query("UPDATE np_byok_wrapped_deks SET wrapped = substring(wrapped FOR length(wrapped) - 1) WHERE record_id = 'r-2'")
        .execute(&database)
        .await
        .unwrap();
    assert_eq!(after.decrypt(&beside, "r-2").await.body["plaintext"], "two");
    sealing_has_ended(&database).await;
    assert_eq!(number(&database, "np_byok_wrapped_deks WHERE mac IS NULL").await, 0);
    // A DEK that it made now would be refused by every server with the secret.
    until("it makes no more DEKs", async || {
        encrypt(&before, "r-3").await.body["code"] == "ROW_MAC_KEY_REQUIRED"
    })
    .await;
    set(&mut before, KEY, None);
    let verdict = before.doctor().await;
    assert!(verdict.contains("FAIL  rows: all rows are sealed"), "{verdict}");
    assert_eq!(before.decrypt(&token, "r-1").await.body["plaintext"], "one");
    after.stop().await;
    after.start_again().await;
    assert_eq!(after.decrypt(&token, "r-1").await.body["plaintext"], "one");
    verify(&after).await.holds();
}

#[tokio::test]
async fn a_log_that_is_damaged_seals_no_row() {
    let mut server = TestServer::with(&[COLD]).await;
    let token = server.encrypt("one", "r-1").await;
    server.encrypt("two", "r-2").await;
    server.stop().await;
    // Removes the entry that made the first DEK, and so contradicts the edit.
    edit(
        &server,
        "UPDATE np_byok_wrapped_deks SET record_id = 'r-3' WHERE record_id = 'r-1';
         DELETE FROM np_byok_audit WHERE seq = 0",
    )
    .await;
    set(&mut server, KEY, Some(&secret()));
    set(&mut server, SETTLE, Some("0"));
    server.start_again().await;
    until("the server's log says why", async || server.logged().contains("no row is sealed by it")).await;
    let database = server.database().await;
    assert_eq!(number(&database, "np_byok_wrapped_deks WHERE mac IS NOT NULL").await, 0);
    assert_eq!(
        server.decrypt(&token, "r-1").await.body["plaintext"],
        "one",
        "existing values can still be read"
    );
    assert_eq!(number(&database, "np_byok_audit WHERE operation = 'seal'").await, 0);

    // But without the evidence against a row, nothing is encrypted under it, and it is not
    // re-wrapped.
    refused(&encrypt(&server, "r-2").await, "UNAVAILABLE");
    refused(&encrypt(&server, "r-3").await, "UNAVAILABLE");
    assert_eq!(encrypt(&server, "r-4").await.status, 200, "a new DEK's row is bound");
    server.key.rotate().await;
    server.post("/byok/rotate", json!({})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rewrapped = "np_byok_wrapped_deks WHERE rewrapped_at IS NOT NULL AND mac IS NULL";
    assert_eq!(number(&database, rewrapped).await, 0);
}

/// Removes the entries that say that all rows are sealed, and puts the DEK of r-2 into the row of
/// r-1, without a MAC.
async fn plant_without_a_mac(server: &TestServer) {
    edit(
        server,
        "DELETE FROM np_byok_audit WHERE operation = 'seal'; DELETE FROM np_byok_filters;
         UPDATE np_byok_wrapped_deks d SET wrapped = o.wrapped, mac = NULL, record_mac = NULL FROM np_byok_wrapped_deks o
         WHERE d.record_id = 'r-1' AND o.record_id = 'r-2'",
    )
    .await;
}

#[tokio::test]
async fn no_database_makes_a_server_forget_that_rows_were_sealed() {
    let server = TestServer::with(&[(KEY, &secret()), COLD, (SETTLE, "0")]).await;
    server.encrypt("one", "r-1").await;
    server.encrypt("two", "r-2").await;
    sealing_has_ended(&server.database().await).await;
    plant_without_a_mac(&server).await;
    until("it is refused", async || encrypt(&server, "r-1").await.body["code"] == "DECRYPT_FAILED").await;
    // The log is damaged for a moment, which clears what the server remembers of the database.
    let flip = "UPDATE np_byok_heads SET frontier = set_byte(frontier, 0, get_byte(frontier, 0) # 1)";
    edit(&server, flip).await;
    until("the damage is noticed", async || encrypt(&server, "r-2").await.status != 200).await;
    edit(&server, flip).await;
    until("it serves again", async || encrypt(&server, "r-2").await.status == 200).await;
    for _ in 0..3 {
        refused(&encrypt(&server, "r-1").await, "DECRYPT_FAILED");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn where_macs_are_required_a_row_without_one_is_refused() {
    let mut server = TestServer::with(&[(KEY, &secret()), COLD, (SETTLE, "0")]).await;
    let token = server.encrypt("one", "r-1").await;
    server.encrypt("two", "r-2").await;
    sealing_has_ended(&server.database().await).await;
    let verdict = server.doctor().await;
    assert!(
        verdict.contains("warn  rows: all are sealed") && verdict.contains("BYOK_ROW_MACS_REQUIRED"),
        "{verdict}"
    );
    server.stop().await;
    plant_without_a_mac(&server).await;
    set(&mut server, "BYOK_ROW_MACS_REQUIRED", Some("true"));
    server.start_again().await;
    refused(&encrypt(&server, "r-1").await, "DECRYPT_FAILED");
    refused(&server.decrypt(&token, "r-1").await, "DECRYPT_FAILED");
    assert_eq!(encrypt(&server, "r-2").await.status, 200);
    verify(&server).await.finds("dek-unsealed", "DEK ");
    let verdict = server.doctor().await;
    assert!(verdict.contains("FAIL  rows: 1 have no MAC, and are refused"), "{verdict}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sealed = "np_byok_audit WHERE operation = 'seal'";
    assert_eq!(number(&server.database().await, sealed).await, 0, "nothing false is logged");
}

#[tokio::test]
async fn a_record_that_is_erased_leaves_its_dek_bound() {
    let server = bound().await;
    let token = server.encrypt("one", "r-1").await;
    byok(&server, &["audit", "erase", "--record", "r-1"], &[]).await.holds();
    let database = server.database().await;
    let erased = "np_byok_wrapped_deks WHERE record_id IS NULL AND record_mac IS NULL AND mac IS NOT NULL";
    assert_eq!(number(&database, erased).await, 1);
    assert_eq!(server.decrypt(&token, "r-1").await.body["plaintext"], "one");
    verify(&server).await.holds();
    edit(&server, "UPDATE np_byok_wrapped_deks SET record_hmac = NULL, record_id = 'r-2'").await;
    refused(&encrypt(&server, "r-2").await, "DECRYPT_FAILED");
}

#[tokio::test]
async fn a_rotation_of_the_key_seals_what_it_re_wraps() {
    let server = bound().await;
    let token = server.encrypt("one", "r-1").await;
    server.key.rotate().await;
    byok(&server, &["rotate"], &[]).await.holds();
    let database = server.database().await;
    assert_eq!(
        number(&database, "np_byok_wrapped_deks WHERE key_version = '2' AND mac IS NOT NULL").await,
        1
    );
    assert_eq!(server.decrypt(&token, "r-1").await.body["plaintext"], "one");
    verify(&server).await.holds();
    edit(&server, "UPDATE np_byok_wrapped_deks SET record_id = 'r-2'").await;
    server.key.rotate().await;
    let verdict = byok(&server, &["rotate"], &[]).await;
    assert!(verdict.text.contains("1 failed"), "an edited row is not re-wrapped: {}", verdict.text);
}

#[tokio::test]
async fn the_secret_is_replaced_while_the_previous_one_counts() {
    let (old, new) = (secret(), secret());
    let mut server = TestServer::with(&[(KEY, &old), COLD]).await;
    let tokens = [server.encrypt("one", "r-1").await, server.encrypt("two", "r-2").await];
    let database = server.database().await;
    let macs = async || -> Vec<Vec<u8>> {
        let macs = "SELECT mac FROM np_byok_wrapped_deks WHERE record_id LIKE 'r-%' ORDER BY record_id";
        sqlx::query_scalar(macs).fetch_all(&database).await.unwrap()
    };
    let before = macs().await;
    server.stop().await;
    set(&mut server, KEY, Some(&new));
    set(&mut server, PREVIOUS, Some(&old));
    server.start_again().await;
    assert_eq!(server.decrypt(&tokens[0], "r-1").await.body["plaintext"], "one");
    until("the rows are moved", async || macs().await.iter().zip(&before).all(|(now, before)| now != before))
        .await;
    server.stop().await;
    set(&mut server, PREVIOUS, None);
    server.start_again().await;
    assert_eq!(server.decrypt(&tokens[1], "r-2").await.body["plaintext"], "two");
    assert_eq!(encrypt(&server, "r-1").await.status, 200);
    verify(&server).await.holds();
}

#[tokio::test]
async fn a_lost_secret_is_repaired_by_reseal_once_the_log_holds() {
    let mut server = bound().await;
    let token = server.encrypt("one", "r-1").await;
    server.encrypt("two", "r-2").await;
    server.stop().await;
    set(&mut server, KEY, Some(&secret()));
    server.start_again().await;
    refused(&server.decrypt(&token, "r-1").await, "DECRYPT_FAILED");
    verify(&server).await.finds("dek-mac", "DEK ");

    // Nothing is sealed while the log contradicts a row.
    edit(&server, "UPDATE np_byok_wrapped_deks SET key_version = '7' WHERE record_id = 'r-2'").await;
    byok(&server, &["audit", "reseal"], &[]).await.finds("dek-key-version", "DEK ");
    refused(&server.decrypt(&token, "r-1").await, "DECRYPT_FAILED");
    edit(&server, "UPDATE np_byok_wrapped_deks SET key_version = '1' WHERE record_id = 'r-2'").await;

    let verdict = byok(&server, &["audit", "reseal", "--by", "an operator"], &[]).await;
    verdict.holds();
    assert!(verdict.text.contains("2 rows sealed; 0 already had MACs"), "{}", verdict.text);
    assert_eq!(server.decrypt(&token, "r-1").await.body["plaintext"], "one");
    let entries = server.get("/byok/audit?operation=seal").await.body;
    assert_eq!(entries["entries"][0]["user"], "an operator", "{entries}");
    verify(&server).await.holds();
}
