//! The customer's switch, and callers that record when each answer came and whether it contained a
//! secret.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::server::TestServer;
use super::shared_vault::VaultKey;

/// A with the default settings: the time between two probes plus the timeout of one.
pub(crate) const A: Duration = Duration::from_secs(3);
/// The allowance of a replica for reading its clock and for scheduling a thread.
const SLACK: Duration = Duration::from_millis(100);

/// The customer's control of a Vault key's policy.
pub(crate) struct Switch {
    key: VaultKey,
    policy: Value,
}

impl Switch {
    /// Remembers what the policy allows.
    pub(crate) async fn of(key: &VaultKey) -> Self {
        let read = key.admin(Method::GET, &format!("sys/policies/acl/{}", key.name), json!({})).await;
        Self { key: key.clone(), policy: read["data"]["policy"].clone() }
    }

    /// Takes all rights away, and returns the time at which Vault had done so.
    pub(crate) async fn off(&self) -> Instant {
        self.allow(&json!("path \"nothing\" { capabilities = [\"read\"] }")).await;
        Instant::now()
    }

    /// Restores the policy.
    pub(crate) async fn on(&self) {
        self.allow(&self.policy).await;
    }

    async fn allow(&self, policy: &Value) {
        let path = format!("sys/policies/acl/{}", self.key.name);
        self.key.admin(Method::PUT, &path, json!({ "policy": policy })).await;
    }
}

/// One answer.
pub(crate) struct Seen {
    /// The number of the call, counted from 0 by its caller.
    pub(crate) n: usize,
    pub(crate) sent: Instant,
    pub(crate) arrived: Instant,
    /// The HTTP status; zero if the connection ended.
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether the answer contained the caller's secret.
    pub(crate) secret: bool,
}

/// The path and body of a caller's n-th call.
pub(crate) type Call = Box<dyn Fn(usize) -> (&'static str, Value) + Send>;

/// A caller that calls again and again, until [`Self::end`].
pub(crate) struct Caller {
    what: String,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Caller {
    /// Calls a server as `admin`. An answer that contains `secret` must not be given once the key
    /// is off.
    pub(crate) fn of(server: &TestServer, what: &str, secret: &str, call: Call) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (base, jwt, client) = (server.base.clone(), server.jwt("admin", what), server.client.clone());
        let (secret, stopped, kept) = (secret.to_owned(), stop.clone(), seen.clone());
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (path, body) = call(n);
                let request = client.post(format!("{base}{path}")).bearer_auth(&jwt).json(&body);
                let sent = Instant::now();
                let (status, body) = match request.timeout(Duration::from_secs(60)).send().await {
                    Ok(response) => (response.status().as_u16(), response.text().await.unwrap_or_default()),
                    Err(_) => (0, String::new()),
                };
                let (arrived, secret) = (Instant::now(), body.contains(&secret));
                kept.lock().expect("a lock").push(Seen { n, sent, arrived, status, body, secret });
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { what: what.to_owned(), stop, seen, task }
    }

    /// Decrypts one token over REST; its plaintext is its record's name.
    pub(crate) fn decrypting(server: &TestServer, what: &str, record: &str, token: &str) -> Self {
        let body = json!({ "ciphertext": token, "record_id": record });
        Self::of(server, what, record, Box::new(move |_| ("/byok/decrypt", body.clone())))
    }

    /// The number of answers with the secret so far.
    pub(crate) fn secrets(&self) -> usize {
        self.seen.lock().expect("a lock").iter().filter(|seen| seen.secret).count()
    }

    /// Waits until this many more of them have come.
    pub(crate) async fn is_served(&self, more: usize) {
        let before = self.secrets();
        eventually(&format!("{} is served", self.what), async || self.secrets() >= before + more).await;
    }

    /// Waits for the last call, and returns all answers.
    pub(crate) async fn end(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no caller panics");
        let seen = std::mem::take(&mut *self.seen.lock().expect("a lock"));
        Answers { what: self.what, seen }
    }
}

/// All answers that one caller received.
pub(crate) struct Answers {
    pub(crate) what: String,
    pub(crate) seen: Vec<Seen>,
}

impl Answers {
    /// Asserts that the caller was served before the key was turned off, and only refused later
    /// than A, a replica's slack and one round trip after that.
    pub(crate) fn none_after_the_bound(&self, off: Instant) {
        let what = &self.what;
        let trips = self.seen.iter().filter(|seen| seen.arrived < off).map(|seen| seen.arrived - seen.sent);
        let bound = A + SLACK + trips.max().unwrap_or_default();
        assert!(self.seen.iter().any(|seen| seen.secret && seen.arrived < off), "{what} was never served");
        for seen in self.seen.iter().filter(|seen| seen.secret && seen.arrived > off) {
            let late = seen.arrived - off;
            assert!(late <= bound, "{what}: {late:?} after the key was turned off: {}", seen.body);
        }
        assert!(
            self.seen.iter().any(|seen| seen.arrived > off + bound),
            "{what}: no answer came after the bound"
        );
        let first = self.seen.iter().find(|seen| !seen.secret && seen.arrived > off);
        let first = first.map(|seen| seen.arrived - off).unwrap_or_default();
        println!("{what}: first refused after {first:?}; the bound is {bound:?}");
    }

    /// The answers to calls that were sent after this time.
    pub(crate) fn past(&self, moment: Instant) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(move |seen| seen.sent > moment)
    }

    /// Asserts that every answer after this time has this code.
    pub(crate) fn all_say(&self, moment: Instant, code: &str) {
        for seen in self.past(moment) {
            assert!(!seen.secret && seen.body.contains(code), "{}: {} {}", self.what, seen.status, seen.body);
        }
    }
}

