//! The fence on PostgreSQL: the effect of a wait for the head's lock, a clock that jumps, and the
//! serving role.

use std::sync::Arc;
use std::time::Duration;

use byok::model::{Incident, IncidentId, Posture, Proof, TenantUid};
use byok::store::{
    Batch, Change, CommitError, Commits as _, Committed, Database, KeyringStore as _, OutgoingReads as _,
    Postgres, Requirement, TenantReads,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::store_postgres::{DENIED, with_two_roles};
use crate::support::postgres::{
    LEVEL, TestDatabase, connect, execute, migrated, number, settings, try_execute,
};
use crate::support::rows::{canary, changes, dek, entry, fence, job, proof, tenant, watch};

/// The greatest age of a proof. The head is held for much longer.
const WITHIN: Duration = Duration::from_millis(1_500);
const HELD: Duration = Duration::from_millis(2_500);
const HOUR: Duration = Duration::from_secs(3_600);

fn proven(tenant: TenantUid, base: u64, within: Duration) -> Batch {
    let fence = vec![fence("1", Requirement::Proven { epoch: 1, within })];
    let changes = vec![Change::InsertDek(dek(None))];
    Batch { tenant, base, entries: vec![entry()], changes, gate: None, fence }
}

/// The two ways in which a batch is committed.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    OneStatement,
    /// The form behind PgBouncer, and for batches with other kinds of changes.
    Transaction,
    InTurn,
}

/// Commits while another connection, which runs `meanwhile`, holds the head for longer than a proof
/// may age.
async fn commit_behind(
    database: &TestDatabase,
    store: &Arc<Postgres>,
    mut batch: Batch,
    form: Form,
    meanwhile: &str,
) -> Result<Committed, CommitError> {
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let hold = "BEGIN; SELECT size FROM np_byok_heads FOR UPDATE";
    sqlx::raw_sql(hold).execute(&mut other).await.unwrap();
    let store = store.clone();
    let waiting = tokio::spawn(async move {
        match form {
            Form::InTurn => store.commit_in_turn(&mut batch).await,
            Form::OneStatement => store.commit(&batch).await,
            Form::Transaction => {
                batch.changes.push(Change::StartJob(job()));
                store.commit(&batch).await
            }
        }
    });
    tokio::time::sleep(HELD).await;
    assert!(!waiting.is_finished(), "it waits for the head");
    let end = format!("{meanwhile}; COMMIT");
    sqlx::raw_sql(AssertSqlSafe(end)).execute(&mut other).await.unwrap();
    waiting.await.unwrap()
}

