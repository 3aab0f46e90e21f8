//! Group commit, over a real database whose answers are lost or refused when a test says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use byok::audit::{CommitFailed, Committer, Unit, pack};
use byok::model::{
    DekId, Entry, EntryId, Incident, Job, JobId, KeyVersion, Means, Operation, Outcome, Proof, SystemClock,
    Tenant, TenantUid, Timestamp, Wrapped,
};
use byok::store::{
    AnnouncementReads, AuditReads, Batch, Change, CommitError, Committed, Database as _, DekReads, DekRow,
    EntryFilter, JobReads, PlacedEntry, ProofReads, ReadError, Seen, Sqlite, Store, TenantReads, Unannounced,
    Watched,
};

/// What becomes of a commit.
#[derive(Clone, Copy)]
enum Fate {
    /// It is done, and the answer is lost.
    Lost,
    /// It never arrives.
    Fails(CommitError),
    /// As the database says, after a while in which others get ready.
    Slow,
}

struct Unlucky {
    database: Sqlite,
    fates: Mutex<VecDeque<Fate>>,
    batches: Mutex<Vec<usize>>,
}

#[async_trait]
impl Store for Unlucky {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        self.batches.lock().unwrap().push(batch.entries.len());
        let fate = self.fates.lock().unwrap().pop_front();
        match fate {
            None => self.database.commit(batch).await,
            Some(Fate::Fails(error)) => Err(error),
            Some(Fate::Slow) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                self.database.commit(batch).await
            }
            Some(Fate::Lost) => {
                self.database.commit(batch).await.expect("the database takes it");
                Err(CommitError::Unknown)
            }
        }
    }

    async fn ping(&self) -> Result<(), ReadError> {
        self.database.ping().await
    }
}

#[async_trait]
impl TenantReads for Unlucky {
    async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ReadError> {
        self.database.tenant(name).await
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        self.database.log_size(tenant).await
    }
}

#[async_trait]
impl DekReads for Unlucky {
    async fn deks(&self, tenant: TenantUid, ids: &[DekId]) -> Result<Vec<DekRow>, ReadError> {
        self.database.deks(tenant, ids).await
    }

    async fn deks_of_records(
        &self,
        tenant: TenantUid,
        records: &[Arc<str>],
    ) -> Result<Vec<DekRow>, ReadError> {
        self.database.deks_of_records(tenant, records).await
    }

    async fn deks_after(
        &self,
        tenant: TenantUid,
        after: Option<DekId>,
        limit: u32,
    ) -> Result<Vec<DekRow>, ReadError> {
        self.database.deks_after(tenant, after, limit).await
    }

    async fn deks_not_under(&self, tenant: TenantUid, version: &KeyVersion) -> Result<u64, ReadError> {
        self.database.deks_not_under(tenant, version).await
    }
}

#[async_trait]
impl JobReads for Unlucky {
    async fn job(&self, tenant: TenantUid, id: JobId) -> Result<Option<(Job, Option<DekId>)>, ReadError> {
        self.database.job(tenant, id).await
    }

    async fn latest_job(&self, tenant: TenantUid) -> Result<Option<Job>, ReadError> {
        self.database.latest_job(tenant).await
    }

    async fn running_jobs(&self) -> Result<Vec<(Tenant, JobId)>, ReadError> {
        self.database.running_jobs().await
    }
}

#[async_trait]
impl AuditReads for Unlucky {
    async fn entries(
        &self,
        tenant: TenantUid,
        filter: &EntryFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PlacedEntry>, ReadError> {
        self.database.entries(tenant, filter, before, limit).await
    }
}

#[async_trait]
impl ProofReads for Unlucky {
    async fn proofs(&self, tenant: TenantUid) -> Result<Seen<Proof>, ReadError> {
        self.database.proofs(tenant).await
    }

    async fn watched(&self) -> Result<Seen<Watched>, ReadError> {
        self.database.watched().await
    }

    async fn incidents(&self, tenant: TenantUid, limit: u32) -> Result<Vec<Incident>, ReadError> {
        self.database.incidents(tenant, limit).await
    }
}

#[async_trait]
impl AnnouncementReads for Unlucky {
    async fn unannounced(&self, limit: u32) -> Result<Vec<Unannounced>, ReadError> {
        self.database.unannounced(limit).await
    }
}

struct Bench {
    store: Arc<Unlucky>,
    committer: Arc<Committer>,
    tenant: TenantUid,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn with(fates: &[Fate]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
        database.migrate().await.unwrap();
        let tenant = Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() };
        let changes = vec![Change::CreateTenant(tenant.clone())];
        database
            .commit(&Batch { tenant: tenant.uid, base: 0, entries: Vec::new(), changes, fence: Vec::new() })
            .await
            .unwrap();
        let store = Arc::new(Unlucky {
            database,
            fates: Mutex::new(fates.iter().copied().collect()),
            batches: Mutex::default(),
        });
        let committer = Arc::new(Committer::start(store.clone(), Arc::new(SystemClock), 2));
        Self { store, committer, tenant: tenant.uid, _folder: folder }
    }

