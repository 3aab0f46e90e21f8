//! Tenants of rows that the tests change, whose reads take a moment and are counted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex as SyncMutex, MutexGuard};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::{advance, sleep, timeout};

use crate::model::{KeyId, Tenant};
use crate::store::{KeyRow, KeyState, Stage};
use crate::tenancy::Key;

use super::*;

const ACME: TenantUid = TenantUid([1; 16]);
/// How long a read takes.
const READ: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// The rows of one tenant, and the number of reads of each kind.
struct Rows {
    tenant: SyncMutex<Result<TenantRow, ReadError>>,
    keys: SyncMutex<Vec<KeyRow>>,
    by_name: AtomicUsize,
    by_uid: AtomicUsize,
    of_keys: AtomicUsize,
}

impl Rows {
    fn tenant(&self) -> MutexGuard<'_, Result<TenantRow, ReadError>> {
        self.tenant.lock().unwrap()
    }

    fn update(&self, update: impl FnOnce(&mut TenantRow)) {
        update(self.tenant().as_mut().unwrap());
    }

    fn reads(&self) -> [usize; 3] {
        [&self.by_name, &self.by_uid, &self.of_keys].map(|reads| reads.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl TenancyReads for Rows {
    async fn tenant_named(&self, name: &str) -> Result<Option<TenantRow>, ReadError> {
        self.by_name.fetch_add(1, Ordering::SeqCst);
        let row = self.tenant().clone();
        sleep(READ).await;
        row.map(|row| Some(row).filter(|row| row.tenant.name == name))
    }

    async fn tenant_with(&self, uid: TenantUid) -> Result<Option<TenantRow>, ReadError> {
        self.by_uid.fetch_add(1, Ordering::SeqCst);
        let row = self.tenant().clone();
        sleep(READ).await;
        row.map(|row| Some(row).filter(|row| row.tenant.uid == uid))
    }

    async fn keys(&self, _: TenantUid) -> Result<Vec<KeyRow>, ReadError> {
        self.of_keys.fetch_add(1, Ordering::SeqCst);
        let keys = self.keys.lock().unwrap().clone();
        sleep(READ).await;
        Ok(keys)
    }
}

/// The tenant `acme`, its rows, and how many clients of its keys were built.
fn acme() -> (Arc<Claimed>, Arc<Rows>, Arc<AtomicUsize>) {
    let tenant = Tenant { uid: ACME, name: "acme".to_owned() };
    let row = TenantRow { tenant, stage: Stage::Active, revision: 1, locked: false };
    let key = KeyRow {
        id: KeyId::FIRST,
        label: "default".to_owned(),
        state: KeyState::Current,
        provider: None,
        region: None,
        identifier: None,
        credential_ref: None,
        revision: 1,
    };
    let rows = Arc::new(Rows {
        tenant: SyncMutex::new(Ok(row)),
        keys: SyncMutex::new(vec![key]),
        by_name: AtomicUsize::new(0),
        by_uid: AtomicUsize::new(0),
        of_keys: AtomicUsize::new(0),
    });
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let open_key: Box<OpenKey> = Box::new(move |_, row| {
        count.fetch_add(1, Ordering::SeqCst);
        Some(Key::uncalled(row.id))
    });
    let claimed = Claimed::new(rows.clone(), open_key, TenantSettings::of_variables([]));
    (Arc::new(claimed), rows, opened)
}

fn revision(served: Served) -> Result<u64, NotServed> {
    served.map(|runtime| runtime.revision.unwrap())
}

#[tokio::test(start_paused = true)]
async fn many_first_calls_of_a_tenant_prepare_it_once() {
    let (acme, rows, opened) = acme();
    let named = join_all((0..100).map(|_| acme.named("acme")));
    let with = join_all((0..100).map(|_| acme.with(ACME)));
    let (named, with) = tokio::join!(named, with);
    assert!(named.into_iter().chain(with).all(|served| served.is_ok()));
    assert_eq!((rows.reads(), opened.load(Ordering::SeqCst)), ([1, 1, 1], 1));
    assert!(acme.named("acme").await.is_ok() && acme.with(ACME).await.is_ok());
    assert_eq!(rows.reads(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn callers_who_hang_up_begin_no_read_anew() {
    let (acme, rows, _) = acme();
    for _ in 0..9 {
        assert!(timeout(READ / 10, acme.named("acme")).await.is_err());
    }
    assert!(acme.named("acme").await.is_ok());
    assert_eq!(rows.reads(), [1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_for_those_who_waited_and_no_others() {
    let (acme, rows, _) = acme();
    let row = std::mem::replace(&mut *rows.tenant(), Err(ReadError::Unavailable));
    let failed = join_all((0..100).map(|_| acme.named("acme"))).await;
    let is_out_of_reach = |served: &Served| revision(served.clone()) == Err(ReadError::Unavailable.into());
    assert!(failed.iter().all(is_out_of_reach));
    assert_eq!(rows.reads(), [1, 0, 0]);
    *rows.tenant() = row;
    assert_eq!(revision(acme.named("acme").await), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_claim_costs_one_read_a_second() {
    let (acme, rows, _) = acme();
    for _ in 0..100 {
        assert_eq!(acme.named("globex").await.err(), Some(NotServed::Unknown));
    }
    assert_eq!(rows.reads(), [1, 0, 0]);
    rows.update(|row| row.tenant.name = "globex".to_owned());
    assert_eq!(acme.named("globex").await.err(), Some(NotServed::Unknown));
    advance(SECOND).await;
    assert!(acme.named("globex").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_tenant_can_have_costs_no_read() {
    let (acme, rows, _) = acme();
    assert_eq!(acme.named(&"a".repeat(257)).await.err(), Some(NotServed::Unknown));
    assert_eq!(rows.reads(), [0, 0, 0]);
    assert_eq!(acme.named(&"a".repeat(256)).await.err(), Some(NotServed::Unknown));
    assert_eq!(rows.reads(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn rows_are_read_again_after_half_a_minute() {
    let (acme, rows, opened) = acme();
    assert_eq!(revision(acme.named("acme").await), Ok(1));
    rows.update(|row| row.revision = 2);
    advance(HALF_A_MINUTE - SECOND).await;
    assert_eq!(revision(acme.named("acme").await), Ok(1));
    advance(SECOND).await;
    assert_eq!(revision(acme.named("acme").await), Ok(2));
    assert_eq!((rows.reads(), opened.load(Ordering::SeqCst)), ([2, 0, 2], 1));
}

#[tokio::test(start_paused = true)]
async fn an_older_row_does_not_replace_a_newer_one() {
    let (acme, rows, _) = acme();
    rows.update(|row| row.revision = 2);
    assert_eq!(revision(acme.with(ACME).await), Ok(2));
    advance(HALF_A_MINUTE).await;
    rows.update(|row| row.revision = 1);
    assert_eq!(revision(acme.with(ACME).await), Ok(2));
    assert_eq!(revision(acme.named("acme").await), Ok(2));
    assert_eq!(revision(acme.refreshed(ACME).await), Ok(1), "what is known is forgotten first");
    // The row of a read that began before the tenant was locked arrives afterwards.
    advance(HALF_A_MINUTE).await;
    let slow = acme.named("acme");
    let lock = async {
        sleep(READ / 2).await;
        rows.update(|row| (row.revision, row.locked) = (3, true));
        acme.refreshed(ACME).await
    };
    let (slow, locked) = tokio::join!(slow, lock);
    assert_eq!([slow.err(), locked.err()], [Some(NotServed::Locked); 2]);
    rows.update(|row| (row.revision, row.locked) = (2, false));
    advance(SECOND).await;
    assert_eq!(acme.with(ACME).await.err(), Some(NotServed::Locked));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_opens_only_keys_whose_rows_have_changed() {
    let (acme, rows, opened) = acme();
    let before = acme.with(ACME).await.unwrap();
    rows.update(|row| (row.revision, row.stage) = (2, Stage::HandedOff));
    let after = acme.refreshed(ACME).await.unwrap();
    assert_eq!((after.revision, after.stage, opened.load(Ordering::SeqCst)), (Some(2), Stage::HandedOff, 1));
    let kms = |runtime: &TenantRuntime| runtime.keys.key(KeyId::FIRST).unwrap().kms.clone();
    assert!(Arc::ptr_eq(&kms(&before), &kms(&after)));
    rows.update(|row| row.revision = 3);
    rows.keys.lock().unwrap()[0].revision = 2;
    assert!(acme.refreshed(ACME).await.is_ok());
    assert_eq!((rows.reads(), opened.load(Ordering::SeqCst)), ([0, 3, 3], 2));
    assert!(acme.refreshed(ACME).await.is_ok());
    assert_eq!(rows.reads(), [0, 4, 3], "the revision is the same");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_reads_what_was_there_when_it_was_asked_for() {
    let (acme, rows, _) = acme();
    let refreshes = |after: Duration| {
        let (acme, rows) = (acme.clone(), rows.clone());
        async move {
            sleep(after).await;
            rows.update(|row| row.revision += 1);
            let asked = rows.tenant().as_ref().unwrap().revision;
            let refreshed = join_all((0..100).map(|_| acme.refreshed(ACME))).await;
            assert!(refreshed.into_iter().all(|served| revision(served).unwrap() >= asked));
        }
    };
    // The others come while the first read is under way.
    join_all((0..5).map(|n| refreshes(READ / 8 * n))).await;
    assert_eq!(rows.reads()[1], 2);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_locked_is_read_once_a_second() {
    let (acme, rows, opened) = acme();
    rows.update(|row| row.locked = true);
    for _ in 0..100 {
        assert_eq!(acme.named("acme").await.err(), Some(NotServed::Locked));
        assert_eq!(acme.with(ACME).await.err(), Some(NotServed::Locked));
    }
    assert_eq!((rows.reads(), opened.load(Ordering::SeqCst)), ([1, 0, 0], 0));
    assert!(acme.known(ACME).is_none() && acme.served().is_empty());
    rows.update(|row| row.locked = false);
    advance(SECOND).await;
    assert!(acme.with(ACME).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_renamed_loses_its_former_name() {
    let (acme, rows, opened) = acme();
    assert!(acme.named("acme").await.is_ok());
    rows.update(|row| row.tenant.name = "acme-2".to_owned());
    for _ in 0..100 {
        assert!(acme.named("acme-2").await.is_ok());
        assert_eq!(acme.named("acme").await.err(), Some(NotServed::Unknown));
    }
    assert_eq!((rows.reads(), opened.load(Ordering::SeqCst)), ([3, 0, 1], 1));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_being_prepared_gets_the_newest_settings() {
    let (acme, _, opened) = acme();
    let change = async {
        sleep(READ / 2).await;
        acme.update_settings(|settings| settings.rates.encrypt_calls = std::num::NonZeroU32::MIN);
    };
    let (prepared, ()) = tokio::join!(acme.named("acme"), change);
    assert_eq!(prepared.unwrap().settings.rates.encrypt_calls.get(), 1);
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}
