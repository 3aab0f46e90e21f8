//! A key version that no DEK needs any more: the customer may turn it off as soon as the rotation
//! is done.

use std::time::Duration;

use byok::model::{Posture, TenantUid};
use byok::store::{Change, Commits as _, DekReads as _, KeyringStore as _, OutgoingReads as _};
use reqwest::Method;
use serde_json::json;

use crate::guarded::{Deployment, Replica, until};
use crate::support::azure::Azure;
use crate::support::rows::changes;
use crate::support::server::TestServer;
use crate::support::switch::{A, Caller, encrypt_all, incidents};

/// Two replicas have DEKs of the old version in memory when it is turned off, immediately after the
/// rotation.
async fn is_turned_off_unnoticed(
    server: TestServer,
    rotate: impl AsyncFnOnce(),
    turn_off: impl AsyncFnOnce(),
) {
    let other = server.replica().await;
    let records: Vec<String> = (0..40).map(|n| format!("secret-{n}")).collect();
    let tokens = encrypt_all(&server, &records).await;
    let mut callers = Vec::new();
    for (n, record) in records.iter().enumerate().take(6) {
        let replica = if n % 2 == 0 { &server } else { &other };
        callers.push(Caller::decrypting(replica, &format!("caller {n}"), record, &tokens[n]));
    }
    let more = json!({ "plaintext": "more", "record_id": "secret-20" });
    callers.push(Caller::of(
        &other,
        "encrypt",
        "byok:v1:",
        Box::new(move |_| ("/byok/encrypt", more.clone())),
    ));
    for caller in &callers {
        caller.is_served(20).await;
    }
    rotate().await;
    let job = server.post("/byok/rotate", json!({})).await.body;
    let path = format!("/byok/rotate/{}", job["id"].as_str().expect("an id"));
    while server.get(&path).await.body["state"] != "DONE" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    turn_off().await;
    tokio::time::sleep(A * 2).await;
    for caller in callers {
        let answers = caller.end().await;
        for seen in &answers.seen {
            assert!(seen.secret, "{}: {} {}", answers.what, seen.status, seen.body);
        }
    }
    for ((record, token), replica) in records.iter().zip(&tokens).zip([&server, &other].into_iter().cycle()) {
        assert_eq!(replica.decrypt(token, record).await.body["plaintext"], *record);
    }
    assert_eq!(incidents(&server.database().await).await, []);
    for replica in [&server, &other] {
        let health = replica.get("/byok/health").await.body;
        assert_eq!(
            (&health["status"], &health["worst_posture"]),
            (&json!("OK"), &json!("active")),
            "{health}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_vault_the_minimum_may_rise_once_the_rotation_is_done() {
    let server = TestServer::start().await;
    let key = server.key.clone();
    is_turned_off_unnoticed(server, async || key.rotate().await, async || key.refuse_below(2).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_azure_the_old_version_may_go_once_rotation_is_done() {
    let azure = Azure::start().await;
    let variables = azure.variables();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let server = TestServer::with(&variables).await;
    let old = azure.versions().await.remove(0);
    is_turned_off_unnoticed(
        server,
        async || drop(azure.control(Method::POST, "keys/byok", json!({})).await),
        async || azure.attributes(Some(&old), json!({ "enabled": false })).await,
    )
    .await;
}

async fn retire(deployment: &Deployment, one: &Replica) {
    let current = one.kms.key.rotate().map_err(|error| error.to_string()).unwrap();
    let retire = Change::Retire { all_but: current };
    let database = deployment.database.lock().unwrap().clone();
    assert_eq!(database.commit(&changes(one.tenant.uid, vec![retire])).await.unwrap().applied, [1]);
}

async fn watched(deployment: &Deployment) -> Vec<String> {
    let database = deployment.database.lock().unwrap().clone();
    let rows = database.watched().await.unwrap().rows;
    rows.into_iter().map(|row| row.proof.key_version.version.to_string()).collect()
}

async fn dek_of(deployment: &Deployment, tenant: TenantUid) -> byok::model::DekId {
    let database = deployment.database.lock().unwrap().clone();
    database.deks_after(tenant, None, 1).await.unwrap()[0].id
}

#[tokio::test]
async fn every_replica_drops_a_retired_version_and_needs_it_no_more() {
    let deployment = Deployment::new().await;
    let (one, two) = (deployment.replica().await, deployment.replica().await);
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    let ids = [dek_of(&deployment, one.tenant.uid).await];
    one.watch();
    two.watch();
    until("it is watched", async || watched(&deployment).await == ["1"]).await;
    retire(&deployment, &one).await;
    one.kms.destroyed.lock().unwrap().insert("1".to_owned());
    two.kms.destroyed.lock().unwrap().insert("1".to_owned());
    for replica in [&one, &two] {
        until("the DEK is dropped", async || !replica.keyring.are_cached(one.tenant.uid, &ids)).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(watched(&deployment).await, [""; 0]);
    let database = deployment.database.lock().unwrap().clone();
    assert_eq!(database.incidents(one.tenant.uid, 9).await.unwrap(), []);
    assert!(one.encrypt("new").await.is_ok() && two.encrypt("newer").await.is_ok());
}

#[tokio::test]
async fn a_dek_left_under_a_retired_version_is_watched_again() {
    let deployment = Deployment::new().await;
    let (one, two) = (deployment.replica().await, deployment.replica().await);
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    let before = one.proof("1").await;
    retire(&deployment, &one).await;
    // Both have the DEK in memory, and neither has noticed the retirement.
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
    assert_eq!(one.proof("1").await.epoch, before.epoch + 1);
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    one.watch();
    until("it is watched", async || watched(&deployment).await == ["1"]).await;
    one.kms.destroyed.lock().unwrap().insert("1".to_owned());
    until("it is revoked", async || one.posture().await == Posture::Revoked).await;
}
