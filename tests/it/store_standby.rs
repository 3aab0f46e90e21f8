//! A real standby, and an address that leads to it. Its data may be old, so nothing is read from
//! it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byok::crypto::Ed25519SigningKey;
use byok::store::{
    Batch, Change, CheckpointReads, CommitError, Commits as _, Database, DekReads, EntryFilter,
    EntrySearch as _, MigrateError, ReadError, RequestReads as _, TenantReads,
};
use serde_json::Value;

use crate::support::postgres::{Server, connect, execute, number};
use crate::support::proxy::Proxy;
use crate::support::rows::{dek, entry, tenant};
use crate::support::server::TestServer;
use crate::support::shared_vault::VaultKey;

/// Waits until a query returns 1.
async fn until(url: &str, sql: &str) {
    for _ in 0..1_200 {
        if number(url, sql).await == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in time: {sql}");
}

/// From here on the standby receives all commits, and shows none of them.
async fn pause_replay(standby: &Server) {
    execute(&standby.url, "SELECT pg_wal_replay_pause()").await;
    until(&standby.url, "SELECT (pg_get_wal_replay_pause_state() = 'paused')::int::int8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_never_read_and_the_primary_is_found_again() {
    let primary = Server::start();
    let direct = connect(&primary.url);
    direct.migrate().await.unwrap();
    let tenant = tenant(&direct).await;
    let standby = primary.standby();
    let name = format!("SELECT count(*) FROM np_byok_tenants WHERE uid = '\\x{}'", hex(&tenant.0));
    until(&standby.url, &name).await;
    pause_replay(&standby).await;
    let record: Arc<str> = "not replayed".into();
    let row = dek(Some(&record));
    let batch = |base| Batch {
        tenant,
        base,
        entries: vec![entry()],
        changes: if base == 0 { vec![Change::InsertDek(row.clone())] } else { Vec::new() },
        gate: None,
        fence: Vec::new(),
    };
    direct.commit(&batch(0)).await.unwrap();

    let (proxy, url) = Proxy::before(&primary.url).await;
    let store = connect(&url);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap().len(), 1);
    proxy.lead_to(&standby.url);
    proxy.end_all();
    for _ in 0..3 {
        assert_eq!(store.deks(tenant, &[row.id]).await, Err(ReadError::Unavailable));
        assert_eq!(
            store.deks_of_records(tenant, std::slice::from_ref(&record)).await,
            Err(ReadError::Unavailable)
        );
        assert_eq!(store.log_size(tenant).await, Err(ReadError::Unavailable));
        assert_eq!(store.log_head(tenant).await, Err(ReadError::Unavailable));
        assert_eq!(store.latest_checkpoint(tenant, 1).await, Err(ReadError::Unavailable));
        assert_eq!(store.tenant("no such tenant").await, Err(ReadError::Unavailable));
        assert!(matches!(store.proofs(tenant).await, Err(ReadError::Unavailable)));
        let page = store.entries(tenant, &EntryFilter::default(), None, 9).await;
        assert_eq!(page, Err(ReadError::Unavailable));
        assert_eq!(store.schema().await, Err(ReadError::Unavailable));
        assert_eq!(store.migrate().await, Err(MigrateError::Unavailable));
        assert_eq!(store.ping().await, Err(ReadError::Unavailable), "nor is it ready");
        assert_eq!(store.commit(&batch(1)).await, Err(CommitError::Unavailable));
        assert_eq!(store.commit_in_turn(&mut batch(1)).await, Err(CommitError::Unavailable));
    }
    // Connections to the standby would stay open.
    proxy.lead_to(&primary.url);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap().len(), 1);
    assert_eq!(store.ping().await, Ok(()));
    store.commit(&batch(1)).await.unwrap();
    assert_eq!(store.log_size(tenant).await, Ok(2));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The results of callers' calls.
#[derive(Default)]
struct Outcomes {
    /// The acknowledged tokens, each with its record.
    tokens: Mutex<Vec<(String, String)>>,
    decrypted: AtomicUsize,
    refusals: Mutex<Vec<Value>>,
    over: AtomicBool,
}

/// Encrypts, and decrypts the latest acknowledged token, until `over` is set.
async fn call(server: &TestServer, caller: usize, outcomes: &Outcomes) {
    for turn in 0.. {
        if outcomes.over.load(Ordering::SeqCst) {
            return;
        }
        let record = format!("record-{caller}-{turn}");
        let body = serde_json::json!({ "plaintext": record, "context": { "record_id": record } });
        let answer = server.post("/byok/encrypt", body).await;
        match answer.body["ciphertext"].as_str() {
            Some(token) => outcomes.tokens.lock().unwrap().push((token.to_owned(), record)),
            None => outcomes.refusals.lock().unwrap().push(answer.body),
        }
        let Some((token, record)) = outcomes.tokens.lock().unwrap().last().cloned() else { continue };
        let answer = server.decrypt(&token, &record).await;
        if answer.body["plaintext"] == *record {
            outcomes.decrypted.fetch_add(1, Ordering::SeqCst);
        } else {
            outcomes.refusals.lock().unwrap().push(answer.body);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_under_load_loses_nothing_and_refuses_nothing_for_good() {
    let primary = Server::start();
    let standby = primary.standby();
    execute(&primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    execute(&primary.url, "SELECT pg_reload_conf()").await;
    until(&primary.url, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await;
    let (proxy, url) = Proxy::before(&primary.url).await;
    let pem = Ed25519SigningKey::generate_pem();
    let more = [("BYOK_DEK_CACHE_SECONDS", "0"), ("BYOK_AUDIT_SIGNING_KEY", pem.expose())];
    let server = TestServer::on(VaultKey::create().await, url, &more).await;
    let outcomes = Outcomes::default();
    let acknowledged = || outcomes.tokens.lock().unwrap().len();
    let failing_over = async {
        wait_for("there is a load", async || acknowledged() >= 40).await;
        pause_replay(&standby).await;
        let before = acknowledged();
        wait_for("what is acknowledged is not replayed", async || acknowledged() >= before + 10).await;
        // The address moves before the standby is promoted.
        proxy.lead_to(&standby.url);
        proxy.end_all();
        let refused = |answer: &Value| answer["code"] == "STORE_UNAVAILABLE";
        wait_for("calls are refused", async || {
            outcomes.refusals.lock().unwrap().iter().filter(|answer| refused(answer)).count() >= 20
        })
        .await;
        let ready = server.get("/ready").await;
        assert_eq!((ready.status.as_u16(), &ready.body["reason"]), (503, &Value::from("STORE_UNAVAILABLE")));
        // Long enough for the log to be compared with the signed checkpoint.
        tokio::time::sleep(Duration::from_secs(3)).await;
        primary.kill();
        execute(&standby.url, "SELECT pg_wal_replay_resume()").await;
        execute(&standby.url, "SELECT pg_promote()").await;
        let (before, decrypted) = (acknowledged(), outcomes.decrypted.load(Ordering::SeqCst));
        wait_for("calls are answered again", async || {
            acknowledged() >= before + 20 && outcomes.decrypted.load(Ordering::SeqCst) >= decrypted + 20
        })
        .await;
        outcomes.over.store(true, Ordering::SeqCst);
    };
    let calls = futures_util::future::join_all((0..6).map(|caller| call(&server, caller, &outcomes)));
    tokio::join!(failing_over, calls);

    for refusal in outcomes.refusals.lock().unwrap().iter() {
        assert_eq!(refusal["retryable"], true, "{refusal}");
    }
    let tokens = std::mem::take(&mut *outcomes.tokens.lock().unwrap());
    for (token, record) in &tokens {
        let answer = server.decrypt(token, record).await;
        assert_eq!(answer.body["plaintext"], *record.as_str(), "{record}: {}", answer.body);
    }
    wait_for("it is ready", async || server.get("/ready").await.status == 200).await;
    assert!(!server.logged().contains("behind what was published"), "a standby is no rewritten log");
}
