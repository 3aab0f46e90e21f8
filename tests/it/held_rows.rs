//! Rows of DEKs without a MAC are compared with the log before they are sealed: some agree, some
//! are contradicted, and with a damaged log none agree.

use std::sync::Arc;
use std::time::Duration;

use byok::audit::{pack, prune_detail};
use byok::crypto::sha256;
use byok::model::{Clock as _, DekId, Entry, Item, Operation, SystemClock, Tenant, Timestamp, Wrapped};
use byok::store::{Change, Database, DekRow};
use byok::verify::{HeldRows, hold_rows};

use crate::support::postgres::{execute, migrated};
use crate::support::rows::{changes, dek, entries, tenant, wrapped};
use crate::support::tiles::derive;

/// A tenant's log, and its rows in the database.
struct Log {
    store: Arc<dyn Database>,
    url: String,
    tenant: Tenant,
    end: u64,
    _database: crate::support::postgres::TestDatabase,
}

impl Log {
    async fn new() -> Self {
        let (database, store) = migrated().await;
        let store: Arc<dyn Database> = store;
        let uid = tenant(&*store).await;
        let tenant = store.tenants().await.unwrap().into_iter().find(|tenant| tenant.uid == uid).unwrap();
        let url = database.url.clone();
        Self { store, url, tenant, end: 0, _database: database }
    }

    async fn append(&mut self, entry: Entry) {
        let row = pack(self.tenant.uid, &entry);
        self.store.commit(&entries(self.tenant.uid, self.end, vec![row])).await.unwrap();
        self.end += 1;
    }

    /// Appends the entry of a call that used a DEK for a record.
    async fn encrypted(&mut self, at: Timestamp, row: &DekRow) {
        self.append(Entry {
            items: vec![item(row, &row.wrapped)],
            ..operator_entry(at, Operation::Encrypt, None)
        })
        .await;
    }

    async fn rotated(&mut self, row: &DekRow, to: &Wrapped) {
        let at = SystemClock.now();
        self.append(Entry { items: vec![item(row, to)], ..operator_entry(at, Operation::Rotate, None) })
            .await;
    }

    async fn add(&self, row: &DekRow) {
        self.store.commit(&changes(self.tenant.uid, vec![Change::InsertDek(row.clone())])).await.unwrap();
    }

    async fn hold(&self, rows: &[DekRow]) -> HeldRows {
        hold_rows(&*self.store, &self.tenant, rows.to_vec()).await.unwrap()
    }

    /// The damage found in the log; then no row agrees and none is contradicted.
    async fn damaged(&self, rows: &[DekRow]) -> Option<&'static str> {
        let held = self.hold(rows).await;
        assert_eq!((held.agreed.len(), held.contradicted.len()), (0, 0));
        held.damaged.map(|finding| finding.name())
    }

    async fn contradicts(&self, row: &DekRow) -> &'static str {
        let held = self.hold(std::slice::from_ref(row)).await;
        assert_eq!((held.agreed.as_slice(), held.damaged), ([].as_slice(), None));
        held.contradicted[0].1.name()
    }

    /// Changes the log as a superuser whom no trigger stops.
    async fn damage(&self, sql: &str) {
        execute(&self.url, &format!("SET session_replication_role = replica; {sql}")).await;
    }
}

fn operator_entry(at: Timestamp, operation: Operation, detail: Option<&str>) -> Entry {
    Entry::of_operator(at, operation, None, detail.map(Into::into))
}

fn item(row: &DekRow, wrapped: &Wrapped) -> Item {
    Item {
        record_id: row.record_id.clone(),
        dek_id: Some(row.id),
        key_version: Some(wrapped.key_version.clone()),
        wrapped_hash: Some(sha256(&wrapped.bytes)),
        ..Item::default()
    }
}

/// A DEK that was made at this time.
fn dek_of(at: Timestamp, record: Option<&str>) -> DekRow {
    let seconds = u64::try_from(at.0 / 1_000_000).unwrap();
    let id = uuid::Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, 0, 0, 0));
    DekRow { id: DekId(id), ..dek(record) }
}

fn long_ago() -> Timestamp {
    SystemClock.now().minus(Duration::from_secs(400 * 86_400))
}

#[tokio::test]
async fn a_row_agrees_that_is_as_the_log_last_wrapped_it() {
    let mut log = Log::new().await;
    let (kept, rotated, nameless) = (dek(Some("a")), dek(Some("b")), dek(None));
    let now = SystemClock.now();
    for row in [&kept, &rotated, &nameless] {
        log.encrypted(now, row).await;
    }
    let rotated_to = wrapped(8, "2");
    log.rotated(&rotated, &rotated_to).await;
    let rows = [kept, DekRow { wrapped: rotated_to, ..rotated }, nameless];
    for row in &rows {
        log.add(row).await;
    }
    let held = log.hold(&rows).await;
    assert_eq!((held.agreed, held.contradicted, held.damaged), (rows.to_vec(), vec![], None));
}