/// Waits until a condition holds, for at most a minute.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The state of each key version in the database: version, posture, epoch.
pub(crate) async fn postures(database: &sqlx::PgPool) -> Vec<(String, String, i64)> {
    sqlx::query_as("SELECT key_version, posture, epoch FROM np_byok_proofs ORDER BY key_version")
        .fetch_all(database)
        .await
        .expect("proofs are read")
}

/// Waits until all key versions are active.
pub(crate) async fn all_active(database: &sqlx::PgPool) {
    let active = async || postures(database).await.iter().all(|(_, posture, _)| posture == "active");
    eventually("all key versions are active", active).await;
}

/// Calls until the server answers again. Calls trigger probes, so this is faster than waiting.
pub(crate) async fn serves_again(server: &TestServer, record: &str, token: &str) {
    let served = async || server.decrypt(token, record).await.body["plaintext"] == record;
    eventually("it serves again", served).await;
}

/// The incidents in the database: posture before and after.
pub(crate) async fn incidents(database: &sqlx::PgPool) -> Vec<(String, String)> {
    sqlx::query_as("SELECT was, posture FROM np_byok_incidents ORDER BY at, id")
        .fetch_all(database)
        .await
        .expect("incidents are read")
}

/// Encrypts each record's own name, all in one call, and returns the tokens in order.
pub(crate) async fn encrypt_all(server: &TestServer, records: &[String]) -> Vec<String> {
    let items: Vec<Value> =
        records.iter().map(|record| json!({ "plaintext": record, "record_id": record })).collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    let items = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    items.iter().map(|item| item["ciphertext"].as_str().expect("a token").to_owned()).collect()
}

/// Asserts that each of these can be decrypted: record, token and plaintext.
pub(crate) async fn all_open(server: &TestServer, tokens: &[(String, String, String)]) {
    for chunk in tokens.chunks(500) {
        let items: Vec<Value> = chunk
            .iter()
            .map(|(record, token, _)| json!({ "ciphertext": token, "record_id": record }))
            .collect();
        let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
        let items = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
        for ((record, _, plaintext), item) in chunk.iter().zip(items) {
            assert_eq!(item["plaintext"], *plaintext, "{record}: {item}");
        }
    }
}
