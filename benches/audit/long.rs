//! A log of ten million entries, spread over the days of this month, and a short log in the same
//! database.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use byok::audit::{Derivation, Derived};
use byok::model::{TenantUid, Timestamp};
use byok::store::{Commits as _, Postgres};
use sqlx::{Connection, PgConnection, Row};
use tokio_util::sync::CancellationToken;

use crate::entries::Entries;
use crate::rates::store;
use crate::support::postgres::{TestDatabase, execute, migrated};
use crate::support::rows;

/// The number of entries in the short log.
pub(crate) const SHORT: u64 = 10_000;
/// The most entries that one group commit takes.
const BATCH: u64 = 1_024;

/// The two logs.
pub(crate) struct Long {
    pub(crate) database: TestDatabase,
    pub(crate) store: Arc<Postgres>,
    pub(crate) tenant: TenantUid,
    pub(crate) short: TenantUid,
    /// The time of the first entry.
    pub(crate) from: Timestamp,
    pub(crate) filled: Filled,
}

/// The rates at which the long log was made.
#[derive(Clone, Copy)]
pub(crate) struct Filled {
    pub(crate) entries: u64,
    pub(crate) appended_per_s: f64,
    pub(crate) derived_per_s: f64,
}

/// The bytes on disk for each entry, with indexes.
pub(crate) struct Disk {
    pub(crate) parts: Vec<(&'static str, f64)>,
}

impl Disk {
    pub(crate) fn bytes_per_entry(&self) -> f64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Long {
    pub(crate) async fn fill(entries: u64) -> Self {
        let (database, _) = migrated().await;
        let store = store(&database.url);
        let now = rows::now();
        // Partitions are made for this month: from its first day on, or from half an hour ago on
        // that day.
        let month = month_of(&database).await;
        let from = Timestamp(month.0.min(now.0 - 1_800_000_000));
        let (tenant, short) = (rows::tenant(&*store).await, rows::tenant(&*store).await);
        let begin = Instant::now();
        append(&store, tenant, entries, from, now).await;
        let appended_per_s = entries as f64 / begin.elapsed().as_secs_f64();
        append(&store, short, SHORT, from, now).await;
        let begin = Instant::now();
        all_derived(&store).await;
        let derived_per_s = entries as f64 / begin.elapsed().as_secs_f64();
        // Autovacuum would do this in time. It must not run during the measurement.
        for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
            execute(&database.url, statement).await;
        }
        let filled = Filled { entries, appended_per_s, derived_per_s };
        Self { database, store, tenant, short, from, filled }
    }

    /// The disk space that the logs take, the short one included.
    pub(crate) async fn disk(&self) -> Disk {
        let mut parts = Vec::new();
        for (name, what) in [
            (
                "entries",
                "SELECT sum(pg_table_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'np_byok_audit'::regclass",
            ),
            (
                "their indexes",
                "SELECT sum(pg_indexes_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'np_byok_audit'::regclass",
            ),
            ("tiles", "SELECT pg_total_relation_size('np_byok_tiles')::numeric"),
            ("filters", "SELECT pg_total_relation_size('np_byok_filters')::numeric"),
        ] {
            let bytes = number(&self.database, &format!("SELECT ({what})::double precision")).await;
            parts.push((name, bytes / (self.filled.entries + SHORT) as f64));
        }
        Disk { parts }
    }
}

/// Derives everything that is missing. A server's worker does this while entries are appended, and
/// is seconds behind at most.
pub(crate) async fn all_derived(store: &Postgres) {
    let (begin, stop) = (Instant::now(), CancellationToken::new());
    let mut derivation = Derivation::default();
    loop {
        match derivation.pass(store, &stop).await {
            Derived::All => return,
            Derived::More => {}
            Derived::NotHere | Derived::Wrong => panic!("nobody else derives here"),
        }
        eprintln!("long log: derived for {:.0} s", begin.elapsed().as_secs_f64());
    }
}

async fn append(store: &Arc<Postgres>, tenant: TenantUid, entries: u64, from: Timestamp, until: Timestamp) {
    let mut made = Entries::new(tenant, entries);
    let pace = (until.0 - from.0) as f64 / entries as f64;
    let begin = Instant::now();
    let mut at = 0;
    // The next batch is made while this one is committed.
    let mut committing: Option<tokio::task::JoinHandle<()>> = None;
    while at < entries {
        let end = entries.min(at + BATCH);
        let rows = (at..end).map(|n| made.entry(Timestamp(from.0 + (n as f64 * pace) as i64))).collect();
        if let Some(committing) = committing.take() {
            committing.await.expect("it is committed");
        }
        let (store, batch) = (store.clone(), rows::entries(tenant, at, rows));
        committing = Some(tokio::spawn(async move {
            store.commit(&batch).await.expect("a batch is committed");
        }));
        if at % (BATCH * 1_000) == 0 && at > 0 {
            eprintln!("long log: {at} of {entries} entries in {:.0} s", begin.elapsed().as_secs_f64());
        }
        at = end;
    }
    if let Some(committing) = committing {
        committing.await.expect("it is committed");
    }
}

async fn month_of(database: &TestDatabase) -> Timestamp {
    let sql = "SELECT extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC'))::double precision";
    Timestamp((number(database, sql).await * 1e6) as i64)
}

async fn number(database: &TestDatabase, sql: &str) -> f64 {
    let mut connection = PgConnection::connect(&database.url).await.expect("a connection");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.expect("a number");
    row.get(0)
}

/// Refuses a database in memory: the bench measures commits to a disk.
pub(crate) async fn refuse_memory(url: &str) -> Result<(), String> {
    let mut connection = PgConnection::connect(url).await.map_err(|error| error.to_string())?;
    let row = sqlx::query("SHOW data_directory").fetch_one(&mut connection).await;
    let folder: String = row.map_err(|error| error.to_string())?.get(0);
    let kind = Command::new("stat").args(["--file-system", "--format=%T", &folder]).output();
    match kind.map(|output| output.stdout) {
        Ok(kind) if kind.starts_with(b"tmpfs") => {
            Err(format!("{folder} is in memory, where nothing is durable: set TMPDIR to a folder on a disk"))
        }
        _ => Ok(()),
    }
}
