//! The DEK pool: an encrypt of a new record does not wait for the KMS. A pooled DEK is used once,
//! under the same fence, and is dropped when the key is turned off.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use byok::kms::{DekBinding, Purpose};
use reqwest::Method;
use serde_json::json;

use crate::support::calls::binding;
use crate::support::needed;
use crate::support::provider::Provided;
use crate::support::relay::Relay;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::switch::A;

/// A server with a pool, and the relay in front of its Vault.
struct Bench {
    server: TestServer,
    relay: Relay,
}

/// The pool's values in `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    held: u64,
    made: u64,
    taken: u64,
    discarded: u64,
}

async fn counts(server: &TestServer) -> Counts {
    let answer = server.get("/metrics").await;
    let text = answer.body.as_str().expect("text").to_owned();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    };
    Counts {
        held: value("byok_dek_pool"),
        made: value("byok_dek_pool_made_total"),
        taken: value("byok_dek_pool_taken_total"),
        discarded: value("byok_dek_pool_discarded_total"),
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(120), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Bench {
    async fn with(size: &str, more: &[(&str, &str)]) -> Self {
        let key = VaultKey::create().await;
        let relay = Relay::before(&key.address, Provided::vault().await.called).await;
        let mut environment = vec![
            ("BYOK_VAULT_ADDR", relay.url.as_str()),
            ("BYOK_DEK_POOL", size),
            // A long timeout, so that a busy machine does not look like an unreachable KMS.
            ("BYOK_KEY_PROBE_TIMEOUT_MS", "10000"),
        ];
        environment.extend(more);
        let database = create_database(&needed("DATABASE_URL")).await;
        let server = TestServer::on(key, database, &environment).await;
        Self { server, relay }
    }

    /// The number of requests for new DEKs that Vault has seen.
    fn asked(&self) -> usize {
        self.relay.state.counts.lock().unwrap().get("encrypt").copied().unwrap_or_default()
    }

    async fn until_it_holds(&self, held: u64) {
        until("the pool is filled", async || counts(&self.server).await.held == held).await;
    }

    /// Sets what our token may do with the key, as the customer.
    async fn allow(&self, operations: &[&str]) {
        let key = &self.server.key;
        let rule =
            |name: &&str| format!("path \"transit/{name}/{}\" {{ capabilities = [\"update\"] }}\n", key.name);
        // A policy must not be empty.
        let policy: String = operations.iter().chain([&"nothing"]).map(rule).collect();
        let path = format!("sys/policies/acl/{}", key.name);
        key.admin(Method::PUT, &path, json!({ "policy": policy })).await;
    }

    /// The status of an encrypt's answer.
    async fn try_to_encrypt(&self, record: &str) -> u16 {
        let body = json!({ "plaintext": "p", "record_id": record });
        self.server.post("/byok/encrypt", body).await.status.as_u16()
    }

    /// The number of rows of each version of the key.
    async fn rows(&self) -> Vec<(String, i64)> {
        sqlx::query_as("SELECT key_version, count(*) FROM np_byok_wrapped_deks GROUP BY 1 ORDER BY 1")
            .fetch_all(&self.server.database().await)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn encrypting_a_new_record_does_not_wait_for_the_kms() {
    let mut bench = Bench::with("20", &[]).await;
    bench.server.encrypt("first", "r-first").await;
    bench.until_it_holds(20).await;
    let before = bench.asked();
    bench.relay.state.slow.store(700, Ordering::Relaxed);
    let mut tokens = Vec::new();
    for n in 0..8 {
        tokens.push((format!("r-{n}"), bench.server.encrypt(&format!("p-{n}"), &format!("r-{n}")).await));
    }
    assert_eq!(bench.asked(), before, "Vault made none of them when it was needed");
    let now = counts(&bench.server).await;
    assert_eq!((now.held, now.taken, now.made), (12, 8, 20));
    bench.relay.state.slow.store(0, Ordering::Relaxed);

    let audit = bench.server.get("/byok/audit?operation=encrypt&first=1").await;
    let item = &audit.body["entries"][0]["items"][0];
    assert_eq!(item["source"], "cache", "{}", audit.body);
    assert!(item["kms_request_id"].is_string(), "{item}");

    // A kill leaves no rows except those of used DEKs.
    bench.server.kill().await;
    assert_eq!(bench.rows().await, [("1".to_owned(), 9)]);
    bench.server.start_again().await;
    for (record, token) in &tokens {
        let opened = bench.server.decrypt(token, record).await;
        assert_eq!(opened.body["plaintext"], record.replace("r-", "p-"), "{}", opened.body);
    }
}

#[tokio::test]
async fn without_one_not_one_request_more_is_made() {
    let bench = Bench::with("0", &[]).await;
    for n in 0..5 {
        bench.server.encrypt("p", &format!("r-{n}")).await;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    // One for each record, and one for the canary.
    assert_eq!(bench.asked(), 6);
    assert_eq!(counts(&bench.server).await, Counts { held: 0, made: 0, taken: 0, discarded: 0 });
}

#[tokio::test]
async fn each_is_used_once_and_the_bound_is_never_exceeded() {
    const RECORDS: u64 = 1_000;
    let bench = Bench::with("100", &[]).await;
    bench.server.encrypt("p", "first").await;
    bench.until_it_holds(100).await;
    let other = bench.server.replica().await;
    other.encrypt("p", "first of the other").await;
    until("its pool is filled, too", async || counts(&other).await.held == 100).await;
    let mut most = 0;
    let calls = (0..RECORDS).map(|n| {
        let body = json!({ "plaintext": "p", "record_id": format!("r-{n}") });
        let server = if n % 4 == 0 { &other } else { &bench.server };
        async move {
            loop {
                let answer = server.post("/byok/encrypt", body.clone()).await;
                // The machine may not manage this many at once in time; then some are told to
                // retry.
                if answer.status != 503 {
                    return answer;
                }
            }
        }
    });
    let watch = async {
        loop {
            most = most.max(counts(&bench.server).await.held);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let answers = tokio::select! {
        answers = futures_util::future::join_all(calls) => answers,
        () = watch => unreachable!("it is watched without end"),
    };
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert!(most <= 100, "{most}");
    let tokens: BTreeSet<&str> =
        answers.iter().filter_map(|answer| answer.body["ciphertext"].as_str()).collect();
    assert_eq!(tokens.len() as u64, RECORDS);
    let database = bench.server.database().await;
    let (ids, records): (i64, i64) =
        sqlx::query_as("SELECT count(DISTINCT id), count(DISTINCT record_id) FROM np_byok_wrapped_deks")
            .fetch_one(&database)
            .await
            .unwrap();
    assert_eq!((ids as u64, records as u64), (RECORDS + 2, RECORDS + 2), "one DEK for one record");
    for server in [&bench.server, &other] {
        until("what was made is accounted for", async || {
            let Counts { held, made, taken, discarded } = counts(server).await;
            assert!(held <= 100);
            made == held + taken + discarded
        })
        .await;
        assert!(counts(server).await.taken > 0);
    }
}

#[tokio::test]
async fn a_key_turned_off_empties_it_and_turned_on_refills_it() {
    let bench = Bench::with("20", &[]).await;
    bench.server.encrypt("first", "r-first").await;
    bench.until_it_holds(20).await;
    let other = bench.server.replica().await;
    other.encrypt("p", "r-other").await;
    until("its pool is filled, too", async || counts(&other).await.held == 20).await;
    let before = counts(&bench.server).await;
    bench.allow(&[]).await;
    // The pool is full when the key is turned off, so no refusal is due to an empty pool.
    let off = Instant::now();
    let mut answered = 0;
    loop {
        let asked = off.elapsed();
        if bench.try_to_encrypt(&format!("during-{answered}")).await != 200 {
            break;
        }
        answered += 1;
        assert!(asked < A + Duration::from_secs(1), "what is asked after the bound is refused");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let after = counts(&bench.server).await;
    assert_eq!(after.held, 0, "{after:?}");
    // The refused call may have taken a DEK, which was then dropped.
    assert!(after.taken <= before.taken + answered + 1, "none was taken after that: {after:?}");
    let used: i64 =
        sqlx::query_scalar("SELECT count(*) FROM np_byok_wrapped_deks WHERE record_id LIKE 'during-%'")
            .fetch_one(&bench.server.database().await)
            .await
            .unwrap();
    assert_eq!(used as u64, answered, "none was used after that");
    until("the other one's pool is dropped too, without a call", async || counts(&other).await.held == 0)
        .await;
    for n in 0..5 {
        assert_ne!(bench.try_to_encrypt(&format!("dark-{n}")).await, 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let dark = counts(&bench.server).await;
    assert_eq!(
        (dark.held, dark.taken, dark.made),
        (0, after.taken, after.made),
        "nothing is made while the key is off"
    );

    bench.allow(&["encrypt", "decrypt"]).await;
    until("the key comes back", async || bench.try_to_encrypt("back").await == 200).await;
    bench.until_it_holds(20).await;
    let token = bench.server.encrypt("p", "new").await;
    let now = counts(&bench.server).await;
    assert_eq!(now.taken, dark.taken + 1, "{now:?}");
    assert_eq!(bench.server.decrypt(&token, "new").await.body["plaintext"], "p");
}

#[tokio::test]
async fn after_a_rotation_deks_of_the_former_version_are_not_used() {
    let bench = Bench::with("20", &[]).await;
    bench.server.encrypt("p", "r-1").await;
    bench.until_it_holds(20).await;
    let other = bench.server.replica().await;
    other.encrypt("p", "r-2").await;
    until("its pool is filled, too", async || counts(&other).await.held == 20).await;
    bench.server.key.rotate().await;
    let started = bench.server.post("/byok/rotate", json!({})).await;
    assert_eq!(started.status, 202, "{}", started.body);
    assert_eq!(counts(&bench.server).await.held, 0);
    bench.server.encrypt("p", "r-3").await;
    // The other replica learns of the new version when it next reads the watched keys.
    until("what it has is of the new version", async || counts(&other).await.discarded >= 20).await;
    other.encrypt("p", "r-4").await;
    bench.until_it_holds(20).await;
    bench.server.encrypt("p", "r-5").await;
    until("the job is done", async || {
        bench.server.get(&format!("/byok/rotate/{}", started.body["id"].as_str().unwrap())).await.body["state"]
            == "DONE"
    })
    .await;
    assert_eq!(bench.rows().await, [("2".to_owned(), 5)]);
}

#[tokio::test]
async fn a_fill_that_finds_a_new_version_keeps_using_it() {
    let bench = Bench::with("10", &[]).await;
    bench.server.encrypt("p", "r-0").await;
    bench.until_it_holds(10).await;
    bench.server.key.rotate().await;
    // Nothing notifies it: five DEKs are used before it refills.
    for n in 1..=5 {
        bench.server.encrypt("p", &format!("r-{n}")).await;
    }
    until("the rest of the old ones are thrown away", async || counts(&bench.server).await.discarded >= 5)
        .await;
    bench.until_it_holds(10).await;
    for n in 6..=8 {
        bench.server.encrypt("p", &format!("r-{n}")).await;
    }
    assert_eq!(bench.rows().await, [("1".to_owned(), 6), ("2".to_owned(), 3)]);
}

#[tokio::test]
async fn the_pool_takes_half_of_the_budget_and_leaves_callers_half() {
    let mut provider = Provided::gcp().await;
    let relays = provider.relayed().await;
    let mut environment = provider.environment();
    environment.extend([("BYOK_DEK_POOL", "1000"), ("BYOK_KMS_CALLS_PER_MINUTE", "240")]);
    let server = TestServer::with(&environment).await;
    let began = Instant::now();
    server.encrypt("p", "first").await;
    until("it uses its share", async || counts(&server).await.made >= 60).await;
    let asked = || relays[0].state.counts.lock().unwrap().get("encrypt").copied().unwrap_or_default() as u64;
    // Half of the budget at once, and two a second, plus the caller's own request and the canary's.
    let most = 120 + 2 * (began.elapsed().as_secs() + 1) + 2;
    assert!(asked() <= most, "{} of {most}", asked());
    let many: Vec<_> = (0..counts(&server).await.held + 60)
        .map(|n| json!({ "plaintext": "p", "record_id": format!("r-{n}") }))
        .collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": many })).await;
    for item in answer.body["items"].as_array().unwrap() {
        assert!(item["ciphertext"].is_string(), "callers have the other half: {item}");
    }
}

#[tokio::test]
async fn a_dek_that_was_made_ahead_is_bound_as_any_other() {
    for provider in [Provided::gcp().await, Provided::aws().await] {
        let kms = provider.kms();
        let record = binding();
        let ahead = DekBinding { purpose: Purpose::RecordAhead, ..record };
        let wrapped = kms.generate(&[ahead]).await.remove(0).expect("it is made").value.wrapped;
        assert!(kms.unwrap(&[(record, wrapped)]).await.remove(0).is_ok());
    }
}

#[tokio::test]
async fn a_fill_that_is_refused_is_not_tried_without_end() {
    let bench = Bench::with("10", &[]).await;
    bench.server.encrypt("p", "first").await;
    bench.until_it_holds(10).await;
    bench.allow(&["decrypt"]).await;
    let before = bench.asked();
    for n in 0..5 {
        // The key works, as its probes show, so pooled DEKs may be used.
        bench.server.encrypt("p", &format!("r-{n}")).await;
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let tried = bench.asked() - before;
    assert!((1..=4).contains(&tried), "tried {tried} times, with rests of 1, 2 and 4 seconds");
    assert_eq!(counts(&bench.server).await.held, 5);
    bench.allow(&["encrypt", "decrypt"]).await;
    bench.until_it_holds(10).await;
}

#[tokio::test]
async fn the_key_stays_watched_and_old_pooled_deks_are_replaced() {
    let bench = Bench::with("10", &[("BYOK_DEK_CACHE_SECONDS", "2")]).await;
    bench.server.encrypt("p", "first").await;
    bench.until_it_holds(10).await;
    // Long enough that only the pool needs a probe.
    tokio::time::sleep(Duration::from_secs(14)).await;
    let probes = || bench.relay.state.counts.lock().unwrap().get("decrypt").copied().unwrap_or_default();
    let before = probes();
    until("the key is probed", async || probes() > before + 1).await;
    let now = counts(&bench.server).await;
    assert!(now.held <= 10 && now.discarded >= 50, "{now:?}");
    bench.until_it_holds(10).await;
    let token = bench.server.encrypt("p", "later").await;
    assert!(counts(&bench.server).await.taken > now.taken, "it is ready still");
    assert_eq!(bench.server.decrypt(&token, "later").await.body["plaintext"], "p");
}
