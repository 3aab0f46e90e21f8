//! The behaviour of every database for proofs, incidents, and the fence of a commit.

use std::sync::Arc;
use std::time::Duration;

use byok::model::{
    Canary, DekId, Incident, IncidentId, KeyVersion, Posture, Proof, TenantUid, Timestamp, Wrapped,
};
use byok::store::{Batch, Change, CommitError, EntryFilter, Fence, FenceReading, Requirement, Store};
use uuid::Uuid;

use crate::store_conformance::on_every_database;
use crate::support::rows::{canary, changes, dek, entry, fence, job, proof, prove, tenant, watch, wrapped};

on_every_database! {
    a_watched_version_reads_back_and_the_first_stays
    a_version_that_several_watch_at_once_is_watched_for_each
    a_need_ends_by_the_databases_clock
    a_version_that_is_not_active_is_probed_whoever_needs_it
    a_retired_version_is_gone_until_it_is_watched_again
    a_proof_replaces_every_field_and_leaves_the_canary
    a_proof_of_another_revision_touches_nothing
    incidents_read_back_as_they_were_recorded
    incidents_are_read_newest_first
    an_identical_proof_is_written_once
    no_tenant_sees_anothers_proofs
    only_an_active_key_of_this_epoch_is_active
    only_a_fresh_proof_is_one
    a_row_that_was_written_is_not_unchanged
    a_version_without_a_row_passes_nothing
    one_that_does_not_hold_refuses_all
    what_was_found_comes_in_the_order_of_the_fence
    a_refused_batch_leaves_nothing
    a_batch_that_is_behind_has_moved_whatever_the_fence_says
    an_identical_batch_is_known_though_the_fence_holds_no_more
    the_fence_is_of_entries_only
    the_fence_is_asked_before_the_batch_changes_anything
    in_turn_the_fence_is_asked_too
    no_log_is_no_matter_of_the_fence
    many_statements_stand_under_one_fence
}

type Db = Arc<dyn Store>;

const MINUTE: Duration = Duration::from_secs(60);

fn ago(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp(at.0 - i64::try_from(by.as_micros()).unwrap())
}

async fn clock(store: &Db, tenant: TenantUid) -> Timestamp {
    store.proofs(tenant).await.unwrap().now
}

/// A time in whole milliseconds, which is all that some databases keep.
fn whole(at: Timestamp) -> Timestamp {
    Timestamp(at.0 / 1_000 * 1_000)
}

fn fenced_batch(tenant: TenantUid, base: u64, fence: Vec<Fence>) -> Batch {
    Batch { tenant, base, entries: vec![entry()], changes: Vec::new(), gate: None, fence }
}

/// The result of a batch with one entry at the end of the log, under this fence.
async fn passes(
    store: &Db,
    tenant: TenantUid,
    fence: Vec<Fence>,
) -> Result<Option<FenceReading>, CommitError> {
    let base = store.log_size(tenant).await.unwrap();
    let outcome = store.commit(&fenced_batch(tenant, base, fence)).await.map(|done| done.reading);
    assert_eq!(store.log_size(tenant).await.unwrap(), base + u64::from(outcome.is_ok()));
    outcome
}

async fn one(store: &Db, tenant: TenantUid, change: Change) -> u64 {
    store.commit(&changes(tenant, vec![change])).await.unwrap().applied[0]
}

async fn proof_of(store: &Db, tenant: TenantUid, version: &str) -> Proof {
    let seen = store.proofs(tenant).await.unwrap();
    seen.rows.into_iter().find(|row| &*row.key_version.version == version).unwrap()
}

/// The versions of this tenant that are probed.
async fn probed(store: &Db, tenant: TenantUid) -> Vec<String> {
    let watched = store.watched().await.unwrap().rows.into_iter();
    let versions = watched.filter(|row| row.tenant.uid == tenant);
    let mut versions: Vec<_> = versions.map(|row| row.proof.key_version.version.to_string()).collect();
    versions.sort();
    versions
}

fn incident(version: &str, at: Timestamp) -> Incident {
    Incident {
        id: IncidentId::new(),
        at,
        key_version: KeyVersion::new("byok", version),
        was: Posture::Active,
        posture: Posture::Revoked,
        class: Some("access_denied".into()),
        http_status: Some(403),
        kms_request_id: Some("req-1".into()),
    }
}

