//! Legal hold, erasure and retention: what is deleted, what stays, and that the log records it and
//! still verifies.

use std::sync::Arc;
use std::time::Duration;

use byok::admin::{AdminError, Erased, LogAdmin};
use byok::audit::{Committer, Unit, digest_of, pack};
use byok::config::AuditRetention;
use byok::jobs::{CheckpointParts, Checkpoints, Upkeep};
use byok::merkle::root_of;
use byok::model::{
    Clock, Entry, EntryId, Extensions, Item, Means, Operation, Outcome, SystemClock, Tenant, TenantUid,
    Timestamp,
};
use byok::store::{
    Batch, Change, Database, DekRow, EntryFilter, EntryRow, Filter, FilterBuilder, FilterLevel, FilterRow,
    PersonalValue, PlacedEntry, PruneError, Retention, Tile, TileId,
};
use byok::verify::{Trust, verify_log};
use sqlx::{Connection, PgConnection};

use crate::checkpoints::printed;
use crate::store_postgres::with_two_roles;
use crate::support::postgres::{connect, execute, migrated, number};
use crate::support::rows::{changes, dek, tenant};
use crate::support::server::TestServer;
use crate::support::tiles::derive;

type Db = Arc<dyn Database>;

const DAY: Duration = Duration::from_secs(24 * 3_600);

macro_rules! on_both_databases {
    ($($case:ident)+) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (database, store) = crate::support::postgres::migrated().await;
                super::old_month(&database.url).await;
                super::$case(store).await;
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

on_both_databases! {
    a_hold_is_an_entry_and_said_once
    an_erased_user_is_gone_and_the_log_still_verifies
    an_erased_record_is_gone_from_every_item
    an_erased_record_leaves_the_rows_of_its_deks_which_stay
    nothing_is_erased_of_a_tenant_on_hold
    an_erased_value_is_found_by_nobody
    no_filter_has_a_value_once_it_is_erased
    what_was_read_before_an_erasure_is_not_added
    no_filter_has_a_value_of_dropped_entries_alone
    what_comes_after_an_erased_part_is_still_found
    entries_stay_whose_tiles_are_not_theirs
    nobody_elses_values_are_erased
    old_entries_go_and_an_entry_says_so
    what_an_entry_that_goes_said_went_before_is_said_again
    what_was_dropped_is_not_paged_through
    what_no_tile_covers_stays
    entries_of_an_ended_log_go_by_its_own_tiles
    nothing_goes_of_a_tenant_on_hold
    all_wait_for_a_log_that_is_behind_unless_on_hold
    only_what_was_exported_goes_where_that_is_asked_for
    what_changed_meanwhile_is_not_dropped
    a_clock_that_runs_ahead_drops_nothing_before_its_time
}

/// The partition of a past month, as the server created it at that time.
async fn old_month(url: &str) {
    for sql in [
        "CREATE TABLE np_byok_audit_202401 (LIKE np_byok_audit INCLUDING CONSTRAINTS INCLUDING STORAGE)",
        "CREATE TRIGGER np_byok_audit_whole BEFORE TRUNCATE ON np_byok_audit_202401
            FOR EACH STATEMENT EXECUTE FUNCTION np_byok_audit_guard()",
        "ALTER TABLE np_byok_audit ATTACH PARTITION np_byok_audit_202401
            FOR VALUES FROM ('2024-01-01Z') TO ('2024-02-01Z')",
    ] {
        execute(url, sql).await;
    }
}

fn long_ago() -> Timestamp {
    // 15 January 2024.
    Timestamp(1_705_276_800_000_000)
}

fn retention() -> Retention {
    Retention { before: SystemClock.now().minus(365 * DAY), exported_only: false }
}

fn keeper(database: &Db) -> LogAdmin {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(database.clone(), clock.clone()));
    LogAdmin::new(database.clone(), committer, clock, Some("the-operator".to_owned()))
}

fn row(tenant: TenantUid, at: Timestamp, user: &str, records: &[&str]) -> EntryRow {
    let item = |record: &&str| Item { record_id: Some((*record).into()), ..Item::default() };
    let entry = Entry {
        id: EntryId::new(),
        at,
        operation: Operation::Decrypt,
        outcome: Outcome::Ok,
        role: "user".into(),
        user: Some(user.to_owned()),
        means: Means::Jwt,
        request_id: Some("r-1".to_owned()),
        detail: None,
        reason: None,
        ledger_hash: None,
        issuer: None,
        extensions: Extensions::default(),
        items: records.iter().map(item).collect(),
    };
    pack(tenant, &entry)
}

