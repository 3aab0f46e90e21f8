//! The behaviour of every database behind `Store`. Each case runs on PostgreSQL, on PostgreSQL as
//! used behind PgBouncer, and on SQLite.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use byok::crypto;
use byok::merkle::{Hash, root_of};
use byok::model::{
    DekId, EntryId, ErrorCode, Incident, IncidentId, JobCommand, JobId, JobState, KeyVersion, Means,
    Operation, Outcome, Posture, Salted, Tenant, TenantUid, Timestamp,
};
use byok::store::{Batch, Change, CommitError, DekRow, EntryFilter, EntryRow, PlacedEntry, Store};
use uuid::Uuid;

use crate::support::rows::{changes, dek, entries, entry, job, now, salted, tenant, wrapped};

macro_rules! on_every_database {
    ($($case:ident)+) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (_database, store) = crate::support::postgres::migrated().await;
                super::$case(store).await;
            })+
        }

        mod on_postgres_for_pgbouncer {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (database, _) = crate::support::postgres::migrated().await;
                let settings = crate::support::postgres::settings(&database.url, None, true);
                super::$case(std::sync::Arc::new(byok::store::Postgres::connect_lazy(&settings).unwrap())).await;
            })+
        }

        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (_folder, store) = crate::store_sqlite::migrated().await;
                super::$case(store).await;
            })+
        }
    };
}
pub(crate) use on_every_database;

on_every_database! {
    it_answers
    a_tenant_is_found_by_its_name
    a_tenants_name_and_uid_are_given_once
    a_tenant_its_entries_and_deks_fit_in_one_batch
    tenants_are_listed_by_name
    entries_read_back_as_they_were_written
    entries_of_a_time_are_found_by_their_places
    a_time_past_the_year_9999_asks_for_what_it_says
    a_batch_on_a_stale_base_does_nothing
    an_identical_batch_is_applied_once
    an_identical_batch_is_known_after_others_have_appended
    an_identical_batch_without_entries_does_nothing_more
    the_head_is_the_tree_over_the_entries
    a_head_moved_in_turn_and_at_once_is_one_tree
    contending_writers_leave_no_gap_and_no_double
    an_unknown_tenant_has_no_log
    a_dek_id_that_is_taken_rejects_the_whole_batch
    an_entry_that_cannot_be_written_takes_its_deks_with_it
    deks_are_found_by_id
    the_newest_dek_of_a_record_is_found
    deks_are_paged_in_order_of_id
    deks_under_other_versions_are_counted
    rows_are_sealed_only_as_they_were_read
    a_mac_does_not_outlive_the_bytes_that_it_is_of
    a_retry_of_a_rewrap_keeps_a_later_mac
    an_incident_that_is_no_change_of_posture_is_written_once
    a_rewrap_applies_only_to_what_was_read
    rewraps_of_one_dek_apply_in_order
    a_tenant_has_one_running_job
    a_lease_is_exclusive_until_it_expires
    only_the_holder_advances_a_job
    jobs_read_back_as_they_were_advanced
    the_running_job_goes_before_a_newer_one
    a_job_that_is_paused_is_nobodys_until_it_is_resumed
    a_job_that_has_ended_takes_no_other_command
    entries_are_paged_newest_first
    entries_are_filtered
    no_tenant_sees_anothers_rows
    an_entry_holds_ten_thousand_items
    record_ids_may_be_empty_long_and_of_any_script
    a_nul_is_rejected_and_finds_nothing
    entries_of_any_time_have_a_place
}

type Db = Arc<dyn Store>;

async fn all(store: &Db, tenant: TenantUid) -> Vec<PlacedEntry> {
    store.entries(tenant, &EntryFilter::default(), None, 1_000).await.unwrap().entries
}

async fn matching(store: &Db, tenant: TenantUid, filter: EntryFilter) -> Vec<u64> {
    store.entries(tenant, &filter, None, 100).await.unwrap().entries.iter().map(|entry| entry.seq).collect()
}

/// A row with its JSON's white space removed, which the contract allows to differ.
fn normal(mut row: EntryRow) -> EntryRow {
    row.records = serde_json::from_str::<serde_json::Value>(&row.records).unwrap().to_string();
    row
}

fn inserts(rows: &[DekRow]) -> Vec<Change> {
    rows.iter().cloned().map(Change::InsertDek).collect()
}

fn ids(rows: &[DekRow]) -> Vec<DekId> {
    rows.iter().map(|row| row.id).collect()
}

/// The root that the head should have, from the entries.
async fn root_of_rows(store: &Db, tenant: TenantUid) -> Hash {
    let mut rows = all(store, tenant).await;
    rows.reverse();
    root_of(rows.iter().map(|placed| placed.row.leaf()))
}

async fn the_head_is_the_tree_over_the_entries(store: Db) {
    let tenant = tenant(&*store).await;
    let empty = store.log_head(tenant).await.unwrap().unwrap();
    assert_eq!((empty.log, empty.first, empty.end(), empty.frontier.root()), (1, 0, 0, Hash::of_nothing()));
    for count in [1, 3, 1, 8] {
        let base = store.log_size(tenant).await.unwrap();
        let rows = (0..count).map(|_| EntryRow { digest: crypto::random(), ..entry() }).collect();
        store.commit(&entries(tenant, base, rows)).await.unwrap();
        let head = store.log_head(tenant).await.unwrap().unwrap();
        assert_eq!(head.end(), base + count);
        assert_eq!(head.frontier.root(), root_of_rows(&store, tenant).await);
    }
    assert_eq!(store.log_head(TenantUid([9; 16])).await, Ok(None));
}

