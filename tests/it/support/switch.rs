//! The customer's switch, and callers who note when each answer came and whether it held what is secret.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::server::TestServer;
use super::shared_vault::VaultKey;

/// A with the defaults: the time between two probes and the time for the answer to one.
pub(crate) const A: Duration = Duration::from_secs(3);
/// What a replica allows for its own clock's reading and a thread's turn.
const SLACK: Duration = Duration::from_millis(100);

/// The customer's hand on the policy of a key in Vault.
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

    /// Takes all rights away, and says when Vault had done so.
    pub(crate) async fn off(&self) -> Instant {
        self.allow(&json!("path \"nothing\" { capabilities = [\"read\"] }")).await;
        Instant::now()
    }

    /// Gives them back.
    pub(crate) async fn on(&self) {
        self.allow(&self.policy).await;
    }

    async fn allow(&self, policy: &Value) {
        let path = format!("sys/policies/acl/{}", self.key.name);
        self.key.admin(Method::PUT, &path, json!({ "policy": policy })).await;
    }
}

/// One answer as it came.
pub(crate) struct Seen {
    /// Which call of its caller it was.
    pub(crate) n: usize,
    pub(crate) sent: Instant,
    pub(crate) arrived: Instant,
    /// Zero where the connection ended.
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether it held what its caller takes for secret.
    pub(crate) secret: bool,
}

/// A path and the body of its n-th call.
pub(crate) type Call = Box<dyn Fn(usize) -> (&'static str, Value) + Send>;

/// One caller who calls again and again. Ends with its value.
pub(crate) struct Caller {
    what: String,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Caller {
    /// Calls a server as `admin`. An answer that holds `secret` is one that must not be given when the key is gone.
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

    /// Decrypts one token over REST, whose plaintext is its record's name.
    pub(crate) fn decrypting(server: &TestServer, what: &str, record: &str, token: &str) -> Self {
        let body = json!({ "ciphertext": token, "record_id": record });
        Self::of(server, what, record, Box::new(move |_| ("/byok/decrypt", body.clone())))
    }

    /// How many answers with what is secret have come so far.
    pub(crate) fn secrets(&self) -> usize {
        self.seen.lock().expect("a lock").iter().filter(|seen| seen.secret).count()
    }

    /// Waits until so many more of them have come.
    pub(crate) async fn is_served(&self, more: usize) {
        let before = self.secrets();
        eventually(&format!("{} is served", self.what), async || self.secrets() >= before + more).await;
    }

    /// Lets the last call end, and gives all answers.
    pub(crate) async fn end(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no caller panics");
        let seen = std::mem::take(&mut *self.seen.lock().expect("a lock"));
        Answers { what: self.what, seen }
    }
}

/// What one caller has seen.
pub(crate) struct Answers {
    pub(crate) what: String,
    pub(crate) seen: Vec<Seen>,
}

impl Answers {
    /// It was served before the key was turned off; and past A, a replica's slack and one round trip after it, it was
    /// refused and no more.
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
            "{what}: nothing came past the bound"
        );
        let first = self.seen.iter().find(|seen| !seen.secret && seen.arrived > off);
        let first = first.map(|seen| seen.arrived - off).unwrap_or_default();
        println!("{what}: first refused after {first:?}; the bound is {bound:?}");
    }

    /// Those that were sent past this moment.
    pub(crate) fn past(&self, moment: Instant) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(move |seen| seen.sent > moment)
    }

    /// Past this moment every answer says this.
    pub(crate) fn all_say(&self, moment: Instant, code: &str) {
        for seen in self.past(moment) {
            assert!(!seen.secret && seen.body.contains(code), "{}: {} {}", self.what, seen.status, seen.body);
        }
    }
}

/// Waits until it holds; a minute at most.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "it did not come to that: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How each key version stands in the database: version, posture, epoch.
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

/// Calls until it is served: calls probe too, so that this is sooner than without them.
pub(crate) async fn serves_again(server: &TestServer, record: &str, token: &str) {
    let served = async || server.decrypt(token, record).await.body["plaintext"] == record;
    eventually("it serves again", served).await;
}

/// What stands in the incidents: posture before and after.
pub(crate) async fn incidents(database: &sqlx::PgPool) -> Vec<(String, String)> {
    sqlx::query_as("SELECT was, posture FROM np_byok_incidents ORDER BY at, id")
        .fetch_all(database)
        .await
        .expect("incidents are read")
}

/// Encrypts each record's own name, all in one call; gives the tokens in order.
pub(crate) async fn encrypt_all(server: &TestServer, records: &[String]) -> Vec<String> {
    let items: Vec<Value> =
        records.iter().map(|record| json!({ "plaintext": record, "record_id": record })).collect();
    let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
    let items = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    items.iter().map(|item| item["ciphertext"].as_str().expect("a token").to_owned()).collect()
}

/// Every one of these opens: record, token and plaintext.
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
