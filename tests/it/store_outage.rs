//! The connection is cut at the worst times, and the database stops and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use byok::model::TenantUid;
use byok::store::{
    Batch, Change, CommitError, Commits as _, Database, DekReads, MigrateError, Postgres, ReadError,
    RequestReads as _,
};
use uuid::Uuid;

use crate::support::postgres::{Server, TestDatabase, connect, migrated};
use crate::support::proxy::{Cut, Proxy};
use crate::support::rows::{changes, dek, entries, entry, job, tenant};

/// Longer than any wait of the store on any machine: its own limits are a few seconds.
const ENDLESS: Duration = Duration::from_secs(60);

/// A store behind a proxy, with prepared statements, and one with a direct connection to the
/// database.
struct Cuttable {
    _database: TestDatabase,
    direct: Arc<Postgres>,
    proxied: Postgres,
    proxy: Proxy,
    tenant: TenantUid,
}

async fn cuttable() -> Cuttable {
    let (database, direct) = migrated().await;
    let tenant = tenant(&*direct).await;
    let (proxy, url) = Proxy::before(&database.url).await;
    let proxied = connect(&url);
    proxied.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    Cuttable { _database: database, direct, proxied, proxy, tenant }
}

/// A batch that needs one statement, without an explicit transaction.
fn simple(tenant: TenantUid) -> Batch {
    Batch {
        tenant,
        base: 1,
        entries: vec![entry()],
        changes: vec![Change::InsertDek(dek(Some("cut me")))],
        gate: None,
        fence: Vec::new(),
    }
}

/// A batch that needs an explicit transaction.
fn mixed(tenant: TenantUid) -> Batch {
    let mut batch = simple(tenant);
    batch.changes.push(Change::StartJob(job()));
    batch
}