async fn a_watched_version_reads_back_and_the_first_stays(store: Db) {
    let tenant = tenant(&*store).await;
    let mut first = proof("1", Timestamp::parse("2026-11-23T10:00:00.123456Z").unwrap());
    first.posture = Posture::Degraded;
    first.steady_since = None;
    first.failures = 2;
    first.falls = 1;
    first.doubted_by = Some(Uuid::new_v4());
    let own = Canary {
        dek_id: DekId::new(),
        wrapped: Wrapped { scheme: 2, ..wrapped(9, "1") },
        made_for_probes: false,
    };
    let before = clock(&store, tenant).await;
    assert_eq!(one(&store, tenant, Change::Watch { proof: first.clone(), canary: own.clone() }).await, 1);
    let other = Change::Watch { proof: proof("1", Timestamp(5)), canary: canary("1") };
    assert_eq!(one(&store, tenant, other).await, 1, "it is watched already");

    let seen = store.proofs(tenant).await.unwrap();
    assert_eq!(seen.rows, std::slice::from_ref(&first));
    assert!(before <= seen.now && seen.now.since(before) < MINUTE);
    let watched = store.watched().await.unwrap();
    let row = watched.rows.into_iter().find(|row| row.tenant.uid == tenant).unwrap();
    assert_eq!((row.proof, row.canary), (first, own));
    assert_eq!(store.tenant(&row.tenant.name).await.unwrap(), Some(row.tenant));
    assert!(
        before <= row.needed_until && row.needed_until <= seen.now,
        "no replica has said that it needs it"
    );
}

async fn a_version_that_several_watch_at_once_is_watched_for_each(store: Db) {
    let tenant = tenant(&*store).await;
    let replicas = [(); 6].map(|()| {
        let store = store.clone();
        let watch = Change::Watch { proof: proof("1", Timestamp(1)), canary: canary("1") };
        tokio::spawn(async move { store.commit(&changes(tenant, vec![watch])).await })
    });
    for replica in replicas {
        assert_eq!(replica.await.unwrap().unwrap().applied, [1]);
    }
    assert_eq!(store.proofs(tenant).await.unwrap().rows.len(), 1);
}

async fn a_need_ends_by_the_databases_clock(store: Db) {
    let tenant = tenant(&*store).await;
    let need = |version: &str, millis| Change::ExtendWatch {
        key_version: KeyVersion::new("byok", version),
        lasting: Duration::from_millis(millis),
    };
    for version in ["1", "2", "3"] {
        watch(&*store, tenant, version).await;
    }
    assert_eq!(probed(&store, tenant).await, [""; 0]);
    let before = clock(&store, tenant).await;
    assert_eq!(one(&store, tenant, need("1", 60_000)).await, 1);
    assert_eq!(one(&store, tenant, need("2", 600_000)).await, 1);
    assert_eq!(one(&store, tenant, need("4", 60_000)).await, 0);
    let watched = store.watched().await.unwrap();
    assert!(before <= watched.now);
    let of = |version: &str| {
        let mut rows = watched.rows.iter().filter(|row| row.tenant.uid == tenant);
        rows.find(|row| &*row.proof.key_version.version == version).unwrap().needed_until
    };
    assert!(before.plus(MINUTE) <= of("1") && of("1") <= watched.now.plus(MINUTE));
    assert!(before.plus(MINUTE * 10) <= of("2") && of("2") <= watched.now.plus(MINUTE * 10));
    assert_eq!(probed(&store, tenant).await, ["1", "2"]);

    assert_eq!(one(&store, tenant, need("3", 50)).await, 1);
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(probed(&store, tenant).await, ["1", "2"]);
    assert_eq!(one(&store, tenant, need("3", 60_000)).await, 1);
    assert_eq!(probed(&store, tenant).await, ["1", "2", "3"]);
    assert_eq!(store.proofs(tenant).await.unwrap().rows.len(), 3, "extending a watch changes no proof");
    assert_eq!(proof_of(&store, tenant, "1").await.revision, 1);
}

