//! The measurements of one provider, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use byok::kms::{DekBinding, Kms, Purpose};
use byok::model::{DekId, TenantUid, Wrapped};
use serde_json::{Value, json};

use super::Provided;
use crate::support::relay::Relay;
use crate::support::server::TestServer;

pub(crate) const PROVIDERS: [&str; 4] = ["aws-kms", "gcp-kms", "vault-transit", "azure-key-vault"];

pub(crate) const STEPS: [&str; 8] = [
    "a server's first call: credential",
    "encrypt, a new record",
    "encrypt, a known record",
    "decrypt, hot",
    "decrypt, cold",
    "encryptMany, 100 new records",
    "decryptMany, 100 cold records",
    "rotation of 1,000 DEKs",
];

/// The number of requests by name.
pub(crate) type Calls = BTreeMap<String, usize>;

pub(crate) struct Measured {
    pub(crate) provider: &'static str,
    /// The requests of each step, in the order of [`STEPS`].
    pub(crate) steps: Vec<Calls>,
    pub(crate) most_of_one_call: usize,
    pub(crate) most_of_many_calls: usize,
    /// The wall time of one unwrap on an idle server, and byok's processor time within it, in
    /// microseconds.
    pub(crate) whole_us: f64,
    pub(crate) ours_us: f64,
}

async fn provided(name: &str) -> Provided {
    match name {
        "aws-kms" => Provided::aws().await,
        "gcp-kms" => Provided::gcp().await,
        "vault-transit" => Provided::vault().await,
        "azure-key-vault" => Provided::azure().await,
        other => unreachable!("{other} is none of PROVIDERS"),
    }
}

pub(crate) async fn measure(provider: &'static str) -> Measured {
    let (whole_us, ours_us) = share(&provided(provider).await).await;
    let mut provided = provided(provider).await;
    let relays = provided.relayed().await;
    let steps = steps(&provided, &relays).await;
    let (most_of_one_call, most_of_many_calls) = bound(&provided, &relays[0]).await;
    Measured { provider, steps, most_of_one_call, most_of_many_calls, whole_us, ours_us }
}

/// The requests since the last call of this function, by name, and the most of them at a time.
fn take(relay: &Relay) -> (Calls, usize) {
    let counts = std::mem::take(&mut *relay.state.counts.lock().expect("a lock"));
    (counts, relay.state.most.swap(0, Ordering::Relaxed))
}

async fn steps(provided: &Provided, relays: &[Relay]) -> Vec<Calls> {
    let mut environment = provided.environment();
    environment.extend([("BYOK_DEK_CACHE_SECONDS", "3600"), ("BYOK_LOG", "info")]);
    let server = TestServer::with(&environment).await;
    // A replica with an empty cache.
    let cold = server.replica().await;
    let calls = || take(&relays[0]).0;
    let encrypt = async |record: &str| server.encrypt("hello", record).await;
    let mut steps = Vec::new();

    for server in [&server, &cold] {
        let token = server.encrypt("hello", "warm").await;
        assert_eq!(server.decrypt(&token, "warm").await.status, 200);
    }
    // Each of the two servers has fetched a credential, where the provider has one to fetch.
    steps.push(relays.get(1).map_or_else(Calls::new, |relay| {
        take(relay).0.into_iter().map(|(name, count)| (name, count.div_ceil(2))).collect()
    }));
    calls();
    let token = encrypt("r").await;
    steps.push(calls());
    encrypt("r").await;
    steps.push(calls());
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
    steps.push(calls());
    assert_eq!(cold.decrypt(&token, "r").await.status, 200);
    steps.push(calls());
    let tokens = many(&server, 0..100).await;
    steps.push(calls());
    decrypt_many(&cold, &tokens).await;
    steps.push(calls());
    // 102 DEKs exist; these make 1,000.
    for first in (100..998).step_by(100) {
        many(&server, first..(first + 100).min(998)).await;
    }
    (provided.rotate)().await;
    calls();
    rotated(&server).await;
    steps.push(calls());
    steps
}

async fn many(server: &TestServer, records: std::ops::Range<u32>) -> Vec<(String, String)> {
    let records: Vec<_> = records.map(|number| format!("many-{number}")).collect();
    let items: Vec<_> = records
        .iter()
        .map(|record| json!({ "plaintext": "hello", "context": { "record_id": record } }))
        .collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let results = answer.body["items"].as_array().expect("items");
    let token = |result: &Value| result["ciphertext"].as_str().expect("a token").to_owned();
    records.into_iter().zip(results.iter().map(token)).collect()
}

async fn decrypt_many(server: &TestServer, tokens: &[(String, String)]) {
    let item = |(record, token): &(String, String)| json!({ "ciphertext": token, "context": { "record_id": record } });
    let items: Vec<_> = tokens.iter().map(item).collect();
    let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(!answer.body.to_string().contains("\"error\":{"), "{}", answer.body);
}

async fn rotated(server: &TestServer) {
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().expect("an id").to_owned();
    for _ in 0..1_200 {
        let job = server.get(&format!("/byok/rotate/{id}")).await.body;
        if job["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("done")) {
            assert_eq!(job["rewrapped"], 1_000, "{job}");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the rotation does not end");
}

async fn made(kms: &dyn Kms, count: usize) -> Vec<(DekBinding, Wrapped)> {
    let bindings: Vec<_> = (0..count)
        .map(|_| DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record })
        .collect();
    let made = kms.generate(&bindings).await;
    bindings.into_iter().zip(made.into_iter().map(|made| made.expect("a DEK").value.wrapped)).collect()
}

/// The most requests at a time for one call of 1,000 items, and for ten of them.
async fn bound(provided: &Provided, relay: &Relay) -> (usize, usize) {
    // Slow answers, so that as many requests overlap as the bound lets.
    let environment =
        byok::config::Env::from_pairs(provided.variables.clone()).with("BYOK_KMS_TIMEOUT_MS", "60000");
    let kms = crate::support::provider::kms_of(&environment);
    let wrapped = Arc::new(made(&*kms, 1_000).await);
    relay.state.slow.store(20, Ordering::Relaxed);
    take(relay);
    assert!(kms.unwrap(&wrapped).await.iter().all(Result::is_ok));
    let one = take(relay).1;
    let calls = (0..10).map(|_| {
        let (kms, wrapped) = (Arc::clone(&kms), Arc::clone(&wrapped));
        tokio::spawn(async move { kms.unwrap(&wrapped).await.iter().all(Result::is_ok) })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(call.await.expect("it ends"));
    }
    relay.state.slow.store(0, Ordering::Relaxed);
    (one, take(relay).1)
}

/// Unwraps one after the other, without a relay: the wall time of each, and byok's processor time
/// within it.
async fn share(provided: &Provided) -> (f64, f64) {
    const CALLS: u32 = 500;
    let kms = provided.kms();
    let wrapped = made(&*kms, 1).await;
    for _ in 0..50 {
        assert!(kms.unwrap(&wrapped).await.iter().all(Result::is_ok));
    }
    let (began, used) = (Instant::now(), processor_seconds());
    for _ in 0..CALLS {
        assert!(kms.unwrap(&wrapped).await.iter().all(Result::is_ok));
    }
    let per_call = |seconds: f64| seconds * 1e6 / f64::from(CALLS);
    (per_call(began.elapsed().as_secs_f64()), per_call(processor_seconds() - used))
}

/// The processor time of all threads of this process. Linux gives it in nanoseconds.
fn processor_seconds() -> f64 {
    let threads = fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let used = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    used.sum::<u64>() as f64 / 1e9
}
