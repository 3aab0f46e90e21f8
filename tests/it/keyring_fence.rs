//! The kill switch in one process: which answers replicas give once a key was not shown to work,
//! whatever the KMS, the database and the clocks do, and that a working key is not refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use byok::model::{ErrorCode, Posture};
use byok::store::Sqlite;

use crate::guarded::{Behaviour, Deployment, until};

const UNAVAILABLE: Result<(), ErrorCode> = Err(ErrorCode::KmsUnavailable);
const DENIED: Result<(), ErrorCode> = Err(ErrorCode::KmsAccessDenied);

// Cases in which the answer must be a refusal.

#[tokio::test]
async fn an_answer_after_sleep_past_the_commit_is_withheld_and_recorded() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
    let clock = one.clock.clone();
    *one.store.then.lock().unwrap() = Some(Box::new(move || clock.sleep(10_000)));
    assert_eq!(one.decrypt(&token, "r").await, UNAVAILABLE);
    assert_eq!(one.outcomes(2).await, ["Decrypt Refused(KmsUnavailable)", "Decrypt Ok"]);
    assert_eq!(one.decrypt(&token, "r").await, Ok(()), "the key works, and so it goes on");
}

#[tokio::test]
async fn a_token_is_withheld_if_the_machine_slept_after_the_commit() {
    let one = Deployment::new().await.replica().await;
    let clock = one.clock.clone();
    one.encrypt("warm").await.unwrap();
    *one.store.then.lock().unwrap() = Some(Box::new(move || clock.sleep(10_000)));
    assert_eq!(one.encrypt("r").await, Err(ErrorCode::KmsUnavailable));
    assert!(one.encrypt("r").await.is_ok());
}

#[tokio::test]
async fn a_withheld_answer_that_cannot_be_recorded_says_so() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    let (clock, store) = (one.clock.clone(), one.store.clone());
    *one.store.then.lock().unwrap() = Some(Box::new(move || {
        clock.sleep(10_000);
        store.cut.store(true, Ordering::SeqCst);
    }));
    assert_eq!(one.decrypt(&token, "r").await, Err(ErrorCode::StoreUnavailable));
}

#[tokio::test]
async fn a_hot_dek_is_refused_after_the_bound_without_a_proof() {
    for (behaviour, refused) in
        [(Behaviour::Refuse, DENIED), (Behaviour::Fail, UNAVAILABLE), (Behaviour::Hang, UNAVAILABLE)]
    {
        let one = Deployment::new().await.replica().await;
        let token = one.encrypt("r").await.unwrap();
        one.kms.set_behaviour(behaviour);
        assert_eq!(one.decrypt(&token, "r").await, Ok(()), "the proof is still valid");
        one.clock.sleep(3_200);
        // No prober runs beside the calls.
        assert_eq!(one.decrypt(&token, "r").await, refused);
    }
}

#[tokio::test]
async fn a_hot_dek_leaves_memory_when_its_key_is_not_proven() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    one.kms.set_behaviour(Behaviour::Fail);
    one.clock.sleep(3_200);
    assert_eq!(one.decrypt(&token, "r").await, UNAVAILABLE);
    assert!(!one.keyring.are_cached(one.tenant.uid, &[dek_id(&token)]));
    one.kms.set_behaviour(Behaviour::Work);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
}

#[tokio::test]
async fn the_prober_drops_what_is_not_proven_though_the_database_hangs() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
    one.watch();
    tokio::time::sleep(Duration::from_millis(100)).await;
    one.store.hangs.store(true, Ordering::SeqCst);
    // Long enough for the prober to be waiting for the database.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ids = [dek_id(&token)];
    assert!(one.keyring.are_cached(one.tenant.uid, &ids));
    one.clock.sleep(4_000);
    until("the DEK is dropped", async || !one.keyring.are_cached(one.tenant.uid, &ids)).await;
}

#[tokio::test]
async fn a_database_whose_clock_is_set_back_makes_no_proof_younger() {
    let deployment = Deployment::new().await;
    let one = deployment.replica().await;
    let token = one.encrypt("r").await.unwrap();
    one.kms.set_behaviour(Behaviour::Hang);
    deployment.ahead.store(-2_000, Ordering::SeqCst);
    one.clock.sleep(2_000);
    assert_eq!(one.decrypt(&token, "r").await, UNAVAILABLE, "a proof from the future does not count");
    deployment.ahead.store(-3_500, Ordering::SeqCst);
    one.clock.sleep(1_500);
    assert_eq!(one.decrypt(&token, "r").await, UNAVAILABLE);
}