async fn a_version_that_is_not_active_is_probed_whoever_needs_it(store: Db) {
    let tenant = tenant(&*store).await;
    let (one, other) = (watch(&*store, tenant, "1").await, watch(&*store, tenant, "2").await);
    prove(&*store, tenant, &one, |to| to.posture = Posture::Degraded).await;
    let revoked = prove(&*store, tenant, &other, |to| to.posture = Posture::Revoked).await;
    assert_eq!(probed(&store, tenant).await, ["1", "2"]);
    prove(&*store, tenant, &revoked, |to| to.posture = Posture::Active).await;
    assert_eq!(probed(&store, tenant).await, ["1"]);
}

async fn a_retired_version_is_gone_until_it_is_watched_again(store: Db) {
    let (tenant, other) = (tenant(&*store).await, tenant(&*store).await);
    for version in ["1", "2", "3"] {
        watch(&*store, tenant, version).await;
    }
    watch(&*store, other, "1").await;
    let need = |version: &str| Change::ExtendWatch {
        key_version: KeyVersion::new("byok", version),
        lasting: MINUTE,
    };
    assert_eq!(one(&store, tenant, need("1")).await, 1);
    let first = proof_of(&store, tenant, "1").await;
    let revoked = prove(&*store, tenant, &proof_of(&store, tenant, "3").await, |to| {
        to.posture = Posture::Revoked;
    })
    .await;
    let retire = || Change::Retire { all_but: KeyVersion::new("byok", "2") };
    assert_eq!(one(&store, tenant, retire()).await, 2);
    assert_eq!(one(&store, tenant, retire()).await, 0);
    let known = async || {
        let rows = store.proofs(tenant).await.unwrap().rows;
        let mut known: Vec<String> = rows.iter().map(|row| row.key_version.version.to_string()).collect();
        known.sort();
        known
    };
    assert_eq!(known().await, ["2"]);
    assert_eq!(probed(&store, tenant).await, [""; 0]);
    assert_eq!(store.proofs(other).await.unwrap().rows.len(), 1, "another tenant's rows stay");

    // Writes by a replica that has not noticed the retirement.
    assert_eq!(one(&store, tenant, need("1")).await, 0);
    let late = Change::UpdateProof { from: first.revision, to: first.clone(), incident: None };
    assert_eq!(one(&store, tenant, late).await, 0);
    let under_it = vec![fence("1", Requirement::Active { epoch: first.epoch })];
    assert_eq!(store.commit(&fenced_batch(tenant, 0, under_it)).await, Err(CommitError::Fenced));

    for (version, epoch) in [("1", first.epoch + 1), ("3", revoked.epoch + 1)] {
        let again = Change::Watch { proof: proof(version, Timestamp(5)), canary: canary(version) };
        assert_eq!(one(&store, tenant, again).await, 1);
        assert_eq!(proof_of(&store, tenant, version).await.epoch, epoch);
    }
    assert_eq!(known().await, ["1", "2", "3"]);
    assert_eq!(probed(&store, tenant).await, ["3"], "what was refused is probed again");
    assert_eq!(one(&store, tenant, need("1")).await, 1);
    assert_eq!(probed(&store, tenant).await, ["1", "3"]);
}

async fn a_proof_replaces_every_field_and_leaves_the_canary(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let bystander = watch(&*store, tenant, "2").await;
    let canary_of = async || {
        let watched = store.watched().await.unwrap().rows;
        watched.into_iter().find(|row| row.tenant.uid == tenant).map(|row| (row.canary, row.needed_until))
    };
    let need = Change::ExtendWatch { key_version: first.key_version.clone(), lasting: MINUTE };
    one(&store, tenant, need).await;
    let before = canary_of().await;
    let every = Proof {
        key_version: first.key_version.clone(),
        posture: Posture::Revoked,
        epoch: 1 << 40,
        revision: 1 << 41,
        proven_at: Timestamp(1_000_001),
        since: Timestamp(2_000_002),
        steady_since: None,
        failures: 70_000,
        falls: 80_000,
        doubted_by: Some(Uuid::new_v4()),
        next_probe_at: Timestamp(3_000_003),
    };
    let step = |from, to: &Proof| Change::UpdateProof { from, to: to.clone(), incident: None };
    assert_eq!(one(&store, tenant, step(1, &every)).await, 1);
    assert_eq!(proof_of(&store, tenant, "1").await, every);
    assert_eq!(canary_of().await, before);
    let back = Proof { revision: every.revision + 1, ..first };
    assert_eq!(one(&store, tenant, step(every.revision, &back)).await, 1);
    assert_eq!(proof_of(&store, tenant, "1").await, back);
    assert_eq!(proof_of(&store, tenant, "2").await, bystander);
}