async fn committed_once(cuttable: &Cuttable, batch: &Batch) {
    assert_eq!(cuttable.direct.log_size(cuttable.tenant).await.unwrap(), 2);
    assert_eq!(cuttable.direct.deks_after(cuttable.tenant, None, 10).await.unwrap().len(), 1);
    assert_eq!(cuttable.proxied.commit(batch).await.unwrap().applied, vec![1; batch.changes.len()]);
    assert_eq!(cuttable.direct.log_size(cuttable.tenant).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_finds_a_commit_whose_answer_was_lost() {
    let cuttable = cuttable().await;
    let batch = simple(cuttable.tenant);
    cuttable.proxy.cut(b"cut me", Cut::Answer);
    assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unknown));
    assert!(cuttable.proxy.is_done());
    committed_once(&cuttable, &batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_transactions_commit_answer_is_lost_a_retry_finds_it() {
    let cuttable = cuttable().await;
    let batch = mixed(cuttable.tenant);
    cuttable.proxy.cut(b"COMMIT", Cut::Answer);
    assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unknown));
    assert!(cuttable.proxy.is_done());
    committed_once(&cuttable, &batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_commit_never_arrives_a_retry_does_it() {
    for (bytes, batch) in [(&b"cut me"[..], simple as fn(_) -> _), (b"COMMIT", mixed)] {
        let cuttable = cuttable().await;
        let batch = batch(cuttable.tenant);
        cuttable.proxy.cut(bytes, Cut::Before);
        assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unknown));
        assert_eq!(cuttable.direct.log_size(cuttable.tenant).await.unwrap(), 1);
        cuttable.proxied.commit(&batch).await.unwrap();
        committed_once(&cuttable, &batch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_cut_before_its_commit_did_nothing() {
    let cuttable = cuttable().await;
    let batch = mixed(cuttable.tenant);
    cuttable.proxy.cut(b"cut me", Cut::Answer);
    assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unavailable));
    assert_eq!(cuttable.direct.log_size(cuttable.tenant).await.unwrap(), 1);
    cuttable.proxied.commit(&batch).await.unwrap();
    committed_once(&cuttable, &batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_that_append_meanwhile_do_not_hide_what_was_done() {
    let cuttable = cuttable().await;
    let batch = simple(cuttable.tenant);
    cuttable.proxy.cut(b"cut me", Cut::Answer);
    assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unknown));
    cuttable.direct.commit(&entries(cuttable.tenant, 2, vec![entry()])).await.unwrap();
    assert!(cuttable.proxied.commit(&batch).await.is_ok());
    assert_eq!(cuttable.direct.log_size(cuttable.tenant).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_waited_for_within_a_limit() {
    let cuttable = cuttable().await;
    let batch = simple(cuttable.tenant);
    cuttable.proxy.cut(b"cut me", Cut::Silence);
    let start = Instant::now();
    assert_eq!(cuttable.proxied.commit(&batch).await, Err(CommitError::Unknown));
    assert!(start.elapsed() < ENDLESS);

    let record: Arc<str> = "never committed".into();
    cuttable.proxy.cut(record.as_bytes(), Cut::Silence);
    let start = Instant::now();
    assert_eq!(
        cuttable.proxied.deks_of_records(cuttable.tenant, &[record]).await,
        Err(ReadError::Unavailable)
    );
    assert!(start.elapsed() < ENDLESS);
    assert!(cuttable.proxied.commit(&batch).await.is_ok(), "the next call finds another connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_lock_gives_up_unapplied() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM np_byok_heads FOR UPDATE").execute(&mut other).await.unwrap();
    let batch = entries(tenant, 0, vec![entry()]);
    assert_eq!(store.commit(&batch).await, Err(CommitError::Unavailable));
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert!(store.commit(&batch).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_is_unavailable_and_is_found_again() {
    let mut server = Server::start();
    let store = connect(&server.url);
    store.migrate().await.unwrap();
    let tenant = tenant(&store).await;
    let batch = |base| entries(tenant, base, vec![entry()]);
    store.commit(&batch(0)).await.unwrap();

    server.kill();
    let start = Instant::now();
    // The first commit may use a connection that was alive a moment ago.
    let first = store.commit(&batch(1)).await;
    assert!(matches!(first, Err(CommitError::Unknown | CommitError::Unavailable)), "{first:?}");
    assert_eq!(store.commit(&batch(1)).await, Err(CommitError::Unavailable));
    assert_eq!(store.ping().await, Err(ReadError::Unavailable));
    assert_eq!(store.migrate().await, Err(MigrateError::Unavailable));
    assert_eq!(store.schema().await, Err(ReadError::Unavailable));
    assert!(start.elapsed() < ENDLESS);

    server.start_again();
    assert_eq!(store.ping().await, Ok(()));
    assert!(store.commit(&batch(1)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_under_load_survives_a_crash() {
    let mut server = Server::start();
    let store = Arc::new(connect(&server.url));
    store.migrate().await.unwrap();
    let writers = (0..4).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let tenant = tenant(&*store).await;
            let mut acknowledged = Vec::new();
            for base in 0.. {
                let row = dek(None);
                let batch = Batch {
                    tenant,
                    base,
                    entries: vec![entry()],
                    changes: vec![Change::InsertDek(row.clone())],
                    gate: None,
                    fence: Vec::new(),
                };
                match store.commit(&batch).await {
                    Ok(_) => acknowledged.push(row.id),
                    Err(_) => break,
                }
            }
            (tenant, acknowledged)
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.kill();
    let mut results = Vec::new();
    for writer in writers {
        results.push(writer.await.unwrap());
    }
    server.start_again();
    for (tenant, acknowledged) in results {
        assert!(!acknowledged.is_empty());
        assert_eq!(store.deks(tenant, &acknowledged).await.unwrap().len(), acknowledged.len());
        let size = store.log_size(tenant).await.unwrap();
        assert!(size >= u64::try_from(acknowledged.len()).unwrap());
    }
}

#[tokio::test]
async fn an_address_where_nothing_listens_is_unavailable_at_once() {
    let store = connect("postgres://nobody@127.0.0.1:1/none");
    let start = Instant::now();
    let lease = Change::LeaseJob { job: job().id, holder: Uuid::new_v4(), lease: Duration::from_secs(1) };
    assert_eq!(store.commit(&changes(TenantUid([0; 16]), vec![lease])).await, Err(CommitError::Unavailable));
    assert!(start.elapsed() < ENDLESS);
}