    fn unit(&self, user: &str, changes: Vec<Change>) -> Unit {
        let entry = Entry {
            id: EntryId::new(),
            at: Timestamp(0),
            operation: Operation::Encrypt,
            outcome: Outcome::Ok,
            role: "user".into(),
            user: Some(user.to_owned()),
            means: Means::Jwt,
            request_id: Some("r".to_owned()),
            items: Vec::new(),
        };
        Unit { tenant: self.tenant, entry: Some(pack(&entry)), changes, fence: Vec::new() }
    }

    /// How many rows its changes touched.
    async fn commit(&self, unit: Unit) -> Result<Vec<u64>, CommitFailed> {
        self.committer.commit(unit).await.map(|durable| durable.applied)
    }

    async fn users(&self) -> Vec<String> {
        let entries = self.store.entries(self.tenant, &EntryFilter::default(), None, 1_000).await.unwrap();
        entries.into_iter().rev().map(|placed| placed.row.user.unwrap().value.unwrap()).collect()
    }
}

fn dek(id: DekId) -> Change {
    let wrapped = Wrapped { bytes: vec![1], key_version: KeyVersion::new("k", "1"), scheme: 1 };
    Change::InsertDek(DekRow { id, record_id: Some("r".into()), wrapped, created_at: Timestamp(1) })
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_tried_again_and_stands_once() {
    let bench = Bench::with(&[Fate::Lost]).await;
    let applied = bench.commit(bench.unit("a", vec![dek(DekId::new())])).await;
    assert_eq!(applied, Ok(vec![1]));
    bench.commit(bench.unit("b", Vec::new())).await.unwrap();
    assert_eq!(bench.users().await, ["a", "b"]);
}

#[tokio::test]
async fn after_a_lost_answer_an_outage_is_waited_out_before_the_caller_is_told() {
    let outage = Fate::Fails(CommitError::Unavailable);
    let bench = Bench::with(&[Fate::Lost, outage, outage]).await;
    assert_eq!(bench.commit(bench.unit("a", Vec::new())).await, Ok(vec![]));
    assert_eq!(bench.users().await, ["a"]);
}

#[tokio::test]
async fn an_outage_is_told_at_once_and_leaves_nothing() {
    let bench = Bench::with(&[Fate::Fails(CommitError::Unavailable)]).await;
    assert_eq!(bench.commit(bench.unit("a", Vec::new())).await, Err(CommitFailed::Unavailable));
    bench.commit(bench.unit("b", Vec::new())).await.unwrap();
    assert_eq!(bench.users().await, ["b"]);
}

#[tokio::test]
async fn what_is_ready_while_a_commit_runs_is_committed_together() {
    let bench = Bench::with(&[Fate::Slow]).await;
    let callers: Vec<_> = (0..50)
        .map(|n| {
            let (committer, unit) = (bench.committer.clone(), bench.unit(&n.to_string(), Vec::new()));
            tokio::spawn(async move { committer.commit(unit).await.map(|durable| durable.applied) })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let batches = bench.store.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 50);
    assert!(batches.len() <= 3, "{batches:?}");
}

#[tokio::test]
async fn one_bad_unit_does_not_take_its_neighbours_with_it() {
    let bench = Bench::with(&[Fate::Slow]).await;
    let id = DekId::new();
    bench.commit(bench.unit("first", vec![dek(id)])).await.unwrap();
    bench.store.fates.lock().unwrap().push_back(Fate::Slow);
    let taken = dek(id);
    let other = match &taken {
        Change::InsertDek(row) => {
            let wrapped = Wrapped { bytes: vec![2], ..row.wrapped.clone() };
            Change::InsertDek(DekRow { wrapped, ..row.clone() })
        }
        _ => unreachable!("it inserts a DEK"),
    };
    let good = bench.unit("good", Vec::new());
    let bad = bench.unit("bad", vec![other]);
    let head = bench.unit("head", Vec::new());
    let (head, good, bad) = tokio::join!(bench.commit(head), bench.commit(good), bench.commit(bad));
    assert_eq!((head, good), (Ok(vec![]), Ok(vec![])));
    assert_eq!(bad, Err(CommitFailed::Rejected));
    assert_eq!(bench.users().await, ["first", "head", "good"]);
}

#[tokio::test]
async fn another_replica_that_appends_meanwhile_costs_a_retry_and_leaves_no_gap() {
    let bench = Bench::with(&[]).await;
    let other = Committer::start(bench.store.clone(), Arc::new(SystemClock), 1);
    for n in 0..20 {
        let committer = if n % 2 == 0 { &*bench.committer } else { &other };
        committer.commit(bench.unit(&n.to_string(), Vec::new())).await.unwrap();
    }
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(bench.users().await, expected);
}

#[tokio::test]
async fn a_caller_that_hangs_up_takes_nothing_with_it() {
    let bench = Bench::with(&[Fate::Slow]).await;
    let (committer, unit) = (bench.committer.clone(), bench.unit("gone", Vec::new()));
    let caller = tokio::spawn(async move { committer.commit(unit).await.map(|durable| durable.applied) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    caller.abort();
    bench.commit(bench.unit("next", Vec::new())).await.unwrap();
    assert_eq!(bench.users().await, ["gone", "next"]);
}