async fn a_head_moved_in_turn_and_at_once_is_one_tree(store: Db) {
    let tenant = tenant(&*store).await;
    for turn in 0..12 {
        let row = EntryRow { digest: [turn; 32], ..entry() };
        let mut batch = entries(tenant, u64::from(turn), vec![row]);
        match turn % 3 {
            0 => store.commit_in_turn(&mut batch).await.unwrap(),
            _ => store.commit(&batch).await.unwrap(),
        };
    }
    assert_eq!(
        store.log_head(tenant).await.unwrap().unwrap().frontier.root(),
        root_of_rows(&store, tenant).await
    );
}

async fn it_answers(store: Db) {
    assert_eq!(store.ping().await, Ok(()));
}

async fn a_tenant_is_found_by_its_name(store: Db) {
    let tenant = Tenant { uid: TenantUid([7; 16]), name: "prïmary".to_owned() };
    let batch = changes(tenant.uid, vec![Change::CreateTenant(tenant.clone())]);
    assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
    assert_eq!(store.tenant("prïmary").await.unwrap(), Some(tenant.clone()));
    assert_eq!(store.tenant("other").await.unwrap(), None);
    assert_eq!(store.log_size(tenant.uid).await.unwrap(), 0);
}

async fn a_tenants_name_and_uid_are_given_once(store: Db) {
    let create = |uid, name: &str| {
        let tenant = Tenant { uid: TenantUid([uid; 16]), name: name.to_owned() };
        changes(tenant.uid, vec![Change::CreateTenant(tenant)])
    };
    assert_eq!(store.commit(&create(1, "a")).await.unwrap().applied, [1]);
    assert_eq!(store.commit(&create(2, "a")).await.unwrap().applied, [0]);
    assert_eq!(store.commit(&create(1, "b")).await.unwrap().applied, [0]);
    assert_eq!(store.tenant("a").await.unwrap().unwrap().uid, TenantUid([1; 16]));
    assert_eq!(store.tenant("b").await.unwrap(), None);
}

async fn a_tenant_its_entries_and_deks_fit_in_one_batch(store: Db) {
    let uid = TenantUid([9; 16]);
    let tenant = Tenant { uid, name: "whole".to_owned() };
    let row = dek(Some("r"));
    let batch = Batch {
        tenant: uid,
        base: 0,
        entries: vec![entry(), entry()],
        changes: vec![Change::CreateTenant(tenant), Change::InsertDek(row.clone()), Change::StartJob(job())],
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await.unwrap().applied, [1, 1, 1]);
    assert_eq!(store.log_size(uid).await.unwrap(), 2);
    assert_eq!(store.deks(uid, &[row.id]).await.unwrap(), [row]);
}

async fn tenants_are_listed_by_name(store: Db) {
    let tenants = ["a", "b", "c"]
        .map(|name| Tenant { uid: TenantUid(*Uuid::new_v4().as_bytes()), name: name.to_owned() });
    assert_eq!(store.tenants().await.unwrap(), []);
    for tenant in [&tenants[1], &tenants[0], &tenants[2]] {
        store.commit(&changes(tenant.uid, vec![Change::CreateTenant(tenant.clone())])).await.unwrap();
    }
    assert_eq!(store.tenants().await.unwrap(), tenants);
}

async fn a_time_past_the_year_9999_asks_for_what_it_says(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry(), entry()])).await.unwrap();
    // In UTC it is the year 10000.
    for late in [Timestamp::parse("9999-12-31T23:59:59-01:00").unwrap(), Timestamp(i64::MAX)] {
        let (from, until) = (Some(late), Some(late));
        assert_eq!(matching(&store, tenant, EntryFilter { until, ..EntryFilter::default() }).await, [1, 0]);
        assert!(matching(&store, tenant, EntryFilter { from, ..EntryFilter::default() }).await.is_empty());
        assert_eq!(store.places(tenant, None, until).await.unwrap(), Some(0..2));
        assert_eq!(store.places(tenant, from, None).await.unwrap(), None);
    }
    // And before the year 1.
    for early in [Timestamp::parse("0000-01-01T00:00:00+01:00").unwrap(), Timestamp(i64::MIN)] {
        let (from, until) = (Some(early), Some(early));
        assert_eq!(matching(&store, tenant, EntryFilter { from, ..EntryFilter::default() }).await, [1, 0]);
        assert!(matching(&store, tenant, EntryFilter { until, ..EntryFilter::default() }).await.is_empty());
        assert_eq!(store.places(tenant, from, None).await.unwrap(), Some(0..2));
        assert_eq!(store.places(tenant, None, until).await.unwrap(), None);
    }
    // An entry with such a time reads back unchanged.
    let mut row = entry();
    row.at = Timestamp::parse("9999-12-31T23:59:59-01:00").unwrap();
    store.commit(&entries(tenant, 2, vec![row.clone()])).await.unwrap();
    let read = store.entries(tenant, &EntryFilter::default(), None, 1).await.unwrap().entries.remove(0).row;
    assert_eq!(read.at, row.at);
    assert_eq!(store.leaves(tenant, 2..3).await.unwrap(), [(2, row.leaf())]);
}

async fn entries_of_a_time_are_found_by_their_places(store: Db) {
    let (tenant, other) = (tenant(&*store).await, tenant(&*store).await);
    let start = now();
    let at = |seconds: u64| start.plus(Duration::from_secs(seconds));
    let rows = (0..5).map(|n| EntryRow { at: at(n), ..entry() }).collect();
    store.commit(&entries(tenant, 0, rows)).await.unwrap();
    store.commit(&entries(other, 0, vec![EntryRow { at: at(1), ..entry() }])).await.unwrap();
    for (from, until, places) in
        [(1, 3, Some(1..3)), (0, 9, Some(0..5)), (4, 5, Some(4..5)), (2, 2, None), (5, 9, None)]
    {
        assert_eq!(store.places(tenant, Some(at(from)), Some(at(until))).await.unwrap(), places);
    }
    assert_eq!(store.places(tenant, Some(at(3)), None).await.unwrap(), Some(3..5));
    assert_eq!(store.places(tenant, None, Some(at(3))).await.unwrap(), Some(0..3));
    assert_eq!(store.places(tenant, None, None).await.unwrap(), Some(0..5));
}

