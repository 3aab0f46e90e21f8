//! The DEK cache: entries expire, callers that wait share one fetch, and a cached DEK needs no
//! call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use byok::audit::Committer;
use byok::config::{DekCache, DekPool, KeyGuard, RowMac, RowMacKeys};
use byok::crypto::{Dek, RowMacKey};
use byok::keyring::{Keyring, KeyringError, Parts};
use byok::kms::{DekBinding, Generated, ItemResult, Kms, KmsError, KmsProfile, LocalKey};
use byok::model::{DekId, KeyVersion, Source, SystemClock, Tenant, TenantUid, Timestamp, Wrapped};
use byok::store::{Batch, Change, Commits as _, Database as _, DekReads as _, DekRow, Sqlite};

use crate::support::tenancy::one_tenant;

/// The local key, slowed down so that callers wait, with counted calls.
struct Counted {
    key: LocalKey,
    unwraps: AtomicUsize,
    items: AtomicUsize,
    generated: AtomicUsize,
}

#[async_trait]
impl Kms for Counted {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.generated.fetch_add(bindings.len(), Ordering::Relaxed);
        self.key.generate(bindings).await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.key.wrap(deks).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.unwraps.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(wrapped.len(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.key.unwrap(wrapped).await
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.key.rewrap(wrapped, to).await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        self.key.current_version().await
    }

    fn profile(&self) -> KmsProfile {
        self.key.profile()
    }
}

struct Bench {
    keyring: Arc<Keyring>,
    kms: Arc<Counted>,
    store: Arc<Sqlite>,
    tenant: Tenant,
    ids: Vec<DekId>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// A keyring with stored DEKs that are not in memory, of a watched key version. The calls of
    /// the setup are not counted.
    async fn with(deks: usize, seconds: u64) -> Self {
        Self::bound(deks, seconds, RowMac::default()).await
    }

