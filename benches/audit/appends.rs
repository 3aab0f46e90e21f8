//! The cost of an append by the length of the log: alternately to a log of ten thousand entries and
//! to a log of ten million, in the same database, on one connection.

use std::time::{Duration, Instant};

use byok::merkle::{Frontier, Hash};
use byok::model::TenantUid;
use byok::store::{Commits as _, Postgres, TenantReads};

use crate::Plan;
use crate::entries::Entries;
use crate::long::Long;
use crate::rates::percentile_ms;
use crate::support::rows;

/// The numbers of entries in one commit.
const SIZES: [usize; 2] = [1, 64];

/// The median times of one size of commit, to each log, in milliseconds.
pub(crate) struct Append {
    pub(crate) entries: usize,
    pub(crate) short_ms: f64,
    pub(crate) long_ms: f64,
}

pub(crate) struct Appends {
    pub(crate) commits: Vec<Append>,
    /// The time to hash one leaf into the frontier, in microseconds, without the database.
    pub(crate) hash_us: f64,
}

pub(crate) async fn measure(plan: &Plan, long: &Long) -> Appends {
    let mut commits = Vec::new();
    for entries in SIZES {
        eprintln!("appends: {entries} at once");
        let (mut short_waits, mut long_waits) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        while begin.elapsed() < plan.window * 4 {
            short_waits.push(append(&long.store, long.short, entries).await);
            long_waits.push(append(&long.store, long.tenant, entries).await);
        }
        short_waits.sort_unstable();
        long_waits.sort_unstable();
        let (short_ms, long_ms) = (percentile_ms(&short_waits, 0.5), percentile_ms(&long_waits, 0.5));
        commits.push(Append { entries, short_ms, long_ms });
    }
    let mut frontier: Frontier =
        long.store.log_head(long.tenant).await.expect("it is read").expect("there is a log").frontier;
    let count = 1 << 16;
    let begin = Instant::now();
    (0..count).for_each(|_| frontier.append(Hash([7; 32])));
    let hash_us = begin.elapsed().as_secs_f64() * 1e6 / f64::from(count);
    assert!(frontier.root() != Hash([7; 32]), "it is computed");
    Appends { commits, hash_us }
}

async fn append(store: &Postgres, tenant: TenantUid, entries: usize) -> Duration {
    let mut made = Entries::new(tenant, 1);
    let entries = (0..entries).map(|_| made.entry(rows::now())).collect();
    let base = store.log_size(tenant).await.expect("it is read");
    let batch = rows::entries(tenant, base, entries);
    let begin = Instant::now();
    store.commit(&batch).await.expect("it is durable");
    begin.elapsed()
}