/// Appends rows with their own times.
async fn append(database: &Db, tenant: TenantUid, rows: Vec<EntryRow>) {
    let base = database.log_size(tenant).await.unwrap();
    let batch = Batch { base, entries: rows, ..changes(tenant, Vec::new()) };
    database.commit(&batch).await.unwrap();
}

async fn append_old(database: &Db, tenant: TenantUid, count: usize) {
    append(database, tenant, (0..count).map(|_| row(tenant, long_ago(), "u", &["a"])).collect()).await;
}

async fn all(database: &Db, tenant: TenantUid) -> Vec<PlacedEntry> {
    database.entries_from(tenant, 0, 10_000).await.unwrap()
}

async fn details(database: &Db, tenant: TenantUid, operation: Operation) -> Vec<String> {
    let filter = EntryFilter { operation: Some(operation), ..EntryFilter::default() };
    let found = database.entries(tenant, &filter, None, 100).await.unwrap();
    found.entries.into_iter().map(|placed| placed.row.detail.unwrap().to_string()).collect()
}

async fn verifies(database: &Db, tenant: TenantUid) {
    let rows = all(database, tenant).await;
    for placed in &rows {
        assert_eq!(digest_of(tenant, &placed.row), Some(placed.row.digest), "at {}", placed.seq);
    }
    let head = database.log_head(tenant).await.unwrap().unwrap();
    assert_eq!(root_of(rows.iter().map(|placed| placed.row.leaf())), head.frontier.root());
}

async fn a_hold_is_an_entry_and_said_once(database: Db) {
    let tenant = tenant(&*database).await;
    let keeper = keeper(&database);
    assert_eq!(database.on_hold(tenant).await, Ok(false));
    for (on, changes) in [(false, false), (true, true), (true, false), (false, true)] {
        assert_eq!(keeper.hold(tenant, on).await, Ok(changes));
        assert_eq!(database.on_hold(tenant).await, Ok(on));
    }
    assert_eq!(details(&database, tenant, Operation::Hold).await, ["hold off", "hold on"]);
    let last = all(&database, tenant).await.pop().unwrap().row;
    assert_eq!(last.user.unwrap().value.as_deref(), Some("the-operator"));
}

async fn an_erased_user_is_gone_and_the_log_still_verifies(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    append(&database, tenant, vec![row(tenant, now, "ann", &["a"]), row(tenant, now, "bob", &["a"])]).await;
    assert_eq!(
        keeper(&database)
            .erase(tenant, &PersonalValue::User("ann".to_owned()))
            .await
            .map(|erased| erased.entries),
        Ok(1)
    );
    let rows = all(&database, tenant).await;
    let user = |index: usize| rows[index].row.user.clone().unwrap();
    assert_eq!((user(0).value, user(0).salt), (None, None));
    assert_eq!((rows[0].row.request.value.clone(), rows[0].row.request.salt), (None, None));
    assert_eq!(user(1).value.as_deref(), Some("bob"));
    assert_eq!(rows[1].row.request.value.as_deref(), Some("r-1"));
    assert_eq!(details(&database, tenant, Operation::Erase).await, ["erase user 0 2"]);
    verifies(&database, tenant).await;
    assert_eq!(
        keeper(&database)
            .erase(tenant, &PersonalValue::User("ann".to_owned()))
            .await
            .map(|erased| erased.entries),
        Ok(0)
    );
}

async fn an_erased_record_is_gone_from_every_item(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    let many = ["a", "b\"'", "a", "c"];
    append(&database, tenant, vec![row(tenant, now, "ann", &many), row(tenant, now, "ann", &["c"])]).await;
    let before = all(&database, tenant).await;
    assert_eq!(
        keeper(&database)
            .erase(tenant, &PersonalValue::Record("a".to_owned()))
            .await
            .map(|erased| erased.entries),
        Ok(1)
    );
    assert_eq!(
        keeper(&database)
            .erase(tenant, &PersonalValue::Record("b\"'".to_owned()))
            .await
            .map(|erased| erased.entries),
        Ok(1)
    );
    let after = all(&database, tenant).await;
    let records = |rows: &[PlacedEntry], index: usize| -> Vec<serde_json::Value> {
        serde_json::from_str(&rows[index].row.records).unwrap()
    };
    let left: Vec<bool> = records(&after, 0).iter().map(|record| !record.is_null()).collect();
    assert_eq!(left, [false, false, false, true]);
    assert_eq!(records(&after, 0)[3], records(&before, 0)[3]);
    assert_eq!(records(&after, 1), records(&before, 1));
    verifies(&database, tenant).await;
}

