//! The behaviour of every database for the streams of a log.

use std::sync::Arc;
use std::time::Duration;

use byok::model::TenantUid;
use byok::store::{Change, Database as _, Postgres, Store, StreamName, StreamRow, StreamStep};
use uuid::Uuid;

use crate::store_conformance::on_every_database;
use crate::support::postgres::{empty, settings, try_execute};
use crate::support::rows::{changes, entries, entry, tenant};

on_every_database! {
    a_stream_begins_at_the_first_entry_and_is_one_holders
    a_lease_that_ended_is_anybodys
    only_the_holder_moves_a_stream_from_its_current_position
    a_failure_shows_until_the_next_delivery_and_frees_the_stream
    the_streams_of_tenants_and_names_are_their_own
    a_step_whose_batch_was_committed_before_says_what_it_did
}

type Db = Arc<dyn Store>;

const MINUTE: Duration = Duration::from_secs(60);
const LEASE: StreamStep = StreamStep::Lease { lease: MINUTE };

fn advance(from: u64, to: u64) -> StreamStep {
    StreamStep::Advance { from, to, lease: MINUTE }
}

async fn applied(store: &Db, tenant: TenantUid, holder: Uuid, step: StreamStep) -> bool {
    let change = Change::Stream { name: StreamName::File, holder, step };
    store.commit(&changes(tenant, vec![change])).await.unwrap().applied == [1]
}

async fn row(store: &Db, tenant: TenantUid) -> StreamRow {
    store.streams(tenant).await.unwrap()[0]
}

async fn a_stream_begins_at_the_first_entry_and_is_one_holders(store: Db) {
    let (tenant, one, other) = (tenant(&*store).await, Uuid::new_v4(), Uuid::new_v4());
    assert!(store.streams(tenant).await.unwrap().is_empty());
    assert!(!applied(&store, tenant, one, advance(0, 1)).await, "nobody has begun it");
    assert!(applied(&store, tenant, one, LEASE).await);
    let begun = StreamRow { name: StreamName::File, next: 0, failing_since: None };
    assert_eq!(store.streams(tenant).await.unwrap(), [begun]);
    assert!(!applied(&store, tenant, other, LEASE).await);
    assert!(applied(&store, tenant, one, LEASE).await, "it keeps what it has");
}

async fn a_lease_that_ended_is_anybodys(store: Db) {
    let (tenant, one, other) = (tenant(&*store).await, Uuid::new_v4(), Uuid::new_v4());
    let short = StreamStep::Lease { lease: Duration::from_millis(10) };
    assert!(applied(&store, tenant, one, short).await);
    assert!(
        applied(&store, tenant, one, StreamStep::Advance { from: 0, to: 7, lease: Duration::ZERO }).await
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(applied(&store, tenant, other, LEASE).await);
    assert_eq!(row(&store, tenant).await.next, 7);
    assert!(!applied(&store, tenant, one, advance(7, 8)).await, "it has lost the lease");
    assert!(!applied(&store, tenant, one, StreamStep::Fail).await);
}

async fn only_the_holder_moves_a_stream_from_its_current_position(store: Db) {
    let (tenant, one, other) = (tenant(&*store).await, Uuid::new_v4(), Uuid::new_v4());
    assert!(applied(&store, tenant, one, LEASE).await);
    assert!(!applied(&store, tenant, other, advance(0, 5)).await);
    assert!(!applied(&store, tenant, one, advance(4, 5)).await);
    assert!(applied(&store, tenant, one, advance(0, 5)).await);
    assert!(applied(&store, tenant, one, advance(0, 5)).await, "a retry says what the first did");
    assert!(!applied(&store, tenant, one, advance(0, 6)).await);
    assert_eq!(row(&store, tenant).await.next, 5);
}

async fn a_failure_shows_until_the_next_delivery_and_frees_the_stream(store: Db) {
    let (tenant, one, other) = (tenant(&*store).await, Uuid::new_v4(), Uuid::new_v4());
    assert!(applied(&store, tenant, one, LEASE).await);
    assert!(applied(&store, tenant, one, StreamStep::Fail).await);
    let since = row(&store, tenant).await.failing_since;
    assert!(since.is_some());
    assert!(applied(&store, tenant, other, LEASE).await, "another may try at once");
    assert!(applied(&store, tenant, other, StreamStep::Fail).await);
    assert_eq!(row(&store, tenant).await.failing_since, since, "since the first");
    assert!(applied(&store, tenant, one, LEASE).await);
    assert!(applied(&store, tenant, one, advance(0, 1)).await);
    assert_eq!(row(&store, tenant).await.failing_since, None);
}

async fn the_streams_of_tenants_and_names_are_their_own(store: Db) {
    let (tenant, foreign) = (tenant(&*store).await, tenant(&*store).await);
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(applied(&store, tenant, one, LEASE).await);
    assert!(applied(&store, foreign, other, LEASE).await);
    let posted = Change::Stream { name: StreamName::Webhook, holder: other, step: LEASE };
    assert_eq!(store.commit(&changes(tenant, vec![posted])).await.unwrap().applied, [1]);
    assert!(applied(&store, tenant, one, advance(0, 3)).await);
    let next_positions =
        |rows: Vec<StreamRow>| rows.iter().map(|row| (row.name, row.next)).collect::<Vec<_>>();
    let of_tenant = next_positions(store.streams(tenant).await.unwrap());
    assert_eq!(of_tenant, [(StreamName::File, 3), (StreamName::Webhook, 0)]);
    assert_eq!(next_positions(store.streams(foreign).await.unwrap()), [(StreamName::File, 0)]);
}

async fn a_step_whose_batch_was_committed_before_says_what_it_did(store: Db) {
    let (tenant, holder) = (tenant(&*store).await, Uuid::new_v4());
    let mut batch = entries(tenant, 0, vec![entry()]);
    batch.changes = vec![Change::Stream { name: StreamName::File, holder, step: LEASE }];
    for _ in 0..2 {
        assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
    }
    assert_eq!(store.log_size(tenant).await.unwrap(), 1);
}

#[tokio::test]
async fn the_serving_role_moves_streams_and_removes_none() {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    let store: Db = {
        let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
        store.migrate().await.unwrap();
        Arc::new(store)
    };
    let (tenant, holder) = (tenant(&*store).await, Uuid::new_v4());
    assert!(applied(&store, tenant, holder, LEASE).await);
    assert!(applied(&store, tenant, holder, advance(0, 1)).await);
    assert!(applied(&store, tenant, holder, StreamStep::Fail).await);
    for sql in ["DELETE FROM np_byok_streams", "UPDATE np_byok_streams SET name = 'webhook'"] {
        assert_eq!(try_execute(&serving, sql).await, Err("42501".to_owned()), "{sql}");
    }
}
