//! Several replicas append to one tenant's log and are killed at random times: everything that was
//! answered is in the log, and the log is one tree.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byok::audit::{Committer, Unit, digest_of, pack, unpack};
use byok::config::Env;
use byok::merkle::Frontier;
use byok::model::{Entry, EntryId, Extensions, Means, Operation, Outcome, SystemClock, TenantUid, Timestamp};
use byok::store::{Store, TenantReads};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::postgres::{connect, migrated};
use crate::support::private::Private;
use crate::support::rows::tenant;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;

const REPLICAS: usize = 3;
/// The kills of each replica, 51 in total.
const KILLS: usize = 17;
/// The kills of the database.
const DATABASE_KILLS: usize = 3;
/// The concurrent callers of each replica.
const CALLERS: usize = 3;

/// SplitMix64 (Steele, Lea, Flood, 2014): a seed makes a run repeatable.
struct Random(u64);

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end).unwrap()).unwrap()
    }

    async fn pause(&mut self, least: u64, most: u64) {
        let more = self.below(usize::try_from(most - least).unwrap()) as u64;
        tokio::time::sleep(Duration::from_millis(least + more)).await;
    }
}

/// An encrypted value, and what its decryption must give.
#[derive(Clone)]
struct Sealed {
    token: Value,
    record: String,
    plaintext: String,
}

/// The answers that callers received.
#[derive(Default)]
struct Answered {
    requests: Vec<String>,
    /// The number of tokens or plaintexts in each answer.
    given: Vec<(String, usize)>,
    sealed: Vec<Sealed>,
    /// The number of calls that a kill interrupted: they were sent and not answered.
    cut: usize,
}

/// The address on which a replica currently listens.
type Base = Arc<Mutex<String>>;

/// One caller of one replica.
struct Caller {
    name: String,
    base: Base,
    answered: Arc<Mutex<Answered>>,
    jwt: String,
    client: reqwest::Client,
    random: Random,
}

impl Caller {
    async fn call_until(mut self, stop: CancellationToken) {
        for n in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let request = format!("{}-{n}", self.name);
            let known = {
                let answered = self.answered.lock().unwrap();
                let count = answered.sealed.len();
                (count > 0).then(|| answered.sealed[self.random.below(count)].clone())
            };
            let new = format!("record-{request}");
            match (self.random.below(4), known) {
                (0, _) | (_, None) => self.encrypt(&request, &[new]).await,
                (1, Some(known)) => self.encrypt(&request, &[known.record]).await,
                (2, Some(known)) => self.encrypt(&request, &[new, known.record, "shared".to_owned()]).await,
                (_, Some(known)) => self.decrypt(&request, &known).await,
            }
        }
    }

    async fn encrypt(&self, request: &str, records: &[String]) {
        let item =
            |record: &String| json!({ "plaintext": format!("{request} {record}"), "record_id": record });
        let items: Vec<Value> = records.iter().map(item).collect();
        let answer = match items.as_slice() {
            [item] => self.post(request, "encrypt", item).await.map(|answer| vec![answer]),
            items => {
                let answer = self.post(request, "encrypt/many", &json!({ "items": items })).await;
                answer.map(|answer| answer["items"].as_array().unwrap().clone())
            }
        };
        // In a batch, single items can be refused.
        let done = answer.iter().flatten().filter(|answer| answer["ciphertext"].is_string()).count();
        if done > 0 {
            self.answered.lock().unwrap().given.push((request.to_owned(), done));
        }
        for (answer, record) in answer.iter().flatten().zip(records) {
            if answer["ciphertext"].is_string() {
                let (token, plaintext) = (answer["ciphertext"].clone(), format!("{request} {record}"));
                self.answered.lock().unwrap().sealed.push(Sealed {
                    token,
                    record: record.clone(),
                    plaintext,
                });
            }
        }
    }

    async fn decrypt(&self, request: &str, sealed: &Sealed) {
        let body = json!({ "ciphertext": sealed.token, "record_id": sealed.record });
        if let Some(answer) = self.post(request, "decrypt", &body).await {
            assert_eq!(answer["plaintext"], *sealed.plaintext, "{request}");
            self.answered.lock().unwrap().given.push((request.to_owned(), 1));
        }
    }

    /// The answer to a call if it succeeded; the request is recorded.
    async fn post(&self, request: &str, path: &str, body: &Value) -> Option<Value> {
        let url = format!("{}/byok/{path}", self.base.lock().unwrap());
        let call = self.client.post(url).bearer_auth(&self.jwt).header("x-request-id", request).json(body);
        let answer = match call.timeout(Duration::from_secs(5)).send().await {
            Ok(answer) if answer.status() == 200 => {
                // Record the request before the body is read: with the status, the server may have
                // sent all of it.
                self.answered.lock().unwrap().requests.push(request.to_owned());
                answer.json().await.ok()
            }
            Ok(_) => None,
            Err(error) => {
                self.answered.lock().unwrap().cut += usize::from(!error.is_connect());
                None
            }
        };
        if answer.is_none() {
            // The process or the database is down.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answer
    }
}