async fn an_erased_record_leaves_the_rows_of_its_deks_which_stay(database: Db) {
    let tenant = tenant(&*database).await;
    let (one, other, another, none) = (dek(Some("a")), dek(Some("a")), dek(Some("b")), dek(None));
    let insert = [&one, &other, &another, &none].map(|row| Change::InsertDek(row.clone()));
    database.commit(&changes(tenant, insert.to_vec())).await.unwrap();
    let of_record = async |record: &str| database.deks_of_records(tenant, &[record.into()]).await.unwrap();
    let erase = async || keeper(&database).erase(tenant, &PersonalValue::Record("a".to_owned())).await;
    keeper(&database).hold(tenant, true).await.unwrap();
    let around = Change::EraseFromDeks { record_id: "a".into(), hmac: [1; 32] };
    assert_eq!(database.commit(&changes(tenant, vec![around])).await.unwrap().applied, [0]);
    keeper(&database).hold(tenant, false).await.unwrap();

    assert_eq!(erase().await, Ok(Erased { entries: 0, deks: 2 }));
    assert_eq!(of_record("a").await, []);
    assert_eq!(of_record("b").await, [another]);
    let mut rows = database.deks(tenant, &[one.id, other.id]).await.unwrap();
    rows.sort_by_key(|row| row.id);
    let mut erased = [one, other].map(|row| DekRow { record_id: None, ..row });
    erased.sort_by_key(|row| row.id);
    assert_eq!(rows, erased, "everything else stays");

    // The record's next DEK is a new one and is erased in the same way; the earlier ones are not
    // touched again.
    let next = dek(Some("a"));
    database.commit(&changes(tenant, vec![Change::InsertDek(next.clone())])).await.unwrap();
    assert_eq!(of_record("a").await, [next]);
    assert_eq!(erase().await, Ok(Erased { entries: 0, deks: 1 }));
    assert_eq!(erase().await, Ok(Erased { entries: 0, deks: 0 }));
}

#[tokio::test]
async fn an_erased_records_tokens_decrypt_and_new_ones_use_another_dek() {
    let mut server = TestServer::start().await;
    let before = server.encrypt("before", "r").await;
    printed(&server.environment, &["audit", "erase", "--record", "r"]).await;
    // A restart empties the memory.
    server.kill().await;
    server.start_again().await;
    let after = server.encrypt("after", "r").await;
    assert_eq!(server.decrypt(&before, "r").await.body["plaintext"], "before");
    assert_eq!(server.decrypt(&after, "r").await.body["plaintext"], "after");
    let count = async |condition: &str| {
        number(&server.database_url, &format!("SELECT count(*) FROM np_byok_wrapped_deks WHERE {condition}"))
            .await
    };
    assert_eq!(count("record_id = 'r'").await, 1);
    assert_eq!(count("record_id IS NULL AND octet_length(record_hmac) = 32").await, 1);
    let verified = printed(&server.environment, &["audit", "verify"]).await;
    assert!(verified.contains("holds  deks"), "{verified}");
}

async fn nothing_is_erased_of_a_tenant_on_hold(database: Db) {
    let tenant = tenant(&*database).await;
    append(&database, tenant, vec![row(tenant, SystemClock.now(), "ann", &["a"])]).await;
    let keeper = keeper(&database);
    keeper.hold(tenant, true).await.unwrap();
    assert_eq!(keeper.erase(tenant, &PersonalValue::User("ann".to_owned())).await, Err(AdminError::OnHold));
    // A change that bypasses the keeper erases nothing either.
    for personal in [PersonalValue::User("ann".to_owned()), PersonalValue::Record("a".to_owned())] {
        let erase = Change::Erase { personal, places: 0..9, in_index: true };
        assert_eq!(database.commit(&changes(tenant, vec![erase])).await.unwrap().applied, [0]);
    }
    assert_eq!(all(&database, tenant).await[0].row.user.clone().unwrap().value.as_deref(), Some("ann"));
}

async fn an_erased_value_is_found_by_nobody(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    append(&database, tenant, (0..256).map(|_| row(tenant, now, "ann", &["a"])).collect()).await;
    derive(&database).await;
    let of = |user: Option<&str>, record: Option<&str>| EntryFilter {
        user: user.map(str::to_owned),
        record_id: record.map(str::to_owned),
        ..EntryFilter::default()
    };
    let found = async |filter: EntryFilter| {
        database.entries(tenant, &filter, None, 1_000).await.unwrap().entries.len()
    };
    assert_eq!((found(of(Some("ann"), None)).await, found(of(None, Some("a"))).await), (256, 256));
    let keeper = keeper(&database);
    assert_eq!(
        keeper.erase(tenant, &PersonalValue::User("ann".to_owned())).await.map(|erased| erased.entries),
        Ok(256)
    );
    assert_eq!((found(of(Some("ann"), None)).await, found(of(None, Some("a"))).await), (0, 256));
    assert_eq!(
        keeper.erase(tenant, &PersonalValue::Record("a".to_owned())).await.map(|erased| erased.entries),
        Ok(256)
    );
    assert_eq!(found(of(None, Some("a"))).await, 0);
    verifies(&database, tenant).await;
}

