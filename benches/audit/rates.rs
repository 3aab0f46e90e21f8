//! The number of entries that become durable in a second, beside single rows that are committed one
//! by one on the same server; and the wait for it, which is all that the log adds to a hot decrypt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use byok::audit::{Committer, Unit};
use byok::config;
use byok::crypto::SecretText;
use byok::model::{SystemClock, TenantUid};
use byok::store::{Fence, Postgres, Requirement};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::Plan;
use crate::entries::Entries;
use crate::support::postgres::{TestDatabase, execute, migrated};
use crate::support::rows;

/// The numbers of callers that wait at once.
pub(crate) const CALLERS: [usize; 4] = [1, 8, 64, 512];
/// The numbers of connections that commit single rows: one for each caller. The server does not
/// take 512.
const CONNECTIONS: [usize; 3] = [1, 8, 64];
/// The number of replicas that append to one log at once.
const REPLICAS: usize = 3;
/// The numbers of callers of all replicas together: as many as one replica alone has, and as many
/// for each replica.
const SHARED: [usize; 2] = [64, 64 * REPLICAS];
/// The default of `byok serve`.
const CONNECTIONS_OF_SERVE: u32 = 16;

/// One round of one measurement.
pub(crate) struct Sample {
    pub(crate) per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// The rounds of one number of callers.
pub(crate) struct Rate {
    pub(crate) name: String,
    pub(crate) callers: usize,
    pub(crate) rounds: Vec<Sample>,
}

pub(crate) struct Rates {
    /// Entries of one replica, in the order of [`CALLERS`].
    pub(crate) appended: Vec<Rate>,
    /// Single rows, in the order of [`CONNECTIONS`].
    pub(crate) single: Vec<Rate>,
    /// Entries of all replicas in one log, in the order of [`SHARED`].
    pub(crate) replicas: Vec<Rate>,
}

pub(crate) async fn measure(plan: &Plan) -> Rates {
    let rate = |name: String, callers| Rate { name, callers, rounds: Vec::new() };
    let mut appended: Vec<Rate> =
        CALLERS.into_iter().map(|callers| rate("entries, one replica".to_owned(), callers)).collect();
    let mut single: Vec<Rate> = CONNECTIONS
        .into_iter()
        .map(|connections| rate("rows, one commit each".to_owned(), connections))
        .collect();
    let mut replicas: Vec<Rate> = SHARED
        .into_iter()
        .map(|callers| rate(format!("entries, {REPLICAS} replicas, one log"), callers))
        .collect();
    let (database, _) = migrated().await;
    execute(&database.url, SINGLE).await;
    // Round by round, so that what is compared runs within the same minute.
    for round in 0..plan.rounds {
        eprintln!("rates: round {} of {}", round + 1, plan.rounds);
        for rate in &mut appended {
            rate.rounds.push(append(&database, 1, rate.callers, plan.window).await);
        }
        for rate in &mut single {
            rate.rounds.push(commit_rows(&database, rate.callers, plan.window).await);
        }
        for rate in &mut replicas {
            rate.rounds.push(append(&database, REPLICAS, rate.callers, plan.window).await);
        }
    }
    Rates { appended, single, replicas }
}

/// A store as a replica has it.
pub(crate) fn store(url: &str) -> Arc<Postgres> {
    let settings = config::Postgres {
        url: SecretText::new(url.to_owned()),
        migration_url: None,
        max_connections: CONNECTIONS_OF_SERVE,
        pgbouncer: false,
    };
    Arc::new(Postgres::connect_lazy(&settings).expect("the URL is sound"))
}

/// Callers append to a new log. Each appends its next entry once the last is durable, under a fence
/// like that of a decrypt.
async fn append(database: &TestDatabase, replicas: usize, callers: usize, window: Duration) -> Sample {
    let stores: Vec<_> = (0..replicas).map(|_| store(&database.url)).collect();
    let tenant = rows::tenant(&*stores[0]).await;
    let proof = rows::watch(&*stores[0], tenant, "1").await;
    let requirement = Requirement::Proven { epoch: proof.epoch, within: Duration::from_secs(3_600) };
    let fence = vec![Fence { key_version: proof.key_version, requirement }];
    let committers: Vec<_> =
        stores.into_iter().map(|store| Arc::new(Committer::start(store, Arc::new(SystemClock)))).collect();
    let call = |caller: usize, until: Instant| {
        let committer = committers[caller % replicas].clone();
        call(committer, tenant, fence.clone(), caller as u64, until)
    };
    // Opens connections and prepares statements.
    let warm = Instant::now() + window / 4;
    waits((0..callers).map(|caller| call(caller, warm))).await;
    let begin = Instant::now();
    let waits = waits((0..callers).map(|caller| call(caller, begin + window))).await;
    sample(waits, begin.elapsed())
}

async fn call(
    committer: Arc<Committer>,
    tenant: TenantUid,
    fence: Vec<Fence>,
    seed: u64,
    until: Instant,
) -> Vec<Duration> {
    let mut entries = Entries::new(tenant, seed);
    let mut waits = Vec::new();
    while Instant::now() < until {
        let entry = entries.entry(rows::now());
        let begin = Instant::now();
        let unit = Unit { tenant, entry: Some(entry), changes: Vec::new(), gate: None, fence: fence.clone() };
        let durable = committer.commit(unit).await.expect("it is durable");
        durable.receipt.expect("it passed its fence");
        waits.push(begin.elapsed());
    }
    waits
}

/// A table for an entry's fields as a log without a tree or positions would have it.
const SINGLE: &str = "CREATE TABLE single (id uuid PRIMARY KEY, at timestamptz NOT NULL, operation text NOT NULL,
    outcome text NOT NULL, role text NOT NULL, user_id text, request_id text, records text NOT NULL, items bytea NOT NULL)";

