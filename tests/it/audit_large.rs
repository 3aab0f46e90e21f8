//! Entries as large as a caller could make them when the log stored record ids of any length.
//! Readers of the log still read all of it, in statements that end within the database's time
//! limit.

use std::sync::Arc;

use byok::admin::{Erased, LogAdmin};
use byok::audit::{
    Checkpoint, CheckpointKey, Committer, Derivation, Derived, SignedCheckpoint, origin_of, pack,
};
use byok::crypto::Ed25519SigningKey;
use byok::model::{Clock, DekId, Entry, Item, Operation, SystemClock, Tenant, TenantUid};
use byok::store::{
    AuditReads as _, Change, Commits as _, Database, EntryFilter, EntryRow, PersonalValue, Store,
    TenantReads as _,
};
use byok::verify::{Export, Trust, Wanted, verify_bundle, verify_log};
use tokio_util::sync::CancellationToken;

use crate::store_conformance::on_every_database;
use crate::support::postgres::{connect, execute, migrated};
use crate::support::rows::{changes, entries, entry, now, tenant};

on_every_database! {
    one_statement_reads_few_large_entries_and_always_one
    large_entries_hide_no_other_from_a_page_or_a_filter
}

type Db = Arc<dyn Store>;

/// The bytes of entries, as they are stored, that one statement reads before the last entry.
const PORTION: usize = 1 << 20;

/// Text that no database compresses.
fn incompressible(bytes: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(
            b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(state >> 58) as usize],
        )
    };
    (0..bytes).map(|_| next()).collect()
}

