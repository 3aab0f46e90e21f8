//! What only PostgreSQL does: roles, partitions, migrations by several replicas, durability.

use std::collections::BTreeSet;

use byok::config;
use byok::merkle::Hash;
use byok::model::{TenantUid, Timestamp};
use byok::store::{
    Batch, Change, CommitError, Commits as _, Database, DekRow, EntryFilter, EntrySearch as _, Exposure,
    FilterLevel, FilterRow, MigrateError, Postgres, ReadError, RequestReads as _, Tile, TileId, postgres,
};
use sqlx::{Connection, Executor, PgConnection, SqlSafeStr};
use uuid::Uuid;

use crate::support::postgres::{
    LEVEL, Server, TestDatabase, connect, empty, execute, migrated, number, settings, try_execute,
};
use crate::support::rows::{changes, dek, entries, entry, job, tenant, wrapped};

pub(crate) const DENIED: &str = "42501";

/// A database whose tables belong to one role and are served by another; the URLs of both.
pub(crate) async fn with_two_roles() -> (TestDatabase, Postgres, String, String) {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    store.migrate().await.unwrap();
    (database, store, owner, serving)
}

async fn with_one_entry(store: &Postgres) -> TenantUid {
    let tenant = tenant(store).await;
    store.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    tenant
}

#[tokio::test]
async fn every_statement_prepares() {
    let (database, _store) = migrated().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for sql in postgres::statements() {
        let prepared = (&mut connection).prepare(sql.into_sql_str()).await;
        assert!(prepared.is_ok(), "{sql}: {:?}", prepared.err());
    }
}