/// PostgreSQL reads a row again if it was changed, but not if it was only locked, and a statement
/// sees the proofs as they were when it began. The reading has the clock after the wait, and so the
/// true age of the proof.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waited_tells_how_old_the_proof_has_become() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    let revoke = "UPDATE np_byok_proofs SET posture = 'revoked', epoch = 2, proven_at = clock_timestamp()";
    for (base, form, meanwhile) in [
        (0, Form::OneStatement, "SELECT 1"),
        (1, Form::Transaction, "SELECT 1"),
        (2, Form::OneStatement, revoke),
    ] {
        execute(&database.url, "DELETE FROM np_byok_proofs").await;
        let first = watch(&*store, tenant, "1").await;
        let batch = proven(tenant, base, WITHIN);
        let passed = commit_behind(&database, &store, batch, form, meanwhile).await.unwrap().reading.unwrap();
        assert_eq!(passed.proven_at, [first.proven_at]);
        assert!(passed.now.since(first.proven_at) >= HELD, "the proof has become too old");
    }
    assert_eq!(store.log_size(tenant).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_head_was_written_meanwhile_asks_once_more() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    let written = "UPDATE np_byok_heads SET size = size";
    let batch = proven(tenant, 0, WITHIN);
    let outcome = commit_behind(&database, &store, batch, Form::OneStatement, written).await;
    assert_eq!(outcome, Err(CommitError::Fenced));
    assert_eq!(store.log_size(tenant).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_turn_the_fence_is_asked_after_the_wait() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    let behind = async |within, meanwhile| {
        commit_behind(&database, &store, proven(tenant, 0, within), Form::InTurn, meanwhile).await
    };
    assert_eq!(behind(WITHIN, "SELECT 1").await, Err(CommitError::Fenced));
    assert!(behind(HOUR, "SELECT 1").await.unwrap().reading.is_some());
    let revoke = "UPDATE np_byok_proofs SET posture = 'revoked'";
    assert_eq!(behind(HOUR, revoke).await, Err(CommitError::Fenced));
    let restore = "UPDATE np_byok_proofs SET posture = 'active'";
    assert!(behind(HOUR, restore).await.unwrap().reading.is_some());
    assert_eq!(store.log_size(tenant).await.unwrap(), 2);
}

#[tokio::test]
async fn a_clock_that_jumps_refuses_whichever_way() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    let within = HOUR / 2;
    // When the clock jumps forward by an hour, existing rows become an hour older by it; and vice
    // versa.
    let jump = async |sign: &str| {
        let columns = ["proven_at", "since", "steady_since", "next_probe_at", "needed_until"];
        let moved = columns.map(|column| format!("{column} = {column} {sign} interval '1 hour'")).join(", ");
        execute(&database.url, &format!("UPDATE np_byok_proofs SET {moved}")).await;
    };
    for (base, there, back) in [(0, "-", "+"), (1, "+", "-")] {
        jump(there).await;
        let mut batch = proven(tenant, base, within);
        assert_eq!(store.commit(&batch).await, Err(CommitError::Fenced), "{there}");
        assert_eq!(store.commit_in_turn(&mut batch).await, Err(CommitError::Fenced), "{there}");
        assert_eq!(store.log_size(tenant).await.unwrap(), base);
        jump(back).await;
        assert!(store.commit(&batch).await.unwrap().reading.is_some());
    }
}

/// Otherwise `Fenced` would be reported for a batch that is then committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_under_way_is_waited_for_before_blaming_the_fence() {
    let (database, store) = migrated().await;
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    for sql in [
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON np_byok_heads DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow()",
    ] {
        execute(&database.url, sql).await;
    }
    let batch = proven(tenant, 0, HOUR);
    let first = tokio::spawn({
        let (store, batch) = (store.clone(), batch.clone());
        async move { store.commit(&batch).await }
    });
    let asleep = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep'";
    while number(&database.url, asleep).await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    execute(&database.url, "UPDATE np_byok_proofs SET posture = 'revoked'").await;
    assert!(!first.is_finished(), "it is under way");
    let again = store.commit(&batch).await;
    assert!(first.await.unwrap().unwrap().reading.is_some());
    assert_eq!(again, Ok(Committed { applied: vec![1], reading: None }));
}