/// What stands of these chunks' filters about a value: `None` where there is no filter.
async fn may_have(
    database: &Db,
    tenant: TenantUid,
    chunks: std::ops::Range<u64>,
    value: i64,
) -> Vec<Option<bool>> {
    let rows = database.chunk_filters(tenant, chunks).await.unwrap();
    let filters = rows.into_iter().map(|row| row.filter.map(|bytes| Filter::from_bytes(bytes).unwrap()));
    filters.map(|filter| Some(filter?.may_contain(value))).collect()
}

/// The values by which this entry can be found and that one cannot.
async fn values_of(database: &Db, tenant: TenantUid, place: u64, and_not: u64) -> Vec<i64> {
    let of = async |place| database.entry_values(tenant, place..place + 1, 1).await.unwrap().remove(0).values;
    let others = of(and_not).await;
    of(place).await.into_iter().filter(|value| !others.contains(value)).collect()
}

async fn no_filter_has_a_value_once_it_is_erased(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    // More than a group, with the erased user in its second chunk and in the one after it.
    let rows = (0..66_000)
        .map(|place| row(tenant, now, if [300, 65_600].contains(&place) { "ann" } else { "bob" }, &["a"]));
    for rows in rows.collect::<Vec<_>>().chunks(2_048) {
        append(&database, tenant, rows.to_vec()).await;
    }
    derive(&database).await;
    let (ann, bob) = (values_of(&database, tenant, 300, 0).await, values_of(&database, tenant, 0, 300).await);
    let ([ann], [bob]) = (&ann[..], &bob[..]) else { panic!("a user each") };
    let (ann, bob) = (*ann, *bob);
    assert_eq!(may_have(&database, tenant, 0..3, ann).await, [Some(false), Some(true), Some(false)]);
    assert_eq!(may_have(&database, tenant, 256..257, ann).await, [Some(true)]);
    assert_eq!(database.unfilled(tenant, 257, 9).await, Ok(vec![]));

    let erase =
        |places| Change::Erase { personal: PersonalValue::User("ann".to_owned()), places, in_index: true };
    let erased = database.commit(&changes(tenant, vec![erase(0..256), erase(256..512)])).await.unwrap();
    assert_eq!(erased.applied, [0, 1]);
    // Where nothing was erased the filter stays.
    assert_eq!(may_have(&database, tenant, 0..3, ann).await, [Some(false), None, Some(false)]);
    let gone = [(FilterLevel::Chunk, 1), (FilterLevel::Group, 0)];
    assert_eq!(database.unfilled(tenant, 257, 9).await.as_deref(), Ok(&gone[..]));
    let found = async |user: &str, before| {
        let filter = EntryFilter { user: Some(user.to_owned()), ..EntryFilter::default() };
        database.entries(tenant, &filter, before, 1_000).await.unwrap().entries.len()
    };
    assert_eq!((found("ann", None).await, found("bob", Some(512)).await), (1, 511));
    derive(&database).await;
    assert_eq!(may_have(&database, tenant, 0..3, ann).await, [Some(false); 3]);
    assert_eq!(may_have(&database, tenant, 0..3, bob).await, [Some(true); 3]);
    assert_eq!(database.unfilled(tenant, 257, 9).await, Ok(vec![]));
    assert_eq!((found("ann", None).await, found("bob", Some(512)).await), (1, 511));
    let erased = database.commit(&changes(tenant, vec![erase(65_536..66_000)])).await.unwrap();
    assert_eq!(erased.applied, [1]);
    assert_eq!(may_have(&database, tenant, 256..257, ann).await, [None]);
    derive(&database).await;
    assert_eq!(may_have(&database, tenant, 256..257, ann).await, [Some(false)]);
    assert_eq!(found("ann", None).await, 0);
}

/// The filter of a chunk as a worker makes it of these entries.
async fn filter_of(database: &Db, tenant: TenantUid, index: u64) -> FilterRow {
    let entries = database.entry_values(tenant, index * 256..(index + 1) * 256, 65_536).await.unwrap();
    let (earliest, latest) = (entries[0].at, entries[0].at);
    let mut values = FilterBuilder::default();
    entries.into_iter().for_each(|entry| values.extend(entry.values));
    FilterRow { index, earliest, latest, filter: Some(values.finish().into_bytes()) }
}