#[tokio::test]
async fn entries_are_never_changed_or_deleted_not_even_by_their_owner() {
    let (database, store) = migrated().await;
    with_one_entry(&store).await;
    for sql in [
        "UPDATE np_byok_audit SET outcome = 'PARTIAL'",
        "UPDATE np_byok_audit SET user_id = 'another'",
        "UPDATE np_byok_audit SET user_salt = NULL, user_hmac = NULL, user_id = NULL",
        "UPDATE np_byok_audit SET user_id = NULL, items = ''",
        "UPDATE np_byok_audit SET records = '[]'",
        "UPDATE np_byok_audit SET records = '[null, null]'",
        "UPDATE np_byok_audit SET records = '[[\"record-2\", \"AQEBAQEBAQEBAQEBAQEBAQ==\"]]'",
        "UPDATE np_byok_audit SET seq = 5",
        "UPDATE np_byok_audit SET at = at + interval '2 months'",
        "DELETE FROM np_byok_audit",
        "TRUNCATE np_byok_audit",
        "TRUNCATE np_byok_audit_default",
        "DO $$ BEGIN EXECUTE 'TRUNCATE np_byok_audit_' || to_char(now(), 'YYYYMM'); END $$",
        "DO $$ BEGIN EXECUTE 'DELETE FROM np_byok_audit_' || to_char(now(), 'YYYYMM'); END $$",
    ] {
        assert_eq!(try_execute(&database.url, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
}

#[tokio::test]
async fn an_erasure_sets_personal_values_to_null() {
    let (database, store) = migrated().await;
    let tenant = with_one_entry(&store).await;
    let erase =
        "UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL, request_id = NULL, request_salt = NULL,
        records = '[null]'";
    assert_eq!(try_execute(&database.url, erase).await, Ok(1));
    let row = store.entries(tenant, &EntryFilter::default(), None, 1).await.unwrap().entries.remove(0).row;
    assert_eq!(row.user.unwrap().value, None);
    assert_eq!(row.request.value, None);
    assert_eq!(row.records, "[null]");
}

#[tokio::test]
async fn a_log_of_the_same_size_and_another_content_is_noticed() {
    let (database, store) = migrated().await;
    let tenant = with_one_entry(&store).await;
    // A restored database that went on without us, as far as this process had come.
    execute(&database.url, "UPDATE np_byok_heads SET frontier = sha256('another entry')").await;
    let batch = entries(tenant, 1, vec![entry()]);
    assert_eq!(store.commit(&batch).await, Err(CommitError::Rewound));
    assert_eq!(store.log_size(tenant).await, Ok(1));
    // What was remembered is gone: the next try reads the head that is there.
    assert!(store.commit(&batch).await.is_ok());
}

#[tokio::test]
async fn the_serving_role_serves_and_can_do_no_more() {
    let (_database, store, _owner, serving) = with_two_roles().await;
    let tenant = with_one_entry(&store).await;
    let row = dek(Some("r"));
    let (started, holder) = (job(), Uuid::new_v4());
    let batch = Batch {
        tenant,
        base: 1,
        entries: vec![entry()],
        changes: vec![
            Change::InsertDek(row.clone()),
            Change::Rewrap { dek_id: row.id, from: row.wrapped.clone(), to: wrapped(8, "2"), mac: None },
            Change::StartJob(started.clone()),
            Change::LeaseJob { job: started.id, holder, lease: std::time::Duration::from_secs(9) },
            Change::AdvanceJob { job: started, holder, after: Some(row.id) },
        ],
        gate: None,
        fence: Vec::new(),
    };
    assert_eq!(store.commit(&batch).await.unwrap().applied, [1, 1, 1, 1, 1]);
    // Without entries the head stays as it is.
    assert_eq!(
        store.commit(&changes(tenant, vec![Change::InsertDek(dek(None))])).await.unwrap().applied,
        [1]
    );
    assert_eq!(store.upkeep().await, Ok(()));
    for sql in [
        "UPDATE np_byok_audit SET user_id = NULL",
        "DELETE FROM np_byok_audit",
        "TRUNCATE np_byok_audit",
        "DROP TABLE np_byok_audit_default",
        "ALTER TABLE np_byok_audit DISABLE TRIGGER ALL",
        "SELECT 1 FROM np_byok_audit_default",
        "INSERT INTO np_byok_audit DEFAULT VALUES",
        "DELETE FROM np_byok_wrapped_deks",
        "INSERT INTO np_byok_wrapped_deks DEFAULT VALUES",
        "UPDATE np_byok_wrapped_deks SET wrapped = wrapped",
        "UPDATE np_byok_wrapped_deks SET mac = NULL",
        "INSERT INTO np_byok_heads DEFAULT VALUES",
        "UPDATE np_byok_heads SET size = size + 1",
        "UPDATE np_byok_heads SET first = 0, log = 2",
        "INSERT INTO np_byok_tenants DEFAULT VALUES",
        "INSERT INTO np_byok_keys DEFAULT VALUES",
        "ALTER FUNCTION np_byok_append SECURITY INVOKER",
        "UPDATE np_byok_filters SET filter = filter",
        "UPDATE np_byok_filters SET erasures = erasures",
        "INSERT INTO np_byok_filters (tenant, level, chunk, filter) SELECT uid, 0, 0, uid FROM np_byok_tenants",
        "DELETE FROM np_byok_filters",
        "DELETE FROM np_byok_heads",
        "UPDATE np_byok_migrations SET oldest_reader = 9",
        "UPDATE np_byok_tenants SET name = 'x'",
        "DELETE FROM np_byok_jobs",
        "DROP FUNCTION np_byok_make_partitions()",
    ] {
        assert_eq!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
}

#[tokio::test]
async fn with_two_roles_nothing_is_left_unprotected() {
    let (database, store, owner, _serving) = with_two_roles().await;
    // The shared server's other settings are not this test's.
    assert_eq!(store.exposure().await, Ok(Exposure::default()));
    let as_owner = connect(&owner).exposure().await.unwrap();
    assert!(as_owner.owns_audit && as_owner.may_change_entries && !as_owner.superuser);
    let as_superuser = connect(&database.url).exposure().await.unwrap();
    assert!(as_superuser.superuser && as_superuser.any());
    execute(&owner, "ALTER TABLE np_byok_audit_default DISABLE TRIGGER np_byok_audit_row").await;
    assert!(store.exposure().await.unwrap().unguarded);
}

#[tokio::test]
async fn there_are_partitions_for_this_month_and_the_next_three() {
    let (database, store) = migrated().await;
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'np_byok_audit'::regclass";
    assert_eq!(number(&database.url, count).await, 5, "with the default one");
    store.upkeep().await.unwrap();
    assert_eq!(number(&database.url, count).await, 5);
    with_one_entry(&store).await;
    assert_eq!(number(&database.url, "SELECT count(*) FROM np_byok_audit_default").await, 0);
}

#[tokio::test]
async fn a_missing_partition_is_made_again_while_entries_are_written() {
    let (database, store) = migrated().await;
    let tenant = with_one_entry(&store).await;
    let month = "SELECT to_char(date_trunc('month', now()) + interval '3 months', 'YYYYMM')::bigint";
    let last = number(&database.url, month).await;
    execute(&database.url, &format!("DROP TABLE np_byok_audit_{last}")).await;
    let appending = async {
        for base in 1..50 {
            store.commit(&entries(tenant, base, vec![entry()])).await.unwrap();
        }
    };
    let upkeep = async { tokio::join!(store.upkeep(), store.upkeep(), store.upkeep()) };
    let (_, upkeep) = tokio::join!(appending, upkeep);
    assert_eq!(upkeep, (Ok(()), Ok(()), Ok(())));
    let there = format!("SELECT count(*) FROM pg_class WHERE relname = 'np_byok_audit_{last}'");
    assert_eq!(number(&database.url, &there).await, 1);
}

#[tokio::test]
async fn a_month_that_the_default_partition_has_taken_stays_there() {
    let (database, store) = migrated().await;
    let tenant = with_one_entry(&store).await;
    let month = "SELECT to_char(date_trunc('month', now()) + interval '2 months', 'YYYYMM')::bigint";
    let taken = number(&database.url, month).await;
    execute(&database.url, &format!("DROP TABLE np_byok_audit_{taken}")).await;
    let mut row = entry();
    row.at = Timestamp::parse(&format!("{}-{:02}-02T00:00:00Z", taken / 100, taken % 100)).unwrap();
    store.commit(&entries(tenant, 1, vec![row])).await.unwrap();
    assert_eq!(store.upkeep().await, Ok(()));
    assert_eq!(store.entries(tenant, &EntryFilter::default(), None, 9).await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn tiles_never_change_and_the_serving_role_only_adds_derived_rows() {
    let (_database, store, owner, serving) = with_two_roles().await;
    let tenant = tenant(&store).await;
    store.commit(&entries(tenant, 0, (0..256).map(|_| entry()).collect())).await.unwrap();
    let hashes = vec![Hash([1; 32]); 256];
    let tiles = vec![Tile { id: TileId { level: 0, index: 0 }, hashes }];
    let times = Timestamp(0);
    let filter = FilterRow { index: 0, earliest: times, latest: times, filter: Some(vec![0; 8]) };
    let derived = vec![
        Change::AddTiles { log: 1, tiles },
        Change::OpenGroup { group: 0 },
        Change::AddFilters { group: 0, erasures: 0, level: FilterLevel::Chunk, filters: vec![filter] },
    ];
    assert_eq!(store.commit(&changes(tenant, derived)).await.unwrap().applied, [1, 1, 1]);
    let of_tiles =
        ["UPDATE np_byok_tiles SET root = hashes", "DELETE FROM np_byok_tiles", "TRUNCATE np_byok_tiles"];
    for sql in of_tiles {
        assert_eq!(try_execute(&owner, sql).await, Err(DENIED.to_owned()), "{sql}");
        assert_eq!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
    for sql in [
        "UPDATE np_byok_filters SET erasures = 0",
        "INSERT INTO np_byok_filters (tenant, level, chunk, erasures) SELECT tenant, 1, 1, 1 FROM np_byok_filters",
        "DELETE FROM np_byok_filters",
        "TRUNCATE np_byok_filters",
        "UPDATE np_byok_chunks SET latest = earliest",
        "DELETE FROM np_byok_chunks",
        "TRUNCATE np_byok_chunks",
        "UPDATE np_byok_chunk_values SET value = 0",
        "DELETE FROM np_byok_chunk_values",
        "TRUNCATE np_byok_chunk_values",
    ] {
        assert_eq!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replicas_may_migrate_at_once() {
    let database = empty().await;
    let replicas = [(); 4].map(|()| {
        let store = connect(&database.url);
        tokio::spawn(async move { store.migrate().await })
    });
    let mut ran = 0;
    for replica in replicas {
        let report = replica.await.unwrap().unwrap();
        assert_eq!((report.applied, report.expected), (LEVEL, LEVEL));
        ran += report.ran;
    }
    assert_eq!(ran, LEVEL);
}

#[tokio::test]
async fn a_schema_that_has_left_this_binary_behind_is_refused() {
    let (database, store) = migrated().await;
    let next =
        |oldest| format!("INSERT INTO np_byok_migrations VALUES ({}, 'next', '', {oldest})", 1 + oldest);
    execute(&database.url, &next(LEVEL)).await;
    assert_eq!(store.migrate().await.unwrap().usable(), Ok(()), "a newer one that still takes us is served");
    execute(&database.url, &next(LEVEL + 1)).await;
    let left_behind = MigrateError::SchemaTooNew { binary: LEVEL, needed: LEVEL + 1 };
    assert_eq!(store.migrate().await, Err(left_behind.clone()));
    assert_eq!(store.schema().await.unwrap().usable(), Err(left_behind));
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let (database, store) = migrated().await;
    execute(&database.url, "UPDATE np_byok_migrations SET checksum = ''").await;
    assert_eq!(store.migrate().await, Err(MigrateError::Changed { version: 1 }));
}

#[tokio::test]
async fn a_role_that_may_not_migrate_serves_once_another_has() {
    let mut database = empty().await;
    let serving = connect(&database.role().await);
    assert_eq!(serving.migrate().await, Err(MigrateError::Denied));
    let report = serving.schema().await.unwrap();
    assert_eq!(report.usable(), Err(MigrateError::SchemaTooOld { applied: 0, expected: LEVEL }));
}

#[tokio::test]
async fn the_serving_role_may_run_migrate_without_pending_migrations() {
    let (_database, _store, _owner, serving) = with_two_roles().await;
    let report = connect(&serving).migrate().await.unwrap();
    assert_eq!((report.applied, report.ran), (LEVEL, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_flushed_whatever_the_servers_default() {
    // A server of its own: on a shared one, another's commit would flush ours.
    let server = Server::start();
    for setting in ["synchronous_commit = off", "wal_writer_delay = '10s'"] {
        execute(&server.url, &format!("ALTER SYSTEM SET {setting}")).await;
    }
    execute(&server.url, "SELECT pg_reload_conf()").await;
    let (direct, pgbouncer) = (connect(&server.url), settings(&server.url, None, true));
    let pgbouncer = Postgres::connect_lazy(&pgbouncer).unwrap();
    direct.migrate().await.unwrap();
    let tenant = tenant(&direct).await;
    let mut watch = PgConnection::connect(&server.url).await.unwrap();
    let mut flushed = async || {
        let sql = "SELECT pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn()";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut watch).await.unwrap()
    };

    execute(&server.url, "CREATE TABLE control (n int)").await;
    execute(&server.url, "INSERT INTO control VALUES (1)").await;
    assert!(!flushed().await, "the server does not flush by itself");
    for (base, store) in [(0, &direct), (20, &pgbouncer)] {
        let mut count = 0;
        for step in 0..20 {
            store.commit(&entries(tenant, base + step, vec![entry()])).await.unwrap();
            count += u32::from(flushed().await);
        }
        // The server itself may write between a commit and the look.
        assert!(count >= 18, "{count} of 20");
    }
    let mut mixed = entries(tenant, 40, vec![entry()]);
    mixed.changes.push(Change::StartJob(job()));
    direct.commit(&mixed).await.unwrap();
    assert!(flushed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_comes_with_the_url_and_is_verified() {
    let server = Server::start();
    assert_eq!(connect(&format!("{}?sslmode=require", server.url)).ping().await, Err(ReadError::Unavailable));
    let authority = server.with_tls().await;
    let authority = authority.display();
    let verified = connect(&format!("{}?sslmode=verify-full&sslrootcert={authority}", server.url));
    assert_eq!(verified.ping().await, Ok(()));
    // Without it the system's own authorities are asked, and none of them knows this certificate.
    assert_eq!(
        connect(&format!("{}?sslmode=verify-full", server.url)).ping().await,
        Err(ReadError::Unavailable)
    );
}

/// The process ids of the servers behind a store's connections.
async fn backends(url: &str) -> BTreeSet<i32> {
    let mut own = PgConnection::connect(url).await.unwrap();
    let of_store = "SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'byok'";
    sqlx::query_scalar(of_store).fetch_all(&mut own).await.unwrap().into_iter().collect()
}

/// Else each call of such a tenant would cost the others a connection, which takes longer than a
/// commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_takes_no_connection_from_other_tenants() {
    let (database, _) = migrated().await;
    // One connection for all commits.
    let settings = config::Postgres { max_connections: 4, ..settings(&database.url, None, false) };
    let store = Postgres::connect_lazy(&settings).unwrap();
    let (damaged, well) = (tenant(&store).await, tenant(&store).await);
    let taken = dek(None);
    let first =
        Batch { changes: vec![Change::InsertDek(taken.clone())], ..entries(damaged, 0, vec![entry()]) };
    store.commit(&first).await.unwrap();
    store.commit(&entries(well, 0, vec![entry()])).await.unwrap();
    let before = backends(&database.url).await;
    let refused = async |changes: Vec<Change>| {
        let mut refused = Batch { changes, ..entries(damaged, 1, vec![entry()]) };
        assert_eq!(store.commit(&refused).await.err(), Some(CommitError::Rejected));
        assert_eq!(store.commit_in_turn(&mut refused).await.err(), Some(CommitError::Rejected));
        let after = backends(&database.url).await;
        assert!(before.is_subset(&after), "{before:?} {after:?}");
    };
    let other = Change::InsertDek(DekRow { wrapped: wrapped(9, "1"), ..taken });
    refused(vec![other.clone()]).await;
    refused(vec![Change::StartJob(job()), other]).await;
    execute(
        &database.url,
        "UPDATE np_byok_heads SET frontier = decode('00', 'hex') WHERE log = 1 AND size = 1",
    )
    .await;
    // The store forgets the head that it knew.
    assert!(store.commit(&entries(damaged, 1, vec![entry()])).await.is_err());
    refused(Vec::new()).await;
    refused(vec![Change::StartJob(job())]).await;
}
