//! The release before, beside this one on one database, as during an upgrade: the migrations have
//! run, and the old servers go on until each is replaced. The release before knows no `key_id`. The
//! rows that its statements write are of the tenant's first key in this release, and its statements
//! read what this release writes for the first key. `support/release_before` has those statements,
//! frozen. Everything runs as the serving role.
//!
//! There are no such tests on SQLite: one process has the file, so the release before has ended
//! when this one starts.

use std::time::Duration;

use byok::audit::pack;
use byok::crypto::sha256;
use byok::model::{
    Entry, Incident, IncidentId, Item, Job, JobState, Operation, Posture, Proof, Tenant, TenantUid, Wrapped,
};
use byok::store::{
    Batch, Change, CommitError, Commits as _, Database as _, DekReads as _, DekRow, EntryRow, JobReads as _,
    KeyringStore as _, OutgoingReads as _, Postgres, Requirement, TenantReads as _,
};
use byok::verify::{Trust, verify_log};
use uuid::Uuid;

use crate::store_postgres::DENIED;
use crate::support::older_schema;
use crate::support::postgres::{TestDatabase, empty, settings, try_execute};
use crate::support::release_before::ReleaseBefore;
use crate::support::rows::{canary, changes, dek, entries, fence, job, now, proof, tenant, wrapped};

const HOUR: Duration = Duration::from_secs(3_600);

/// The level of the release before.
const BEFORE: u32 = 13;

/// A database of the release before that this one has migrated, and the URLs of its owner and of
/// the serving role.
async fn during_rollout() -> (TestDatabase, Postgres, String, String) {
    let mut database = empty().await;
    let (owner, serving) = (database.role().await, database.role().await);
    database.give_to(&owner).await;
    older_schema::postgres(&owner, BEFORE).await;
    let store = Postgres::connect_lazy(&settings(&serving, Some(&owner), false)).unwrap();
    store.migrate().await.unwrap();
    (database, store, owner, serving)
}

/// A database that both releases use.
struct Both {
    _database: TestDatabase,
    before: ReleaseBefore,
    this: Postgres,
    tenant: TenantUid,
}

impl Both {
    async fn new() -> Self {
        let (database, this, _owner, serving) = during_rollout().await;
        let tenant = tenant(&this).await;
        Self { _database: database, before: ReleaseBefore::connect(&serving).await, this, tenant }
    }

    /// Appends with this release: for each DEK its row, and the entry of the call that made it.
    async fn append(&self, deks: &[DekRow]) {
        let made = deks.iter().map(|dek| encrypted(self.tenant, dek)).collect();
        let base = self.this.log_size(self.tenant).await.unwrap();
        let mut batch = entries(self.tenant, base, made);
        batch.changes = deks.iter().cloned().map(Change::InsertDek).collect();
        self.this.commit(&batch).await.unwrap();
    }

    /// The same with the release before.
    async fn append_before(&mut self, deks: &[DekRow]) {
        let made: Vec<_> = deks.iter().map(|dek| encrypted(self.tenant, dek)).collect();
        assert!(self.before.append(self.tenant, &made, deks, &[]).await);
    }

    /// Commits one change with this release; how many rows it touched.
    async fn change(&self, change: Change) -> u64 {
        self.this.commit(&changes(self.tenant, vec![change])).await.unwrap().applied[0]
    }
}

/// The entry of the call that made this DEK.
fn encrypted(tenant: TenantUid, dek: &DekRow) -> EntryRow {
    wrapped_by(tenant, Operation::Encrypt, dek, &dek.wrapped)
}

fn wrapped_by(tenant: TenantUid, operation: Operation, dek: &DekRow, wrapped: &Wrapped) -> EntryRow {
    let item = Item {
        record_id: dek.record_id.clone(),
        dek_id: Some(dek.id),
        key_version: Some(wrapped.key_version.clone()),
        wrapped_hash: Some(sha256(&wrapped.bytes)),
        ..Item::default()
    };
    pack(tenant, &Entry { items: vec![item], ..Entry::of_operator(now(), operation, None, None) })
}

