//! Reconciliation of the log with the audit file of the real Vault, and with the log of the
//! stand-in for Azure: calls that entries explain, calls that probes explain, and unexplained
//! calls.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::azure::{Azure, SECRET};
use crate::support::needed;
use crate::support::provider::Switch;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;

/// An audit device of the shared Vault that writes to the test's file.
struct AuditDevice {
    folder: tempfile::TempDir,
    path: String,
}

impl AuditDevice {
    async fn enable(key: &VaultKey) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = format!("sys/audit/reconcile-{}", uuid::Uuid::now_v7().simple());
        let options = json!({ "file_path": folder.path().join("audit.log").to_str().expect("a path") });
        key.admin(Method::POST, &path, json!({ "type": "file", "options": options })).await;
        Self { folder, path }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    async fn disable(self, key: &VaultKey) {
        key.admin(Method::DELETE, &self.path, json!({})).await;
    }
}

async fn byok(server: &TestServer, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command.args(arguments).env_clear().envs(server.environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().await.expect("byok runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() != Some(0) {
        println!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
    (output.status.code(), printed)
}

/// No margin for the clocks, since both are this machine's.
async fn reconcile(server: &TestServer, file: &Path) -> (Option<i32>, Value) {
    let file = file.to_str().expect("a path");
    let (code, printed) = byok(server, &["audit", "reconcile", file, "--margin", "0", "--json"]).await;
    (code, serde_json::from_str(&printed).unwrap_or(Value::Null))
}

async fn many(server: &TestServer, records: &[&str]) -> Vec<Value> {
    let item = |record: &&str| json!({ "plaintext": "p", "context": { "record_id": record } });
    let items: Vec<Value> = records.iter().map(item).collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let sealed = answer.body["items"].as_array().expect("items").iter().zip(records);
    sealed
        .map(|(item, record)| json!({ "ciphertext": item["ciphertext"], "context": { "record_id": record } }))
        .collect()
}

async fn decrypt_many(server: &TestServer, items: &[Value]) {
    let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body["items"].as_array().expect("items").iter().all(|item| item["plaintext"] == "p"));
}

/// Runs every kind of call that uses the KMS, and calls that use none.
async fn work(server: &mut TestServer, rotated: impl Future<Output = ()>) {
    let token = server.encrypt("p", "record-1").await;
    assert_eq!(server.decrypt(&token, "record-1").await.status, 200);
    let items = many(server, &["record-2", "record-3", "record-1"]).await;
    decrypt_many(server, &items).await;
    assert_eq!(server.get("/byok/health").await.status, 200);

    server.kill().await;
    server.start_again().await;
    decrypt_many(server, &items).await;
    rotated.await;
    assert_eq!(byok(server, &["rotate"]).await.0, Some(0));
    assert_eq!(server.decrypt(&token, "record-1").await.status, 200);
    // Long enough for a few probes of each version.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.decrypt(&token, "record-1").await.status, 200);
}

/// A server that has handled all kinds of calls, and the audit device that saw them.
async fn worked() -> (TestServer, AuditDevice) {
    let key = VaultKey::create().await;
    let device = AuditDevice::enable(&key).await;
    let database = create_database(&needed("DATABASE_URL")).await;
    let mut server = TestServer::on(key.clone(), database, &[]).await;
    work(&mut server, key.rotate()).await;
    // The file ends after the last entry. Reading the key is audited, reading Vault's health is
    // not.
    server.key.admin(Method::GET, &format!("transit/keys/{}", server.key.name), json!({})).await;
    (server, device)
}

/// A wrapped DEK from the database.
async fn wrapped_dek(server: &TestServer) -> String {
    let database = server.database().await;
    let row = sqlx::query_scalar("SELECT convert_from(wrapped, 'UTF8') FROM np_byok_wrapped_deks LIMIT 1");
    row.fetch_one(&database).await.expect("a row")
}

#[tokio::test(flavor = "multi_thread")]
async fn all_our_calls_are_explained_and_all_others_are_named() {
    let (server, device) = worked().await;

    let (code, report) = reconcile(&server, &device.file()).await;
    assert_eq!((code, &report["explained"]), (Some(0), &json!(true)), "{report:#}");
    assert_eq!(report["format"], "Vault audit device");
    assert_eq!(report["keys"], json!([server.key.name]));
    let (provider, log) = (&report["provider"], &report["log"]);
    // Two calls that made DEKs, one that unwrapped three after the restart, one that re-wrapped
    // three, one unwrap after it.
    assert!(provider["matched"].as_u64() >= Some(5), "{report:#}");
    assert!(log["items_from_kms"].as_u64() >= Some(10), "{report:#}");
    assert!(log["cache_hits"].as_u64() >= Some(4), "{report:#}");
    assert!(provider["without_entry"]["unwrap"].as_u64() >= Some(2), "there were probes: {report:#}");
    assert!(provider["without_entry"]["wrap"].as_u64() >= Some(1), "there was a canary: {report:#}");
    assert_eq!((&log["missing"], &provider["unexplained"]), (&json!(0), &json!(0)));
    let principals = provider["principals"].as_array().unwrap();
    assert!(principals.iter().all(|principal| principal["own"] == true), "{report:#}");
    let shown =
        byok(&server, &["audit", "reconcile", device.file().to_str().unwrap(), "--margin", "0"]).await;
    assert_eq!(shown.0, Some(0));
    assert!(shown.1.contains("not in our log      0\n"), "{}", shown.1);

    // A reader of the log is in the log too.
    let database = server.database().await;
    let readers: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM np_byok_audit WHERE operation = 'audit' AND means = 'operator'",
    )
    .fetch_one(&database)
    .await
    .unwrap();
    assert_eq!(readers, 2);

    // Unwraps of a DEK by another token, and by somebody who has our token.
    let dek = json!({ "ciphertext": wrapped_dek(&server).await });
    let path = format!("transit/decrypt/{}", server.key.name);
    server.key.admin(Method::POST, &path, dek.clone()).await;
    let url = format!("{}/v1/{path}", server.key.address);
    let stolen = server.client.post(url).header("X-Vault-Token", &server.key.token).json(&dek);
    let stolen: Value = stolen.send().await.unwrap().json().await.unwrap();
    let stolen = stolen["request_id"].as_str().expect("Vault answers").to_owned();
    let (code, report) = reconcile(&server, &device.file()).await;
    assert_eq!((code, &report["explained"]), (Some(1), &json!(false)), "{report:#}");
    let named = report["provider"]["not_in_our_log"].as_array().unwrap();
    assert_eq!(named.len(), 2, "{report:#}");
    assert_eq!((&named[0]["why"], &named[0]["use"]), (&json!("stranger"), &json!("unwrap")));
    assert!(named[0]["principal"].as_str().unwrap().starts_with("token (token accessor "), "{report:#}");
    assert_eq!(
        (&named[1]["why"], &named[1]["kms_request_id"]),
        (&json!("record_without_entry"), &json!(stolen))
    );
    let shown =
        byok(&server, &["audit", "reconcile", device.file().to_str().unwrap(), "--margin", "0"]).await;
    assert!(shown.1.contains("not in our log      2\n"), "{}", shown.1);
    assert!(shown.1.contains(": someone else used the key\n"), "{}", shown.1);
    device.disable(&server.key).await;
}