async fn what_was_read_before_an_erasure_is_not_added(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    append(&database, tenant, (0..512).map(|_| row(tenant, now, "ann", &["a"])).collect()).await;
    let add = |erasures, row: FilterRow| {
        let add = Change::AddFilters { group: 0, erasures, level: FilterLevel::Chunk, filters: vec![row] };
        changes(tenant, vec![add])
    };
    let open = changes(tenant, vec![Change::OpenGroup { group: 0 }]);
    assert_eq!(database.commit(&open).await.unwrap().applied, [1]);
    for (personal, before) in
        [(PersonalValue::User("ann".to_owned()), 0), (PersonalValue::Record("a".to_owned()), 1)]
    {
        assert_eq!(database.erasures(tenant, 0).await, Ok(Some(before)));
        let read = filter_of(&database, tenant, 0).await;
        let erase = Change::Erase { personal, places: 0..256, in_index: true };
        assert_eq!(database.commit(&changes(tenant, vec![erase])).await.unwrap().applied, [256]);
        assert_eq!(database.commit(&add(before, read)).await.unwrap().applied, [0]);
    }
    assert_eq!(database.chunk_filters(tenant, 0..2).await, Ok(vec![]));
    let read = filter_of(&database, tenant, 0).await;
    assert_eq!(database.commit(&add(2, read.clone())).await.unwrap().applied, [1]);
    assert_eq!(database.chunk_filters(tenant, 0..2).await, Ok(vec![read]));
}

async fn no_filter_has_a_value_of_dropped_entries_alone(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 300).await;
    append(&database, tenant, (0..300).map(|_| row(tenant, SystemClock.now(), "ann", &["b"])).collect())
        .await;
    derive(&database).await;
    let dropped = values_of(&database, tenant, 0, 400).await;
    assert_eq!(dropped.len(), 2);
    assert_eq!(keeper(&database).prune(retention()).await, Ok(300));
    assert_eq!(may_have(&database, tenant, 0..2, dropped[0]).await, [None, None]);
    derive(&database).await;
    for value in dropped {
        assert_eq!(may_have(&database, tenant, 0..2, value).await, [Some(false), Some(false)]);
    }
    let record = EntryFilter { record_id: Some("b".to_owned()), ..EntryFilter::default() };
    assert_eq!(database.entries(tenant, &record, None, 1_000).await.unwrap().entries.len(), 300);
}

async fn what_comes_after_an_erased_part_is_still_found(database: Db) {
    let tenant = tenant(&*database).await;
    let now = SystemClock.now();
    append(&database, tenant, (0..600).map(|_| row(tenant, now, "ann", &["a"])).collect()).await;
    derive(&database).await;
    let user = EntryFilter { user: Some("ann".to_owned()), ..EntryFilter::default() };
    let record = EntryFilter { record_id: Some("a".to_owned()), ..EntryFilter::default() };
    for (end, left) in [(100, 500), (256, 344), (512, 88), (600, 0)] {
        for personal in [PersonalValue::User("ann".to_owned()), PersonalValue::Record("a".to_owned())] {
            let erase = Change::Erase { personal, places: 0..end, in_index: true };
            database.commit(&changes(tenant, vec![erase])).await.unwrap();
        }
        for filter in [&user, &record] {
            let found = database.entries(tenant, filter, None, 1_000).await.unwrap().entries;
            assert_eq!(found.len(), left, "{filter:?} after {end}");
        }
    }
}

async fn entries_stay_whose_tiles_are_not_theirs(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 256).await;
    let id = TileId { level: 0, index: 0 };
    let tile = Tile { id, hashes: vec![byok::merkle::Hash([7; 32]); 256] };
    let forged = Change::AddTiles { log: 1, tiles: vec![tile] };
    assert_eq!(database.commit(&changes(tenant, vec![forged])).await.unwrap().applied, [1]);
    assert_eq!(keeper(&database).prune(retention()).await, Err(AdminError::Wrong));
    assert_eq!(all(&database, tenant).await.len(), 256);
}

async fn nobody_elses_values_are_erased(database: Db) {
    let (one, other) = (tenant(&*database).await, tenant(&*database).await);
    for tenant in [one, other] {
        append(&database, tenant, vec![row(tenant, SystemClock.now(), "ann", &["a"])]).await;
    }
    let keeper = keeper(&database);
    assert_eq!(
        keeper.erase(one, &PersonalValue::User("ann".to_owned())).await.map(|erased| erased.entries),
        Ok(1)
    );
    assert_eq!(
        keeper.erase(one, &PersonalValue::Record("a".to_owned())).await.map(|erased| erased.entries),
        Ok(1)
    );
    let row = all(&database, other).await.remove(0).row;
    assert_eq!(row.user.unwrap().value.as_deref(), Some("ann"));
    assert!(row.records.contains("\"a\""));
}