async fn a_proof_of_another_revision_touches_nothing(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let second = prove(&*store, tenant, &first, |_| ()).await;
    let mut to = second.clone();
    to.posture = Posture::Revoked;
    let at = clock(&store, tenant).await;
    for from in [0, 1, 3] {
        to.revision = from + 1;
        let late = Change::UpdateProof { from, to: to.clone(), incident: Some(incident("1", at)) };
        assert_eq!(one(&store, tenant, late).await, 0);
    }
    let unknown = Change::UpdateProof { from: 1, to: proof("9", at), incident: Some(incident("9", at)) };
    assert_eq!(one(&store, tenant, unknown).await, 0);
    assert_eq!(store.proofs(tenant).await.unwrap().rows, [second]);
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), []);
}

async fn incidents_read_back_as_they_were_recorded(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let fall = incident("1", Timestamp::parse("2026-11-23T10:00:00.123456Z").unwrap());
    let recovery = Incident {
        id: IncidentId::new(),
        was: Posture::Revoked,
        posture: Posture::Active,
        class: None,
        http_status: None,
        kms_request_id: None,
        ..fall.clone()
    };
    let revoked = Proof { posture: Posture::Revoked, epoch: 2, revision: 2, ..first.clone() };
    let active = Proof { epoch: 3, revision: 3, ..first };
    let steps = vec![
        Change::UpdateProof { from: 1, to: revoked, incident: Some(fall.clone()) },
        Change::UpdateProof { from: 2, to: active, incident: Some(recovery.clone()) },
    ];
    assert_eq!(store.commit(&changes(tenant, steps)).await.unwrap().applied, [1, 1]);
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), [recovery, fall]);
}

async fn incidents_are_read_newest_first(store: Db) {
    let tenant = tenant(&*store).await;
    let mut proof = watch(&*store, tenant, "1").await;
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), []);
    let mut recorded = Vec::new();
    for _ in 0..5 {
        let incident = incident("1", proof.proven_at);
        let to = Proof { posture: Posture::Revoked, revision: proof.revision + 1, ..proof.clone() };
        let step =
            Change::UpdateProof { from: proof.revision, to: to.clone(), incident: Some(incident.clone()) };
        assert_eq!(one(&store, tenant, step).await, 1);
        recorded.insert(0, incident);
        proof = to;
    }
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), recorded);
    assert_eq!(store.incidents(tenant, 2).await.unwrap(), recorded[..2]);
}

async fn an_identical_proof_is_written_once(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let step = |from: &Proof, steady_since| {
        let to = Proof { revision: from.revision + 1, steady_since, ..from.clone() };
        let incident = Some(incident("1", from.proven_at));
        (Change::UpdateProof { from: from.revision, to: to.clone(), incident }, to)
    };
    let (alone, second) = step(&first, None);
    for _ in 0..2 {
        assert_eq!(one(&store, tenant, alone.clone()).await, 1);
        assert_eq!(proof_of(&store, tenant, "1").await, second);
        assert_eq!(store.incidents(tenant, 10).await.unwrap().len(), 1);
    }
    let (with_entry, third) = step(&second, Some(first.proven_at));
    let batch = Batch {
        changes: vec![with_entry],
        ..fenced_batch(tenant, 0, vec![fence("1", Requirement::Active { epoch: 1 })])
    };
    for _ in 0..2 {
        assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
        assert_eq!(proof_of(&store, tenant, "1").await, third);
        assert_eq!(store.incidents(tenant, 10).await.unwrap().len(), 2);
    }
    assert_eq!(one(&store, tenant, alone).await, 0, "the row has moved on");
    assert_eq!(proof_of(&store, tenant, "1").await, third);
}

