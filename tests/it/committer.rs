//! Group commit, on a real database whose answers are lost or refused when a test asks for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use byok::audit::{CommitFailed, Committer, Durable, Unit, pack};
use byok::model::{
    DekId, Entry, EntryId, Extensions, JobId, KeyVersion, Means, Operation, Outcome, Posture, Proof,
    SystemClock, Tenant, TenantUid, Timestamp, Wrapped,
};
use byok::store::{
    Batch, Change, CommitError, Commits, Committed, Database as _, DekReads as _, DekRow, EntryFilter,
    EntrySearch as _, Fence, Gate, ReadError, Requirement, Snapshot, Sqlite, TenantRow,
};
use tempfile::TempDir;

use crate::store_sqlite::try_execute;
use crate::support::rows::{fence, prove, watch};

/// The outcome of a commit.
#[derive(Clone, Copy)]
enum Fate {
    /// The commit is applied, and its answer is lost.
    Lost,
    /// The commit is applied, its answer is lost, and then the key is revoked.
    LostAndRevoked,
    /// The commit is applied, its answer is lost, and then the tenant is locked.
    LostAndLocked,
    /// The commit does not reach the database, and fails with this error.
    Fails(CommitError),
    /// The commit is applied after a delay, in which other units queue up.
    Slow,
}

struct Unlucky {
    database: Sqlite,
    fates: Mutex<VecDeque<Fate>>,
    batches: Mutex<Vec<usize>>,
    /// Whether reads of proofs fail.
    unreadable: AtomicBool,
    folder: TempDir,
}

impl Unlucky {
    async fn set_tenant(&self, columns: &str) {
        let sql = format!("UPDATE np_byok_tenants SET {columns}");
        try_execute(&self.folder, &sql).await.unwrap();
    }

    async fn revoke(&self, tenant: TenantUid) {
        let proof = self.database.proofs(tenant).await.unwrap().rows.remove(0);
        prove(&self.database, tenant, &proof, |to| (to.posture, to.epoch) = (Posture::Revoked, 2)).await;
    }
}

#[async_trait]
impl Commits for Unlucky {
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
            Some(fate @ (Fate::Lost | Fate::LostAndRevoked | Fate::LostAndLocked)) => {
                self.database.commit(batch).await.expect("the database takes it");
                match fate {
                    Fate::LostAndRevoked => self.revoke(batch.tenant).await,
                    Fate::LostAndLocked => self.set_tenant("locked = 1").await,
                    _ => {}
                }
                Err(CommitError::Unknown)
            }
        }
    }

    async fn log_size(&self, tenant: TenantUid) -> Result<u64, ReadError> {
        self.database.log_size(tenant).await
    }

    async fn proofs(&self, tenant: TenantUid) -> Result<Snapshot<Proof>, ReadError> {
        if self.unreadable.load(Ordering::SeqCst) {
            Err(ReadError::Unavailable)
        } else {
            self.database.proofs(tenant).await
        }
    }

    async fn gate_row(&self, tenant: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.database.gate_row(tenant).await
    }
}

struct Bench {
    store: Arc<Unlucky>,
    committer: Arc<Committer>,
    tenant: TenantUid,
}