/// Reads the whole log and checks that its positions have no gaps or duplicates, that each digest
/// matches its row, and that the tree over all leaves matches the head. Returns the request ids,
/// each with the number of items that succeeded according to its entry.
async fn whole_log(store: &dyn Store, tenant: TenantUid) -> HashMap<String, usize> {
    let head = store.log_head(tenant).await.unwrap().unwrap();
    let (mut frontier, mut ids, mut requests) = (Frontier::default(), HashSet::new(), HashMap::new());
    loop {
        let page = store.entries_from(tenant, frontier.size(), 500).await.unwrap();
        if page.is_empty() {
            break;
        }
        for placed in page {
            assert_eq!(placed.seq, frontier.size(), "no gap and no duplicate");
            assert_eq!(digest_of(tenant, &placed.row), Some(placed.row.digest), "place {}", placed.seq);
            assert!(ids.insert(placed.row.id), "an entry is there twice: {}", placed.row.id);
            frontier.append(placed.row.leaf());
            let items = unpack(&placed.row).expect("the form that this release writes").items;
            let done = items.iter().filter(|item| item.refused.is_none()).count();
            if let Some(request) = placed.row.request.value {
                *requests.entry(request).or_default() += done;
            }
        }
    }
    assert_eq!((head.first, head.end()), (0, frontier.size()));
    assert_eq!(head.frontier.root(), frontier.root());
    assert_eq!(head.frontier, frontier);
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_killed_at_any_moment_leave_one_log_with_all_answers() {
    let given = Env::of_process().get("BYOK_TEST_SEED").map(|seed| seed.parse().expect("a number"));
    let seed: u64 = given.unwrap_or_else(|| u64::from_be_bytes(byok::crypto::random()));
    println!("BYOK_TEST_SEED={seed}");
    let mut random = Random(seed);

    let database = Private::postgres().await;
    let url = create_database(&database.variable("DATABASE_URL")).await;
    let first = TestServer::on(VaultKey::create().await, url.clone(), &[("BYOK_LOG", "info")]).await;
    let (answered, stop) = (Arc::new(Mutex::new(Answered::default())), CancellationToken::new());
    let mut replicas = vec![first];
    while replicas.len() < REPLICAS {
        let replica = replicas[0].replica().await;
        replicas.push(replica);
    }

    let (mut callers, mut killers) = (Vec::new(), Vec::new());
    for (number, mut replica) in replicas.into_iter().enumerate() {
        let base = Arc::new(Mutex::new(replica.base.clone()));
        for caller in 0..CALLERS {
            let caller = Caller {
                name: format!("r{number}c{caller}"),
                base: base.clone(),
                answered: answered.clone(),
                jwt: replica.jwt("admin", "the-admin"),
                client: replica.client.clone(),
                random: Random(seed ^ (number * CALLERS + caller + 1) as u64),
            };
            callers.push(tokio::spawn(caller.call_until(stop.clone())));
        }
        let mut random = Random(seed ^ (1_000 + number) as u64);
        killers.push(tokio::spawn(async move {
            for _ in 0..KILLS {
                random.pause(50, 700).await;
                replica.kill().await;
                replica.start_again().await;
                base.lock().unwrap().clone_from(&replica.base);
            }
            replica
        }));
    }
    for _ in 0..DATABASE_KILLS {
        random.pause(2_000, 5_000).await;
        database.kill().await;
        database.start_again().await;
    }
    let mut survivors = Vec::new();
    for killer in killers {
        survivors.push(killer.await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    for caller in callers {
        caller.await.unwrap();
    }

    let Answered { requests, given, sealed, cut } = std::mem::take(&mut *answered.lock().unwrap());
    println!("{} calls were answered, {cut} cut off; {} values are sealed", requests.len(), sealed.len());
    assert!(requests.len() > 100, "the callers were held up");
    assert!(cut > KILLS, "the kills interrupted too few calls");
    for (n, some) in sealed.chunks(100).enumerate() {
        opens(&survivors[n % survivors.len()], some).await;
    }
    let store = connect(&url);
    let tenant = store.tenant("primary").await.unwrap().unwrap();
    let logged = whole_log(&store, tenant.uid).await;
    let missing: Vec<_> = requests.iter().filter(|request| !logged.contains_key(*request)).collect();
    assert!(missing.is_empty(), "answered, and not in the log: {missing:?}");
    for (request, count) in given {
        assert!(logged[&request] >= count, "{request} gave {count}, and the log says {}", logged[&request]);
    }
}

/// Asserts that each value can be decrypted, once the key has been shown to work again.
async fn opens(server: &TestServer, sealed: &[Sealed]) {
    let item = |sealed: &Sealed| json!({ "ciphertext": sealed.token, "record_id": sealed.record });
    let items: Vec<Value> = sealed.iter().map(item).collect();
    let mut answer = Value::Null;
    for _ in 0..60 {
        answer = server.post("/byok/decrypt/many", json!({ "items": items })).await.body;
        let opened = |(item, sealed): (&Value, &Sealed)| item["plaintext"] == *sealed.plaintext;
        if answer["items"].as_array().is_some_and(|items| items.iter().zip(sealed).all(opened)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("an acknowledged value cannot be decrypted: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_append_at_once_make_one_tree_without_a_gap() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    let mut callers = Vec::new();
    for replica in 0..3 {
        let own = Arc::new(connect(&database.url));
        let committer = Arc::new(Committer::start(own, Arc::new(SystemClock)));
        for caller in 0..8 {
            let committer = committer.clone();
            callers.push(tokio::spawn(async move {
                for n in 0..25 {
                    let entry = Some(pack(tenant, &entry(format!("{replica}-{caller}-{n}"))));
                    let unit = Unit::unconditional(tenant, entry, Vec::new());
                    committer.commit(unit).await.unwrap();
                }
            }));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(whole_log(&*store, tenant).await.len(), 3 * 8 * 25);
}

fn entry(request: String) -> Entry {
    Entry {
        id: EntryId::new(),
        at: Timestamp(0),
        operation: Operation::Encrypt,
        outcome: Outcome::Ok,
        role: "user".into(),
        user: Some("u".to_owned()),
        means: Means::Jwt,
        request_id: Some(request),
        detail: None,
        reason: None,
        ledger_hash: None,
        issuer: None,
        extensions: Extensions::default(),
        items: Vec::new(),
    }
}
