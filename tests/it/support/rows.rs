//! Rows for tests to commit.

use std::sync::Arc;

use std::time::Duration;

use byok::model::{
    Canary, DekId, EntryId, Incident, IncidentId, Job, JobId, JobState, KeyVersion, Means, Operation,
    Outcome, Posture, Progress, Proof, Salted, Tenant, TenantUid, Timestamp, Wrapped,
};
use byok::store::{Batch, Change, DekRow, EntryRow, Fence, Requirement, Store};
use uuid::Uuid;

/// A time in this month by the machine's clock, since partitions exist for it.
pub(crate) fn now() -> Timestamp {
    use byok::model::{Clock, SystemClock};
    SystemClock.now()
}

/// A tenant that is in the database.
pub(crate) async fn tenant(store: &dyn Store) -> TenantUid {
    let tenant =
        Tenant { uid: TenantUid(*Uuid::new_v4().as_bytes()), name: format!("tenant-{}", Uuid::new_v4()) };
    let uid = tenant.uid;
    store.commit(&changes(uid, vec![Change::CreateTenant(tenant)])).await.expect("a tenant is created");
    uid
}

pub(crate) fn changes(tenant: TenantUid, changes: Vec<Change>) -> Batch {
    Batch::of_changes(tenant, changes)
}

pub(crate) fn entries(tenant: TenantUid, base: u64, entries: Vec<EntryRow>) -> Batch {
    Batch { tenant, base, entries, changes: Vec::new(), gate: None, fence: Vec::new() }
}

pub(crate) fn salted(value: &str) -> Salted {
    Salted { value: Some(value.to_owned()), salt: Some([1; 16]), hmac: [2; 32] }
}

pub(crate) fn entry() -> EntryRow {
    EntryRow {
        id: EntryId::new(),
        at: now(),
        operation: Operation::Encrypt,
        outcome: Outcome::Ok,
        means: Means::Jwt,
        role: "service".into(),
        user: Some(salted("user-7")),
        request: salted("request-1"),
        item_count: 1,
        records: r#"[["record-1","AQEBAQEBAQEBAQEBAQEBAQ=="]]"#.to_owned(),
        items: vec![0, 1, 2, 255],
        detail: None,
        digest: [3; 32],
    }
}

pub(crate) fn wrapped(byte: u8, version: &str) -> Wrapped {
    Wrapped { bytes: vec![byte; 61], key_version: KeyVersion::new("byok", version), scheme: 1 }
}

pub(crate) fn dek(record: Option<&str>) -> DekRow {
    let record_id = record.map(Arc::from);
    let (wrapped, created_at) = (wrapped(7, "1"), now());
    DekRow { id: DekId::new(), record_id, wrapped, created_at, mac: None, record_mac: None }
}

/// The proof of a watched key version, active as of now.
pub(crate) async fn watched(store: &dyn Store, tenant: TenantUid, version: &str) -> Proof {
    let proof = Proof {
        key_version: KeyVersion::new("byok", version),
        posture: Posture::Active,
        epoch: 0,
        revision: 0,
        proven_at: now(),
        since: now(),
        steady_since: None,
        failures: 0,
        falls: 0,
        doubted_by: None,
        next_probe_at: now(),
    };
    let canary = Canary { dek_id: DekId::new(), wrapped: wrapped(7, version), made_for_probes: true };
    let watch = Change::Watch { proof: proof.clone(), canary };
    store.commit(&changes(tenant, vec![watch])).await.expect("a key version is watched");
    proof
}

/// Changes the posture of a key version, as the prober does, and returns the incident.
pub(crate) async fn turn(
    store: &dyn Store,
    tenant: TenantUid,
    proof: &mut Proof,
    posture: Posture,
) -> Incident {
    let revoked = posture == Posture::Revoked;
    let incident = Incident {
        id: IncidentId::new(),
        at: now(),
        key_version: proof.key_version.clone(),
        was: proof.posture,
        posture,
        class: revoked.then(|| "KeyDisabled".into()),
        http_status: revoked.then_some(400),
        kms_request_id: revoked.then(|| "kms-request-7".into()),
    };
    write(store, tenant, proof, &incident).await;
    incident
}

/// Writes an incident, with the posture that it names.
pub(crate) async fn write(store: &dyn Store, tenant: TenantUid, proof: &mut Proof, incident: &Incident) {
    let posture = incident.posture;
    loop {
        // A server beside the test probes versions that are not active, and so changes the row.
        let rows = store.proofs(tenant).await.expect("proofs are read").rows;
        let row = rows.into_iter().find(|row| row.key_version == proof.key_version).expect("it is watched");
        let from = row.revision;
        *proof = Proof { posture, epoch: row.epoch + 1, revision: from + 1, since: now(), ..row };
        let prove = Change::UpdateProof { from, to: proof.clone(), incident: Some(incident.clone()) };
        let committed = store.commit(&changes(tenant, vec![prove])).await.expect("a posture is turned");
        if committed.applied == [1] {
            return;
        }
    }
}

pub(crate) fn job() -> Job {
    Job {
        id: JobId::new(),
        state: JobState::Running,
        target: KeyVersion::new("byok", "2"),
        progress: Progress { total: 10, ..Progress::default() },
        stalled: None,
        started_at: now(),
        updated_at: now(),
        finished_at: None,
    }
}

/// A proof that is active in epoch 1 and was made at that time.
pub(crate) fn proof(version: &str, at: Timestamp) -> Proof {
    Proof {
        key_version: KeyVersion::new("byok", version),
        posture: Posture::Active,
        epoch: 1,
        revision: 1,
        proven_at: at,
        since: at,
        steady_since: Some(at),
        failures: 0,
        falls: 0,
        doubted_by: None,
        next_probe_at: at.plus(Duration::from_secs(1)),
    }
}

pub(crate) fn canary(version: &str) -> Canary {
    Canary { dek_id: DekId::new(), wrapped: wrapped(3, version), made_for_probes: true }
}

/// Watches a version that was proven at this time by the database's clock.
pub(crate) async fn watch(store: &dyn Store, tenant: TenantUid, version: &str) -> Proof {
    let now = store.proofs(tenant).await.expect("proofs are read").now;
    let proof = proof(version, now);
    let watch = Change::Watch { proof: proof.clone(), canary: canary(version) };
    store.commit(&changes(tenant, vec![watch])).await.expect("a version is watched");
    proof
}

/// Makes the next state of a proof, and commits it.
pub(crate) async fn prove(
    store: &dyn Store,
    tenant: TenantUid,
    proof: &Proof,
    change: impl FnOnce(&mut Proof),
) -> Proof {
    let mut to = proof.clone();
    to.revision += 1;
    change(&mut to);
    let prove = Change::UpdateProof { from: proof.revision, to: to.clone(), incident: None };
    let done = store.commit(&changes(tenant, vec![prove])).await.expect("a proof is written");
    assert_eq!(done.applied, [1]);
    to
}

pub(crate) fn fence(version: &str, requirement: Requirement) -> Fence {
    Fence { key_version: KeyVersion::new("byok", version), requirement }
}