async fn entries_read_back_as_they_were_written(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows = vec![entry(), entry(), entry()];
    rows[1].user = None;
    rows[1].outcome = Outcome::Refused(ErrorCode::KmsAccessDenied);
    rows[1].means = Means::HasuraSecret;
    rows[2].user = Some(Salted { value: None, salt: None, hmac: [3; 32] });
    rows[2].request = Salted { value: None, salt: None, hmac: [4; 32] };
    rows[2].operation = Operation::Reveal;
    rows[2].outcome = Outcome::Partial;
    rows[2].means = Means::Operator;
    rows[2].records = r#"[null,["ä\"\\","AQEBAQEBAQEBAQEBAQEBAQ=="]]"#.to_owned();
    rows[2].item_count = 2;
    rows[2].items = Vec::new();
    store.commit(&entries(tenant, 0, rows.clone())).await.unwrap();
    let read: Vec<EntryRow> =
        all(&store, tenant).await.into_iter().rev().map(|placed| normal(placed.row)).collect();
    assert_eq!(read, rows.into_iter().map(normal).collect::<Vec<_>>());
}

async fn a_batch_on_a_stale_base_does_nothing(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry(), entry()])).await.unwrap();
    for base in [0, 1, 3] {
        let row = dek(None);
        let batch = Batch {
            tenant,
            base,
            entries: vec![entry()],
            changes: inserts(std::slice::from_ref(&row)),
            gate: None,
            fence: Vec::new(),
        };
        assert_eq!(store.commit(&batch).await, Err(CommitError::Moved { size: 2 }));
        assert_eq!(store.deks(tenant, &[row.id]).await.unwrap(), []);
    }
    assert_eq!(all(&store, tenant).await.len(), 2);
}

async fn an_identical_batch_is_applied_once(store: Db) {
    let tenant = tenant(&*store).await;
    let old = dek(Some("r"));
    store.commit(&changes(tenant, inserts(std::slice::from_ref(&old)))).await.unwrap();
    let (started, holder) = (job(), Uuid::new_v4());
    let mut advanced = started.clone();
    advanced.progress.rewrapped = 1;
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry(), entry()],
        changes: vec![
            Change::InsertDek(dek(None)),
            Change::Rewrap { dek_id: old.id, from: old.wrapped.clone(), to: wrapped(8, "2"), mac: None },
            Change::Rewrap {
                dek_id: DekId::new(),
                from: old.wrapped.clone(),
                to: wrapped(8, "2"),
                mac: None,
            },
            Change::StartJob(started.clone()),
            Change::LeaseJob { job: started.id, holder, lease: Duration::from_secs(60) },
            Change::AdvanceJob { job: advanced, holder, after: Some(old.id) },
        ],
        gate: None,
        fence: Vec::new(),
    };
    let first = store.commit(&batch).await.unwrap();
    assert_eq!(first.applied, [1, 1, 0, 1, 1, 1]);
    assert_eq!(store.commit(&batch).await.unwrap(), first);
    assert_eq!(store.log_size(tenant).await.unwrap(), 2);
}

async fn an_identical_batch_is_known_after_others_have_appended(store: Db) {
    let tenant = tenant(&*store).await;
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: inserts(&[dek(None)]),
        gate: None,
        fence: Vec::new(),
    };
    let first = store.commit(&batch).await.unwrap();
    store.commit(&entries(tenant, 1, vec![entry(), entry()])).await.unwrap();
    assert_eq!(store.commit(&batch).await.unwrap(), first);
    assert_eq!(store.log_size(tenant).await.unwrap(), 3);
}

async fn an_identical_batch_without_entries_does_nothing_more(store: Db) {
    let tenant = tenant(&*store).await;
    let row = dek(Some("r"));
    let insert = changes(tenant, inserts(std::slice::from_ref(&row)));
    let rewrap = Change::Rewrap { dek_id: row.id, from: row.wrapped.clone(), to: wrapped(8, "2"), mac: None };
    for batch in [insert, changes(tenant, vec![rewrap]), changes(tenant, vec![Change::StartJob(job())])] {
        assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
        assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
    }
    assert_eq!(store.deks_after(tenant, None, 10).await.unwrap().len(), 1);
}

async fn contending_writers_leave_no_gap_and_no_double(store: Db) {
    let tenant = tenant(&*store).await;
    let writer = |store: Db| async move {
        let mut written = Vec::new();
        let mut base = 0;
        while written.len() < 20 {
            let row = entry();
            let batch = Batch {
                tenant,
                base,
                entries: vec![row.clone()],
                changes: inserts(&[dek(None)]),
                gate: None,
                fence: Vec::new(),
            };
            match store.commit(&batch).await {
                Ok(_) => written.push(row.id),
                Err(CommitError::Moved { size }) => base = size,
                Err(error) => panic!("{error:?}"),
            }
        }
        written
    };
    let tasks = [(); 3].map(|()| tokio::spawn(writer(store.clone())));
    let mut written: Vec<EntryId> = Vec::new();
    for task in tasks {
        written.extend(task.await.unwrap());
    }
    let read = all(&store, tenant).await;
    assert_eq!(read.iter().rev().map(|placed| placed.seq).collect::<Vec<_>>(), (0..60).collect::<Vec<_>>());
    let ids = |ids: &mut dyn Iterator<Item = EntryId>| ids.collect::<BTreeSet<_>>();
    assert_eq!(ids(&mut read.iter().map(|placed| placed.row.id)), ids(&mut written.into_iter()));
    assert_eq!(store.deks_after(tenant, None, 100).await.unwrap().len(), 60);
}