#[tokio::test]
async fn what_another_replica_finds_revoked_is_refused_here_and_dropped() {
    let deployment = Deployment::new().await;
    let (one, two) = (deployment.replica().await, deployment.replica().await);
    one.watch();
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    // The KMS refuses only the other replica.
    two.kms.set_behaviour(Behaviour::Refuse);
    assert_eq!(two.decrypt("byok:v1:none", "r").await, Err(ErrorCode::TokenMalformed));
    two.watch();
    let ids = [dek_id(&token)];
    until("the posture is revoked", async || {
        one.posture().await == Posture::Revoked || {
            // Replicas share the probes, so either may send the next one.
            one.kms.set_behaviour(Behaviour::Refuse);
            false
        }
    })
    .await;
    until("the DEK is dropped", async || !one.keyring.are_cached(one.tenant.uid, &ids)).await;
    assert_eq!(one.decrypt(&token, "r").await, DENIED);
    assert_eq!(two.decrypt(&token, "r").await, DENIED);
}

#[tokio::test]
async fn no_token_is_made_under_a_key_that_does_not_unwrap() {
    let one = Deployment::new().await.replica().await;
    one.encrypt("warm").await.unwrap();
    one.make_idle("1").await;
    *one.kms.on_unwrap.lock().unwrap() = Behaviour::Refuse;
    assert_eq!(one.encrypt("r").await, Err(ErrorCode::KmsAccessDenied));
}

// Cases in which the answer must not be a refusal.

#[tokio::test]
async fn a_hot_decrypt_makes_no_call_but_the_one_commit() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
    let (commits, reads, calls) =
        (one.store.commits.load(Ordering::SeqCst), one.store.reads.load(Ordering::SeqCst), one.kms.calls());
    for _ in 0..5 {
        assert_eq!(one.decrypt(&token, "r").await, Ok(()));
    }
    assert_eq!(one.store.commits.load(Ordering::SeqCst), commits + 5);
    assert_eq!(one.store.reads.load(Ordering::SeqCst), reads);
    assert_eq!(one.kms.calls(), calls);
}

#[tokio::test]
async fn a_new_version_is_used_though_the_one_before_was_destroyed() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    one.kms.key.rotate().unwrap();
    one.kms.destroyed.lock().unwrap().insert("1".to_owned());
    one.clock.sleep(3_200);
    assert_eq!(one.decrypt(&token, "r").await, DENIED);
    until("a new record is encrypted", async || one.encrypt("new").await.is_ok()).await;
    assert_eq!(one.decrypt(&token, "r").await, DENIED);
}

#[tokio::test]
async fn a_key_that_is_off_is_probed_alike_however_many_call() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(3_200);
    assert_eq!(one.decrypt(&token, "r").await, DENIED);
    let calls = one.kms.calls();
    let began = std::time::Instant::now();
    for n in 0..100 {
        assert_eq!(one.decrypt(&token, "r").await, DENIED);
        assert_eq!(one.encrypt(&format!("new-{n}")).await, Err(ErrorCode::KmsAccessDenied));
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    assert!(one.kms.calls() - calls <= 3 * seconds + 2, "{} in {seconds} s", one.kms.calls() - calls);
}

#[tokio::test]
async fn after_a_database_was_restored_the_key_follows_its_rows() {
    let deployment = Deployment::new().await;
    let one = deployment.replica().await;
    let token = one.encrypt("r").await.unwrap();
    // As after a restore from a backup: the same database, without what came after.
    let backup = deployment.folder.path().join("backup.db");
    let original = format!("sqlite://{}/byok.db", deployment.folder.path().display());
    let original = sqlx::SqlitePool::connect(&original).await.unwrap();
    let into = sqlx::AssertSqlSafe(format!("VACUUM INTO '{}'", backup.display()));
    sqlx::raw_sql(into).execute(&original).await.unwrap();
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(3_200);
    assert_eq!(one.decrypt(&token, "r").await, DENIED);
    one.kms.set_behaviour(Behaviour::Work);
    until("it is back", async || one.decrypt(&token, "r").await.is_ok()).await;
    *deployment.database.lock().unwrap() = Arc::new(Sqlite::open(&backup).await.unwrap());
    let _ = one.decrypt(&token, "r").await;
    until("it is used again", async || one.decrypt(&token, "r").await.is_ok()).await;
}

#[tokio::test]
async fn a_kms_slower_than_half_of_the_bound_is_not_refused() {
    let deployment = Deployment::new().await;
    let one = deployment.replica_with(0).await;
    let token = one.encrypt("r").await.unwrap();
    one.make_idle("1").await;
    *one.kms.asleep.lock().unwrap() = Some((one.clock.clone(), 1_800));
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_a_shared_probe() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    one.clock.sleep(3_200);
    one.kms.set_behaviour(Behaviour::Dawdle(400));
    let hasty = one.decrypt(&token, "r");
    assert!(tokio::time::timeout(Duration::from_millis(200), hasty).await.is_err());
    assert_eq!(one.decrypt(&token, "r").await, Ok(()));
}