#[tokio::test]
async fn the_serving_role_keeps_proofs_and_unwrites_no_incident() {
    let (_database, store, _owner, serving) = with_two_roles().await;
    let tenant = tenant(&store).await;
    let first = watch(&store, tenant, "1").await;
    let to = Proof { posture: Posture::Revoked, revision: 2, ..first.clone() };
    let incident = Incident {
        id: IncidentId::new(),
        at: first.since,
        key_version: first.key_version.clone(),
        was: Posture::Active,
        posture: Posture::Revoked,
        class: None,
        http_status: None,
        kms_request_id: None,
    };
    assert!(store.commit(&proven(tenant, 0, HOUR)).await.unwrap().reading.is_some());
    assert!(store.commit_in_turn(&mut proven(tenant, 0, HOUR)).await.unwrap().reading.is_some());
    let steps = vec![
        Change::Watch { proof: proof("1", first.since), canary: canary("1") },
        Change::ExtendWatch { key_version: first.key_version.clone(), lasting: HOUR },
        Change::UpdateProof { from: 1, to: to.clone(), incident: Some(incident.clone()) },
    ];
    for _ in 0..2 {
        assert_eq!(store.commit(&changes(tenant, steps.clone())).await.unwrap().applied, [1, 1, 1]);
    }
    assert_eq!(store.proofs(tenant).await.unwrap().rows, [to]);
    assert_eq!(store.watched().await.unwrap().rows.len(), 1);
    assert_eq!(store.incidents(tenant, 9).await.unwrap(), [incident]);
    for sql in [
        "UPDATE np_byok_incidents SET class = NULL",
        "UPDATE np_byok_incidents SET at = at",
        "DELETE FROM np_byok_incidents",
        "TRUNCATE np_byok_incidents",
        "DROP TABLE np_byok_incidents",
        "DELETE FROM np_byok_proofs",
        "TRUNCATE np_byok_proofs",
        "DROP TABLE np_byok_proofs",
    ] {
        assert_eq!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
}

#[tokio::test]
async fn an_upgraded_database_keeps_its_log_and_gets_proofs() {
    let (_database, store, owner, serving) = with_two_roles().await;
    let tenant = tenant(&store).await;
    store.commit(&Batch { gate: None, fence: Vec::new(), ..proven(tenant, 0, HOUR) }).await.unwrap();
    for sql in [
        "DROP FUNCTION np_byok_append, np_byok_lock_head, np_byok_insert_deks, np_byok_rewrap_deks, np_byok_seal_deks,
            np_byok_create_tenant",
        "DROP FUNCTION np_byok_add_filters",
        "DROP TABLE np_byok_filters",
        "DROP TABLE np_byok_keys",
        "ALTER TABLE np_byok_tenants DROP COLUMN stage, DROP COLUMN revision, DROP COLUMN locked",
        "ALTER TABLE np_byok_jobs DROP COLUMN key_id",
        "ALTER TABLE np_byok_wrapped_deks DROP COLUMN key_id",
        "CREATE UNIQUE INDEX np_byok_jobs_running ON np_byok_jobs (tenant) WHERE state = 'RUNNING'",
        "DROP INDEX np_byok_jobs_live",
        "DROP TRIGGER np_byok_wrapped_deks_rewrapped ON np_byok_wrapped_deks",
        "DROP FUNCTION np_byok_wrapped_deks_unseal",
        "ALTER TABLE np_byok_wrapped_deks DROP COLUMN record_hmac, DROP COLUMN mac, DROP COLUMN record_mac",
        "DROP TABLE np_byok_logs, np_byok_publications",
        "DROP TABLE np_byok_tiles, np_byok_chunks, np_byok_chunk_values, np_byok_holds, np_byok_exports, np_byok_streams",
        "DROP FUNCTION np_byok_tiles_guard",
        "DROP TABLE np_byok_announcements, np_byok_proofs, np_byok_incidents, np_byok_checkpoints",
        "DROP FUNCTION np_byok_announce",
        "ALTER TABLE np_byok_audit DROP COLUMN detail, DROP COLUMN digest",
        "ALTER TABLE np_byok_heads DROP COLUMN log, DROP COLUMN first, DROP COLUMN frontier",
        "DELETE FROM np_byok_migrations WHERE version > 1",
    ] {
        execute(&owner, sql).await;
    }
    assert!(store.schema().await.unwrap().usable().is_err());
    let again = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    // One step waits for the end of the rollout.
    assert_eq!(again.migrate().await.unwrap().ran, LEVEL - 2);
    assert_eq!(again.log_size(tenant).await.unwrap(), 1);
    let store = connect(&serving);
    watch(&store, tenant, "1").await;
    assert!(store.commit(&proven(tenant, 1, HOUR)).await.unwrap().reading.is_some());
    // The tree begins after the existing entries.
    let head = store.log_head(tenant).await.unwrap().unwrap();
    assert_eq!((head.first, head.frontier.size()), (1, 1));
}