async fn old_entries_go_and_an_entry_says_so(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 512).await;
    append(&database, tenant, vec![row(tenant, SystemClock.now(), "ann", &["a"])]).await;
    derive(&database).await;
    let head = database.log_head(tenant).await.unwrap().unwrap();
    assert_eq!(keeper(&database).prune(retention()).await, Ok(512));
    let rows = all(&database, tenant).await;
    assert_eq!(rows.iter().map(|placed| placed.seq).collect::<Vec<_>>(), [512, 513]);
    assert_eq!(details(&database, tenant, Operation::Prune).await, ["prune 1 0 512"]);
    // The tree continues where it was.
    let after = database.log_head(tenant).await.unwrap().unwrap();
    assert_eq!(after, head.extended(&[rows[1].row.clone()]));
    assert_eq!(keeper(&database).prune(retention()).await, Ok(0));
    assert_eq!(database.log_size(tenant).await, Ok(514), "nothing to do leaves no entry");
}

async fn what_an_entry_that_goes_said_went_before_is_said_again(database: Db) {
    struct LongAgo;
    impl Clock for LongAgo {
        fn now(&self) -> Timestamp {
            long_ago().plus(DAY)
        }
    }
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 256).await;
    derive(&database).await;
    let committer = Arc::new(Committer::start(database.clone(), Arc::new(LongAgo)));
    let then = LogAdmin::new(database.clone(), committer, Arc::new(LongAgo), None);
    assert_eq!(then.prune(retention()).await, Ok(256));
    // The entry that records the pruning is as old as those pruned next; and an invented entry is
    // not recorded again.
    let mut made_up = all(&database, tenant).await.remove(0).row;
    (made_up.id, made_up.detail) = (EntryId::new(), Some("prune 1 256 500".into()));
    append(&database, tenant, vec![made_up]).await;
    append_old(&database, tenant, 254).await;
    derive(&database).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(256));
    assert_eq!(details(&database, tenant, Operation::Prune).await, ["prune 1 0 512"]);
    let named = database.tenants().await.unwrap().into_iter().find(|known| known.uid == tenant).unwrap();
    let report = verify_log(&*database, &named, None, Trust::default(), &mut |_, _| ()).await.unwrap();
    assert_eq!(report.findings, []);
}

async fn what_was_dropped_is_not_paged_through(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 64 * 256).await;
    append(&database, tenant, (0..300).map(|_| row(tenant, SystemClock.now(), "ann", &["a"])).collect())
        .await;
    derive(&database).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(64 * 256));
    let page = database.entries(tenant, &EntryFilter::default(), None, 1_000).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (301, None));
}

async fn what_no_tile_covers_stays(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 300).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(0), "there are no tiles yet");
    derive(&database).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(256));
    let rows = all(&database, tenant).await;
    assert_eq!((rows[0].seq, rows.len()), (256, 45));
    // Once a tile covers them they are deleted too, wherever they are stored by then.
    append_old(&database, tenant, 300).await;
    derive(&database).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(255));
    assert_eq!(
        details(&database, tenant, Operation::Prune).await,
        ["prune 1 301 512", "prune 1 256 300", "prune 1 0 256"]
    );
}

async fn entries_of_an_ended_log_go_by_its_own_tiles(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 300).await;
    derive(&database).await;
    let ended = database.log_head(tenant).await.unwrap().unwrap();
    let open = Change::OpenLog { from: ended.clone(), log: 2 };
    let first = vec![row(tenant, long_ago(), "u", &["a"])];
    let batch = Batch { base: ended.end(), entries: first, ..changes(tenant, vec![open]) };
    database.commit(&batch).await.unwrap();
    append_old(&database, tenant, 255).await;
    assert_eq!(keeper(&database).prune(retention()).await, Ok(256), "the new log has no tile yet");
    derive(&database).await;
    // The rest of the ended log's last tile stays, since nothing else has its hashes.
    assert_eq!(keeper(&database).prune(retention()).await, Ok(256));
    let left: Vec<u64> = all(&database, tenant).await.iter().map(|placed| placed.seq).collect();
    assert_eq!(left[..44], (256..300).collect::<Vec<_>>());
    assert_eq!(details(&database, tenant, Operation::Prune).await, ["prune 2 0 256", "prune 1 0 256"]);
}

async fn nothing_goes_of_a_tenant_on_hold(database: Db) {
    let (held, other) = (tenant(&*database).await, tenant(&*database).await);
    for tenant in [held, other] {
        append_old(&database, tenant, 256).await;
        derive(&database).await;
    }
    let keeper = keeper(&database);
    keeper.hold(held, true).await.unwrap();
    assert_eq!(keeper.prune(retention()).await, Ok(256));
    assert_eq!((all(&database, held).await.len(), all(&database, other).await.len()), (257, 1));
    verifies(&database, held).await;
    keeper.hold(held, false).await.unwrap();
    assert_eq!(keeper.prune(retention()).await, Ok(256));
}