#[tokio::test]
async fn a_database_whose_clock_is_set_is_no_reason_to_refuse() {
    for ahead in [-5_000, 5_000, -3_600_000, 3_600_000] {
        let deployment = Deployment::new().await;
        let one = deployment.replica().await;
        let token = one.encrypt("r").await.unwrap();
        assert_eq!(one.decrypt(&token, "r").await, Ok(()));
        deployment.ahead.store(ahead, Ordering::SeqCst);
        assert_eq!(one.decrypt(&token, "r").await, Ok(()), "{ahead}");
    }
}

#[tokio::test]
async fn a_thousand_calls_after_a_sleep_wait_for_one_probe() {
    let one = Arc::new(Deployment::new().await.replica().await);
    let token: Arc<str> = one.encrypt("r").await.unwrap().into();
    one.clock.sleep(3_200);
    one.kms.set_behaviour(Behaviour::Dawdle(300));
    let (reads, unwraps) = (one.store.reads.load(Ordering::SeqCst), one.kms.unwraps.load(Ordering::SeqCst));
    let calls = (0..1_000).map(|_| {
        let (one, token) = (one.clone(), token.clone());
        tokio::spawn(async move { one.decrypt(&token, "r").await })
    });
    for call in futures_util::future::join_all(calls.collect::<Vec<_>>()).await {
        assert_eq!(call.unwrap(), Ok(()));
    }
    assert_eq!(one.kms.unwraps.load(Ordering::SeqCst), unwraps + 1);
    let reads = one.store.reads.load(Ordering::SeqCst) - reads;
    assert!(reads < 100, "{reads} reads");
}

#[tokio::test]
async fn a_replica_waits_for_the_probe_that_another_one_makes() {
    let deployment = Deployment::new().await;
    let (one, two) = (deployment.replica().await, deployment.replica().await);
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    for replica in [&one, &two] {
        replica.kms.set_behaviour(Behaviour::Dawdle(500));
        replica.clock.sleep(3_200);
    }
    deployment.ahead.store(3_200, Ordering::SeqCst);
    let first = one.decrypt(&token, "r");
    let second = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        two.decrypt(&token, "r").await
    };
    assert_eq!(tokio::join!(first, second), (Ok(()), Ok(())));
}

#[tokio::test]
async fn callers_of_an_unknown_version_do_not_await_each_others_failures() {
    let one = Arc::new(Deployment::new().await.replica().await);
    *one.kms.on_unwrap.lock().unwrap() = Behaviour::Fail;
    *one.kms.on_generate.lock().unwrap() = Behaviour::Dawdle(100);
    let calls = (0..100).map(|n| {
        let one = one.clone();
        tokio::spawn(async move { one.encrypt(&format!("r-{n}")).await })
    });
    for call in futures_util::future::join_all(calls.collect::<Vec<_>>()).await {
        assert_eq!(call.unwrap(), Err(ErrorCode::KmsUnavailable));
    }
    let tries = one.kms.unwraps.load(Ordering::SeqCst);
    assert!(tries < 10, "{tries} attempts in sequence");
}

#[tokio::test]
async fn one_replicas_outage_is_not_the_tenants() {
    let deployment = Deployment::new().await;
    // Two lost probes in a row are not an outage either. The long timeout is for a busy machine.
    let (one, two) = (
        deployment.replica_with_probe_timeout(300, 9).await,
        deployment.replica_with_probe_timeout(300, 9).await,
    );
    let token = one.encrypt("r").await.unwrap();
    assert_eq!(two.decrypt(&token, "r").await, Ok(()));
    one.watch();
    two.watch();
    one.kms.set_behaviour(Behaviour::Hang);
    for _ in 0..40 {
        assert_eq!(two.decrypt(&token, "r").await, Ok(()));
        assert_eq!(one.decrypt(&token, "r").await, Ok(()), "its DEKs are proven by the other replica");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(one.proof("1").await.epoch, 0);
}

#[tokio::test]
async fn a_key_that_comes_back_is_used_again_without_a_restart() {
    let one = Deployment::new().await.replica().await;
    one.watch();
    let token = one.encrypt("r").await.unwrap();
    one.kms.set_behaviour(Behaviour::Refuse);
    until("refused", async || one.decrypt(&token, "r").await == DENIED).await;
    one.kms.set_behaviour(Behaviour::Work);
    until("back", async || one.decrypt(&token, "r").await.is_ok()).await;
    one.stop_watching();
    assert_eq!(one.proof("1").await.epoch, 2, "once there and once back");
}

fn dek_id(token: &str) -> byok::model::DekId {
    let token = byok::crypto::Token::parse(token).unwrap();
    byok::model::DekId(uuid::Uuid::from_bytes(token.dek_id))
}
