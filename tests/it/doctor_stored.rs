//! The report of `byok doctor` about stored DEKs when the configured key is not the one that
//! wrapped them.

use reqwest::Method;
use serde_json::json;

use crate::support::azure::Azure;
use crate::support::provider::Switch;
use crate::support::server::TestServer;
use crate::support::shared_vault::VaultKey;
use crate::support::switch::{eventually, postures, serves_again};

fn says(report: &str, words: &[&str]) {
    for word in words {
        assert!(report.contains(word), "`{word}` is not in: {report}");
    }
}

async fn is_revoked(server: &TestServer, token: &str) {
    let database = server.database().await;
    let revoked = async || {
        let _ = server.decrypt(token, "r").await;
        postures(&database).await.iter().any(|(_, posture, _)| posture == "revoked")
    };
    eventually("it is revoked", revoked).await;
}

#[tokio::test]
async fn a_transit_key_that_was_deleted_and_remade_is_named() {
    let server = TestServer::start().await;
    let token = server.encrypt("r", "r").await;
    let report = server.doctor().await;
    says(
        &report,
        &["ok    posture: no key version was refused", "ok    stored DEKs: 1 were tried and unwrapped under"],
    );
    let switches = server.key.switches();
    let (_, deletion) = switches.iter().find(|(switch, _)| *switch == Switch::Deletion).expect("one");
    (deletion.off)().await;
    server.key.admin(Method::POST, &format!("transit/keys/{}", server.key.name), json!({})).await;
    is_revoked(&server, &token).await;
    let answer = server.decrypt(&token, "r").await;
    assert_eq!((answer.status.as_u16(), &answer.body["code"]), (403, &json!("KMS_ACCESS_DENIED")));
    let report = server.doctor().await;
    let version = format!("{}/1", server.key.name);
    says(
        &report,
        &[
            "ok    key: a DEK was wrapped and unwrapped",
            &format!("FAIL  posture: {version} is revoked since"),
            &format!("FAIL  stored DEKs: the key is not the one that wrapped the DEKs under {version}"),
            "the key was deleted and created again",
            "vault write transit/restore",
            "lost for good",
        ],
    );
    let entries = server.get("/byok/audit?operation=health").await.body["entries"].clone();
    let tried: Vec<_> =
        entries.as_array().expect("a list").iter().filter(|entry| entry["role"] == "doctor").collect();
    assert_eq!(tried.len(), 2, "each time that stored DEKs were tried: {entries}");
    // The old key is restored from its backup.
    server.key.delete().await;
    (deletion.on)().await;
    serves_again(&server, "r", &token).await;
    says(&server.doctor().await, &["ok    posture: ", "ok    stored DEKs: 1 were tried"]);
}

#[tokio::test]
async fn an_azure_key_that_was_purged_and_remade_is_named() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let server = TestServer::with(&variables).await;
    let token = server.encrypt("plaintext", "r").await;
    azure.control(Method::DELETE, "keys/byok", json!({})).await;
    azure.control(Method::POST, "keys/byok/purge", json!({})).await;
    azure.control(Method::POST, "keys/byok", json!({})).await;
    is_revoked(&server, &token).await;
    says(
        &server.doctor().await,
        &[
            "ok    key: a DEK was wrapped and unwrapped",
            "is revoked since",
            "(the KMS's answer: KeyNotFound)",
            "FAIL  stored DEKs: the key works, but does not unwrap (KeyNotFound) the DEKs under",
            "az keyvault key restore",
        ],
    );
}

#[tokio::test]
async fn an_altered_dek_is_told_from_a_replaced_key() {
    let server = TestServer::start().await;
    for n in 0..3 {
        server.encrypt("plaintext", &format!("r-{n}")).await;
    }
    let damage = "UPDATE np_byok_wrapped_deks SET wrapped = overlay(wrapped placing 'AAAA'::bytea from 20) \
        WHERE record_id = 'r-1'";
    sqlx::query(damage).execute(&server.database().await).await.unwrap();
    says(
        &server.doctor().await,
        &["FAIL  stored DEKs: 1 of 3 were altered, and are not unwrapped, under", "restore these rows"],
    );
}

#[tokio::test]
async fn encrypting_for_a_record_whose_dek_another_key_wraps_says_that() {
    let mut server = TestServer::start().await;
    let token = server.encrypt("plaintext", "r").await;
    server.stop().await;
    let other = VaultKey::create().await;
    server
        .environment
        .retain(|(name, _)| !["BYOK_VAULT_TRANSIT_KEY", "BYOK_VAULT_TOKEN"].contains(&name.as_str()));
    server.environment.push(("BYOK_VAULT_TRANSIT_KEY".to_owned(), other.name.clone()));
    server.environment.push(("BYOK_VAULT_TOKEN".to_owned(), other.token.clone()));
    server.start_again().await;
    let body = json!({ "plaintext": "p", "record_id": "r" });
    let refused = server.post("/byok/encrypt", body).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KMS_MISCONFIGURED")));
    let detail = "Another key than the one that is configured wraps the record's DEK.";
    assert_eq!(refused.body["detail"], detail, "{}", refused.body);
    let refused = server.decrypt(&token, "r").await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KMS_MISCONFIGURED")));
    // A record without a DEK gets one under the new key.
    server.encrypt("plaintext", "another").await;
    let doctor = server.doctor().await;
    says(
        &doctor,
        &[
            "FAIL  stored DEKs: another key than the configured one wrapped the DEKs under",
            "BYOK_VAULT_TRANSIT_KEY",
        ],
    );
}

#[tokio::test]
async fn encrypting_for_a_record_whose_dek_does_not_open_says_so() {
    let server = TestServer::start().await;
    let token = server.encrypt("plaintext", "r").await;
    let damage = "UPDATE np_byok_wrapped_deks SET wrapped = overlay(wrapped placing 'AAAA'::bytea from 20)";
    sqlx::query(damage).execute(&server.database().await).await.unwrap();
    let cold = server.replica().await;
    let refused = cold.post("/byok/encrypt", json!({ "plaintext": "p", "record_id": "r" })).await;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("KMS_MISCONFIGURED")));
    assert!(refused.body["detail"].as_str().unwrap().contains("another key wraps it"), "{}", refused.body);
    // For callers that decrypt, it remains a ciphertext that cannot be decrypted.
    assert_eq!(cold.decrypt(&token, "r").await.body["code"], "DECRYPT_FAILED");
}