#[tokio::test]
async fn a_row_is_contradicted_that_was_edited_or_moved_or_planted() {
    let mut log = Log::new().await;
    let (made, now) = (dek(Some("a")), SystemClock.now());
    log.encrypted(now, &made).await;
    for (edited, finding) in [
        (DekRow { wrapped: wrapped(9, "1"), ..made.clone() }, "dek-wrapped"),
        (DekRow { wrapped: wrapped(7, "2"), ..made.clone() }, "dek-key-version"),
        (DekRow { record_id: Some("b".into()), ..made.clone() }, "dek-record"),
        (dek(Some("a")), "dek-not-logged"),
    ] {
        log.add(&edited).await;
        assert_eq!(log.contradicts(&edited).await, finding);
        log.damage(&format!("DELETE FROM np_byok_wrapped_deks WHERE id = '{}'", edited.id)).await;
    }
    // A DEK that never had a record.
    let nameless = dek(None);
    log.encrypted(now, &nameless).await;
    let moved = DekRow { record_id: Some("a".into()), ..nameless };
    log.add(&moved).await;
    assert_eq!(log.contradicts(&moved).await, "dek-record");
}

#[tokio::test]
async fn a_row_that_changed_since_its_read_is_in_neither_list() {
    let mut log = Log::new().await;
    let (made, to) = (dek(Some("a")), wrapped(8, "2"));
    log.encrypted(SystemClock.now(), &made).await;
    log.add(&DekRow { wrapped: to.clone(), ..made.clone() }).await;
    log.rotated(&made, &to).await;
    let held = log.hold(&[made]).await;
    assert_eq!((held.agreed.len(), held.contradicted.len(), held.damaged), (0, 0, None));
}

#[tokio::test]
async fn nothing_agrees_with_a_log_that_was_changed() {
    for (damage, finding) in [
        ("DELETE FROM np_byok_audit WHERE seq = 0", "unmarked-prune"),
        ("DELETE FROM np_byok_audit WHERE seq = 1", "removed-entry"),
        ("DELETE FROM np_byok_audit WHERE seq = 2", "truncated-tail"),
        ("UPDATE np_byok_audit SET role = 'nobody' WHERE seq = 1", "changed-field"),
        ("UPDATE np_byok_audit SET items = '\\x00' WHERE seq = 1", "changed-field"),
        ("UPDATE np_byok_audit SET at = at + interval '1 hour' WHERE seq = 1", "changed-time"),
        (
            "UPDATE np_byok_audit SET records = '[[\"z\", \"AAAAAAAAAAAAAAAAAAAAAA==\"]]' WHERE seq = 1",
            "changed-field",
        ),
        (
            "CREATE TEMP TABLE more AS SELECT * FROM np_byok_audit WHERE seq = 1;
             UPDATE more SET at = at + interval '1 second'; INSERT INTO np_byok_audit SELECT * FROM more",
            "doubled-entry",
        ),
    ] {
        let mut log = Log::new().await;
        let (made, edited) = (dek(Some("a")), dek(Some("b")));
        for row in [&made, &edited, &made] {
            log.encrypted(SystemClock.now(), row).await;
        }
        let edited = DekRow { wrapped: wrapped(9, "1"), ..edited };
        log.add(&made).await;
        log.add(&edited).await;
        log.damage(damage).await;
        assert_eq!(log.damaged(&[made, edited]).await, Some(finding), "{damage}");
    }
}

#[tokio::test]
async fn after_pruning_only_rows_younger_than_the_rest_need_entries() {
    let mut log = Log::new().await;
    let old = dek_of(long_ago(), Some("a"));
    let stray = uuid::Uuid::new_v4();
    let (young, odd) = (dek(Some("b")), DekRow { id: DekId(stray), ..dek(Some("c")) });
    for _ in 0..256 {
        log.encrypted(long_ago(), &old).await;
    }
    derive(&log.store).await;
    log.append(operator_entry(
        SystemClock.now().minus(Duration::from_secs(2 * 86_400)),
        Operation::Hold,
        None,
    ))
    .await;
    for row in [&old, &young, &odd] {
        log.add(row).await;
    }
    // All entries but one, whose server's clock was ahead.
    log.damage("DELETE FROM np_byok_audit WHERE seq < 256 AND seq <> 100").await;
    let rows = [old.clone(), young, odd];
    assert_eq!(log.damaged(&rows).await, Some("unmarked-prune"), "no entry says that they were pruned");

    log.append(operator_entry(SystemClock.now(), Operation::Prune, Some(&prune_detail(1, &(0..100))))).await;
    assert!(log.damaged(&rows).await.is_some(), "not all of them are named");
    log.append(operator_entry(SystemClock.now(), Operation::Prune, Some(&prune_detail(1, &(101..256)))))
        .await;
    let held = log.hold(&rows).await;
    assert_eq!((held.agreed, held.damaged), (vec![old], None));
    let found: Vec<&str> = held.contradicted.iter().map(|(_, finding)| finding.name()).collect();
    assert_eq!(found, ["dek-not-logged", "dek-not-logged"]);
}