impl Bench {
    async fn with(fates: &[Fate]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Sqlite::open(&folder.path().join("byok.db")).await.unwrap();
        database.migrate().await.unwrap();
        let tenant = Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() };
        let changes = vec![Change::CreateTenant(tenant.clone())];
        database.commit(&Batch::of_changes(tenant.uid, changes)).await.unwrap();
        let store = Arc::new(Unlucky {
            database,
            fates: Mutex::new(fates.iter().copied().collect()),
            batches: Mutex::default(),
            unreadable: AtomicBool::new(false),
            folder,
        });
        let committer = Arc::new(Committer::start(store.clone(), Arc::new(SystemClock)));
        Self { store, committer, tenant: tenant.uid }
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
            detail: None,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items: Vec::new(),
        };
        Unit::unconditional(self.tenant, Some(pack(self.tenant, &entry)), changes)
    }

    fn fenced(&self, user: &str, changes: Vec<Change>, fence: Vec<Fence>) -> Unit {
        Unit { fence, ..self.unit(user, changes) }
    }

    async fn durable(&self, unit: Unit) -> Result<Durable, CommitFailed> {
        self.committer.commit(unit).await
    }

    /// Commits these units in this order as one group, which forms while an earlier commit runs.
    async fn together(&self, units: Vec<Unit>) -> Vec<Result<Durable, CommitFailed>> {
        self.store.fates.lock().unwrap().push_front(Fate::Slow);
        let committer = self.committer.clone();
        let before = self.unit("before", Vec::new());
        let before = tokio::spawn(async move { committer.commit(before).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let outcomes: Vec<_> = units.into_iter().map(|unit| self.durable(unit)).collect();
        let outcomes = futures_util::future::join_all(outcomes).await;
        before.await.unwrap().unwrap();
        outcomes
    }

    /// The number of rows that each change touched.
    async fn commit(&self, unit: Unit) -> Result<Vec<u64>, CommitFailed> {
        self.committer.commit(unit).await.map(|durable| durable.applied)
    }

    async fn users(&self) -> Vec<String> {
        let entries = self
            .store
            .database
            .entries(self.tenant, &EntryFilter::default(), None, 1_000)
            .await
            .unwrap()
            .entries;
        entries.into_iter().rev().map(|placed| placed.row.user.unwrap().value.unwrap()).collect()
    }
}

fn dek(id: DekId) -> Change {
    let wrapped = Wrapped { bytes: vec![1], key_version: KeyVersion::new("k", "1"), scheme: 1 };
    Change::InsertDek(DekRow {
        id,
        record_id: Some("r".into()),
        wrapped,
        created_at: Timestamp(1),
        mac: None,
        record_mac: None,
    })
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_retried_and_applied_once() {
    let bench = Bench::with(&[Fate::Lost]).await;
    let applied = bench.commit(bench.unit("a", vec![dek(DekId::new())])).await;
    assert_eq!(applied, Ok(vec![1]));
    bench.commit(bench.unit("b", Vec::new())).await.unwrap();
    assert_eq!(bench.users().await, ["a", "b"]);
}

#[tokio::test]
async fn after_a_lost_answer_an_outage_is_waited_out_before_answering() {
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
async fn a_group_does_not_wait_for_callers_whose_runtime_is_stuck() {
    let bench = Bench::with(&[]).await;
    // This runtime never runs what is spawned on it.
    let stuck = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let clock = Arc::new(SystemClock);
    let committer = Committer::start_for(stuck.handle().clone(), bench.store.clone(), clock);
    let units = (0..8).map(|n| committer.commit(bench.unit(&n.to_string(), Vec::new())));
    let durable = tokio::time::timeout(MINUTE, futures_util::future::join_all(units)).await.unwrap();
    assert!(durable.iter().all(Result::is_ok));
    assert_eq!(bench.users().await.len(), 8);
    stuck.shutdown_background();
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
async fn a_concurrent_append_by_another_replica_costs_a_retry_without_gap() {
    let bench = Bench::with(&[]).await;
    let other = Committer::start(bench.store.clone(), Arc::new(SystemClock));
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

const MINUTE: Duration = Duration::from_secs(60);

fn active(epoch: u64) -> Vec<Fence> {
    vec![fence("1", Requirement::Active { epoch })]
}

fn proven() -> Vec<Fence> {
    vec![fence("1", Requirement::Proven { epoch: 1, within: MINUTE })]
}

fn applied_of(outcome: &Result<Durable, CommitFailed>) -> Result<Vec<u64>, CommitFailed> {
    outcome.as_ref().map(|durable| durable.applied.clone()).map_err(|failed| *failed)
}

#[tokio::test]
async fn a_unit_refused_by_the_fence_does_not_affect_its_neighbours() {
    let bench = Bench::with(&[]).await;
    let proof = watch(&bench.store.database, bench.tenant, "1").await;
    let kept_out = DekId::new();
    let lease =
        Change::LeaseJob { job: JobId::new(), holder: uuid::Uuid::new_v4(), lease: Duration::from_secs(1) };
    let outcomes = bench
        .together(vec![
            bench.unit("a", vec![dek(DekId::new())]),
            bench.fenced("b", vec![dek(DekId::new()), dek(DekId::new())], active(1)),
            bench.fenced("c", vec![dek(kept_out), lease.clone()], active(2)),
            bench.fenced("d", vec![lease, dek(DekId::new())], proven()),
            bench.fenced("e", vec![dek(kept_out)], vec![fence("2", Requirement::Active { epoch: 1 })]),
            bench.unit("f", Vec::new()),
        ])
        .await;
    let fenced = Err(CommitFailed::Fenced);
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [Ok(vec![1]), Ok(vec![1, 1]), fenced.clone(), Ok(vec![0, 1]), fenced, Ok(vec![])]
    );
    assert_eq!(bench.users().await, ["before", "a", "b", "d", "f"]);
    assert_eq!(*bench.store.batches.lock().unwrap(), [1, 6, 4]);
    assert_eq!(bench.store.database.deks(bench.tenant, &[kept_out]).await.unwrap(), []);
    let receipt = outcomes[1].as_ref().unwrap().receipt.clone().unwrap();
    assert_eq!(receipt.fence, [active(1), proven()].concat(), "two units' fences are asked for once");
    assert_eq!(receipt.proven_at(&KeyVersion::new("byok", "1")), Some(proof.proven_at));
    assert_eq!(receipt.proven_at(&KeyVersion::new("byok", "2")), None);
}

#[tokio::test]
async fn of_two_epochs_in_one_group_the_current_one_is_committed() {
    let bench = Bench::with(&[]).await;
    let proof = watch(&bench.store.database, bench.tenant, "1").await;
    prove(&bench.store.database, bench.tenant, &proof, |to| to.epoch = 2).await;
    let units = ["a", "b", "c", "d"].into_iter().zip([1, 2, 1, 2]);
    let units = units.map(|(user, epoch)| bench.fenced(user, Vec::new(), active(epoch))).collect();
    let outcomes = bench.together(units).await;
    let fenced = Err(CommitFailed::Fenced);
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [fenced.clone(), Ok(vec![]), fenced, Ok(vec![])]
    );
    assert_eq!(bench.users().await, ["before", "b", "d"]);
}

/// Of two revisions in one group, the older one cannot pass, whichever revision is current.
#[tokio::test]
async fn a_unit_refused_by_the_gate_does_not_affect_its_neighbours() {
    let bench = Bench::with(&[]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    let gated = |user, revision, fence| Unit {
        gate: Some(Gate { revision }),
        ..bench.fenced(user, Vec::new(), fence)
    };
    let units = vec![
        gated("a", 0, Vec::new()),
        bench.unit("b", Vec::new()),
        gated("c", 0, active(1)),
        bench.fenced("d", Vec::new(), active(2)),
        gated("e", 0, active(2)),
    ];
    let outcomes = bench.together(units).await;
    let fenced = Err(CommitFailed::Fenced);
    let passed = Ok(Vec::new());
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [passed.clone(), passed.clone(), passed.clone(), fenced.clone(), fenced]
    );
    bench.store.set_tenant("revision = 1").await;
    let units = vec![
        gated("f", 0, active(1)),
        gated("g", 1, active(1)),
        gated("h", 0, Vec::new()),
        bench.fenced("i", Vec::new(), active(1)),
    ];
    let outcomes = bench.together(units).await;
    let overtaken = Err(CommitFailed::Gated);
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [overtaken.clone(), passed.clone(), overtaken.clone(), passed.clone()]
    );
    bench.store.set_tenant("locked = 1").await;
    let outcomes =
        bench.together(vec![gated("j", 1, active(1)), gated("k", 0, active(1)), bench.unit("l", Vec::new())]);
    assert_eq!(
        outcomes.await.iter().map(applied_of).collect::<Vec<_>>(),
        [overtaken.clone(), overtaken, passed]
    );
    assert_eq!(bench.users().await, ["before", "a", "b", "c", "before", "g", "i", "before", "l"]);
}

/// What was committed before the lock may not be answered after it if the time of the commit is
/// unknown.
#[tokio::test]
async fn a_lost_commit_of_a_tenant_since_locked_has_no_receipt() {
    for (fate, has_receipt) in [(Fate::Lost, true), (Fate::LostAndLocked, false)] {
        let bench = Bench::with(&[fate]).await;
        watch(&bench.store.database, bench.tenant, "1").await;
        let unit = Unit { gate: Some(Gate { revision: 0 }), ..bench.fenced("a", Vec::new(), active(1)) };
        let durable = bench.durable(unit).await.unwrap();
        assert_eq!(durable.receipt.is_some(), has_receipt);
        assert_eq!(bench.users().await, ["a"]);
    }
}

#[tokio::test]
async fn a_passage_says_what_was_found_and_when() {
    let bench = Bench::with(&[]).await;
    let key_version = KeyVersion::new("byok", "1");
    let proof = watch(&bench.store.database, bench.tenant, "1").await;
    let later = prove(&bench.store.database, bench.tenant, &proof, |to| to.proven_at = Timestamp(7)).await;
    let durable = bench.durable(bench.fenced("a", Vec::new(), active(1))).await.unwrap();
    let receipt = durable.receipt.unwrap();
    assert_eq!(receipt.proven_at(&key_version), Some(later.proven_at));
    assert!(receipt.sent <= receipt.received);
    assert!(receipt.reading.now.since(proof.proven_at) < MINUTE);
    let durable = bench.durable(bench.unit("b", Vec::new())).await.unwrap();
    assert!(durable.receipt.is_none(), "nothing was asked");
    assert_eq!(
        bench.durable(bench.fenced("c", Vec::new(), proven())).await.err(),
        Some(CommitFailed::Fenced)
    );
    assert_eq!(bench.users().await, ["a", "b"]);
}

#[tokio::test]
async fn the_fence_of_a_unit_without_an_entry_keeps_out_nobody() {
    let bench = Bench::with(&[]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    let id = DekId::new();
    let no_entry = Unit { entry: None, ..bench.fenced("", vec![dek(id)], active(2)) };
    let outcomes = bench.together(vec![bench.fenced("a", Vec::new(), active(1)), no_entry]).await;
    assert_eq!(outcomes.iter().map(applied_of).collect::<Vec<_>>(), [Ok(vec![]), Ok(vec![1])]);
    assert_eq!(bench.users().await, ["before", "a"]);
    assert_eq!(bench.store.database.deks(bench.tenant, &[id]).await.unwrap().len(), 1);
}

/// Nothing of the group was committed, and it is unknown which unit the fence refuses: every caller
/// is told to retry.
#[tokio::test]
async fn an_unreadable_fence_refuses_the_whole_batch_and_commits_nothing() {
    let bench = Bench::with(&[]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    bench.store.unreadable.store(true, Ordering::SeqCst);
    let units = || {
        let (good, bad) = (active(1), active(2));
        vec![
            bench.unit("a", Vec::new()),
            bench.fenced("b", Vec::new(), good),
            bench.fenced("c", Vec::new(), bad),
        ]
    };
    let outcomes = bench.together(units()).await;
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [(); 3].map(|()| Err(CommitFailed::Unavailable))
    );
    assert_eq!(bench.users().await, ["before"]);
    bench.store.unreadable.store(false, Ordering::SeqCst);
    let outcomes = bench.together(units()).await;
    let fenced = Err(CommitFailed::Fenced);
    assert_eq!(outcomes.iter().map(applied_of).collect::<Vec<_>>(), [Ok(vec![]), Ok(vec![]), fenced]);
    assert_eq!(bench.users().await, ["before", "before", "a", "b"]);
}

#[tokio::test]
async fn a_fence_that_never_holds_during_commits_refuses_in_the_end() {
    let bench = Bench::with(&[Fate::Fails(CommitError::Fenced); 3]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    let id = DekId::new();
    bench.store.database.commit(&Batch::of_changes(bench.tenant, vec![dek(id)])).await.unwrap();
    let taken = match dek(id) {
        Change::InsertDek(row) => {
            let wrapped = Wrapped { bytes: vec![2], ..row.wrapped.clone() };
            Change::InsertDek(DekRow { wrapped, ..row })
        }
        _ => unreachable!("it inserts a DEK"),
    };
    let outcomes = bench
        .together(vec![
            bench.unit("a", Vec::new()),
            bench.fenced("b", Vec::new(), active(1)),
            bench.unit("bad", vec![taken]),
            bench.unit("c", vec![dek(DekId::new())]),
        ])
        .await;
    let (fenced, rejected) = (Err(CommitFailed::Fenced), Err(CommitFailed::Rejected));
    assert_eq!(
        outcomes.iter().map(applied_of).collect::<Vec<_>>(),
        [Ok(vec![]), fenced, rejected, Ok(vec![1])]
    );
    assert_eq!(bench.users().await, ["before", "a", "c"]);
}

#[tokio::test]
async fn after_a_lost_answer_the_second_looks_finding_is_the_passage() {
    let bench = Bench::with(&[Fate::Lost]).await;
    let proof = watch(&bench.store.database, bench.tenant, "1").await;
    let durable = bench.durable(bench.fenced("a", vec![dek(DekId::new())], proven())).await.unwrap();
    assert_eq!(durable.applied, [1]);
    let receipt = durable.receipt.unwrap();
    assert_eq!(receipt.proven_at(&proof.key_version), Some(proof.proven_at));
    assert!(receipt.sent <= receipt.received);
    assert_eq!(bench.users().await, ["a"]);
}

#[tokio::test]
async fn after_a_lost_answer_a_fence_that_fails_is_no_passage() {
    let bench = Bench::with(&[Fate::LostAndRevoked]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    let durable = bench.durable(bench.fenced("a", vec![dek(DekId::new())], proven())).await.unwrap();
    assert_eq!(durable.applied, [1], "it is durable");
    assert!(durable.receipt.is_none(), "and no answer under the key may be given");
    assert_eq!(bench.users().await, ["a"]);
}

#[tokio::test]
async fn after_a_lost_answer_unreadable_proofs_give_no_receipt() {
    let bench = Bench::with(&[Fate::Lost]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    bench.store.unreadable.store(true, Ordering::SeqCst);
    let durable = bench.durable(bench.fenced("a", Vec::new(), proven())).await.unwrap();
    assert!(durable.receipt.is_none());
    assert_eq!(bench.users().await, ["a"]);
}

#[tokio::test]
async fn a_batch_lost_in_transit_is_still_fenced_when_retried() {
    let bench = Bench::with(&[]).await;
    watch(&bench.store.database, bench.tenant, "1").await;
    bench.store.revoke(bench.tenant).await;
    bench.store.fates.lock().unwrap().push_back(Fate::Fails(CommitError::Unknown));
    let outcomes =
        bench.together(vec![bench.fenced("a", Vec::new(), active(1)), bench.unit("b", Vec::new())]).await;
    assert_eq!(outcomes.iter().map(applied_of).collect::<Vec<_>>(), [Err(CommitFailed::Fenced), Ok(vec![])]);
    assert_eq!(bench.users().await, ["before", "b"]);
}

#[tokio::test]
async fn behind_another_replica_the_fence_is_asked_in_turn() {
    let bench = Bench::with(&[]).await;
    let proof = watch(&bench.store.database, bench.tenant, "1").await;
    let other = Committer::start(bench.store.clone(), Arc::new(SystemClock));
    bench.durable(bench.fenced("a", Vec::new(), proven())).await.unwrap();
    other.commit(bench.unit("b", Vec::new())).await.unwrap();
    assert_eq!(
        bench.durable(bench.fenced("c", Vec::new(), active(2))).await.err(),
        Some(CommitFailed::Fenced)
    );
    let durable = bench.durable(bench.fenced("d", Vec::new(), proven())).await.unwrap();
    assert_eq!(durable.receipt.unwrap().proven_at(&proof.key_version), Some(proof.proven_at));
    other.commit(bench.fenced("e", Vec::new(), proven())).await.unwrap();
    bench.durable(bench.unit("f", Vec::new())).await.unwrap();
    assert_eq!(bench.users().await, ["a", "b", "d", "e", "f"]);
}
