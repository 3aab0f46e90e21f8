//! The kill switch with several replicas: processes on one database and one key, some of them cut
//! off, stopped, or behind PgBouncer, under clocks that jump. And the cost of the prober.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::needed;
use crate::support::pgbouncer::PgBouncer;
use crate::support::relay::Relay;
use crate::support::server::{TestServer, create_database};
use crate::support::shared_vault::VaultKey;
use crate::support::switch::{
    A, Caller, Switch, all_active, encrypt_all, eventually, incidents, postures, serves_again,
};
use crate::support::toxics::{Fault, Way};

/// One database and one key for all replicas.
struct Deployment {
    key: VaultKey,
    database_url: String,
}

impl Deployment {
    async fn new() -> Self {
        Self { key: VaultKey::create().await, database_url: create_database(&needed("DATABASE_URL")).await }
    }

    async fn replica(&self, more: &[(&str, &str)]) -> TestServer {
        TestServer::on(self.key.clone(), self.database_url.clone(), more).await
    }

    /// A replica with its own route to the KMS.
    async fn by_way_to_kms(&self, more: &[(&str, &str)]) -> (TestServer, Way) {
        let (way, url) = Way::to_url(&self.key.address).await;
        let variables = [more, &[("BYOK_VAULT_ADDR", &url)]].concat();
        (self.replica(&variables).await, way)
    }

    /// A replica with its own route to the database.
    async fn by_way_to_database(&self) -> (TestServer, Way) {
        let (server, name) = self.database_url.rsplit_once('/').unwrap();
        let (user, address) = server.rsplit_once('@').unwrap();
        let way = Way::to(address).await;
        let url = format!("{user}@{}/{name}", way.address);
        (self.replica(&[("DATABASE_URL", &url)]).await, way)
    }
}

fn signal(server: &TestServer, signal: Signal) {
    kill_process(Pid::from_raw(server.pid() as i32).unwrap(), signal).unwrap();
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(was, is)| ((*was).to_owned(), (*is).to_owned())).collect()
}