async fn an_unknown_tenant_has_no_log(store: Db) {
    let nobody = TenantUid([1; 16]);
    assert_eq!(store.log_size(nobody).await.unwrap(), 0);
    assert_eq!(store.commit(&entries(nobody, 0, vec![entry()])).await, Err(CommitError::Rejected));
}

async fn a_dek_id_that_is_taken_rejects_the_whole_batch(store: Db) {
    let tenant = tenant(&*store).await;
    let (there, fresh) = (dek(Some("a")), dek(Some("b")));
    store.commit(&changes(tenant, inserts(std::slice::from_ref(&there)))).await.unwrap();
    let mut taken = there.clone();
    taken.wrapped = wrapped(9, "1");
    for entries in [vec![entry()], vec![]] {
        let batch = Batch {
            tenant,
            base: 0,
            entries,
            changes: inserts(&[fresh.clone(), taken.clone()]),
            gate: None,
            fence: Vec::new(),
        };
        assert_eq!(store.commit(&batch).await, Err(CommitError::Rejected));
    }
    assert_eq!(store.deks_after(tenant, None, 10).await.unwrap(), [there]);
    assert_eq!(store.log_size(tenant).await.unwrap(), 0);
}

async fn an_entry_that_cannot_be_written_takes_its_deks_with_it(store: Db) {
    let tenant = tenant(&*store).await;
    let mut bad = entry();
    bad.records = "no JSON".to_owned();
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry(), bad],
        changes: inserts(&[dek(None)]),
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await, Err(CommitError::Rejected));
    assert_eq!(store.deks_after(tenant, None, 10).await.unwrap(), []);
    assert_eq!(store.log_size(tenant).await.unwrap(), 0);
}

async fn deks_are_found_by_id(store: Db) {
    let tenant = tenant(&*store).await;
    let rows = [dek(Some("a")), dek(None), dek(Some("a"))];
    store.commit(&changes(tenant, inserts(&rows))).await.unwrap();
    let mut found = store.deks(tenant, &[rows[2].id, DekId::new(), rows[1].id]).await.unwrap();
    found.sort_by_key(|row| row.id);
    assert_eq!(found, rows[1..]);
    assert_eq!(store.deks(tenant, &[]).await.unwrap(), []);
}

async fn the_newest_dek_of_a_record_is_found(store: Db) {
    let tenant = tenant(&*store).await;
    let rows = [dek(Some("a")), dek(Some("a")), dek(Some("b")), dek(None)];
    store.commit(&changes(tenant, inserts(&rows))).await.unwrap();
    let wanted: Vec<Arc<str>> = ["a", "a", "b", "missing"].map(Arc::from).to_vec();
    let mut found = store.deks_of_records(tenant, &wanted).await.unwrap();
    found.sort_by_key(|row| row.id);
    assert_eq!(found, rows[1..3]);
}

async fn deks_are_paged_in_order_of_id(store: Db) {
    let tenant = tenant(&*store).await;
    let rows: Vec<DekRow> = (0..5).map(|_| dek(None)).collect();
    store.commit(&changes(tenant, inserts(&rows))).await.unwrap();
    let first = store.deks_after(tenant, None, 3).await.unwrap();
    assert_eq!(first, rows[..3]);
    assert_eq!(store.deks_after(tenant, Some(rows[2].id), 3).await.unwrap(), rows[3..]);
    assert_eq!(store.deks_after(tenant, Some(rows[4].id), 3).await.unwrap(), []);
}

async fn deks_under_other_versions_are_counted(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows = [dek(None), dek(None), dek(None)];
    rows[1].wrapped = wrapped(1, "2");
    rows[2].wrapped.key_version = KeyVersion::new("other", "1");
    store.commit(&changes(tenant, inserts(&rows))).await.unwrap();
    assert_eq!(store.deks_not_under(tenant, &KeyVersion::new("byok", "1")).await.unwrap(), 2);
    assert_eq!(store.deks_not_under(tenant, &KeyVersion::new("byok", "9")).await.unwrap(), 3);
}

async fn rows_are_sealed_only_as_they_were_read(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows = [dek(Some("a")), dek(Some("b")), dek(Some("c")), dek(None)];
    (rows[0].mac, rows[0].record_mac) = (Some([1; 32]), Some([2; 32]));
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: inserts(&rows[..2]),
        gate: None,
        fence: Vec::new(),
    };
    store.commit(&batch).await.unwrap();
    store.commit(&changes(tenant, inserts(&rows[2..]))).await.unwrap();
    assert_eq!(store.deks(tenant, &[rows[0].id]).await.unwrap(), rows[..1]);
    assert_eq!(store.unsealed_deks(tenant, None, 10).await.unwrap(), rows[1..]);
    assert_eq!(store.unsealed_deks(tenant, Some(rows[1].id), 1).await.unwrap(), rows[2..3]);

    let sealed = |row: &DekRow| DekRow { mac: Some([3; 32]), record_mac: Some([4; 32]), ..row.clone() };
    let mut other = sealed(&rows[2]);
    other.wrapped = wrapped(9, "1");
    let mut moved = sealed(&rows[3]);
    moved.record_id = Some("d".into());
    let seals = changes(tenant, vec![Change::SealDeks(vec![sealed(&rows[1]), other, moved])]);
    for _ in 0..2 {
        assert_eq!(store.commit(&seals).await.unwrap().applied, [1]);
    }
    assert_eq!(store.deks(tenant, &[rows[1].id]).await.unwrap(), [sealed(&rows[1])]);
    assert_eq!(store.unsealed_deks(tenant, None, 10).await.unwrap(), rows[2..]);
}

