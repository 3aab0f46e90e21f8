//! The behaviour of every database for announcements of incidents.

use std::sync::Arc;
use std::time::Duration;

use byok::model::{IncidentId, Posture, Proof, TenantUid};
use byok::store::{
    AnnouncementOutcome, AnnouncementStep, Change, Database as _, DueAnnouncement, Postgres, Store,
};
use uuid::Uuid;

use crate::store_conformance::on_every_database;
use crate::support::postgres::{empty, settings, try_execute};
use crate::support::rows::{changes, entries, entry, tenant, turn, watched};

on_every_database! {
    an_incident_is_due_at_once
    an_attempt_is_one_holders_until_its_lease_ends
    only_the_holder_of_an_attempt_says_how_it_went
    an_attempt_that_failed_is_due_again_later
    what_has_ended_is_never_due_again
    a_later_incident_of_a_key_version_waits_its_turn
    key_versions_and_tenants_do_not_wait_for_each_other
    a_step_that_is_committed_again_does_nothing_more
    a_step_whose_batch_was_committed_before_says_what_it_did
    an_incident_that_was_not_written_is_not_announced
    what_is_due_is_read_in_pages_oldest_first
}

type Db = Arc<dyn Store>;

const MINUTE: Duration = Duration::from_secs(60);

fn announce(incident: IncidentId, attempt: u32, holder: Uuid, step: AnnouncementStep) -> Change {
    Change::Announce { incident, attempt, holder, step }
}

async fn applied(store: &Db, tenant: TenantUid, change: Change) -> bool {
    store.commit(&changes(tenant, vec![change])).await.unwrap().applied == [1]
}

async fn begins(store: &Db, tenant: TenantUid, incident: IncidentId, attempt: u32, holder: Uuid) -> bool {
    applied(store, tenant, announce(incident, attempt, holder, AnnouncementStep::Begin { lease: MINUTE }))
        .await
}

async fn ends(store: &Db, tenant: TenantUid, incident: IncidentId) {
    let holder = Uuid::new_v4();
    assert!(begins(store, tenant, incident, 1, holder).await);
    let end = AnnouncementStep::End(AnnouncementOutcome::Announced);
    assert!(applied(store, tenant, announce(incident, 1, holder, end)).await);
}

/// The due announcements of one tenant.
async fn due(store: &Db, tenant: TenantUid) -> Vec<DueAnnouncement> {
    let all = store.due_announcements(100).await.unwrap();
    all.into_iter().filter(|due| due.tenant.uid == tenant).collect()
}

async fn due_ids(store: &Db, tenant: TenantUid) -> Vec<IncidentId> {
    due(store, tenant).await.iter().map(|due| due.incident.id).collect()
}

async fn an_incident_is_due_at_once(store: Db) {
    let tenant = tenant(&*store).await;
    let mut proof = watched(&*store, tenant, "1").await;
    assert_eq!(due(&store, tenant).await, []);
    for posture in [Posture::Revoked, Posture::Active] {
        let incident = turn(&*store, tenant, &mut proof, posture).await;
        let found = due(&store, tenant).await;
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].incident, found[0].attempts), (&incident, 0));
        assert!(found[0].tenant.name.starts_with("tenant-"));
        assert!(found[0].age < MINUTE);
        ends(&store, tenant, incident.id).await;
    }
}

