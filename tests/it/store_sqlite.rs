//! Behaviour of SQLite only.

use std::sync::Arc;

use byok::merkle::Hash;
use byok::model::TenantUid;
use byok::store::{
    Batch, Change, CommitError, Commits as _, Database, EntrySearch as _, MigrateError, OpenError, Sqlite,
    Tile, TileId, sqlite,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, SqlSafeStr, SqliteConnection};
use tempfile::TempDir;

use crate::support::postgres::LEVEL;
use crate::support::rows::{changes, dek, entries, entry, tenant};

/// A database with our tables, in a temporary folder.
pub(crate) async fn migrated() -> (TempDir, Arc<Sqlite>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
    store.migrate().await.unwrap();
    (folder, Arc::new(store))
}

async fn raw(folder: &TempDir) -> SqliteConnection {
    SqliteConnectOptions::new().filename(folder.path().join("byok.db")).connect().await.unwrap()
}

pub(crate) async fn try_execute(folder: &TempDir, sql: &str) -> Result<u64, String> {
    let mut connection = raw(folder).await;
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
    done.map(|done| done.rows_affected()).map_err(|error| error.to_string())
}

async fn with_one_entry() -> (TempDir, Arc<Sqlite>, TenantUid) {
    let (folder, store) = migrated().await;
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    (folder, store, tenant)
}

#[tokio::test]
async fn every_statement_prepares() {
    let (folder, _store) = migrated().await;
    let mut connection = raw(&folder).await;
    for sql in sqlite::statements() {
        let prepared = (&mut connection).prepare(sql.into_sql_str()).await;
        assert!(prepared.is_ok(), "{sql}: {:?}", prepared.err());
    }
}

#[tokio::test]
async fn entries_are_never_changed_deleted_or_replaced() {
    let (folder, _store, _tenant) = with_one_entry().await;
    for sql in [
        "UPDATE np_byok_audit SET outcome = 'PARTIAL'",
        "UPDATE np_byok_audit SET user_id = 'another'",
        "UPDATE np_byok_audit SET user_id = NULL, items = x'00'",
        "UPDATE np_byok_audit SET records = '[]'",
        "UPDATE np_byok_audit SET records = '[null,null]'",
        "UPDATE np_byok_audit SET records = '[[\"record-2\",\"AQEBAQEBAQEBAQEBAQEBAQ==\"]]'",
        "UPDATE np_byok_audit SET seq = 5",
        "DELETE FROM np_byok_audit",
        "INSERT OR REPLACE INTO np_byok_audit SELECT * FROM np_byok_audit",
        "INSERT OR REPLACE INTO np_byok_audit (rowid, tenant, seq, at, id, operation, outcome, means, role, request_hmac,
            item_count, records, items) SELECT rowid, tenant, 9, at, id, operation, outcome, means, role, request_hmac,
            item_count, records, items FROM np_byok_audit",
    ] {
        let refused = try_execute(&folder, sql).await;
        assert!(refused.as_ref().is_err_and(|message| message.contains("never")), "{sql}: {refused:?}");
    }
}

#[tokio::test]
async fn tiles_are_never_changed_deleted_or_replaced() {
    let (folder, store, tenant) = with_one_entry().await;
    let tiles = vec![Tile { id: TileId { level: 0, index: 0 }, hashes: vec![Hash([1; 32]); 256] }];
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    for sql in [
        "UPDATE np_byok_tiles SET root = zeroblob(32)",
        "DELETE FROM np_byok_tiles",
        "INSERT OR REPLACE INTO np_byok_tiles SELECT * FROM np_byok_tiles",
        "INSERT OR REPLACE INTO np_byok_tiles (rowid, tenant, log, level, tile, root, hashes)
            SELECT rowid, tenant, log, level, 9, root, hashes FROM np_byok_tiles",
    ] {
        let refused = try_execute(&folder, sql).await;
        assert!(refused.as_ref().is_err_and(|message| message.contains("never")), "{sql}: {refused:?}");
    }
}

#[tokio::test]
async fn an_erasure_sets_personal_values_to_null() {
    let (folder, store, tenant) = with_one_entry().await;
    let erase =
        "UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL, request_id = NULL, request_salt = NULL,
        records = '[null]'";
    assert_eq!(try_execute(&folder, erase).await, Ok(1));
    let row = store.entries(tenant, &Default::default(), None, 1).await.unwrap().entries.remove(0).row;
    assert_eq!(row.user.unwrap().value, None);
    assert_eq!(row.request.value, None);
    assert_eq!(row.records, "[null]");
}

#[tokio::test]
async fn a_file_that_another_process_made_is_migrated_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("byok.db");
    let stores = [Sqlite::open(&path).await.unwrap(), Sqlite::open(&path).await.unwrap()];
    let [one, other] = stores;
    let reports = tokio::join!(one.migrate(), other.migrate());
    assert_eq!(reports.0.unwrap().ran + reports.1.unwrap().ran, LEVEL);
    assert_eq!(one.schema().await.unwrap().usable(), Ok(()));
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let (folder, store) = migrated().await;
    try_execute(&folder, "UPDATE np_byok_migrations SET checksum = x'00'").await.unwrap();
    assert_eq!(store.migrate().await, Err(MigrateError::Changed { version: 1 }));
}

#[tokio::test]
async fn an_empty_file_has_no_schema_yet() {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
    let report = store.schema().await.unwrap();
    assert_eq!((report.applied, report.expected), (0, LEVEL));
    assert_eq!(report.usable(), Err(MigrateError::SchemaTooOld { applied: 0, expected: LEVEL }));
}

#[tokio::test]
async fn a_file_keeps_what_was_committed_when_it_is_opened_again() {
    let (folder, store, tenant) = with_one_entry().await;
    drop(store);
    let again = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
    assert_eq!(again.log_size(tenant).await, Ok(1));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("byok.db");
    std::fs::write(&path, "this is a text, and quite a long one at that; it is no database at all").unwrap();
    assert!(matches!(Sqlite::open(&path).await.err(), Some(OpenError::File { .. })));
}

#[tokio::test]
async fn a_file_protects_nothing_from_whoever_may_write_it() {
    let (folder, store) = migrated().await;
    assert!(store.exposure().await.unwrap().owns_audit);
    assert!(!store.exposure().await.unwrap().unguarded);
    try_execute(&folder, "DROP TRIGGER np_byok_audit_no_delete").await.unwrap();
    assert!(store.exposure().await.unwrap().unguarded);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_another_process_writes_a_commit_waits_and_then_gives_up() {
    let (folder, store, tenant) = with_one_entry().await;
    let mut other = raw(&folder).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let batch = Batch {
        tenant,
        base: 1,
        entries: vec![entry()],
        changes: vec![Change::InsertDek(dek(None))],
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await, Err(CommitError::Unavailable));
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert!(store.commit(&batch).await.is_ok());
}