async fn a_mac_does_not_outlive_the_bytes_that_it_is_of(store: Db) {
    let tenant = tenant(&*store).await;
    let row = DekRow { mac: Some([1; 32]), ..dek(None) };
    store.commit(&changes(tenant, inserts(std::slice::from_ref(&row)))).await.unwrap();
    let mac = async || store.deks(tenant, &[row.id]).await.unwrap()[0].mac;
    let rewrap = |from, to, mac| {
        let rewrap = Change::Rewrap { dek_id: row.id, from, to, mac };
        changes(tenant, vec![rewrap])
    };
    let of_new = rewrap(row.wrapped.clone(), wrapped(8, "2"), Some([2; 32]));
    for _ in 0..2 {
        assert_eq!(store.commit(&of_new).await.unwrap().applied, [1]);
        assert_eq!(mac().await, Some([2; 32]));
    }
    // A rewrap by a release without MACs.
    store.commit(&rewrap(wrapped(8, "2"), wrapped(9, "3"), Some([2; 32]))).await.unwrap();
    assert_eq!(mac().await, None);
}

async fn a_retry_of_a_rewrap_keeps_a_later_mac(store: Db) {
    let tenant = tenant(&*store).await;
    let row = dek(None);
    store.commit(&changes(tenant, inserts(std::slice::from_ref(&row)))).await.unwrap();
    let (from, to) = (row.wrapped.clone(), wrapped(8, "2"));
    let rewrap = Change::Rewrap { dek_id: row.id, from, to: to.clone(), mac: None };
    let rewrap = changes(tenant, vec![rewrap]);
    store.commit(&rewrap).await.unwrap();
    let sealed = DekRow { wrapped: to, mac: Some([1; 32]), ..row.clone() };
    store.commit(&changes(tenant, vec![Change::SealDeks(vec![sealed])])).await.unwrap();
    assert_eq!(store.commit(&rewrap).await.unwrap().applied, [1]);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap()[0].mac, Some([1; 32]));
}

async fn an_incident_that_is_no_change_of_posture_is_written_once(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = Incident {
        id: IncidentId::new(),
        at: now(),
        key_version: KeyVersion::new("byok", "1"),
        was: Posture::Active,
        posture: Posture::Active,
        class: Some("RowAltered".into()),
        http_status: None,
        kms_request_id: None,
    };
    let note = changes(tenant, vec![Change::RecordIncident(incident.clone())]);
    store.commit(&note).await.unwrap();
    store.commit(&note).await.unwrap();
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), [incident]);
}

async fn a_rewrap_applies_only_to_what_was_read(store: Db) {
    let tenant = tenant(&*store).await;
    let rows = [dek(Some("a")), dek(Some("b")), dek(None)];
    store.commit(&changes(tenant, inserts(&rows))).await.unwrap();
    let to = wrapped(8, "2");
    let rewrap = |id, from| Change::Rewrap { dek_id: id, from, to: to.clone(), mac: None };
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: vec![
            rewrap(rows[0].id, rows[0].wrapped.clone()),
            rewrap(rows[1].id, wrapped(6, "1")),
            rewrap(rows[2].id, wrapped(7, "other")),
            rewrap(DekId::new(), rows[0].wrapped.clone()),
        ],
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await.unwrap().applied, [1, 0, 0, 0]);
    let now: Vec<_> = store.deks(tenant, &ids(&rows)).await.unwrap();
    let of = |id| now.iter().find(|row| row.id == id).unwrap();
    assert_eq!(of(rows[0].id), &DekRow { wrapped: to, ..rows[0].clone() });
    assert_eq!(of(rows[1].id), &rows[1]);
    assert_eq!(of(rows[2].id), &rows[2]);
}

async fn rewraps_of_one_dek_apply_in_order(store: Db) {
    let tenant = tenant(&*store).await;
    let row = dek(None);
    store.commit(&changes(tenant, inserts(std::slice::from_ref(&row)))).await.unwrap();
    let rewrap = |from, to| Change::Rewrap { dek_id: row.id, from, to, mac: None };
    let steps = vec![
        rewrap(row.wrapped.clone(), wrapped(8, "2")),
        rewrap(wrapped(8, "2"), wrapped(9, "3")),
        rewrap(row.wrapped.clone(), wrapped(5, "5")),
    ];
    assert_eq!(store.commit(&changes(tenant, steps)).await.unwrap().applied, [1, 1, 0]);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap()[0].wrapped, wrapped(9, "3"));
}

async fn start(store: &Db, tenant: TenantUid) -> JobId {
    let job = job();
    assert_eq!(
        store.commit(&changes(tenant, vec![Change::StartJob(job.clone())])).await.unwrap().applied,
        [1]
    );
    job.id
}

async fn lease(store: &Db, tenant: TenantUid, job: JobId, holder: Uuid, millis: u64) -> bool {
    let lease = Change::LeaseJob { job, holder, lease: Duration::from_millis(millis) };
    store.commit(&changes(tenant, vec![lease])).await.unwrap().applied == [1]
}