fn revoked(from: &Proof) -> (Proof, Incident) {
    let to = Proof {
        posture: Posture::Revoked,
        epoch: from.epoch + 1,
        revision: from.revision + 1,
        ..from.clone()
    };
    (to, incident(from, Posture::Revoked))
}

fn incident(from: &Proof, posture: Posture) -> Incident {
    Incident {
        id: IncidentId::new(),
        at: from.since,
        key_version: from.key_version.clone(),
        was: from.posture,
        posture,
        class: Some("KeyDisabled".into()),
        http_status: Some(400),
        kms_request_id: Some("kms-request-7".into()),
    }
}

#[tokio::test]
async fn deks_of_either_release_are_the_first_keys_in_the_other() {
    let mut both = Both::new().await;
    let (old, new) = ([dek(Some("old")), dek(None)], [dek(Some("new")), dek(None)]);
    both.append_before(&old).await;
    both.append(&new).await;
    let ids: Vec<_> = old.iter().chain(&new).map(|dek| dek.id).collect();
    let mut rows = both.this.deks(both.tenant, &ids).await.unwrap();
    rows.sort_by_key(|row| row.id.0);
    assert_eq!(rows, [old.clone(), new.clone()].concat(), "their versions are of the first key");
    assert_eq!(both.before.deks(both.tenant, &ids).await, rows);
    let of_record = both.this.deks_of_records(both.tenant, &["old".into()]).await.unwrap();
    assert_eq!(of_record, old[..1]);
    assert_eq!(both.before.dek_of_record(both.tenant, "new").await.as_ref(), Some(&new[0]));
    assert_eq!(both.this.deks_not_under(both.tenant, &wrapped(7, "1").key_version).await, Ok(0));
}

#[tokio::test]
async fn each_release_rewraps_what_the_other_has_wrapped() {
    let mut both = Both::new().await;
    let (old, new) = (dek(Some("old")), dek(Some("new")));
    both.append_before(std::slice::from_ref(&old)).await;
    both.append(std::slice::from_ref(&new)).await;
    let to = wrapped(8, "2");
    assert!(both.before.rewrap(both.tenant, &new, &to).await);
    let (from, mac) = (old.wrapped.clone(), None);
    assert_eq!(both.change(Change::Rewrap { dek_id: old.id, from, to: to.clone(), mac }).await, 1);
    let rows = [old, new].map(|row| DekRow { wrapped: to.clone(), ..row });
    let ids = rows.clone().map(|row| row.id);
    assert_eq!(both.before.deks(both.tenant, &ids).await, rows);
    assert_eq!(both.this.deks_not_under(both.tenant, &to.key_version).await, Ok(0));
}

