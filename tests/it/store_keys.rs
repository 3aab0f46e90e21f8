//! Rows that name a key: the behaviour of every database for a tenant with several keys, some with
//! the same name.

use std::sync::Arc;
use std::time::Duration;

use byok::model::{Canary, DekId, Incident, IncidentId, Job, KeyId, KeyVersion, Posture, Proof, TenantUid};
use byok::store::{Batch, Change, CommitError, DekRow, Fence, Requirement, Store};

use crate::store_conformance::on_every_database;
use crate::support::rows::{canary, changes, dek, entry, job, now, proof, tenant, watch, wrapped};

on_every_database! {
    a_dek_names_the_key_that_wraps_it
    a_dek_moves_to_another_key_only_from_the_one_read
    deks_of_another_key_are_not_under_the_target
    a_row_is_sealed_only_under_the_key_that_it_names
    a_proof_of_one_key_is_none_of_another
    a_change_of_one_keys_proof_does_not_touch_anothers
    jobs_and_incidents_name_their_key
}

type Db = Arc<dyn Store>;

const OTHER: KeyId = KeyId([9; 16]);

async fn inserted(store: &Db, tenant: TenantUid, rows: &[DekRow]) {
    let inserts = rows.iter().cloned().map(Change::InsertDek).collect();
    store.commit(&changes(tenant, inserts)).await.unwrap();
}

async fn one(store: &Db, tenant: TenantUid, change: Change) -> u64 {
    store.commit(&changes(tenant, vec![change])).await.unwrap().applied[0]
}

/// A DEK of another key, which has the same name as the first one.
fn of_other_key(record: Option<&str>) -> DekRow {
    let mut row = dek(record);
    row.wrapped.key_version.key_id = OTHER;
    row
}

async fn a_dek_names_the_key_that_wraps_it(store: Db) {
    let tenant = tenant(&*store).await;
    let (first, other) = (dek(Some("a")), of_other_key(Some("b")));
    inserted(&store, tenant, std::slice::from_ref(&first)).await;
    // With an entry, DEKs are inserted by the statement that appends.
    let insert = Change::InsertDek(other.clone());
    store.commit(&Batch { entries: vec![entry()], ..changes(tenant, vec![insert]) }).await.unwrap();
    let mut rows = store.deks(tenant, &[first.id, other.id]).await.unwrap();
    rows.sort_by_key(|row| row.id);
    assert_eq!(rows, [first.clone(), other.clone()]);
    assert_eq!(store.deks_after(tenant, None, 10).await.unwrap(), rows);
    assert_eq!(store.unsealed_deks(tenant, None, 10).await.unwrap(), rows);
    assert_eq!(store.deks_of_records(tenant, &["b".into()]).await.unwrap(), [other]);
}

async fn a_dek_moves_to_another_key_only_from_the_one_read(store: Db) {
    let tenant = tenant(&*store).await;
    let (first, other) = (dek(Some("a")), of_other_key(Some("b")));
    inserted(&store, tenant, &[first.clone(), other.clone()]).await;
    let to = |id| {
        let mut to = wrapped(8, "1");
        to.key_version.key_id = id;
        to
    };
    let rewrap = |row: &DekRow, from: KeyId, id| {
        let mut read = row.wrapped.clone();
        read.key_version.key_id = from;
        Change::Rewrap { dek_id: row.id, from: read, to: to(id), mac: None }
    };
    assert_eq!(one(&store, tenant, rewrap(&first, OTHER, OTHER)).await, 0, "it is not of that key");
    assert_eq!(one(&store, tenant, rewrap(&other, KeyId::FIRST, KeyId::FIRST)).await, 0);
    assert_eq!(one(&store, tenant, rewrap(&first, KeyId::FIRST, OTHER)).await, 1);
    assert_eq!(one(&store, tenant, rewrap(&other, OTHER, KeyId::FIRST)).await, 1);
    let rows = store.deks(tenant, &[first.id, other.id]).await.unwrap();
    for (row, id) in [(first, OTHER), (other, KeyId::FIRST)] {
        let stored = rows.iter().find(|stored| stored.id == row.id).unwrap();
        assert_eq!(stored.wrapped, to(id));
    }
}

async fn deks_of_another_key_are_not_under_the_target(store: Db) {
    let tenant = tenant(&*store).await;
    inserted(&store, tenant, &[dek(None), of_other_key(None), of_other_key(None)]).await;
    let first = KeyVersion::new("byok", "1");
    assert_eq!(store.deks_not_under(tenant, &first).await, Ok(2));
    assert_eq!(store.deks_not_under(tenant, &first.of(OTHER)).await, Ok(1));
}

async fn a_row_is_sealed_only_under_the_key_that_it_names(store: Db) {
    let tenant = tenant(&*store).await;
    let row = of_other_key(Some("a"));
    inserted(&store, tenant, std::slice::from_ref(&row)).await;
    let sealed = DekRow { mac: Some([1; 32]), record_mac: Some([2; 32]), ..row.clone() };
    let mut renamed = sealed.clone();
    renamed.wrapped.key_version.key_id = KeyId::FIRST;
    assert_eq!(one(&store, tenant, Change::SealDeks(vec![renamed])).await, 0);
    assert_eq!(one(&store, tenant, Change::SealDeks(vec![sealed.clone()])).await, 1);
    assert_eq!(store.deks(tenant, &[row.id]).await.unwrap(), [sealed]);
}