async fn no_tenant_sees_anothers_proofs(store: Db) {
    let (own, other) = (tenant(&*store).await, tenant(&*store).await);
    let first = watch(&*store, own, "1").await;
    let to = Proof { revision: 2, ..first.clone() };
    let step = Change::UpdateProof { from: 1, to: to.clone(), incident: Some(incident("1", first.since)) };
    assert_eq!(one(&store, other, step.clone()).await, 0);
    let need = Change::ExtendWatch { key_version: first.key_version.clone(), lasting: MINUTE };
    assert_eq!(one(&store, other, need).await, 0);
    assert_eq!(probed(&store, own).await, [""; 0]);
    assert_eq!(one(&store, own, step).await, 1);
    assert_eq!(store.proofs(other).await.unwrap().rows, []);
    assert_eq!(store.incidents(other, 10).await.unwrap(), []);
    let active = || vec![fence("1", Requirement::Active { epoch: 1 })];
    assert_eq!(passes(&store, other, active()).await, Err(CommitError::Fenced));
    // Another tenant's row with the same name.
    let revoked = Proof { posture: Posture::Revoked, ..first.clone() };
    one(&store, other, Change::Watch { proof: revoked.clone(), canary: canary("1") }).await;
    assert_eq!(store.proofs(own).await.unwrap().rows, [to]);
    assert_eq!(store.proofs(other).await.unwrap().rows, [revoked]);
    assert_eq!(passes(&store, other, active()).await, Err(CommitError::Fenced));
    assert_eq!(passes(&store, own, active()).await.unwrap().unwrap().proven_at, [first.proven_at]);
}

async fn only_an_active_key_of_this_epoch_is_active(store: Db) {
    let tenant = tenant(&*store).await;
    let mut proof = watch(&*store, tenant, "1").await;
    // The age of the proof does not matter.
    proof = prove(&*store, tenant, &proof, |to| to.proven_at = Timestamp(1)).await;
    let active = |epoch| vec![fence("1", Requirement::Active { epoch })];
    let proven = |epoch| vec![fence("1", Requirement::Proven { epoch, within: MINUTE })];
    let passed = passes(&store, tenant, active(1)).await.unwrap().unwrap();
    assert_eq!(passed.proven_at, [Timestamp(1)]);
    for epoch in [0, 2] {
        assert_eq!(passes(&store, tenant, active(epoch)).await, Err(CommitError::Fenced));
    }
    for posture in [Posture::Degraded, Posture::Revoked] {
        let now = clock(&store, tenant).await;
        proof = prove(&*store, tenant, &proof, |to| (to.posture, to.proven_at) = (posture, now)).await;
        assert_eq!(passes(&store, tenant, active(1)).await, Err(CommitError::Fenced));
        assert_eq!(passes(&store, tenant, proven(1)).await, Err(CommitError::Fenced));
    }
    prove(&*store, tenant, &proof, |to| (to.posture, to.epoch) = (Posture::Active, 3)).await;
    assert_eq!(passes(&store, tenant, active(1)).await, Err(CommitError::Fenced));
    assert_eq!(passes(&store, tenant, proven(1)).await, Err(CommitError::Fenced));
    assert!(passes(&store, tenant, active(3)).await.is_ok());
    assert!(passes(&store, tenant, proven(3)).await.is_ok());
}

async fn only_a_fresh_proof_is_one(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let proven = |within| vec![fence("1", Requirement::Proven { epoch: 1, within })];
    let passed = passes(&store, tenant, proven(MINUTE)).await.unwrap().unwrap();
    assert_eq!(passed.proven_at, [first.proven_at]);
    assert!(first.proven_at <= passed.now && passed.now.since(first.proven_at) <= MINUTE);

    let now = clock(&store, tenant).await;
    let old = prove(&*store, tenant, &first, |to| to.proven_at = ago(now, MINUTE * 2)).await;
    assert_eq!(passes(&store, tenant, proven(MINUTE)).await, Err(CommitError::Fenced));
    let almost = MINUTE * 2 - Duration::from_millis(1);
    assert_eq!(passes(&store, tenant, proven(almost)).await, Err(CommitError::Fenced));
    assert!(passes(&store, tenant, proven(MINUTE * 3)).await.is_ok());
    let future = prove(&*store, tenant, &old, |to| to.proven_at = now.plus(MINUTE)).await;
    assert_eq!(passes(&store, tenant, proven(MINUTE * 60)).await, Err(CommitError::Fenced));
    assert!(passes(&store, tenant, vec![fence("1", Requirement::Active { epoch: 1 })]).await.is_ok());

    let now = clock(&store, tenant).await;
    prove(&*store, tenant, &future, |to| to.proven_at = now).await;
    let short = Duration::from_millis(200);
    tokio::time::sleep(short + Duration::from_millis(50)).await;
    assert_eq!(passes(&store, tenant, proven(short)).await, Err(CommitError::Fenced), "time goes by");
}