/// An entry of a record with an id of this many bytes.
fn large(bytes: usize, seed: u64) -> EntryRow {
    let record = incompressible(bytes, seed);
    EntryRow { records: format!(r#"[["{record}","AQEBAQEBAQEBAQEBAQEBAQ=="]]"#), ..entry() }
}

fn of_record(record_id: &str) -> EntryFilter {
    EntryFilter { record_id: Some(record_id.to_owned()), ..EntryFilter::default() }
}

/// The positions on all pages of a filter, newest first.
async fn walk(store: &dyn Store, tenant: TenantUid, filter: &EntryFilter) -> Vec<u64> {
    let (mut positions, mut before) = (Vec::new(), None);
    loop {
        let page = store.entries(tenant, filter, before, 32).await.expect("a page is read");
        positions.extend(page.entries.iter().map(|entry| entry.seq));
        let Some(next) = page.next else { return positions };
        assert!(before.is_none_or(|before| next < before), "it stays at {next}");
        before = Some(next);
    }
}

async fn one_statement_reads_few_large_entries_and_always_one(store: Db) {
    let tenant = tenant(&*store).await;
    let rows: Vec<EntryRow> =
        (0..12).map(|seed| large(300_000, seed)).chain([large(3_000_000, 99)]).collect();
    for (base, row) in rows.iter().enumerate() {
        store.commit(&entries(tenant, base as u64, vec![row.clone()])).await.unwrap();
    }
    let (mut from, mut reads) = (0, Vec::new());
    loop {
        let read = store.entries_from(tenant, from, 100).await.unwrap();
        let Some(last) = read.last() else { break };
        let before_last: usize = read[..read.len() - 1].iter().map(|placed| placed.row.records.len()).sum();
        assert!(before_last < PORTION, "{before_last} bytes and one entry more");
        let values = store.entry_values(tenant, from..100, u32::MAX).await.unwrap();
        assert!(values.iter().map(|entry| entry.seq).eq(read.iter().map(|placed| placed.seq)));
        from = last.seq + 1;
        reads.extend(read.into_iter().map(|placed| placed.row.id));
    }
    assert!(reads.iter().eq(rows.iter().map(|row| &row.id)));
    let sizes = store.sizes(tenant, 3..100).await.unwrap();
    assert!(sizes.iter().map(|(position, _)| *position).eq(3..13));
    assert!(sizes.iter().all(|(position, bytes)| *bytes > if *position == 12 { 2_900_000 } else { 290_000 }));
}

async fn large_entries_hide_no_other_from_a_page_or_a_filter(store: Db) {
    let tenant = tenant(&*store).await;
    let rows: Vec<EntryRow> = (0..600)
        .map(|position| if (100..150).contains(&position) { large(200_000, position) } else { entry() })
        .collect();
    let mut base = 0;
    for rows in rows.chunks(20) {
        base += store.commit(&entries(tenant, base, rows.to_vec())).await.map(|_| rows.len() as u64).unwrap();
    }
    let small: Vec<u64> = (0..600).rev().filter(|position| !(100..150).contains(position)).collect();
    let of_large = of_record(&incompressible(200_000, 123));
    // Without the index, and with it: it names the chunk that has the large entries.
    for derived in [false, true] {
        if derived {
            assert_eq!(Derivation::default().pass(&*store, &CancellationToken::new()).await, Derived::All);
        }
        assert!(walk(&*store, tenant, &EntryFilter::default()).await.into_iter().eq((0..600).rev()));
        assert_eq!(walk(&*store, tenant, &of_record("record-1")).await, small);
        assert_eq!(walk(&*store, tenant, &of_large).await, [123]);
        assert_eq!(walk(&*store, tenant, &of_record("nobody's")).await, [0; 0]);
    }
}

/// One of the calls that were possible before record ids were bounded. PostgreSQL compresses it to
/// a seventieth, so no statement can tell from its stored size how long it takes to read.
fn poisoned(tenant: TenantUid, nth: usize) -> EntryRow {
    let item = |item: usize| Item {
        record_id: Some(format!("{nth}-{item}-{}", "x".repeat(16_000)).into()),
        dek_id: Some(DekId::new()),
        ..Item::default()
    };
    pack(tenant, &call(Operation::Decrypt, (0..256).map(item).collect()))
}

fn call(operation: Operation, items: Vec<Item>) -> Entry {
    Entry { role: "user".into(), items, ..Entry::of_operator(now(), operation, Some("u-1".to_owned()), None) }
}

/// A log with an entry of the record `hidden`, 40 poisoned ones of 4 MB each, and others before and
/// after. The database allows a statement less time than all of these need.
async fn poisoned_log() -> (crate::support::postgres::TestDatabase, Arc<dyn Database>, Tenant) {
    let (database, store) = migrated().await;
    let uid = tenant(&*store).await;
    let tenant = store.tenants().await.unwrap().into_iter().find(|tenant| tenant.uid == uid).unwrap();
    let item = |record: &str| Item { record_id: Some(record.into()), ..Item::default() };
    let usual = |position: u64| {
        let record = if position == 3 { "hidden" } else { "record-1" };
        pack(uid, &call(Operation::Encrypt, vec![item(record)]))
    };
    let mut base = 0;
    let append = async |rows: Vec<EntryRow>, base: &mut u64| {
        let count = rows.len() as u64;
        store.commit(&entries(uid, *base, rows)).await.unwrap();
        *base += count;
    };
    append((0..100).map(usual).collect(), &mut base).await;
    for nth in 0..40 {
        append(vec![poisoned(uid, nth)], &mut base).await;
    }
    append((140..300).map(usual).collect(), &mut base).await;
    let limited = connect(&format!("{}?options=-c%20statement_timeout%3D500ms", database.url));
    (database, Arc::new(limited), tenant)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_the_largest_entries_is_read_within_the_limit() {
    let (database, store, tenant) = poisoned_log().await;
    let uid = tenant.uid;
    let hidden = of_record("hidden");
    let none_derived = walk(&*store, uid, &hidden).await;
    assert_eq!(Derivation::default().pass(&*store, &CancellationToken::new()).await, Derived::All);
    assert_eq!((none_derived, walk(&*store, uid, &hidden).await), (vec![3], vec![3]));
    assert!(walk(&*store, uid, &EntryFilter::default()).await.into_iter().eq((0..300).rev()));

    let head = store.log_head(uid).await.unwrap().unwrap();
    let (size, root) = (head.frontier.size(), head.frontier.root());
    let key = Ed25519SigningKey::from_pem(&Ed25519SigningKey::generate_pem()).unwrap();
    let origin = origin_of("byok", &tenant.name, 1);
    let note = Checkpoint { origin: origin.clone(), size, root }.sign([&key]);
    let trust = Trust {
        keys: vec![CheckpointKey { name: origin, key: key.verifying_key() }],
        pinned: Some(SignedCheckpoint::parse(&note).unwrap()),
    };
    store
        .commit(&changes(uid, vec![Change::AddCheckpoint { log: 1, size, note: note.into() }]))
        .await
        .unwrap();
    let verified = verify_log(&*store, &tenant, None, trust.clone(), &mut |_, _| ()).await.unwrap();
    assert_eq!(verified.findings, []);
    let wanted = Wanted { ended: None, places: 0..u64::MAX, keys: Vec::new(), pinned: None };
    let mut bundle = Vec::new();
    let export = Export::prepare(&*store, &tenant, wanted).await.unwrap();
    assert_eq!(export.write(&mut bundle, &mut |_, _| ()).await.unwrap().entries, 300);
    assert_eq!(verify_bundle(&mut &bundle[..], &trust, &mut |_| ()).unwrap().findings, []);
    drop(database);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_erased_from_the_largest_entries_in_turn() {
    let (_database, store, tenant) = poisoned_log().await;
    let uid = tenant.uid;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
    let keeper = LogAdmin::new(store.clone(), committer, clock, None);
    assert_eq!(Derivation::default().pass(&*store, &CancellationToken::new()).await, Derived::All);
    let record = format!("7-11-{}", "x".repeat(16_000));
    assert_eq!(walk(&*store, uid, &of_record(&record)).await, [107]);
    for (record, entries) in [(record.as_str(), 1), ("record-1", 259)] {
        let erased = keeper.erase(uid, &PersonalValue::Record(record.to_owned())).await;
        assert_eq!(erased, Ok(Erased { entries, deks: 0 }));
    }
    for gone in [record.as_str(), "record-1"] {
        assert_eq!(walk(&*store, uid, &of_record(gone)).await, [0; 0]);
    }
    assert_eq!(walk(&*store, uid, &of_record("hidden")).await, [3]);
}

/// A writer of the table can insert a second row at a position. The valid one must be read too,
/// however large both are.
#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_one_place_are_read_together() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    for base in 0..4 {
        store.commit(&entries(tenant, base, vec![large(1_500_000, base)])).await.unwrap();
    }
    let again = "INSERT INTO np_byok_audit SELECT tenant, 1, at + interval '1 second', id, operation, outcome, means, role, user_id,
        user_salt, user_hmac, request_id, request_salt, request_hmac, item_count, records, items, detail, digest
        FROM np_byok_audit WHERE seq = 2";
    execute(&database.url, again).await;
    let positions = async |from| {
        let read = store.entries_from(tenant, from, 100).await.unwrap();
        read.iter().map(|placed| placed.seq).collect::<Vec<_>>()
    };
    assert_eq!([positions(0).await, positions(1).await, positions(2).await], [vec![0], vec![1, 1], vec![2]]);
    assert_eq!(walk(&*store, tenant, &EntryFilter::default()).await, [3, 2, 1, 1, 0]);
    assert_eq!(walk(&*store, tenant, &of_record("nobody's")).await, [0; 0]);
}