async fn commit_rows(database: &TestDatabase, connections: usize, window: Duration) -> Sample {
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(PgConnection::connect(&database.url).await.expect("a connection"));
    }
    let begin = Instant::now();
    let until = begin + window;
    let waits =
        waits(opened.into_iter().zip(0..).map(|(connection, seed)| rows_of(connection, seed, until))).await;
    sample(waits, begin.elapsed())
}

async fn rows_of(mut connection: PgConnection, seed: u64, until: Instant) -> Vec<Duration> {
    let mut entries = Entries::new(TenantUid([0; 16]), seed);
    let mut waits = Vec::new();
    while Instant::now() < until {
        let row = entries.entry(rows::now());
        let begin = Instant::now();
        sqlx::query(AssertSqlSafe("INSERT INTO single VALUES ($1, now(), $2, $3, $4, $5, $6, $7, $8)"))
            .bind(row.id.0)
            .bind(row.operation.as_str())
            .bind(row.outcome.as_str())
            .bind(&*row.role)
            .bind(row.user.and_then(|user| user.value))
            .bind(row.request.value)
            .bind(row.records)
            .bind(row.items)
            .execute(&mut connection)
            .await
            .expect("a row is committed");
        waits.push(begin.elapsed());
    }
    waits
}

async fn waits<F>(callers: impl Iterator<Item = F>) -> Vec<Duration>
where
    F: Future<Output = Vec<Duration>> + Send + 'static,
{
    let tasks: Vec<_> = callers.map(tokio::spawn).collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("a caller does not panic"));
    }
    waits
}

fn sample(mut waits: Vec<Duration>, took: Duration) -> Sample {
    waits.sort_unstable();
    Sample {
        per_s: waits.len() as f64 / took.as_secs_f64(),
        p50_ms: percentile_ms(&waits, 0.50),
        p99_ms: percentile_ms(&waits, 0.99),
    }
}

/// A percentile of sorted durations, in milliseconds.
pub(crate) fn percentile_ms(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(index).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
}