async fn a_row_that_was_written_is_not_unchanged(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let unchanged = |revision| vec![fence("1", Requirement::Unchanged { revision })];
    assert!(passes(&store, tenant, unchanged(1)).await.is_ok());
    one(&store, tenant, Change::ExtendWatch { key_version: first.key_version.clone(), lasting: MINUTE })
        .await;
    assert!(
        passes(&store, tenant, unchanged(1)).await.is_ok(),
        "extending a watch says nothing about the key"
    );
    // The revision alone counts, not the posture, the epoch or the time.
    let mut to = first.clone();
    (to.posture, to.epoch, to.proven_at) = (Posture::Revoked, 2, first.proven_at.plus(MINUTE));
    let second = prove(&*store, tenant, &first, |next| *next = Proof { revision: 2, ..to }).await;
    assert_eq!(passes(&store, tenant, unchanged(1)).await, Err(CommitError::Fenced));
    assert_eq!(passes(&store, tenant, unchanged(3)).await, Err(CommitError::Fenced));
    let passed = passes(&store, tenant, unchanged(2)).await.unwrap().unwrap();
    assert_eq!(passed.proven_at, [second.proven_at]);
}

async fn a_version_without_a_row_passes_nothing(store: Db) {
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    let requirements = [
        Requirement::Active { epoch: 0 },
        Requirement::Active { epoch: 1 },
        Requirement::Proven { epoch: 1, within: MINUTE },
        Requirement::Unchanged { revision: 0 },
        Requirement::Unchanged { revision: 1 },
    ];
    for requirement in requirements {
        assert_eq!(passes(&store, tenant, vec![fence("2", requirement)]).await, Err(CommitError::Fenced));
        let other = Fence { key_version: KeyVersion::new("other", "1"), requirement };
        assert_eq!(passes(&store, tenant, vec![other]).await, Err(CommitError::Fenced));
    }
}

async fn one_that_does_not_hold_refuses_all(store: Db) {
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    watch(&*store, tenant, "2").await;
    let (good, bad) = (Requirement::Active { epoch: 1 }, Requirement::Active { epoch: 2 });
    for fences in [
        [fence("1", good), fence("2", bad)],
        [fence("1", bad), fence("2", good)],
        [fence("1", good), fence("3", good)],
        [fence("1", good), fence("1", bad)],
    ] {
        assert_eq!(passes(&store, tenant, fences.to_vec()).await, Err(CommitError::Fenced));
    }
    assert!(passes(&store, tenant, vec![fence("1", good), fence("2", good)]).await.is_ok());
}

async fn what_was_found_comes_in_the_order_of_the_fence(store: Db) {
    let tenant = tenant(&*store).await;
    let now = whole(clock(&store, tenant).await);
    let mut proven_at = Vec::new();
    for (seconds, version) in [(3, "a"), (1, "b"), (4, "c"), (2, "d")] {
        let at = ago(now, Duration::from_secs(seconds));
        one(&store, tenant, Change::Watch { proof: proof(version, at), canary: canary(version) }).await;
        proven_at.push(at);
    }
    let fences = vec![
        fence("d", Requirement::Active { epoch: 1 }),
        fence("a", Requirement::Unchanged { revision: 1 }),
        fence("c", Requirement::Proven { epoch: 1, within: MINUTE }),
        fence("a", Requirement::Proven { epoch: 1, within: MINUTE }),
        fence("b", Requirement::Active { epoch: 1 }),
    ];
    let passed = passes(&store, tenant, fences.clone()).await.unwrap().unwrap();
    let expected = [3, 0, 2, 0, 1].map(|n: usize| proven_at[n]);
    assert_eq!(passed.proven_at, expected);
    assert!(now <= passed.now && passed.now.since(now) < MINUTE);
    // A read of the proofs gives the same result.
    let seen = store.proofs(tenant).await.unwrap();
    assert_eq!(FenceReading::of(&fences, &seen).unwrap().proven_at, expected);
}