#[tokio::test]
async fn both_append_to_one_log_in_turn_and_it_verifies() {
    let mut both = Both::new().await;
    let mut deks = Vec::new();
    for _ in 0..5 {
        let made: Vec<_> = (0..4).map(|_| dek(Some("record"))).collect();
        both.append_before(&made[..2]).await;
        both.append(&made[2..]).await;
        deks.extend(made);
    }
    // Each re-wraps one DEK; and whoever has missed an append of the other is told the size of the
    // log.
    for (at, version) in [(0, "2"), (1, "3")] {
        let to = wrapped(9, version);
        let said = wrapped_by(both.tenant, Operation::Rotate, &deks[at], &to);
        if at == 0 {
            assert!(both.before.append(both.tenant, &[said], &[], &[]).await);
            assert!(both.before.rewrap(both.tenant, &deks[at], &to).await);
        } else {
            let mut batch = entries(both.tenant, 20, vec![said]);
            let (dek_id, from) = (deks[at].id, deks[at].wrapped.clone());
            batch.changes.push(Change::Rewrap { dek_id, from, to, mac: None });
            assert_eq!(both.this.commit(&batch).await, Err(CommitError::Moved { size: 21 }));
            both.this.commit_in_turn(&mut batch).await.unwrap();
        }
    }
    let tenants = both.this.tenants().await.unwrap();
    let report = verify_log(&both.this, &tenants[0], None, Trust::default(), &mut |_, _| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert!(report.subject.contains("22 entries"), "{}", report.subject);
}

#[tokio::test]
async fn a_key_that_one_release_watches_is_the_others_to_prove() {
    let mut both = Both::new().await;
    let (first, canary) = (proof("1", now()), canary("1"));
    let watch = Change::Watch { proof: first.clone(), canary: canary.clone() };
    assert_eq!(both.before.watch(both.tenant, &first, &canary).await, 1);
    assert_eq!(both.change(watch.clone()).await, 1);
    assert_eq!(both.before.watch(both.tenant, &first, &canary).await, 1);
    let proofs = both.this.proofs(both.tenant).await.unwrap().rows;
    assert_eq!(proofs, std::slice::from_ref(&first), "they share one row");

    let (second, of_second) = revoked(&first);
    assert_eq!(both.before.prove(both.tenant, first.revision, &second, Some(&of_second)).await, 1);
    let watched = both.this.watched().await.unwrap().rows.remove(0);
    assert_eq!((watched.proof, watched.canary), (second.clone(), canary));
    let third = Proof { posture: Posture::Active, revision: second.revision + 1, ..second.clone() };
    let of_third = incident(&second, Posture::Active);
    let recover = |from| Change::UpdateProof { from, to: third.clone(), incident: Some(of_third.clone()) };
    assert_eq!(both.change(recover(first.revision)).await, 0, "the other was first");
    assert_eq!(both.change(recover(second.revision)).await, 1);
    assert_eq!(both.before.proofs(both.tenant).await, [third]);

    let alone = incident(&second, Posture::Degraded);
    assert_eq!(both.before.record(both.tenant, &alone).await, 1);
    let incidents = [alone, of_third, of_second];
    assert_eq!(both.this.incidents(both.tenant, 9).await.unwrap(), incidents);
    assert_eq!(both.before.incidents(both.tenant).await, incidents);
}

#[tokio::test]
async fn each_release_is_fenced_by_what_the_other_has_found() {
    let mut both = Both::new().await;
    let first = proof("1", both.this.proofs(both.tenant).await.unwrap().now);
    both.change(Change::Watch { proof: first.clone(), canary: canary("1") }).await;
    let fence = vec![fence("1", Requirement::Proven { epoch: 1, within: HOUR })];
    let made = dek(None);
    let entry = || vec![encrypted(both.tenant, &made)];
    assert!(both.before.append(both.tenant, &entry(), &[], &fence).await);
    let (second, found) = revoked(&first);
    let turn = Change::UpdateProof { from: 1, to: second.clone(), incident: Some(found) };
    both.this.commit(&changes(both.tenant, vec![turn])).await.unwrap();
    assert!(!both.before.append(both.tenant, &entry(), &[], &fence).await);

    let third = Proof { revision: 3, ..first };
    assert_eq!(both.before.prove(both.tenant, 2, &third, None).await, 1);
    let batch = |base| Batch { fence: fence.clone(), ..entries(both.tenant, base, entry()) };
    assert!(both.this.commit(&batch(1)).await.is_ok());
    assert_eq!(both.before.prove(both.tenant, 3, &Proof { revision: 4, ..second }, None).await, 1);
    assert_eq!(both.this.commit(&batch(2)).await, Err(CommitError::Fenced));
}

#[tokio::test]
async fn a_rotation_of_either_release_is_the_tenants_one_rotation() {
    let mut both = Both::new().await;
    let [old, new] = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let lease_here = |job: &Job| Change::LeaseJob { job: job.id, holder: new, lease: HOUR };
    let done = |job: &Job| {
        let mut job = Job { state: JobState::Done, finished_at: Some(now()), ..job.clone() };
        job.progress.rewrapped = 10;
        job
    };

    let first = job();
    assert_eq!(both.before.start(both.tenant, &first).await, 1);
    assert_eq!(both.change(Change::StartJob(job())).await, 0, "one is live");
    assert_eq!(both.before.lease(both.tenant, first.id, old).await, 1);
    assert_eq!(both.change(lease_here(&first)).await, 0, "it is leased");
    let (ended, last) = (done(&first), Some(dek(None).id));
    assert_eq!(both.before.advance(both.tenant, &ended, old, last).await, 1);
    assert_eq!(both.this.job(both.tenant, first.id).await.unwrap(), Some((ended, last)));

    let second = job();
    assert_eq!(both.change(Change::StartJob(second.clone())).await, 1);
    assert_eq!(both.before.start(both.tenant, &job()).await, 0, "one is live");
    assert_eq!(both.this.running_jobs().await.unwrap().len(), 1);
    assert_eq!(both.change(lease_here(&second)).await, 1);
    assert_eq!(both.before.lease(both.tenant, second.id, old).await, 0, "it is leased");
    let ended = done(&second);
    let advance = Change::AdvanceJob { job: ended.clone(), holder: new, after: last };
    assert_eq!(both.change(advance).await, 1);
    assert_eq!(both.before.job(both.tenant, second.id).await, Some((ended, last)));
}

#[tokio::test]
async fn the_release_before_starts_with_the_tenant_that_is_there() {
    let mut both = Both::new().await;
    let there = both.this.tenants().await.unwrap().remove(0);
    assert_eq!(both.before.create(&there).await, 1);
    // This release also appends to the log of a tenant that the release before has created.
    let made = Tenant { uid: TenantUid([7; 16]), name: "another".to_owned() };
    assert_eq!(both.before.create(&made).await, 1);
    assert_eq!(both.this.tenant("another").await.unwrap(), Some(made.clone()));
    both.this.commit(&entries(made.uid, 0, vec![encrypted(made.uid, &dek(None))])).await.unwrap();
    assert_eq!(both.this.log_size(made.uid).await, Ok(1));
}

#[tokio::test]
async fn what_the_release_before_needs_goes_when_the_rollout_ends() {
    let (_database, store, _owner, serving) = during_rollout().await;
    let tenant = tenant(&store).await;
    let direct = [
        "INSERT INTO np_byok_audit DEFAULT VALUES",
        "INSERT INTO np_byok_wrapped_deks DEFAULT VALUES",
        "UPDATE np_byok_wrapped_deks SET mac = NULL",
        "INSERT INTO np_byok_heads DEFAULT VALUES",
        "UPDATE np_byok_heads SET size = size",
        "INSERT INTO np_byok_tenants DEFAULT VALUES",
        "INSERT INTO np_byok_keys DEFAULT VALUES",
    ];
    for sql in direct {
        assert_ne!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
    let report = store.schema().await.unwrap();
    assert_eq!((report.waiting, report.oldest_reader <= BEFORE, report.usable()), (1, true, Ok(())));
    // A server of this release that starts meanwhile finishes nothing.
    assert_eq!(store.migrate().await.unwrap().waiting, 1);

    assert_eq!(store.finish_rollout().await.unwrap().ran, 1);
    let report = store.schema().await.unwrap();
    assert_eq!((report.waiting, report.oldest_reader > BEFORE, report.usable()), (0, true, Ok(())));
    for sql in direct {
        assert_eq!(try_execute(&serving, sql).await, Err(DENIED.to_owned()), "{sql}");
    }
    let dek = dek(Some("r"));
    let mut batch = entries(tenant, 0, vec![encrypted(tenant, &dek)]);
    batch.changes = vec![Change::InsertDek(dek)];
    assert_eq!(store.commit(&batch).await.unwrap().applied, [1]);
    // Migrating again gives nothing back.
    assert_eq!(store.migrate().await.unwrap().ran, 0);
    assert_eq!(try_execute(&serving, direct[0]).await, Err(DENIED.to_owned()));
}