async fn all_wait_for_a_log_that_is_behind_unless_on_hold(database: Db) {
    let (behind, other) = (tenant(&*database).await, tenant(&*database).await);
    for tenant in [behind, other] {
        append_old(&database, tenant, 256).await;
        derive(&database).await;
    }
    let published = Change::AddCheckpoint { log: 1, size: 999, note: "of what was lost".into() };
    database.commit(&changes(behind, vec![published])).await.unwrap();
    let checkpoints = Arc::new(Checkpoints::new(CheckpointParts {
        store: database.clone(),
        deployment: "byok".to_owned(),
        keys: None,
        destinations: Vec::new(),
        publish_every: DAY,
        clock: Arc::new(SystemClock),
    }));
    let log = checkpoints.of(&Arc::new(Tenant { uid: behind, name: "behind".to_owned() }));
    assert!(!log.check().await.unwrap().holds);
    let upkeep = Upkeep {
        database: database.clone(),
        admin: Some(keeper(&database)),
        checkpoints,
        retention: AuditRetention { age: Some(365 * DAY), exported_only: false },
    };
    upkeep.drop_old_entries().await;
    assert_eq!(all(&database, other).await.len(), 256);
    keeper(&database).hold(behind, true).await.unwrap();
    upkeep.drop_old_entries().await;
    assert_eq!((all(&database, behind).await.len(), all(&database, other).await.len()), (257, 1));
}

async fn only_what_was_exported_goes_where_that_is_asked_for(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 256).await;
    derive(&database).await;
    let retention = Retention { exported_only: true, ..retention() };
    let keeper = keeper(&database);
    assert_eq!(keeper.prune(retention).await, Ok(0));
    let noted = Change::RecordExport { places: 10..100 };
    assert_eq!(database.commit(&changes(tenant, vec![noted])).await.unwrap().applied, [1]);
    assert_eq!(keeper.prune(retention).await, Ok(90));
    assert_eq!(details(&database, tenant, Operation::Prune).await, ["prune 1 10 100"]);
}

async fn what_changed_meanwhile_is_not_dropped(database: Db) {
    let tenant = tenant(&*database).await;
    append_old(&database, tenant, 256).await;
    derive(&database).await;
    let prunable = database.prunable(retention()).await.unwrap();
    assert_eq!(prunable.len(), 1);
    keeper(&database).hold(tenant, true).await.unwrap();
    assert_eq!(database.prune(retention(), &prunable[0]).await, Err(PruneError::Changed));
    assert_eq!(all(&database, tenant).await.len(), 257);
}

async fn a_clock_that_runs_ahead_drops_nothing_before_its_time(database: Db) {
    struct Ahead;
    impl Clock for Ahead {
        fn now(&self) -> Timestamp {
            SystemClock.now().plus(3_650 * DAY)
        }
    }
    let committer = Arc::new(Committer::start(database.clone(), Arc::new(SystemClock)));
    let keeper = LogAdmin::new(database.clone(), committer, Arc::new(Ahead), None);
    let retention = keeper.older_than(365 * DAY, false).await.unwrap();
    assert!(retention.before <= SystemClock.now().minus(364 * DAY));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serving_role_neither_holds_nor_erases_nor_prunes() {
    let (_database, owner, owner_url, serving) = with_two_roles().await;
    old_month(&owner_url).await;
    let owner: Db = Arc::new(owner);
    let tenant = tenant(&*owner).await;
    append_old(&owner, tenant, 256).await;
    derive(&owner).await;
    let serving: Db = Arc::new(connect(&serving));
    let keeper = keeper(&serving);
    assert_eq!(keeper.hold(tenant, true).await, Err(AdminError::Refused));
    assert_eq!(keeper.erase(tenant, &PersonalValue::User("u".to_owned())).await, Err(AdminError::Refused));
    assert_eq!(keeper.prune(retention()).await, Err(AdminError::Refused));
    assert_eq!(all(&owner, tenant).await.len(), 256);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_written_while_a_month_is_dropped() {
    let (database, store) = migrated().await;
    old_month(&database.url).await;
    let store: Db = store;
    let tenant = tenant(&*store).await;
    append_old(&store, tenant, 512).await;
    derive(&store).await;
    let committer = Arc::new(Committer::start(store.clone(), Arc::new(SystemClock)));
    let writing = tokio::spawn({
        let committer = committer.clone();
        async move {
            for _ in 0..200 {
                let entry = Some(row(tenant, SystemClock.now(), "u", &["a"]));
                let unit = Unit::unconditional(tenant, entry, Vec::new());
                committer.commit(unit).await.expect("it is written");
            }
        }
    });
    assert_eq!(keeper(&store).prune(retention()).await, Ok(512));
    writing.await.unwrap();
    assert_eq!(all(&store, tenant).await.len(), 201);
}

/// A reader of the log locks the whole table before its monthly partitions.
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_read_while_a_month_is_dropped() {
    let (database, store) = migrated().await;
    old_month(&database.url).await;
    let store: Db = store;
    let tenant = tenant(&*store).await;
    append_old(&store, tenant, 512).await;
    derive(&store).await;
    let mut reader = PgConnection::connect(&database.url).await.unwrap();
    let mut reading = reader.begin().await.unwrap();
    sqlx::query("LOCK TABLE ONLY np_byok_audit IN ACCESS SHARE MODE").execute(&mut *reading).await.unwrap();
    let pruning = tokio::spawn(async move { keeper(&store).prune(retention()).await });
    let waits =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'np_byok_audit'::regclass)";
    while !pruning.is_finished()
        && !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut *reading).await.unwrap()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let of_month = sqlx::query("SELECT count(*) FROM np_byok_audit_202401").execute(&mut *reading).await;
    assert!(of_month.is_ok(), "{of_month:?}");
    reading.commit().await.unwrap();
    assert_eq!(pruning.await.unwrap(), Ok(512));
}