    /// The same, with this binding of rows.
    async fn bound(deks: usize, seconds: u64, row_mac: RowMac) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Sqlite::open(&folder.path().join("byok.db")).await.unwrap());
        store.migrate().await.unwrap();
        let tenant = Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() };
        let key =
            LocalKey::create(folder.path().join("key.json")).map_err(|error| error.to_string()).unwrap();
        let (unwraps, items, generated) = Default::default();
        let kms = Arc::new(Counted { key, unwraps, items, generated });
        let cache = DekCache { time_to_live: Duration::from_secs(seconds), entries: 1_000 };
        let seconds = Duration::from_secs;
        let guard = KeyGuard { probe_every: seconds(1), probe_timeout: seconds(2), resume_after: seconds(3) };
        let clock = Arc::new(SystemClock);
        let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
        let pool = DekPool { size: 0 };
        let parts = Parts {
            store: store.clone(),
            log: store.clone(),
            tenants: one_tenant(&tenant, kms.clone()),
            committer,
            clock,
            cache,
            pool,
            guard,
            row_mac,
        };
        let keyring = Keyring::new(parts);
        let records: Vec<Option<Arc<str>>> = (0..deks).map(|n| Some(format!("r-{n}").into())).collect();
        let batch = |changes| Batch::of_changes(tenant.uid, changes);
        store.commit(&batch(vec![Change::CreateTenant(tenant.clone())])).await.unwrap();
        let mut changes = Vec::new();
        let mut ids = Vec::new();
        for made in keyring.by_record(&tenant, &records, Timestamp(1)).await {
            let row = made.ok().unwrap().new_row.unwrap();
            ids.push(row.id);
            changes.push(Change::InsertDek(row));
        }
        store.commit(&batch(changes)).await.unwrap();
        // A key version is probed at its first use and watched from then on; here that has already
        // happened.
        assert!(keyring.by_record(&tenant, &[None], Timestamp(1)).await[0].is_ok());
        [&kms.unwraps, &kms.items, &kms.generated].iter().for_each(|count| count.store(0, Ordering::Relaxed));
        Self { keyring, kms, store, tenant, ids, _folder: folder }
    }

    fn calls(&self) -> (usize, usize) {
        (self.kms.unwraps.load(Ordering::Relaxed), self.kms.items.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn a_key_versions_first_use_makes_one_canary_and_later_none() {
    let bench = Bench::with(0, 300).await;
    bench.kms.key.rotate().unwrap();
    let records = [None, None];
    for made in [3, 5] {
        let deks = bench.keyring.by_record(&bench.tenant, &records, Timestamp(1)).await;
        assert!(deks.iter().all(Result::is_ok));
        assert_eq!(bench.kms.generated.load(Ordering::Relaxed), made);
        assert_eq!(bench.calls(), (1, 1));
    }
}

#[tokio::test]
async fn concurrent_callers_of_the_same_deks_share_one_kms_call() {
    let bench = Bench::with(10, 300).await;
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (keyring, tenant, ids) = (bench.keyring.clone(), bench.tenant.clone(), bench.ids.clone());
            tokio::spawn(async move {
                keyring.by_id(&tenant, &ids).await.into_iter().filter(Result::is_ok).count()
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 10);
    }
    assert_eq!(bench.calls(), (1, 10));
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_the_shared_fetch() {
    let bench = Bench::with(1, 300).await;
    let (keyring, tenant, ids) = (bench.keyring.clone(), bench.tenant.clone(), bench.ids.clone());
    let first = tokio::spawn(async move { keyring.by_id(&tenant, &ids).await.len() });
    tokio::time::sleep(Duration::from_millis(30)).await;
    first.abort();
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
    assert_eq!(bench.calls().0, 1);
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_a_new_dek() {
    let bench = Bench::with(1, 300).await;
    let records = [Some(Arc::from("new"))];
    let making = bench.keyring.by_record(&bench.tenant, &records, Timestamp(1));
    assert!(tokio::time::timeout(Duration::from_millis(50), making).await.is_err());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.kms.generated.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_hot_dek_comes_from_memory_until_its_time_is_over() {
    let bench = Bench::with(1, 1).await;
    let source = async || bench.keyring.by_id(&bench.tenant, &bench.ids).await.remove(0).ok().unwrap().source;
    assert_eq!(source().await, Source::Kms);
    assert_eq!(source().await, Source::Cache);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(source().await, Source::Kms);
}

#[tokio::test]
async fn zero_seconds_turn_the_cache_off() {
    let bench = Bench::with(1, 0).await;
    for calls in 1..=3 {
        assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
        assert_eq!(bench.calls().0, calls);
    }
    assert_eq!(bench.keyring.cached_count(), 0);
}

#[tokio::test]
async fn a_refusal_is_not_remembered() {
    let bench = Bench::with(1, 300).await;
    bench.kms.key.disable().unwrap();
    assert!(matches!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0], Err(KeyringError::Kms(_))));
    bench.kms.key.enable().unwrap();
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
}

#[tokio::test]
async fn another_tenant_finds_nothing_under_the_same_id() {
    let bench = Bench::with(1, 300).await;
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
    let stranger = Tenant { uid: TenantUid([8; 16]), name: "stranger".to_owned() };
    assert!(matches!(bench.keyring.by_id(&stranger, &bench.ids).await[0], Err(KeyringError::Missing)));
}

#[tokio::test]
async fn a_record_named_twice_in_one_call_gets_one_dek() {
    let bench = Bench::with(0, 300).await;
    let records = [Some("new".into()), None, Some("new".into()), None];
    let deks: Vec<_> =
        bench.keyring.by_record(&bench.tenant, &records, Timestamp(1)).await.into_iter().flatten().collect();
    assert_eq!(deks[0].id, deks[2].id);
    assert_ne!(deks[1].id, deks[3].id, "without a record each value has its own");
    assert_eq!(deks.iter().filter(|dek| dek.new_row.is_some()).count(), 3, "each is committed once");
}

#[tokio::test]
async fn a_record_whose_dek_row_is_gone_gets_a_new_dek() {
    let bench = Bench::with(0, 1).await;
    let records = [Some("r".into())];
    // A DEK that was made and cached for the record but never committed, as if its row had been
    // lost.
    let first = bench.keyring.by_record(&bench.tenant, &records, Timestamp(1)).await.remove(0).ok().unwrap();
    bench.keyring.cache_committed(&bench.tenant, first.new_row.as_ref().unwrap(), &first.dek);
    bench.keyring.evict(bench.tenant.uid, [first.id]);
    let second = bench.keyring.by_record(&bench.tenant, &records, Timestamp(1)).await.remove(0).ok().unwrap();
    assert_ne!(first.id, second.id);
    assert!(second.new_row.is_some());
}

#[tokio::test]
async fn a_cleared_cache_opens_nothing_that_was_in_it() {
    let bench = Bench::with(1, 300).await;
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
    bench.keyring.clear(bench.tenant.uid);
    let source = bench.keyring.by_id(&bench.tenant, &bench.ids).await.remove(0).ok().unwrap().source;
    assert_eq!(source, Source::Kms);
}

fn secret() -> RowMacKey {
    RowMacKey::from_base64(&RowMacKey::generate()).unwrap()
}

fn row_mac() -> RowMac {
    RowMac {
        keys: Some(RowMacKeys { current: secret(), previous: None }),
        settle: Duration::from_secs(3_600),
        required: false,
    }
}

#[tokio::test]
async fn an_edited_row_is_refused_before_the_kms_is_asked() {
    let bench = Bench::bound(3, 300, row_mac()).await;
    let rows = bench.store.deks(bench.tenant.uid, &bench.ids).await.unwrap();
    assert!(rows.iter().all(|row| row.mac.is_some() && row.record_mac.is_some()));
    let edited = |number: usize, edit: fn(&mut DekRow)| {
        let mut row = rows.iter().find(|row| row.id == bench.ids[number]).unwrap().clone();
        edit(&mut row);
        Change::SealDeks(vec![row])
    };
    let edits = vec![edited(0, |row| row.mac = Some([0; 32])), edited(1, |row| row.record_mac = None)];
    let batch = Batch::of_changes(bench.tenant.uid, edits);
    assert_eq!(bench.store.commit(&batch).await.unwrap().applied, [1, 1]);

    let opened = bench.keyring.by_id(&bench.tenant, &bench.ids[..2]).await;
    assert!(opened.iter().all(|dek| matches!(dek, Err(KeyringError::Altered))));
    let records: Vec<_> = ["r-0", "r-1"].map(|record| Some(record.into())).into();
    let found = bench.keyring.by_record(&bench.tenant, &records, Timestamp(2)).await;
    assert!(found.iter().all(|dek| matches!(dek, Err(KeyringError::Altered))));
    assert_eq!(bench.calls(), (0, 0));
    assert_eq!(bench.kms.generated.load(Ordering::Relaxed), 0);
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids[2..]).await[0].is_ok());
}

#[tokio::test]
async fn a_dek_in_memory_is_used_without_reading_its_row() {
    let bench = Bench::bound(1, 300, row_mac()).await;
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
    let mut row = bench.store.deks(bench.tenant.uid, &bench.ids).await.unwrap().remove(0);
    row.mac = Some([0; 32]);
    let batch = Batch::of_changes(bench.tenant.uid, vec![Change::SealDeks(vec![row])]);
    bench.store.commit(&batch).await.unwrap();
    assert!(bench.keyring.by_id(&bench.tenant, &bench.ids).await[0].is_ok());
    assert_eq!(bench.calls(), (1, 1));
}
