//! The gate on every database: the entries of a gated batch are appended only while the tenant is
//! not locked and its row has the revision that the batch names.

use std::sync::Arc;

use byok::model::TenantUid;
use byok::store::{Batch, Change, CommitError, Commits as _, Gate, Requirement, Store};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::store_sqlite;
use crate::support::postgres::{self, TestDatabase, execute, settings};
use crate::support::rows::{changes, dek, entry, fence, job, tenant, watch};

/// A database, with direct access to its tables.
struct Raw {
    store: Arc<dyn Store>,
    tables: Tables,
}

enum Tables {
    Postgres(TestDatabase),
    Sqlite(TempDir),
}

impl Raw {
    async fn each() -> [Self; 3] {
        let (database, store) = postgres::migrated().await;
        let (behind_pooler, _) = postgres::migrated().await;
        let pooled = byok::store::Postgres::connect_lazy(&settings(&behind_pooler.url, None, true)).unwrap();
        let (folder, sqlite) = store_sqlite::migrated().await;
        [
            Self { store, tables: Tables::Postgres(database) },
            Self { store: Arc::new(pooled), tables: Tables::Postgres(behind_pooler) },
            Self { store: sqlite, tables: Tables::Sqlite(folder) },
        ]
    }

    async fn execute(&self, sql: &str) {
        match &self.tables {
            Tables::Postgres(database) => execute(&database.url, sql).await,
            Tables::Sqlite(folder) => drop(store_sqlite::try_execute(folder, sql).await.unwrap()),
        }
    }

    /// Commits one entry at the end of the log under this gate.
    async fn append(&self, tenant: TenantUid, gate: Option<u64>) -> Result<(), CommitError> {
        let base = self.store.log_size(tenant).await.unwrap();
        let outcome = self.store.commit(&batch(tenant, base, gate)).await.map(drop);
        assert_eq!(self.store.log_size(tenant).await.unwrap(), base + u64::from(outcome.is_ok()));
        outcome
    }
}

fn batch(tenant: TenantUid, base: u64, gate: Option<u64>) -> Batch {
    let (gate, insert) = (gate.map(|revision| Gate { revision }), Change::InsertDek(dek(None)));
    Batch { entries: vec![entry()], base, gate, ..changes(tenant, vec![insert]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_revision_that_stands_passes() {
    for raw in Raw::each().await {
        let tenant = tenant(&*raw.store).await;
        assert_eq!(raw.append(tenant, Some(0)).await, Ok(()));
        assert_eq!(raw.append(tenant, Some(1)).await, Err(CommitError::Fenced));
        raw.execute("UPDATE np_byok_tenants SET revision = 1").await;
        assert_eq!(raw.append(tenant, Some(0)).await, Err(CommitError::Fenced));
        assert_eq!(raw.append(tenant, Some(1)).await, Ok(()));
        assert_eq!(raw.append(tenant, None).await, Ok(()), "a refusal is recorded in any case");
        assert_eq!(raw.store.gate_row(tenant).await.unwrap().unwrap().revision, 1);
        assert_eq!(raw.store.gate_row(TenantUid([9; 16])).await, Ok(None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_the_gate_of_a_locked_tenant() {
    for raw in Raw::each().await {
        let (locked, other) = (tenant(&*raw.store).await, tenant(&*raw.store).await);
        raw.execute("UPDATE np_byok_tenants SET locked = true, revision = 7").await;
        assert_eq!(raw.append(locked, Some(7)).await, Err(CommitError::Fenced));
        assert_eq!(raw.append(locked, None).await, Ok(()));
        raw.execute("UPDATE np_byok_tenants SET locked = false").await;
        assert_eq!(raw.append(other, Some(7)).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_the_gate_leaves_nothing() {
    for raw in Raw::each().await {
        let tenant = tenant(&*raw.store).await;
        let refused = batch(tenant, 0, Some(3));
        let with_others = Batch { changes: vec![Change::StartJob(job())], ..batch(tenant, 0, Some(3)) };
        for mut refused in [refused, with_others] {
            assert_eq!(raw.store.commit(&refused).await.err(), Some(CommitError::Fenced));
            assert_eq!(raw.store.commit_in_turn(&mut refused).await.err(), Some(CommitError::Fenced));
        }
        assert_eq!(raw.store.log_size(tenant).await, Ok(0));
        assert_eq!(raw.store.deks_after(tenant, None, 10).await.unwrap(), []);
        assert_eq!(raw.store.latest_job(tenant).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_and_fence_must_both_be_met() {
    for raw in Raw::each().await {
        let tenant = tenant(&*raw.store).await;
        watch(&*raw.store, tenant, "1").await;
        for (revision, epoch, passes) in [(0, 1, true), (1, 1, false), (0, 2, false), (1, 2, false)] {
            let base = raw.store.log_size(tenant).await.unwrap();
            let fence = vec![fence("1", Requirement::Active { epoch })];
            let outcome = raw.store.commit(&Batch { fence, ..batch(tenant, base, Some(revision)) }).await;
            assert_eq!(outcome.is_ok_and(|done| done.reading.is_some()), passes, "{revision} {epoch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_passed_is_known_after_the_gate_closed() {
    for raw in Raw::each().await {
        let tenant = tenant(&*raw.store).await;
        let passed = batch(tenant, 0, Some(0));
        raw.store.commit(&passed).await.unwrap();
        raw.execute("UPDATE np_byok_tenants SET locked = true").await;
        assert_eq!(raw.store.commit(&passed).await.unwrap().applied, [1]);
        assert_eq!(raw.store.log_size(tenant).await, Ok(1));
        // A batch at an outdated position fails with `Moved`, whatever the gate says.
        let late = batch(tenant, 0, Some(0));
        assert_eq!(raw.store.commit(&late).await.err(), Some(CommitError::Moved { size: 1 }));
    }
}

/// Locking a tenant and appending to its log are one transaction. A statement that waits for the
/// head meanwhile has already read the tenant's row, and must not append afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_with_an_entry_refuses_waiters_for_the_head() {
    let (database, store) = postgres::migrated().await;
    for in_turn in [false, true] {
        let tenant = tenant(&*store).await;
        store.commit(&batch(tenant, 0, Some(0))).await.unwrap();
        let mut other = PgConnection::connect(&database.url).await.unwrap();
        let uid: String = tenant.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let lock = format!(
            "BEGIN; UPDATE np_byok_heads SET size = size WHERE tenant = decode('{uid}', 'hex');
             UPDATE np_byok_tenants SET locked = true, revision = 1 WHERE uid = decode('{uid}', 'hex')"
        );
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
        let (waiting, mut late) = (store.clone(), batch(tenant, 1, Some(0)));
        let waiting = tokio::spawn(async move {
            if in_turn { waiting.commit_in_turn(&mut late).await } else { waiting.commit(&late).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert!(!waiting.is_finished(), "it waits for the head");
        let append =
            format!("UPDATE np_byok_heads SET size = size + 1 WHERE tenant = decode('{uid}', 'hex'); COMMIT");
        sqlx::raw_sql(AssertSqlSafe(append)).execute(&mut other).await.unwrap();
        let outcome = waiting.await.unwrap();
        let expected = if in_turn { CommitError::Fenced } else { CommitError::Moved { size: 2 } };
        assert_eq!(outcome.err(), Some(expected));
        assert_eq!(store.log_size(tenant).await, Ok(2));
    }
}