async fn a_refused_batch_leaves_nothing(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let row = dek(Some("r"));
    let to = Proof { revision: 2, ..first.clone() };
    let insert = vec![Change::InsertDek(row.clone())];
    let many = vec![
        Change::InsertDek(row.clone()),
        Change::StartJob(job()),
        Change::UpdateProof { from: 1, to, incident: Some(incident("1", first.since)) },
    ];
    for changes in [Vec::new(), insert, many] {
        let mut batch =
            Batch { changes, ..fenced_batch(tenant, 0, vec![fence("1", Requirement::Active { epoch: 2 })]) };
        assert_eq!(store.commit(&batch).await, Err(CommitError::Fenced));
        assert_eq!(store.commit_in_turn(&mut batch).await, Err(CommitError::Fenced));
        assert_eq!(store.log_size(tenant).await.unwrap(), 0);
        assert_eq!(store.entries(tenant, &EntryFilter::default(), None, 9).await.unwrap().entries, []);
        assert_eq!(store.deks(tenant, &[row.id]).await.unwrap(), []);
        assert_eq!(store.latest_job(tenant).await.unwrap(), None);
        assert_eq!(store.proofs(tenant).await.unwrap().rows, std::slice::from_ref(&first));
        assert_eq!(store.incidents(tenant, 9).await.unwrap(), []);
    }
    assert!(passes(&store, tenant, vec![fence("1", Requirement::Active { epoch: 1 })]).await.is_ok());
}

async fn a_batch_that_is_behind_has_moved_whatever_the_fence_says(store: Db) {
    let tenant = tenant(&*store).await;
    watch(&*store, tenant, "1").await;
    for base in [0, 1] {
        store.commit(&fenced_batch(tenant, base, Vec::new())).await.unwrap();
    }
    for epoch in [1, 2] {
        for base in [0, 1, 3] {
            let batch = fenced_batch(tenant, base, vec![fence("1", Requirement::Active { epoch })]);
            assert_eq!(store.commit(&batch).await, Err(CommitError::Moved { size: 2 }));
        }
    }
    let batch = fenced_batch(tenant, 2, vec![fence("1", Requirement::Active { epoch: 2 })]);
    assert_eq!(store.commit(&batch).await, Err(CommitError::Fenced));
}

async fn an_identical_batch_is_known_though_the_fence_holds_no_more(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let alone = fenced_batch(tenant, 0, vec![fence("1", Requirement::Proven { epoch: 1, within: MINUTE })]);
    let with_dek = Batch { base: 1, changes: vec![Change::InsertDek(dek(None))], ..alone.clone() };
    let with_dek = Batch { entries: vec![entry()], ..with_dek };
    for batch in [&alone, &with_dek] {
        assert!(store.commit(batch).await.unwrap().reading.is_some());
    }
    let again = store.commit(&with_dek).await.unwrap();
    assert_eq!((again.applied, again.reading), (vec![1], None), "nobody knows when it was passed");
    prove(&*store, tenant, &first, |to| to.posture = Posture::Revoked).await;
    for (batch, applied) in [(&alone, vec![]), (&with_dek, vec![1])] {
        let again = store.commit(batch).await.unwrap();
        assert_eq!((again.applied, again.reading), (applied, None));
    }
    assert_eq!(store.log_size(tenant).await.unwrap(), 2);
}

async fn the_fence_is_of_entries_only(store: Db) {
    let tenant = tenant(&*store).await;
    let row = dek(None);
    let batch = Batch {
        entries: Vec::new(),
        changes: vec![Change::InsertDek(row.clone())],
        ..fenced_batch(tenant, 0, vec![fence("none", Requirement::Active { epoch: 1 })])
    };
    let done = store.commit(&batch).await.unwrap();
    assert_eq!((done.applied, done.reading), (vec![1], None));
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap(), [row]);
}

