//! The behaviour of every database for publications of checkpoints, and for logs that end.

use std::sync::Arc;
use std::time::Duration;

use byok::merkle::{Frontier, root_of};
use byok::model::TenantUid;
use byok::store::{Batch, Change, CommitError, LogHead, Publication, PublicationStep, Store};
use uuid::Uuid;

use crate::store_conformance::on_every_database;
use crate::support::rows::{changes, entries, entry, tenant};

on_every_database! {
    an_attempt_is_one_holders_until_its_lease_ends
    only_the_holder_says_how_it_went_and_that_is_kept
    another_log_begins_with_its_first_entry_and_keeps_the_head
    a_log_that_has_moved_is_not_ended
    a_log_is_ended_once_however_often_that_is_committed
}

type Db = Arc<dyn Store>;

const MINUTE: Duration = Duration::from_secs(60);

async fn publish(store: &Db, tenant: TenantUid, place: &str, holder: Uuid, step: PublicationStep) -> bool {
    let change = Change::Publish { place: place.into(), holder, step };
    store.commit(&changes(tenant, vec![change])).await.unwrap().applied == [1]
}

async fn publication(store: &Db, tenant: TenantUid, place: &str) -> Option<Publication> {
    let all = store.publications(tenant).await.unwrap();
    all.into_iter().find(|known| known.place == place)
}

async fn head(store: &Db, tenant: TenantUid) -> LogHead {
    store.log_head(tenant).await.unwrap().unwrap()
}

fn opening(tenant: TenantUid, from: &LogHead, log: u32) -> Batch {
    let changes = vec![Change::OpenLog { from: from.clone(), log }];
    Batch { changes, ..entries(tenant, from.end(), vec![entry(), entry()]) }
}

async fn an_attempt_is_one_holders_until_its_lease_ends(store: Db) {
    let (tenant, other) = (tenant(&*store).await, tenant(&*store).await);
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(store.publications(tenant).await, Ok(Vec::new()));
    let short = PublicationStep::Begin { lease: Duration::from_millis(200) };
    let long = PublicationStep::Begin { lease: MINUTE };
    assert!(publish(&store, tenant, "a", one, short).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(publication(&store, tenant, "a").await.unwrap().due);
    assert!(publish(&store, tenant, "a", two, long).await, "the first one died");
    assert!(!publication(&store, tenant, "a").await.unwrap().due);
    assert!(!publish(&store, tenant, "a", one, long).await);
    assert!(publish(&store, tenant, "b", one, long).await, "another destination");
    assert!(publish(&store, other, "a", one, long).await, "another tenant");
}

async fn only_the_holder_says_how_it_went_and_that_is_kept(store: Db) {
    let tenant = tenant(&*store).await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(publish(&store, tenant, "a", one, PublicationStep::Begin { lease: MINUTE }).await);
    let done = PublicationStep::Done { log: 2, size: 7, after: Duration::ZERO };
    assert!(!publish(&store, tenant, "a", two, done).await);
    assert!(!publish(&store, tenant, "a", two, PublicationStep::Failed { after: MINUTE }).await);
    assert!(publish(&store, tenant, "a", one, PublicationStep::Failed { after: Duration::ZERO }).await);
    let failed = publication(&store, tenant, "a").await.unwrap();
    assert_eq!((failed.published, failed.published_at, failed.failures), (None, None, 1));
    assert!(publish(&store, tenant, "a", one, PublicationStep::Begin { lease: MINUTE }).await);
    assert!(publish(&store, tenant, "a", one, done).await);
    let kept = publication(&store, tenant, "a").await.unwrap();
    assert_eq!((kept.published, kept.failures, kept.due), (Some((2, 7)), 0, true));
    assert!(kept.published_at.is_some());
}

async fn another_log_begins_with_its_first_entry_and_keeps_the_head(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry(), entry(), entry()])).await.unwrap();
    let ended = head(&store, tenant).await;
    let batch = opening(tenant, &ended, 4);
    store.commit(&batch).await.unwrap();
    assert_eq!(store.ended_logs(tenant).await.unwrap(), [ended]);
    let now = head(&store, tenant).await;
    assert_eq!((now.log, now.first, now.end()), (4, 3, 5));
    assert_eq!(now.frontier.root(), root_of(batch.entries.iter().map(|entry| entry.leaf())));
    // The positions continue, and so does the log.
    store.commit(&entries(tenant, 5, vec![entry()])).await.unwrap();
    let leaves = store.leaves(tenant, 3..6).await.unwrap();
    let now = head(&store, tenant).await;
    assert_eq!(now.frontier.root(), root_of(leaves.into_iter().map(|(_, leaf)| leaf)));
}

async fn a_log_that_has_moved_is_not_ended(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    let before = head(&store, tenant).await;
    store.commit(&entries(tenant, 1, vec![entry()])).await.unwrap();
    assert_eq!(store.commit(&opening(tenant, &before, 2)).await, Err(CommitError::Moved { size: 2 }));
    let other = LogHead { frontier: Frontier::default(), first: 2, ..head(&store, tenant).await };
    assert!(store.commit(&opening(tenant, &other, 2)).await.is_err(), "of that size, and another tree");
    assert_eq!(store.ended_logs(tenant).await, Ok(Vec::new()));
    assert_eq!(head(&store, tenant).await.log, 1);
}

async fn a_log_is_ended_once_however_often_that_is_committed(store: Db) {
    let tenant = tenant(&*store).await;
    store.commit(&entries(tenant, 0, vec![entry()])).await.unwrap();
    let batch = opening(tenant, &head(&store, tenant).await, 2);
    store.commit(&batch).await.unwrap();
    let now = head(&store, tenant).await;
    store.commit(&batch).await.unwrap();
    assert_eq!(head(&store, tenant).await, now);
    assert_eq!(store.ended_logs(tenant).await.unwrap().len(), 1);
}