async fn a_tenant_has_one_running_job(store: Db) {
    let (tenant_a, tenant_b) = (tenant(&*store).await, tenant(&*store).await);
    start(&store, tenant_a).await;
    let second = changes(tenant_a, vec![Change::StartJob(job())]);
    assert_eq!(store.commit(&second).await.unwrap().applied, [0]);
    start(&store, tenant_b).await;
    assert_eq!(store.running_jobs().await.unwrap().len(), 2);
}

async fn a_lease_is_exclusive_until_it_expires(store: Db) {
    let tenant = tenant(&*store).await;
    let job = start(&store, tenant).await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(lease(&store, tenant, job, one, 60_000).await);
    assert!(!lease(&store, tenant, job, other, 60_000).await);
    assert!(lease(&store, tenant, job, one, 50).await, "the holder keeps it");
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(lease(&store, tenant, job, other, 60_000).await);
    assert!(!lease(&store, tenant, job, one, 60_000).await);
    assert!(!lease(&store, tenant, JobId::new(), one, 60_000).await);
}

async fn only_the_holder_advances_a_job(store: Db) {
    let tenant = tenant(&*store).await;
    let started = job();
    store.commit(&changes(tenant, vec![Change::StartJob(started.clone())])).await.unwrap();
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    lease(&store, tenant, started.id, one, 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    lease(&store, tenant, started.id, other, 60_000).await;
    let mut job = started;
    job.progress.rewrapped = 5;
    let advance = |holder| Change::AdvanceJob { job: job.clone(), holder, after: None };
    assert_eq!(store.commit(&changes(tenant, vec![advance(one)])).await.unwrap().applied, [0]);
    assert_eq!(store.commit(&changes(tenant, vec![advance(other)])).await.unwrap().applied, [1]);
}

async fn jobs_read_back_as_they_were_advanced(store: Db) {
    let tenant = tenant(&*store).await;
    let mut job = job();
    store.commit(&changes(tenant, vec![Change::StartJob(job.clone())])).await.unwrap();
    assert_eq!(store.job(tenant, job.id).await.unwrap(), Some((job.clone(), None)));
    let holder = Uuid::new_v4();
    lease(&store, tenant, job.id, holder, 60_000).await;
    job.progress.rewrapped = 4;
    job.progress.skipped = 3;
    job.progress.failed = 2;
    job.progress.kms_calls = 1;
    job.stalled = Some(ErrorCode::KmsUnavailable);
    let after = Some(DekId::new());
    let advance = Change::AdvanceJob { job: job.clone(), holder, after };
    store.commit(&changes(tenant, vec![advance])).await.unwrap();
    assert_eq!(store.job(tenant, job.id).await.unwrap(), Some((job.clone(), after)));
    job.state = JobState::Done;
    job.stalled = None;
    job.finished_at = Some(now());
    let done = changes(tenant, vec![Change::AdvanceJob { job: job.clone(), holder, after }]);
    assert_eq!(store.commit(&done).await.unwrap().applied, [1]);
    assert_eq!(store.latest_job(tenant).await.unwrap(), Some(job.clone()));
    assert_eq!(store.running_jobs().await.unwrap(), []);
    assert_eq!(store.job(tenant, JobId::new()).await.unwrap(), None);
    assert!(!lease(&store, tenant, job.id, Uuid::new_v4(), 1).await, "a job that is done has no lease");
}

async fn commanded(store: &Db, tenant: TenantUid, job: JobId, command: JobCommand) -> u64 {
    let command = Change::CommandJob { job, command, at: now() };
    store.commit(&changes(tenant, vec![command])).await.unwrap().applied[0]
}

async fn a_job_that_is_paused_is_nobodys_until_it_is_resumed(store: Db) {
    let tenant = tenant(&*store).await;
    let mut started = job();
    started.stalled = Some(ErrorCode::KmsUnavailable);
    let id = started.id;
    store.commit(&changes(tenant, vec![Change::StartJob(started.clone())])).await.unwrap();
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(lease(&store, tenant, id, one, 60_000).await);
    for _ in 0..2 {
        assert_eq!(commanded(&store, tenant, id, JobCommand::Pause).await, 1);
    }
    let paused = store.job(tenant, id).await.unwrap().unwrap().0;
    assert_eq!((paused.state, paused.stalled, paused.finished_at), (JobState::Paused, None, None));
    // Work in progress can neither continue nor wake it, in this release or in one that knows no
    // paused jobs.
    let advance = Change::AdvanceJob { job: started.clone(), holder: one, after: None };
    assert_eq!(store.commit(&changes(tenant, vec![advance.clone()])).await.unwrap().applied, [0]);
    assert!(!lease(&store, tenant, id, one, 60_000).await && !lease(&store, tenant, id, other, 60_000).await);
    assert_eq!(store.running_jobs().await.unwrap(), []);
    assert_eq!(store.latest_job(tenant).await.unwrap().unwrap(), paused);
    let second = changes(tenant, vec![Change::StartJob(job())]);
    assert_eq!(store.commit(&second).await.unwrap().applied, [0], "it is the tenant's one rotation");
    assert_eq!(commanded(&store, tenant, id, JobCommand::Resume).await, 1);
    assert_eq!(
        store.commit(&changes(tenant, vec![advance])).await.unwrap().applied,
        [0],
        "its lease is gone"
    );
    assert!(lease(&store, tenant, id, other, 60_000).await);
    // Resuming a running job takes it from nobody.
    assert_eq!(commanded(&store, tenant, id, JobCommand::Resume).await, 1);
    let advance = Change::AdvanceJob { job: started, holder: other, after: None };
    assert_eq!(store.commit(&changes(tenant, vec![advance])).await.unwrap().applied, [1]);
}

async fn a_job_that_has_ended_takes_no_other_command(store: Db) {
    let tenant = tenant(&*store).await;
    let id = start(&store, tenant).await;
    for _ in 0..2 {
        assert_eq!(commanded(&store, tenant, id, JobCommand::Cancel).await, 1);
    }
    let cancelled = store.job(tenant, id).await.unwrap().unwrap().0;
    assert_eq!((cancelled.state, cancelled.finished_at.is_some()), (JobState::Cancelled, true));
    for command in [JobCommand::Pause, JobCommand::Resume] {
        assert_eq!(commanded(&store, tenant, id, command).await, 0);
    }
    assert_eq!(store.job(tenant, id).await.unwrap().unwrap().0, cancelled);
    // Another job, which is done.
    let mut done = job();
    let holder = Uuid::new_v4();
    store.commit(&changes(tenant, vec![Change::StartJob(done.clone())])).await.unwrap();
    lease(&store, tenant, done.id, holder, 60_000).await;
    (done.state, done.finished_at) = (JobState::Done, Some(now()));
    let last = changes(tenant, vec![Change::AdvanceJob { job: done.clone(), holder, after: None }]);
    assert_eq!(store.commit(&last).await.unwrap().applied, [1]);
    for command in [JobCommand::Pause, JobCommand::Resume, JobCommand::Cancel] {
        assert_eq!(commanded(&store, tenant, done.id, command).await, 0);
    }
    assert_eq!(
        store.commit(&last).await.unwrap().applied,
        [1],
        "repeating the last step finds its own result"
    );
    assert_eq!(store.job(tenant, done.id).await.unwrap().unwrap().0.state, JobState::Done);
    // A retried command whose first outcome was unknown is not reported as failed.
    let id = start(&store, tenant).await;
    let pause = Change::CommandJob { job: id, command: JobCommand::Pause, at: now() };
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: vec![pause],
        gate: None,
        fence: Vec::new(),
    };
    let first = store.commit(&batch).await.unwrap();
    assert_eq!(first.applied, [1]);
    commanded(&store, tenant, id, JobCommand::Resume).await;
    assert_eq!(store.commit(&batch).await.unwrap(), first);
    assert_eq!(store.job(tenant, id).await.unwrap().unwrap().0.state, JobState::Running, "nor given again");
}