async fn an_attempt_is_one_holders_until_its_lease_ends(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    let short = AnnouncementStep::Begin { lease: Duration::from_millis(200) };
    assert!(!begins(&store, tenant, incident, 2, one).await, "the first attempt comes first");
    assert!(applied(&store, tenant, announce(incident, 1, one, short)).await);
    assert_eq!(due_ids(&store, tenant).await, []);
    for attempt in [1, 2] {
        assert!(!begins(&store, tenant, incident, attempt, other).await, "{attempt}");
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(due(&store, tenant).await[0].attempts, 1);
    assert!(begins(&store, tenant, incident, 2, other).await);
    assert!(!begins(&store, tenant, incident, 2, one).await);
}

async fn only_the_holder_of_an_attempt_says_how_it_went(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let (holder, other) = (Uuid::new_v4(), Uuid::new_v4());
    let short = AnnouncementStep::Begin { lease: Duration::ZERO };
    assert!(applied(&store, tenant, announce(incident, 1, holder, short)).await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(begins(&store, tenant, incident, 2, holder).await, "this holder had it before");
    let steps = [
        AnnouncementStep::Failed { after: Duration::ZERO },
        AnnouncementStep::End(AnnouncementOutcome::Announced),
    ];
    for step in steps {
        assert!(!applied(&store, tenant, announce(incident, 2, other, step)).await, "another holder");
        assert!(
            !applied(&store, tenant, announce(incident, 1, holder, step)).await,
            "an attempt that is over"
        );
        assert!(!applied(&store, tenant, announce(IncidentId::new(), 2, holder, step)).await, "no such one");
    }
    assert_eq!(due_ids(&store, tenant).await, []);
    assert!(applied(&store, tenant, announce(incident, 2, holder, steps[1])).await);
}

async fn an_attempt_that_failed_is_due_again_later(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let holder = Uuid::new_v4();
    assert!(begins(&store, tenant, incident, 1, holder).await);
    let again = |after| announce(incident, 1, holder, AnnouncementStep::Failed { after });
    assert!(applied(&store, tenant, again(MINUTE)).await);
    assert_eq!(due_ids(&store, tenant).await, []);
    assert!(applied(&store, tenant, again(Duration::ZERO)).await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(due(&store, tenant).await[0].attempts, 1);
    assert!(begins(&store, tenant, incident, 2, Uuid::new_v4()).await);
}

async fn what_has_ended_is_never_due_again(store: Db) {
    use AnnouncementOutcome::{Announced, GivenUp, Refused};
    let tenant = tenant(&*store).await;
    let mut proof = watched(&*store, tenant, "1").await;
    let holder = Uuid::new_v4();
    for (outcome, another) in [(Announced, Refused), (Refused, GivenUp), (GivenUp, Announced)] {
        let incident = turn(&*store, tenant, &mut proof, Posture::Revoked).await.id;
        let short = AnnouncementStep::Begin { lease: Duration::ZERO };
        assert!(applied(&store, tenant, announce(incident, 1, holder, short)).await);
        assert!(applied(&store, tenant, announce(incident, 1, holder, AnnouncementStep::End(outcome))).await);
        assert_eq!(due_ids(&store, tenant).await, []);
        assert!(!begins(&store, tenant, incident, 2, holder).await);
        assert!(!applied(&store, tenant, announce(incident, 1, holder, short)).await);
        assert!(
            !applied(&store, tenant, announce(incident, 1, holder, AnnouncementStep::End(another))).await
        );
        let again = AnnouncementStep::Failed { after: Duration::ZERO };
        assert!(!applied(&store, tenant, announce(incident, 1, holder, again)).await);
    }
}

async fn a_later_incident_of_a_key_version_waits_its_turn(store: Db) {
    let tenant = tenant(&*store).await;
    let mut proof = watched(&*store, tenant, "1").await;
    let mut incidents = Vec::new();
    for posture in [Posture::Degraded, Posture::Revoked, Posture::Active] {
        incidents.push(turn(&*store, tenant, &mut proof, posture).await.id);
    }
    for (at, incident) in incidents.iter().enumerate() {
        assert_eq!(due_ids(&store, tenant).await, [*incident]);
        // Neither during an attempt nor while it waits for the next one.
        let holder = Uuid::new_v4();
        assert!(begins(&store, tenant, *incident, 1, holder).await, "{at}");
        assert_eq!(due_ids(&store, tenant).await, []);
        let again = AnnouncementStep::Failed { after: MINUTE };
        assert!(applied(&store, tenant, announce(*incident, 1, holder, again)).await);
        assert_eq!(due_ids(&store, tenant).await, []);
        let end = AnnouncementStep::End(AnnouncementOutcome::GivenUp);
        assert!(applied(&store, tenant, announce(*incident, 1, holder, end)).await);
    }
    assert_eq!(due_ids(&store, tenant).await, []);
}

async fn key_versions_and_tenants_do_not_wait_for_each_other(store: Db) {
    let (one, other) = (tenant(&*store).await, tenant(&*store).await);
    let mut ids = Vec::new();
    for (tenant, version) in [(one, "1"), (one, "2"), (other, "1")] {
        let mut proof = watched(&*store, tenant, version).await;
        ids.push(turn(&*store, tenant, &mut proof, Posture::Revoked).await.id);
        turn(&*store, tenant, &mut proof, Posture::Active).await;
    }
    assert_eq!(due_ids(&store, one).await, ids[..2]);
    assert_eq!(due_ids(&store, other).await, ids[2..]);
    assert!(!begins(&store, other, ids[0], 1, Uuid::new_v4()).await, "it is another tenant's");
    ends(&store, one, ids[1]).await;
    assert_eq!(due_ids(&store, one).await[0], ids[0]);
    assert_eq!(due_ids(&store, one).await.len(), 2, "the next one is due after it has ended");
}

async fn a_step_that_is_committed_again_does_nothing_more(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let holder = Uuid::new_v4();
    for step in [
        AnnouncementStep::Begin { lease: MINUTE },
        AnnouncementStep::Failed { after: MINUTE },
        AnnouncementStep::End(AnnouncementOutcome::Announced),
    ] {
        for _ in 0..2 {
            assert!(applied(&store, tenant, announce(incident, 1, holder, step)).await, "{step:?}");
        }
    }
}

async fn a_step_whose_batch_was_committed_before_says_what_it_did(store: Db) {
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let step = |holder| announce(incident, 1, holder, AnnouncementStep::Begin { lease: MINUTE });
    let mut batch = entries(tenant, 0, vec![entry()]);
    batch.changes = vec![step(Uuid::new_v4()), step(Uuid::new_v4())];
    let first = store.commit(&batch).await.unwrap();
    assert_eq!(first.applied, [1, 0]);
    assert_eq!(store.commit(&batch).await.unwrap(), first);
}

async fn an_incident_that_was_not_written_is_not_announced(store: Db) {
    let tenant = tenant(&*store).await;
    let mut proof = watched(&*store, tenant, "1").await;
    let stale = proof.clone();
    let incident = turn(&*store, tenant, &mut proof, Posture::Revoked).await;
    // Another replica was first, so its compare-and-swap changes nothing.
    let mut lost = incident.clone();
    lost.id = IncidentId::new();
    let to = Proof { next_probe_at: proof.next_probe_at.plus(Duration::from_secs(1)), ..proof };
    let prove = Change::UpdateProof { from: stale.revision, to, incident: Some(lost) };
    assert!(!applied(&store, tenant, prove).await);
    assert_eq!(due_ids(&store, tenant).await, [incident.id]);
}

async fn what_is_due_is_read_in_pages_oldest_first(store: Db) {
    let tenant = tenant(&*store).await;
    let mut ids = Vec::new();
    for version in ["3", "1", "2"] {
        let mut proof = watched(&*store, tenant, version).await;
        ids.push(turn(&*store, tenant, &mut proof, Posture::Revoked).await.id);
    }
    let page = store.due_announcements(2).await.unwrap();
    assert_eq!(page.iter().map(|due| due.incident.id).collect::<Vec<_>>(), ids[..2]);
}

#[tokio::test]
async fn the_serving_role_announces_incidents_and_changes_none() {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    store.migrate().await.unwrap();
    let store: Db = Arc::new(store);
    let tenant = tenant(&*store).await;
    let incident = turn(&*store, tenant, &mut watched(&*store, tenant, "1").await, Posture::Revoked).await.id;
    let holder = Uuid::new_v4();
    for step in [
        AnnouncementStep::Begin { lease: MINUTE },
        AnnouncementStep::Failed { after: MINUTE },
        AnnouncementStep::End(AnnouncementOutcome::Announced),
    ] {
        assert!(applied(&store, tenant, announce(incident, 1, holder, step)).await, "{step:?}");
    }
    for sql in [
        "UPDATE np_byok_incidents SET class = NULL",
        "DELETE FROM np_byok_incidents",
        "DELETE FROM np_byok_announcements",
        "UPDATE np_byok_announcements SET incident = gen_random_uuid()",
    ] {
        assert_eq!(try_execute(&serving, sql).await, Err("42501".to_owned()), "{sql}");
    }
}