/// Waits until the server's key has this posture.
async fn posture(server: &TestServer, posture: &str) {
    for _ in 0..600 {
        if server.get("/byok/health").await.body["worst_posture"] == posture {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the key never became {posture}: {}", server.get("/byok/health").await.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incident_and_a_recovery_leave_nothing_unexplained() {
    let key = VaultKey::create().await;
    let device = AuditDevice::enable(&key).await;
    let database = create_database(&needed("DATABASE_URL")).await;
    let server = TestServer::on(key.clone(), database, &[("BYOK_KEY_RESUME_SECONDS", "0")]).await;
    let token = server.encrypt("p", "record-1").await;
    let works = async || {
        posture(&server, "active").await;
        assert_eq!(server.decrypt(&token, "record-1").await.status, 200);
    };
    let refuses = async || {
        posture(&server, "revoked").await;
        assert_eq!(server.decrypt(&token, "record-1").await.status, 403);
    };
    works().await;
    for (switch, turns) in key.switches() {
        // To restore a deleted key its customer first backs it up, which is a use of the key that
        // is not ours.
        if switch == Switch::Deletion {
            continue;
        }
        (turns.off)().await;
        refuses().await;
        (turns.on)().await;
        works().await;
    }
    // The file ends after the last entry. Reading the key is audited, reading Vault's health is
    // not.
    server.key.admin(Method::GET, &format!("transit/keys/{}", server.key.name), json!({})).await;

    let (code, report) = reconcile(&server, &device.file()).await;
    assert_eq!(report["provider"]["unexplained"], 0, "{report:#}");
    assert_eq!((code, &report["explained"]), (Some(0), &json!(true)), "{report:#}");
    let provider = &report["provider"];
    assert!(provider["without_entry_refused"].as_u64() >= Some(3), "probes were refused: {report:#}");
    let principals = provider["principals"].as_array().unwrap();
    assert!(principals.iter().all(|principal| principal["own"] == true), "{report:#}");

    // Other users' attempts are still found: with a valid token, and with an invalid one.
    let dek = json!({ "ciphertext": wrapped_dek(&server).await });
    let path = format!("transit/decrypt/{}", server.key.name);
    server.key.admin(Method::POST, &path, dek.clone()).await;
    let url = format!("{}/v1/{path}", server.key.address);
    let refused =
        server.client.post(url).header("X-Vault-Token", "hvs.never").json(&dek).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let (code, report) = reconcile(&server, &device.file()).await;
    let named = report["provider"]["not_in_our_log"].as_array().unwrap();
    assert_eq!((code, named.len()), (Some(1), 2), "{report:#}");
    for (call, principal) in named.iter().zip(["token (token accessor ", "nobody known (token "]) {
        assert_eq!(call["why"], "stranger");
        assert!(call["principal"].as_str().unwrap().starts_with(principal), "{report:#}");
    }
    assert_eq!((&named[0]["refused"], &named[1]["refused"]), (&json!(false), &json!(true)));
    device.disable(&server.key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_missing_from_their_log_is_named_with_its_entry() {
    let (server, device) = worked().await;
    let log = server.get("/byok/audit").await.body;
    let entry = log["entries"].as_array().unwrap().iter().rfind(|entry| entry["operation"] == "encrypt");
    let entry = entry.expect("the first encrypt");
    let id = entry["items"][0]["kms_request_id"].as_str().expect("a request id").to_owned();
    let text = std::fs::read_to_string(device.file()).unwrap();
    let (without, gone): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.contains(&id));
    assert_eq!(gone.len(), 2, "a request and its answer");
    let shorter = device.folder.path().join("shorter.log");
    std::fs::write(&shorter, without.join("\n")).unwrap();
    let (code, report) = reconcile(&server, &shorter).await;
    assert_eq!(code, Some(1));
    let missing = report["log"]["not_in_theirs"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{report:#}");
    assert_eq!((&missing[0]["kms_request_id"], &missing[0]["place"]), (&json!(id), &json!(0)));
    assert_eq!((&missing[0]["entry"], &missing[0]["operation"]), (&entry["id"], &json!("encrypt")));

    // An export without calls of the named key cannot be compared.
    let file = device.file();
    let typo = ["audit", "reconcile", file.to_str().unwrap(), "--margin", "0", "--key", "typo"];
    let (code, printed) = byok(&server, &typo).await;
    assert!(code == Some(1) && printed.contains("calls of the keys   0"), "{printed}");

    // A line that cannot be read is reported with its number, and the rest is read.
    let torn = format!("{}\n{{\"type\":\n{}\n", without[0], text);
    std::fs::write(&shorter, torn).unwrap();
    let (code, report) = reconcile(&server, &shorter).await;
    assert_eq!(code, Some(1));
    assert_eq!(report["provider"]["unreadable_lines"], json!([2]), "{report:#}");
    assert_eq!((&report["log"]["missing"], &report["provider"]["unexplained"]), (&json!(0), &json!(0)));

    std::fs::write(&shorter, "no log at all\n").unwrap();
    assert_eq!(reconcile(&server, &shorter).await, (Some(1), Value::Null));
    device.disable(&server.key).await;
}

/// Reconciles our log with the vault's log so far, without the calls that have these ids. The
/// vault's log ends after the last entry.
async fn reconcile_azure(server: &TestServer, azure: &Azure, without: &[&str]) -> (Option<i32>, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("PT1H.json");
    azure.unauthenticated_read().await;
    let mut lines = azure.audit_log().await;
    lines.retain(|line| !without.iter().any(|id| line.contains(id)));
    std::fs::write(&file, lines.join("\n")).expect("the file is written");
    reconcile(server, &file).await
}

#[tokio::test(flavor = "multi_thread")]
async fn azures_log_is_joined_by_the_ids_that_we_sent() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut server = TestServer::with(&variables).await;
    let rotated = async { drop(azure.control(Method::POST, "keys/byok", json!({})).await) };
    work(&mut server, rotated).await;
    let log = server.get("/byok/audit").await.body;
    server.kill().await;

    let (code, report) = reconcile_azure(&server, &azure, &[]).await;
    assert_eq!((code, &report["explained"]), (Some(0), &json!(true)), "{report:#}");
    assert_eq!(report["format"], "Azure Key Vault diagnostic log");
    assert_eq!(report["keys"], json!(["byok"]));
    let (provider, ours) = (&report["provider"], &report["log"]);
    // Each item is one call: three that made DEKs (one record already has one), three unwraps after
    // the restart, three wraps of the rotation, one unwrap after it.
    assert!(provider["matched"].as_u64() >= Some(9), "{report:#}");
    assert!(ours["items_from_kms"].as_u64() >= Some(9), "{report:#}");
    assert!(ours["cache_hits"].as_u64() >= Some(4), "{report:#}");
    // The rotation's unwraps have no entries, and neither do those of probes.
    let unwraps = provider["without_entry"]["unwrap"].as_u64().expect("a number");
    assert!(unwraps >= 5, "{report:#}");
    assert!(provider["without_entry"]["wrap"].as_u64() >= Some(1), "there was a canary: {report:#}");
    assert!(provider["probes"].as_u64() >= Some(2), "each start asks for the challenge: {report:#}");
    assert_eq!((&ours["missing"], &provider["unexplained"]), (&json!(0), &json!(0)));
    let principals = provider["principals"].as_array().unwrap();
    let own: Vec<&Value> = principals.iter().filter(|principal| principal["own"] == true).collect();
    assert_eq!((own.len(), &own[0]["name"]), (1, &json!(azure.client_id)), "{report:#}");

    // A missing line is reported with its entry.
    let entries = log["entries"].as_array().unwrap();
    let entry = entries.iter().rfind(|entry| entry["operation"] == "encrypt").expect("the first encrypt");
    let id = entry["items"][0]["kms_request_id"].as_str().expect("a request id").to_owned();
    let (code, report) = reconcile_azure(&server, &azure, &[&id]).await;
    assert_eq!(code, Some(1));
    let missing = report["log"]["not_in_theirs"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{report:#}");
    assert_eq!((&missing[0]["kms_request_id"], &missing[0]["entry"]), (&json!(id), &entry["id"]));

    // Uses of our secret by others cannot be told from our probes: nothing in Azure's log differs.
    // They are counted.
    let database = server.database().await;
    let row = sqlx::query_as("SELECT wrapped, key_version FROM np_byok_wrapped_deks LIMIT 1");
    let (wrapped, version): (Vec<u8>, String) = row.fetch_one(&database).await.expect("a row");
    azure.unwrap_as(&azure.client_id, Some("11111111-1111-4111-8111-111111111111"), &version, &wrapped).await;
    let (code, report) = reconcile_azure(&server, &azure, &[]).await;
    assert_eq!(code, Some(0));
    assert_eq!(report["provider"]["without_entry"]["unwrap"], json!(unwraps + 1), "{report:#}");

    // Another caller is reported, whatever its request id: none, or one of ours.
    let stranger =
        azure.control(Method::POST, "principals", json!({ "secrets": [{ "value": SECRET }] })).await;
    azure.allow(stranger["oid"].as_str().unwrap(), "/keys/byok").await;
    let stranger = stranger["clientId"].as_str().unwrap();
    azure.unwrap_as(stranger, None, &version, &wrapped).await;
    azure.unwrap_as(stranger, Some(&id), &version, &wrapped).await;
    let (code, report) = reconcile_azure(&server, &azure, &[]).await;
    assert_eq!(code, Some(1));
    let named = report["provider"]["not_in_our_log"].as_array().unwrap();
    assert_eq!(named.len(), 2, "{report:#}");
    for (call, id) in named.iter().zip(["(record ", &id]) {
        assert_eq!(
            (&call["why"], &call["use"], &call["principal"]),
            (&json!("stranger"), &json!("unwrap"), &json!(stranger))
        );
        assert!(call["kms_request_id"].as_str().unwrap().starts_with(id), "{report:#}");
    }
}