async fn the_running_job_goes_before_a_newer_one(store: Db) {
    let tenant = tenant(&*store).await;
    assert_eq!(store.latest_job(tenant).await.unwrap(), None);
    let mut old = job();
    old.started_at = Timestamp(old.started_at.0 - 10_000_000);
    let mut done = job();
    done.state = JobState::Done;
    store
        .commit(&changes(tenant, vec![Change::StartJob(old.clone()), Change::StartJob(done)]))
        .await
        .unwrap();
    assert_eq!(store.latest_job(tenant).await.unwrap(), Some(old));
}

async fn entries_are_paged_newest_first(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, (0..7).map(|_| entry()).collect())).await.unwrap();
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let page = store.entries(tenant, &EntryFilter::default(), before, 3).await.unwrap().entries;
        let Some(last) = page.last() else { break };
        before = Some(last.seq);
        seen.extend(page.iter().map(|entry| entry.seq));
    }
    assert_eq!(seen, [6, 5, 4, 3, 2, 1, 0]);
}

async fn entries_are_filtered(store: Db) {
    let tenant = tenant(&*store).await;
    let start = now();
    let mut rows: Vec<EntryRow> = (0..4).map(|_| entry()).collect();
    for (row, second) in rows.iter_mut().zip(0..) {
        row.at = start.plus(Duration::from_secs(second));
    }
    rows[1].operation = Operation::Decrypt;
    rows[1].user = Some(salted("user-8"));
    rows[2].outcome = Outcome::Refused(ErrorCode::KmsUnavailable);
    rows[2].records =
        r#"[null,["a","AAAAAAAAAAAAAAAAAAAAAA=="],["b","AAAAAAAAAAAAAAAAAAAAAA=="]]"#.to_owned();
    rows[3].user = None;
    let (from, until) = (rows[1].at, rows[3].at);
    store.commit(&entries(tenant, 0, rows)).await.unwrap();

    let none = EntryFilter::default;
    assert_eq!(
        matching(&store, tenant, EntryFilter { from: Some(from), until: Some(until), ..none() }).await,
        [2, 1]
    );
    let operation = Some(Operation::Decrypt);
    assert_eq!(matching(&store, tenant, EntryFilter { operation, ..none() }).await, [1]);
    let outcome = Some(Outcome::Refused(ErrorCode::KmsUnavailable));
    assert_eq!(matching(&store, tenant, EntryFilter { outcome, ..none() }).await, [2]);
    let user = Some("user-7".to_owned());
    assert_eq!(matching(&store, tenant, EntryFilter { user: user.clone(), ..none() }).await, [2, 0]);
    let record = |id: &str| EntryFilter { record_id: Some(id.to_owned()), ..EntryFilter::default() };
    assert_eq!(matching(&store, tenant, record("b")).await, [2]);
    assert_eq!(matching(&store, tenant, record("record-1")).await, [3, 1, 0]);
    assert_eq!(
        matching(&store, tenant, record("AAAAAAAAAAAAAAAAAAAAAA==")).await,
        [0; 0],
        "a salt is no record id"
    );
    let both = EntryFilter { user, outcome, ..record("a") };
    assert_eq!(matching(&store, tenant, both).await, [2]);
}

