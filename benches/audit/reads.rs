//! Proofs and pages of the long log. The pages are read with one filter or several, from the newest
//! entry and from the middle.

use std::time::{Duration, Instant};

use byok::audit::Tree;
use byok::merkle::{verify_consistency, verify_inclusion};
use byok::model::{ErrorCode, Operation, Outcome, Timestamp};
use byok::store::{AuditReads, EntryFilter, EntrySearch as _, TenantReads};
use byok::verify::{Trust, verify_log};

use crate::Plan;
use crate::entries::{RECORDS, USERS, record_name, user_name};
use crate::long::{Long, all_derived};
use crate::random::Random;
use crate::rates::percentile_ms;
use crate::support::rows;

/// The number of entries in a page.
const PAGE: u32 = 50;

/// The times of all reads of one kind.
pub(crate) struct Read {
    pub(crate) name: &'static str,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) worst_ms: f64,
}

impl Read {
    fn of(name: &'static str, mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let [p50_ms, p99_ms, worst_ms] = [0.5, 0.99, 1.0].map(|part| percentile_ms(&took, part));
        Self { name, p50_ms, p99_ms, worst_ms }
    }
}

pub(crate) struct Reads {
    pub(crate) proofs: Vec<Read>,
    pub(crate) pages: Vec<Read>,
    /// The entries of the long log that `byok audit verify` checks in a second.
    pub(crate) verified_per_s: f64,
}

pub(crate) async fn measure(plan: &Plan, long: &Long) -> Reads {
    all_derived(&long.store).await;
    let (proofs, pages) = (proofs(plan, long).await, pages(plan, long).await);
    Reads { proofs, pages, verified_per_s: verified(long).await }
}

/// Verifies every entry and the tree. There are no rows of DEKs here.
async fn verified(long: &Long) -> f64 {
    eprintln!("verify");
    let mut tenants = long.store.tenants().await.expect("they are read").into_iter();
    let tenant = tenants.find(|tenant| tenant.uid == long.tenant).expect("it is there");
    let begin = Instant::now();
    let mut entries = 0;
    let mut progress = |_, of| entries = of;
    let report =
        verify_log(&*long.store, &tenant, None, Trust::default(), &mut progress).await.expect("it is read");
    let unexpected = report.findings.iter().find(|finding| finding.name() != "dek-removed");
    assert!(unexpected.is_none(), "{}", unexpected.expect("one"));
    entries as f64 / begin.elapsed().as_secs_f64()
}

/// Makes proofs from the database, and verifies each.
async fn proofs(plan: &Plan, long: &Long) -> Vec<Read> {
    eprintln!("proofs");
    let mut random = Random::of(1, ["audit", "proofs"]);
    let (mut included, mut consistent, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.reads {
        let tree = Tree::open(&*long.store, long.tenant).await.expect("it is read").expect("there is a log");
        let (size, root) = (tree.head.frontier.size(), tree.head.frontier.root());
        let (leaf, from) = (random.next() % size, 1 + random.next() % size);
        let row = long.store.leaves(long.tenant, leaf..leaf + 1).await.expect("it is read");
        let old_root = tree.frontier_at(from).await.expect("it is read").root();

        let begin = Instant::now();
        let tree = Tree::open(&*long.store, long.tenant).await.expect("it is read").expect("there is a log");
        let inclusion = tree.inclusion(leaf, size).await.expect("it is proven");
        included.push(begin.elapsed());
        let begin = Instant::now();
        assert!(verify_inclusion(row[0].1, leaf, size, &inclusion, root));
        verified.push(begin.elapsed());
        let begin = Instant::now();
        let consistency = tree.consistency(from, size).await.expect("it is proven");
        consistent.push(begin.elapsed());
        assert!(verify_consistency((from, old_root), (size, root), &consistency));
    }
    vec![
        Read::of("an entry is in the log: made", included),
        Read::of("the same: verified", verified),
        Read::of("the log goes on from an earlier one: made", consistent),
    ]
}

async fn pages(plan: &Plan, long: &Long) -> Vec<Read> {
    let mut random = Random::of(2, ["audit", "pages"]);
    let mut read = Vec::new();
    let now = rows::now();
    for (name, filter) in FILTERS {
        eprintln!("pages: {name}");
        let mut took = Vec::new();
        for _ in 0..plan.reads {
            let filter = filter(&mut random, (long.from, now));
            // A page from the newest entry on, then one from a random position.
            let middle = random.next() % long.filled.entries;
            for before in [None, Some(middle)] {
                let begin = Instant::now();
                long.store.entries(long.tenant, &filter, before, PAGE).await.expect("a page is read");
                took.push(begin.elapsed());
            }
        }
        read.push(Read::of(name, took));
    }
    read
}

type MakeFilter = fn(&mut Random, (Timestamp, Timestamp)) -> EntryFilter;

const FILTERS: [(&str, MakeFilter); 11] = [
    ("everything", |_, _| EntryFilter::default()),
    ("a frequent user", |random, _| of_user(random.next() % (USERS / 10))),
    ("a rare user", |random, _| of_user(USERS - 1 - random.next() % 20)),
    ("an unknown user", |random, _| of_user(USERS + random.next() % 1_000)),
    ("a record", |random, _| of_record(random.next() % RECORDS)),
    ("refusals", |_, _| EntryFilter { outcome: Some(REFUSED), ..EntryFilter::default() }),
    ("an operation that never occurs", |_, _| EntryFilter {
        operation: Some(Operation::Rotate),
        ..EntryFilter::default()
    }),
    ("an hour", hour),
    ("an hour of a user", |random, times| EntryFilter {
        user: Some(user_name(random.next() % (USERS / 10))),
        ..hour(random, times)
    }),
    ("refusals of a user", |random, _| EntryFilter {
        outcome: Some(REFUSED),
        ..of_user(random.next() % (USERS / 10))
    }),
    ("a user's refusals of a record, encrypting", |random, _| EntryFilter {
        outcome: Some(REFUSED),
        operation: Some(Operation::Encrypt),
        record_id: Some(record_name(random.next() % 1_000)),
        ..of_user(random.next() % 100)
    }),
];

const REFUSED: Outcome = Outcome::Refused(ErrorCode::DecryptFailed);

fn of_user(user: u64) -> EntryFilter {
    EntryFilter { user: Some(user_name(user)), ..EntryFilter::default() }
}

fn of_record(record: u64) -> EntryFilter {
    EntryFilter { record_id: Some(record_name(record)), ..EntryFilter::default() }
}

fn hour(random: &mut Random, (from, until): (Timestamp, Timestamp)) -> EntryFilter {
    let from = from.0 + (random.next() % (until.0 - from.0) as u64) as i64;
    let until = Timestamp(from + 3_600_000_000);
    EntryFilter { from: Some(Timestamp(from)), until: Some(until), ..EntryFilter::default() }
}