/// The proof of a version of the other key, active as of now.
async fn watch_other(store: &Db, tenant: TenantUid) -> Proof {
    let mut proof = proof("1", now());
    proof.key_version = KeyVersion::new("theirs", "1").of(OTHER);
    let canary = Canary { dek_id: DekId::new(), ..canary("1") };
    one(store, tenant, Change::Watch { proof: proof.clone(), canary }).await;
    proof
}

async fn a_proof_of_one_key_is_none_of_another(store: Db) {
    let tenant = tenant(&*store).await;
    let (first, other) = (watch(&*store, tenant, "1").await, watch_other(&store, tenant).await);
    let passes = async |key_version: KeyVersion| {
        let base = store.log_size(tenant).await.unwrap();
        let fence = vec![Fence { key_version, requirement: Requirement::Active { epoch: 1 } }];
        let batch = Batch { base, entries: vec![entry()], fence, ..changes(tenant, Vec::new()) };
        store.commit(&batch).await.map(|done| done.reading.unwrap().proven_at.len())
    };
    assert_eq!(passes(first.key_version.clone()).await, Ok(1));
    assert_eq!(passes(other.key_version.clone()).await, Ok(1));
    assert_eq!(passes(first.key_version.of(OTHER)).await, Err(CommitError::Fenced));
    assert_eq!(passes(other.key_version.of(KeyId::FIRST)).await, Err(CommitError::Fenced));
}

async fn a_change_of_one_keys_proof_does_not_touch_anothers(store: Db) {
    let tenant = tenant(&*store).await;
    let (first, other) = (watch(&*store, tenant, "1").await, watch_other(&store, tenant).await);
    let renamed = other.key_version.clone().of(KeyId::FIRST);
    let lasting = Duration::from_secs(60);
    let extend = |key_version| Change::ExtendWatch { key_version, lasting };
    assert_eq!(one(&store, tenant, extend(renamed.clone())).await, 0);
    for version in [&first.key_version, &other.key_version] {
        assert_eq!(one(&store, tenant, extend(version.clone())).await, 1);
    }
    let to = Proof { revision: other.revision + 1, posture: Posture::Revoked, ..other.clone() };
    let update = |to: Proof| Change::UpdateProof { from: other.revision, to, incident: None };
    assert_eq!(one(&store, tenant, update(Proof { key_version: renamed, ..to.clone() })).await, 0);
    assert_eq!(one(&store, tenant, update(to.clone())).await, 1);
    let watched = store.watched().await.unwrap().rows.into_iter().filter(|row| row.tenant.uid == tenant);
    let mut versions: Vec<_> = watched.map(|row| (row.proof.key_version, row.proof.posture)).collect();
    versions.sort_by(|a, b| a.0.cmp(&b.0));
    let both = [(first.key_version.clone(), Posture::Active), (other.key_version, Posture::Revoked)];
    assert_eq!(versions, both);
    let second = watch(&*store, tenant, "2").await;
    let retire = Change::Retire { all_but: second.key_version.clone() };
    assert_eq!(one(&store, tenant, retire).await, 1);
    let mut left: Vec<_> = store.proofs(tenant).await.unwrap().rows;
    left.sort_by(|a, b| a.key_version.cmp(&b.key_version));
    assert_eq!(
        left.iter().map(|row| &row.key_version).collect::<Vec<_>>(),
        [&second.key_version, &both[1].0]
    );
}

async fn jobs_and_incidents_name_their_key(store: Db) {
    let tenant = tenant(&*store).await;
    let key_version = KeyVersion::new("byok", "2").of(OTHER);
    let started = Job { target: key_version.clone(), ..job() };
    assert_eq!(one(&store, tenant, Change::StartJob(started.clone())).await, 1);
    assert_eq!(store.latest_job(tenant).await.unwrap(), Some(started.clone()));
    let holder = uuid::Uuid::new_v4();
    let lease = Change::LeaseJob { job: started.id, holder, lease: Duration::from_secs(60) };
    assert_eq!(one(&store, tenant, lease).await, 1);
    let advanced = Job { target: KeyVersion::new("byok", "3"), ..started };
    let advance = Change::AdvanceJob { job: advanced.clone(), holder, after: None };
    assert_eq!(one(&store, tenant, advance).await, 1);
    assert_eq!(store.job(tenant, advanced.id).await.unwrap(), Some((advanced, None)));
    let incident = |key_version: KeyVersion, was, posture| Incident {
        id: IncidentId::new(),
        at: now(),
        key_version,
        was,
        posture,
        class: None,
        http_status: None,
        kms_request_id: None,
    };
    let alone = incident(key_version, Posture::Revoked, Posture::Revoked);
    assert_eq!(one(&store, tenant, Change::RecordIncident(alone.clone())).await, 1);
    let other = watch_other(&store, tenant).await;
    let turned = incident(other.key_version.clone(), Posture::Active, Posture::Degraded);
    let to = Proof { revision: other.revision + 1, posture: Posture::Degraded, ..other.clone() };
    let update = Change::UpdateProof { from: other.revision, to, incident: Some(turned.clone()) };
    assert_eq!(one(&store, tenant, update).await, 1);
    assert_eq!(store.incidents(tenant, 10).await.unwrap(), [turned.clone(), alone]);
    let due = store.due_announcements(10).await.unwrap();
    assert!(due.iter().any(|due| due.incident == turned));
}