async fn no_tenant_sees_anothers_rows(store: Db) {
    let (one, other) = (tenant(&*store).await, tenant(&*store).await);
    let row = dek(Some("r"));
    let started = job();
    let batch = Batch {
        tenant: one,
        base: 0,
        entries: vec![entry()],
        changes: vec![Change::InsertDek(row.clone()), Change::StartJob(started.clone())],
        gate: None,
        fence: Vec::new(),
    };
    store.commit(&batch).await.unwrap();
    assert_eq!(all(&store, other).await, []);
    assert_eq!(store.log_size(other).await.unwrap(), 0);
    assert_eq!(store.deks(other, &[row.id]).await.unwrap(), []);
    assert_eq!(store.deks_of_records(other, &[Arc::from("r")]).await.unwrap(), []);
    assert_eq!(store.deks_after(other, None, 10).await.unwrap(), []);
    assert_eq!(store.deks_not_under(other, &KeyVersion::new("x", "y")).await.unwrap(), 0);
    assert_eq!(store.job(other, started.id).await.unwrap(), None);
    assert_eq!(store.latest_job(other).await.unwrap(), None);
    assert!(!lease(&store, other, started.id, Uuid::new_v4(), 1_000).await);
    let rewrap = Change::Rewrap { dek_id: row.id, from: row.wrapped.clone(), to: wrapped(1, "9"), mac: None };
    assert_eq!(store.commit(&changes(other, vec![rewrap])).await.unwrap().applied, [0]);
    assert_eq!(
        store.commit(&changes(other, inserts(&[row]))).await.unwrap().applied,
        [1],
        "the same id is free there"
    );
}

async fn an_entry_holds_ten_thousand_items(store: Db) {
    let tenant = tenant(&*store).await;
    let mut row = entry();
    row.item_count = 10_000;
    let records: Vec<_> =
        (0..10_000).map(|n| [format!("record-{n}"), "AQEBAQEBAQEBAQEBAQEBAQ==".to_owned()]).collect();
    row.records = serde_json::to_string(&records).unwrap();
    row.items = (0..1_200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let deks: Vec<DekRow> = (0..10_000).map(|n| dek(Some(&format!("record-{n}")))).collect();
    let batch = Batch {
        tenant,
        base: 0,
        entries: vec![row.clone()],
        changes: inserts(&deks),
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await.unwrap().applied.len(), 10_000);
    assert_eq!(normal(all(&store, tenant).await.remove(0).row), normal(row));
    let wanted: Vec<Arc<str>> = deks.iter().filter_map(|dek| dek.record_id.clone()).collect();
    assert_eq!(store.deks_of_records(tenant, &wanted).await.unwrap().len(), 10_000);
    assert_eq!(store.deks(tenant, &ids(&deks)).await.unwrap().len(), 10_000);
}

async fn record_ids_may_be_empty_long_and_of_any_script(store: Db) {
    let tenant = tenant(&*store).await;
    // Random text, since one repeated letter would be compressed before it is indexed.
    let long: String = (0..4_000).map(|_| Uuid::new_v4().to_string()).collect();
    for record in [
        "",
        " ",
        "日本語🦀",
        "e\u{301}",
        "é",
        "'; DROP TABLE np_byok_audit; --",
        "\u{1}\u{7f}\u{ffff}",
        &long,
    ] {
        let mut row = entry();
        row.records = serde_json::json!([[record, "AQEBAQEBAQEBAQEBAQEBAQ=="]]).to_string();
        let key = dek(Some(record));
        let base = store.log_size(tenant).await.unwrap();
        let batch = Batch {
            tenant,
            base,
            entries: vec![row],
            changes: inserts(std::slice::from_ref(&key)),
            gate: None,
            fence: Vec::new(),
        };
        store.commit(&batch).await.unwrap();
        assert_eq!(store.deks_of_records(tenant, &[Arc::from(record)]).await.unwrap(), [key]);
        let filter = EntryFilter { record_id: Some(record.to_owned()), ..EntryFilter::default() };
        assert_eq!(matching(&store, tenant, filter).await, [base]);
    }
}

async fn a_nul_is_rejected_and_finds_nothing(store: Db) {
    let tenant = tenant(&*store).await;
    let mut in_user = entry();
    in_user.user = Some(salted("a\0b"));
    let mut in_records = entry();
    in_records.records = serde_json::json!([["a\0b", "AQEBAQEBAQEBAQEBAQEBAQ=="]]).to_string();
    for row in [in_user, in_records] {
        assert_eq!(store.commit(&entries(tenant, 0, vec![row])).await, Err(CommitError::Rejected));
    }
    let in_dek = Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: inserts(&[dek(Some("a\0b"))]),
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&in_dek).await, Err(CommitError::Rejected));
    assert_eq!(store.log_size(tenant).await.unwrap(), 0);
    assert_eq!(store.deks_of_records(tenant, &[Arc::from("a\0b")]).await.unwrap(), []);
    assert_eq!(store.tenant("a\0b").await.unwrap(), None);
    let filter = EntryFilter { record_id: Some("a\0b".to_owned()), ..EntryFilter::default() };
    assert_eq!(matching(&store, tenant, filter).await, [0; 0]);
    let filter = EntryFilter { user: Some("a\0b".to_owned()), ..EntryFilter::default() };
    assert_eq!(matching(&store, tenant, filter).await, [0; 0]);
}

async fn entries_of_any_time_have_a_place(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows = vec![entry(), entry(), entry()];
    rows[1].at = Timestamp::parse("1999-12-31T23:59:59.999999Z").unwrap();
    rows[2].at = Timestamp::parse("2199-01-01T00:00:00Z").unwrap();
    store.commit(&entries(tenant, 0, rows.clone())).await.unwrap();
    let read: Vec<Timestamp> = all(&store, tenant).await.iter().rev().map(|placed| placed.row.at).collect();
    assert_eq!(read, rows.iter().map(|row| row.at).collect::<Vec<_>>());
}