async fn the_fence_is_asked_before_the_batch_changes_anything(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let to =
        Proof { posture: Posture::Revoked, epoch: 2, revision: 2, proven_at: Timestamp(1), ..first.clone() };
    let batch = Batch {
        changes: vec![
            Change::UpdateProof { from: 1, to, incident: None },
            Change::Watch { proof: proof("2", first.proven_at), canary: canary("2") },
        ],
        ..fenced_batch(tenant, 0, vec![fence("1", Requirement::Proven { epoch: 1, within: MINUTE })])
    };
    let done = store.commit(&batch).await.unwrap();
    assert_eq!(done.applied, [1, 1]);
    assert_eq!(done.reading.unwrap().proven_at, [first.proven_at]);
    let batch = Batch {
        changes: vec![Change::Watch { proof: proof("3", first.proven_at), canary: canary("3") }],
        ..fenced_batch(tenant, 1, vec![fence("3", Requirement::Active { epoch: 1 })])
    };
    assert_eq!(store.commit(&batch).await, Err(CommitError::Fenced), "no batch proves its own key");
}

async fn in_turn_the_fence_is_asked_too(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    store.commit(&fenced_batch(tenant, 0, Vec::new())).await.unwrap();
    let row = dek(None);
    let mut batch = Batch {
        changes: vec![Change::InsertDek(row.clone())],
        ..fenced_batch(tenant, 0, vec![fence("1", Requirement::Active { epoch: 2 })])
    };
    assert_eq!(store.commit_in_turn(&mut batch).await, Err(CommitError::Fenced));
    assert_eq!(store.log_size(tenant).await.unwrap(), 1);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap(), []);
    batch.fence = vec![fence("1", Requirement::Proven { epoch: 1, within: MINUTE })];
    let done = store.commit_in_turn(&mut batch).await.unwrap();
    assert_eq!((batch.base, done.applied), (1, vec![1]));
    assert_eq!(done.reading.unwrap().proven_at, [first.proven_at]);
    assert_eq!(store.log_size(tenant).await.unwrap(), 2);
}

async fn no_log_is_no_matter_of_the_fence(store: Db) {
    let mut batch = fenced_batch(TenantUid([1; 16]), 0, vec![fence("1", Requirement::Active { epoch: 1 })]);
    assert_eq!(store.commit(&batch).await, Err(CommitError::Rejected));
    assert_eq!(store.commit_in_turn(&mut batch).await, Err(CommitError::Rejected));
}

async fn many_statements_stand_under_one_fence(store: Db) {
    let tenant = tenant(&*store).await;
    let first = watch(&*store, tenant, "1").await;
    let (old, new) = (dek(Some("r")), dek(Some("s")));
    one(&store, tenant, Change::InsertDek(old.clone())).await;
    let (started, holder) = (job(), Uuid::new_v4());
    let mut advanced = started.clone();
    advanced.progress.rewrapped = 1;
    let mut batch = Batch {
        changes: vec![
            Change::InsertDek(new.clone()),
            Change::Rewrap { dek_id: old.id, from: old.wrapped.clone(), to: wrapped(8, "2"), mac: None },
            Change::StartJob(started.clone()),
            Change::LeaseJob { job: started.id, holder, lease: MINUTE },
            Change::AdvanceJob { job: advanced.clone(), holder, after: Some(old.id) },
        ],
        ..fenced_batch(tenant, 0, vec![fence("1", Requirement::Proven { epoch: 1, within: MINUTE })])
    };
    batch.fence.push(fence("2", Requirement::Active { epoch: 1 }));
    assert_eq!(store.commit(&batch).await, Err(CommitError::Fenced));
    assert_eq!(store.deks_after(tenant, None, 9).await.unwrap(), std::slice::from_ref(&old));
    assert_eq!(store.latest_job(tenant).await.unwrap(), None);

    batch.fence.pop();
    let done = store.commit(&batch).await.unwrap();
    assert_eq!(done.applied, [1, 1, 1, 1, 1]);
    assert_eq!(done.reading.unwrap().proven_at, [first.proven_at]);
    assert_eq!(store.deks(tenant, &[old.id]).await.unwrap()[0].wrapped, wrapped(8, "2"));
    assert_eq!(store.job(tenant, started.id).await.unwrap(), Some((advanced, Some(old.id))));
    let again = store.commit(&batch).await.unwrap();
    assert_eq!((again.applied, again.reading), (vec![1, 1, 1, 1, 1], None));
}