/// A revocation that four replicas cannot see: one without the database, one without the KMS, one
/// stopped, one behind PgBouncer.
async fn none_answers_past_the_bound(fault: Fault) {
    let deployment = Deployment::new().await;
    let well = deployment.replica(&[]).await;
    let (no_database, to_database) = deployment.by_way_to_database().await;
    let (no_kms, to_kms) = deployment.by_way_to_kms(&[]).await;
    let stopped = Arc::new(deployment.replica(&[]).await);
    let pgbouncer = PgBouncer::before(&deployment.database_url).await;
    let bounced =
        deployment.replica(&[("DATABASE_URL", &pgbouncer.url), ("BYOK_DATABASE_PGBOUNCER", "true")]).await;
    let (switch, database) = (Switch::of(&deployment.key).await, well.database().await);
    let token = well.encrypt("hot-record", "hot-record").await;
    let named = [("well", &well), ("no database", &no_database), ("no KMS", &no_kms), ("bounced", &bounced)];
    let callers: Vec<Caller> =
        named.iter().map(|(what, server)| Caller::decrypting(server, what, "hot-record", &token)).collect();
    for caller in &callers {
        caller.is_served(20).await;
    }
    assert_eq!(stopped.decrypt(&token, "hot-record").await.status, 200);
    signal(&stopped, Signal::STOP);
    // Requests that wait in the stopped replica's socket until it continues.
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let (stopped, token) = (stopped.clone(), token.clone());
            tokio::spawn(async move { stopped.decrypt(&token, "hot-record").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    to_database.spoil(fault).await;
    to_kms.spoil(fault).await;
    let off = switch.off().await;
    tokio::time::sleep(A + Duration::from_secs(2)).await;
    signal(&stopped, Signal::CONT);
    for call in waiting {
        let answer = call.await.unwrap();
        assert!([403, 503].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
        assert!(!answer.body.to_string().contains("hot-record"), "{}", answer.body);
    }
    to_database.mend(fault).await;
    to_kms.mend(fault).await;
    for caller in callers {
        let answers = caller.end().await;
        answers.none_after_the_bound(off);
        if ["well", "bounced", "no KMS"].contains(&answers.what.as_str()) {
            answers.all_say(off + A, "KMS_ACCESS_DENIED");
        }
    }
    assert_eq!(incidents(&database).await, pairs(&[("active", "revoked")]));
    switch.on().await;
    for (_, server) in named.into_iter().chain([("stopped", &*stopped)]) {
        serves_again(server, "hot-record", &token).await;
    }
    assert_eq!(incidents(&database).await, pairs(&[("active", "revoked"), ("revoked", "active")]));
    let all = [&well, &no_database, &no_kms, &*stopped, &bounced];
    let times_logged: usize =
        all.iter().map(|server| server.logged().matches("a key was turned off").count()).sum();
    assert_eq!(times_logged, 1, "only the replica that changed the posture logs it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_answers_past_the_bound_whatever_it_cannot_reach() {
    none_answers_past_the_bound(Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_answers_past_the_bound_whatever_hangs() {
    none_answers_past_the_bound(Fault::Hung).await;
}

/// Asserts that one replica's outage is not everyone's: the key works, and one replica cannot reach
/// it.
async fn one_sees_an_outage(fault: Fault) {
    let deployment = Deployment::new().await;
    // A busy machine must look neither like a second replica's outage nor like an expired proof, so
    // a proof is valid for seven seconds here.
    let patient = [("BYOK_KEY_PROBE_TIMEOUT_MS", "6000")];
    let one = deployment.replica(&patient).await;
    let other = deployment.replica(&patient).await;
    let (cut_off, to_kms) = deployment.by_way_to_kms(&patient).await;
    let database = one.database().await;
    let tokens = encrypt_all(&one, &["hot-record".to_owned(), "cold-record".to_owned()]).await;
    let caller = |server, what| Caller::decrypting(server, what, "hot-record", &tokens[0]);
    let callers = [caller(&one, "one"), caller(&other, "other"), caller(&cut_off, "cut off")];
    for caller in &callers {
        caller.is_served(20).await;
    }
    to_kms.spoil(fault).await;
    let began = Instant::now();
    // Longer than the last earlier proof is valid.
    while began.elapsed() < Duration::from_secs(9) {
        let cold = cut_off.decrypt(&tokens[1], "cold-record").await;
        assert_eq!(
            (cold.status.as_u16(), &cold.body["code"]),
            (503, &json!("KMS_UNAVAILABLE")),
            "{}",
            cold.body
        );
        let is = postures(&database).await;
        assert!(is.iter().all(|(_, posture, epoch)| posture == "active" && *epoch == 0), "{is:?}");
    }
    for caller in callers {
        let answers = caller.end().await;
        for seen in &answers.seen {
            assert!(seen.secret, "{} continues: {} {}", answers.what, seen.status, seen.body);
        }
    }
    assert_eq!(incidents(&database).await, []);
    to_kms.mend(fault).await;
    let served = async || cut_off.decrypt(&tokens[1], "cold-record").await.status == 200;
    eventually("cold records are served again", served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_one_replica_sees_is_not_the_tenants() {
    one_sees_an_outage(Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_that_hangs_for_one_replica_is_not_the_tenants() {
    one_sees_an_outage(Fault::Hung).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_for_all_stops_answers_until_a_probe_succeeds() {
    let deployment = Deployment::new().await;
    let (way, url) = Way::to_url(&deployment.key.address).await;
    let one = deployment.replica(&[("BYOK_VAULT_ADDR", &url)]).await;
    let other = deployment.replica(&[("BYOK_VAULT_ADDR", &url)]).await;
    let database = one.database().await;
    let token = one.encrypt("hot-record", "hot-record").await;
    let callers = [
        Caller::decrypting(&one, "one", "hot-record", &token),
        Caller::decrypting(&other, "other", "hot-record", &token),
    ];
    for caller in &callers {
        caller.is_served(20).await;
    }
    way.spoil(Fault::Cut).await;
    let off = Instant::now();
    tokio::time::sleep(A + Duration::from_secs(1)).await;
    for caller in callers {
        let answers = caller.end().await;
        answers.none_after_the_bound(off);
        answers.all_say(off + A, "KMS_UNAVAILABLE");
        assert!(answers.past(off + A).all(|seen| seen.status == 503));
    }
    assert_eq!(incidents(&database).await, pairs(&[("active", "degraded")]));
    way.mend(Fault::Cut).await;
    all_active(&database).await;
    // A replica that did not change the posture reads it a few times a second, so after this the
    // first call succeeds.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for server in [&one, &other] {
        let answer = server.decrypt(&token, "hot-record").await;
        assert_eq!(answer.body["plaintext"], "hot-record", "{}", answer.body);
    }
    assert_eq!(incidents(&database).await, pairs(&[("active", "degraded"), ("degraded", "active")]));
}

/// Shifts all stored times, as if the database's clock had jumped the other way.
async fn shift(database: &sqlx::PgPool, by: &str) {
    let shift = format!(
        "UPDATE np_byok_proofs SET proven_at = proven_at + '{by}', since = since + '{by}',
         steady_since = steady_since + '{by}', next_probe_at = next_probe_at + '{by}',
         needed_until = needed_until + '{by}', revision = revision + 1"
    );
    sqlx::query(sqlx::AssertSqlSafe(shift)).execute(database).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_stops_nobody_for_long() {
    let deployment = Deployment::new().await;
    let servers = [deployment.replica(&[]).await, deployment.replica(&[]).await];
    let database = servers[0].database().await;
    let token = servers[0].encrypt("hot-record", "hot-record").await;
    let callers = servers.each_ref().map(|server| Caller::decrypting(server, "caller", "hot-record", &token));
    for by in ["1 hour", "-1 hour", "2 seconds", "-2 seconds"] {
        for caller in &callers {
            caller.is_served(20).await;
        }
        shift(&database, by).await;
        // Longer than any interruption may last.
        tokio::time::sleep(A).await;
        let before = callers.each_ref().map(Caller::secrets);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        for (caller, before) in callers.iter().zip(before) {
            assert!(caller.secrets() > before + 5, "a jump by {by}");
        }
    }
    for caller in callers {
        let answers = caller.end().await;
        let refused = answers.seen.iter().filter(|seen| !seen.secret);
        println!("refused in the jumps: {}", refused.count());
    }
    assert_eq!(incidents(&database).await, []);
}

async fn jumps_and_is_turned_off(jumps: &[&str]) {
    let deployment = Deployment::new().await;
    let servers = [deployment.replica(&[]).await, deployment.replica(&[]).await];
    let (switch, database) = (Switch::of(&deployment.key).await, servers[0].database().await);
    let token = servers[0].encrypt("hot-record", "hot-record").await;
    let callers = servers.each_ref().map(|server| Caller::decrypting(server, "caller", "hot-record", &token));
    for caller in &callers {
        caller.is_served(20).await;
    }
    shift(&database, jumps[0]).await;
    let off = switch.off().await;
    for by in &jumps[1..] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        shift(&database, by).await;
    }
    tokio::time::sleep((off + A + Duration::from_secs(2)).duration_since(Instant::now())).await;
    for caller in callers {
        caller.end().await.none_after_the_bound(off);
    }
    assert_eq!(postures(&database).await[0].1, "revoked");
    switch.on().await;
    serves_again(&servers[1], "hot-record", &token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_holds_no_plaintext_up() {
    jumps_and_is_turned_off(&["1 hour", "2 seconds", "1 hour"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_ahead_holds_no_plaintext_up() {
    jumps_and_is_turned_off(&["-2 seconds", "-1 hour", "2 seconds"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_probe_and_nobody_probes_for_nothing() {
    let deployment = Deployment::new().await;
    let name = |request: &axum::extract::Request| request.uri().path().to_owned();
    let relay = Relay::before(&deployment.key.address, name).await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(deployment.replica(&[("BYOK_VAULT_ADDR", relay.url.as_str())]).await);
    }
    let calls = || relay.state.counts.lock().unwrap().values().sum::<usize>();
    // The start is over, and no DEK is in memory.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = calls();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(calls(), idle, "{:?}", relay.state.counts.lock().unwrap());

    // Two versions, both in the memory of all three.
    let old = servers[0].encrypt("old-record", "old-record").await;
    deployment.key.rotate().await;
    let new = servers[0].encrypt("new-record", "new-record").await;
    let callers: Vec<Caller> = servers
        .iter()
        .flat_map(|server| {
            [("old-record", &old), ("new-record", &new)]
                .map(|(record, token)| Caller::decrypting(server, record, record, token))
        })
        .collect();
    for caller in &callers {
        caller.is_served(10).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before) = (Instant::now(), calls());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (lasted, probes) = (began.elapsed().as_secs_f64(), calls() - before);
    println!("{probes} calls in {lasted} s for two key versions");
    // Each version has its own canary and row; probes that are due at the same time share a call.
    assert!(probes as f64 <= 2.0 * 1.5 * lasted, "{probes} calls in {lasted} s");
    assert!(probes >= 5, "{probes} calls in {lasted} s");
    for caller in callers {
        for seen in caller.end().await.seen {
            assert!(seen.secret, "{} {}", seen.status, seen.body);
        }
    }
    let canaries: i64 = sqlx::query_scalar("SELECT count(*) FROM np_byok_proofs")
        .fetch_one(&servers[0].database().await)
        .await
        .unwrap();
    assert_eq!(canaries, 2);
}