/// Waits until a statement of this database waits for a lock.
async fn until_one_waits(connection: &mut PgConnection) {
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock')";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut *connection).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_and_filters_that_are_added_wait_for_one_another() {
    let (database, store) = migrated().await;
    let store: Db = store;
    let tenant = tenant(&*store).await;
    let now = SystemClock.now();
    append(&store, tenant, (0..512).map(|_| row(tenant, now, "ann", &["a"])).collect()).await;
    let commit = async |change: Change| store.commit(&changes(tenant, vec![change])).await.unwrap().applied;
    let add = |erasures, row| Change::AddFilters {
        group: 0,
        erasures,
        level: FilterLevel::Chunk,
        filters: vec![row],
    };
    let erase =
        |places| Change::Erase { personal: PersonalValue::User("ann".to_owned()), places, in_index: true };
    commit(Change::OpenGroup { group: 0 }).await;
    let (first, second) = (filter_of(&store, tenant, 0).await, filter_of(&store, tenant, 1).await);
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let mut watching = PgConnection::connect(&database.url).await.unwrap();

    // A worker that is adding a filter as the erasure comes.
    let mut adding = other.begin().await.unwrap();
    for sql in [
        "SELECT 1 FROM np_byok_filters WHERE level = 1 FOR NO KEY UPDATE",
        "INSERT INTO np_byok_filters (tenant, level, chunk, filter)
            SELECT uid, 0, 0, decode('ffffffffffffffff', 'hex') FROM np_byok_tenants",
    ] {
        sqlx::query(sql).execute(&mut *adding).await.unwrap();
    }
    let (erased, ()) = tokio::join!(commit(erase(0..256)), async {
        until_one_waits(&mut watching).await;
        adding.commit().await.unwrap();
    });
    assert_eq!(erased, [256]);
    let filters = store.chunk_filters(tenant, 0..1).await.unwrap();
    assert_eq!(filters.into_iter().map(|row| row.filter).collect::<Vec<_>>(), [None]);
    assert_eq!(commit(add(0, first)).await, [0]);

    // An erasure that is not committed yet as the worker comes.
    let mut erasing = other.begin().await.unwrap();
    sqlx::query("UPDATE np_byok_filters SET filter = NULL, erasures = erasures + 1 WHERE level = 1")
        .execute(&mut *erasing)
        .await
        .unwrap();
    let (added, ()) = tokio::join!(commit(add(1, second)), async {
        until_one_waits(&mut watching).await;
        erasing.commit().await.unwrap();
    });
    assert_eq!(added, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_the_release_before_loses_an_erased_value() {
    let (database, store) = migrated().await;
    let store: Db = store;
    let tenant = tenant(&*store).await;
    let now = SystemClock.now();
    let user = |place| if place == 300 { "ann" } else { "bob" };
    append(&store, tenant, (0..512).map(|place| row(tenant, now, user(place), &["a"])).collect()).await;
    let ann = values_of(&store, tenant, 300, 0).await[0];
    let indexed = format!("INSERT INTO np_byok_chunk_values SELECT uid, {ann}, 1 FROM np_byok_tenants");
    execute(&database.url, &indexed).await;
    keeper(&store).erase(tenant, &PersonalValue::User("ann".to_owned())).await.unwrap();
    assert_eq!(number(&database.url, "SELECT count(*) FROM np_byok_chunk_values").await, 0);
}
