//! The DEK pool: DEKs that were made ahead of need, so that an encrypt of a new record does not
//! wait for the KMS. A DEK in the pool is sealed as in the cache, is stored in no table, and is
//! given out once. The fact that it was made does not show that the key works now, so it is used
//! under the same fence as a DEK from the cache. The pool does not call the KMS while the key is
//! not shown to work, nor for a tenant that has not made a record lately.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::DekPool;
use crate::kms::{KmsErrorClass, Purpose};
use crate::model::{BootTime, DekId, KeyVersion, Posture, Source, Tenant, TenantUid, Wrapped};
use crate::telemetry::PoolCounts;

use super::cache::CachedDek;
use super::{Keyring, KeyringError, Made};

/// For how long after its last new record a tenant's pool is filled.
const LATELY: Duration = Duration::from_secs(600);
/// How often the pools are checked when nothing is taken from them.
const LOOK: Duration = Duration::from_secs(1);
/// The pause after the first fill that failed, and the longest pause. It doubles with each failure.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// A DEK that nobody has used.
pub(super) struct PooledDek {
    id: DekId,
    sealed: CachedDek,
    /// The wrapped DEK, which is stored with the first use.
    wrapped: Wrapped,
    /// When the KMS was asked for it.
    asked: BootTime,
}

/// The DEKs of one tenant, oldest first.
struct TenantPool {
    tenant: Tenant,
    deks: VecDeque<PooledDek>,
    /// How often the pool was emptied. A DEK that was requested before the last time is not put
    /// here.
    emptied: u64,
    /// When the last new record needed a DEK.
    wanted: BootTime,
    is_filling: bool,
    failures: u32,
    rests_until: BootTime,
}

/// What one fill is to bring.
struct Order {
    count: usize,
    emptied: u64,
}

/// The DEKs that are ready, for all tenants.
pub(super) struct Pool {
    size: usize,
    life: Duration,
    tenants: Mutex<HashMap<TenantUid, TenantPool>>,
    wake: Notify,
    made: AtomicU64,
    taken: AtomicU64,
    discarded: AtomicU64,
}

impl Pool {
    /// Makes a pool of `settings.size` DEKs for each tenant, none of which stays for longer than
    /// `life`.
    pub(super) fn new(settings: DekPool, life: Duration) -> Self {
        let (made, taken, discarded) = Default::default();
        Self {
            size: settings.size,
            life,
            tenants: Mutex::default(),
            wake: Notify::new(),
            made,
            taken,
            discarded,
        }
    }

    /// Discards what a tenant has, and what a fill under way will bring.
    pub(super) fn empty(&self, tenant: TenantUid) {
        if let Some(pool) = self.lock().get_mut(&tenant) {
            self.clear(pool);
        }
    }

    /// Does the same for all tenants.
    pub(super) fn empty_all(&self) {
        self.lock().values_mut().for_each(|pool| self.clear(pool));
    }

    fn is_off(&self) -> bool {
        self.size == 0
    }

    /// Returns the number of DEKs at which the pool is filled again, so that a fill is a batch.
    fn low(&self) -> usize {
        self.size / 2
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantUid, TenantPool>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self, pool: &mut TenantPool) {
        pool.emptied += 1;
        self.count(&self.discarded, pool.deks.len());
        pool.deks = VecDeque::new();
    }

    fn count(&self, counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Notes that a tenant makes records.
    fn want(&self, tenant: &Tenant, now: BootTime) {
        let mut tenants = self.lock();
        let pool = tenants.entry(tenant.uid).or_insert_with(|| TenantPool {
            tenant: tenant.clone(),
            deks: VecDeque::new(),
            emptied: 0,
            wanted: now,
            is_filling: false,
            failures: 0,
            rests_until: BootTime::default(),
        });
        pool.wanted = now;
    }

    /// Takes out the oldest DEK for good.
    fn pop(&self, tenant: TenantUid, now: BootTime) -> Option<PooledDek> {
        let mut tenants = self.lock();
        let pool = tenants.get_mut(&tenant)?;
        self.drop_old(pool, now);
        let ready = pool.deks.pop_front();
        if pool.deks.len() <= self.low() {
            self.wake.notify_one();
        }
        ready
    }

    fn drop_old(&self, pool: &mut TenantPool, now: BootTime) {
        let old = pool.deks.partition_point(|ready| now.since(ready.asked) >= self.life);
        pool.deks.drain(..old);
        self.count(&self.discarded, old);
    }

    /// Drops what is too old and the tenants that are not needed. Returns the tenants whose pool
    /// must be filled.
    fn look(&self, now: BootTime) -> Vec<Tenant> {
        let mut tenants = self.lock();
        tenants.values_mut().for_each(|pool| self.drop_old(pool, now));
        let needed = |pool: &TenantPool| now.since(pool.wanted) <= LATELY;
        tenants.retain(|_, pool| needed(pool) || pool.is_filling || !pool.deks.is_empty());
        let due = |pool: &&TenantPool| {
            needed(pool)
                && !pool.is_filling
                && now >= pool.rests_until
                && self.lasting(pool, now) <= self.low()
        };
        tenants.values().filter(due).map(|pool| pool.tenant.clone()).collect()
    }

    /// Returns how many DEKs will last. Those in the last quarter of their life are replaced before
    /// it ends.
    fn lasting(&self, pool: &TenantPool, now: BootTime) -> usize {
        let fading = pool.deks.partition_point(|ready| now.since(ready.asked) >= self.life.mul_f64(0.75));
        pool.deks.len() - fading
    }

    /// Begins a fill of at most `batch` DEKs. Returns `None` if one is under way.
    fn begin(&self, tenant: TenantUid, batch: usize, now: BootTime) -> Option<Order> {
        let mut tenants = self.lock();
        let pool = tenants.get_mut(&tenant).filter(|pool| !pool.is_filling)?;
        let count = (self.size - self.lasting(pool, now)).min(batch);
        pool.is_filling = true;
        Some(Order { count, emptied: pool.emptied })
    }

    /// Puts in what a fill brought, unless the pool was emptied since the fill began. If there is
    /// no room, the oldest DEKs are dropped.
    fn put(&self, tenant: TenantUid, order: &Order, brought: Vec<PooledDek>) -> bool {
        self.count(&self.made, brought.len());
        let mut tenants = self.lock();
        let pool = tenants.get_mut(&tenant).filter(|pool| pool.emptied == order.emptied);
        let Some(pool) = pool else {
            self.count(&self.discarded, brought.len());
            return false;
        };
        pool.deks.extend(brought);
        let over = pool.deks.len().saturating_sub(self.size);
        pool.deks.drain(..over);
        self.count(&self.discarded, over);
        true
    }

    /// Ends a fill. After a failure the pool rests: twice as long each time, or at least as long as
    /// the KMS said.
    fn end(&self, tenant: TenantUid, now: BootTime, outcome: Result<(), Option<Duration>>) {
        let mut tenants = self.lock();
        let Some(pool) = tenants.get_mut(&tenant) else { return };
        pool.is_filling = false;
        match outcome {
            Ok(()) => pool.failures = 0,
            Err(asked) => {
                let rest = (FIRST_REST * 2_u32.pow(pool.failures.min(6))).min(LONGEST_REST);
                pool.failures = pool.failures.saturating_add(1);
                pool.rests_until = now.plus(asked.map_or(rest, |asked| asked.max(rest)));
            }
        }
        self.wake.notify_one();
    }

    fn counts(&self) -> PoolCounts {
        let held = self.lock().values().map(|pool| pool.deks.len() as u64).sum();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolCounts { held, made: of(&self.made), taken: of(&self.taken), discarded: of(&self.discarded) }
    }
}

/// A fill that is under way. If it does not come to its end, it counts as failed.
struct Filling<'a> {
    keyring: &'a Keyring,
    tenant: TenantUid,
    outcome: Result<(), Option<Duration>>,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.keyring.pool.end(self.tenant, self.keyring.boot(), self.outcome);
    }
}

impl Keyring {
    /// Keeps the pools filled until `stop` is cancelled. Returns at once if there are none.
    pub async fn run_pool(self: Arc<Self>, stop: CancellationToken) {
        while !self.pool.is_off() {
            let now = self.boot();
            for tenant in self.pool.look(now) {
                if self.rows.can_make()
                    && self.works_now(tenant.uid)
                    && let Some(order) = self.pool.begin(tenant.uid, self.kms.profile().batch_limit, now)
                {
                    tokio::spawn(self.clone().fill(tenant, order));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pool.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Returns how many DEKs were made ahead of need, and what happened to them.
    pub fn pool_counts(&self) -> PoolCounts {
        self.pool.counts()
    }

    /// Notes under which version the KMS wraps now. DEKs that were made ahead under another version
    /// are no longer used.
    pub fn note_current_version(&self, tenant: TenantUid, version: &KeyVersion) {
        let before = self.current.get(&tenant).map(|current| current.clone());
        if before.as_ref().map(|(before, _)| before) != Some(version) {
            self.current.insert(tenant, (version.clone(), before.and_then(|(_, tried)| tried)));
            self.pool.empty(tenant);
        }
    }

    /// Returns up to `count` DEKs that were made ahead, each of which is given out only this once.
    pub(super) fn take_from_pool(&self, tenant: &Tenant, count: usize) -> Vec<(DekId, Made)> {
        let mut taken = Vec::new();
        if self.pool.is_off() || count == 0 {
            return taken;
        }
        let now = self.boot();
        self.pool.want(tenant, now);
        let (mut known, mut discarded) = (Vec::new(), 0);
        while taken.len() < count
            && let Some(PooledDek { id, sealed, wrapped, .. }) = self.pool.pop(tenant.uid, now)
        {
            let current =
                self.current.get(&tenant.uid).is_some_and(|current| current.0 == sealed.key_version);
            let may = current && self.is_among(tenant.uid, &sealed, &mut known);
            // This is not a proof that the key works: the DEK may have been made long ago.
            let held = may.then(|| self.cache.open(tenant.uid, id, &sealed, Source::Cache)).flatten();
            match held {
                Some(held) => taken.push((id, Ok((held, wrapped)))),
                None => discarded += 1,
            }
        }
        self.pool.count(&self.pool.taken, taken.len());
        self.pool.count(&self.pool.discarded, discarded);
        taken
    }

    /// Returns whether the version under which DEKs are made is active and was shown to work in
    /// time. Otherwise, the DEKs would be thrown away.
    fn works_now(&self, tenant: TenantUid) -> bool {
        let current = self.current.get(&tenant).map(|current| current.0.clone());
        let state = current.and_then(|current| self.states.get(tenant, &current));
        state.is_some_and(|state| {
            state.posture == Posture::Active && state.proof_age(self.boot()) <= self.guard.bound()
        })
    }

    async fn fill(self: Arc<Self>, tenant: Tenant, order: Order) {
        let mut filling = Filling { keyring: &self, tenant: tenant.uid, outcome: Err(None) };
        let asked = self.boot();
        let made = self.make(&tenant, order.count, Purpose::RecordAhead).await;
        let mut brought = Vec::with_capacity(made.len());
        let mut versions: Vec<KeyVersion> = Vec::new();
        let mut failed = None;
        for (id, made) in made {
            match made {
                Ok((held, wrapped)) => {
                    let under = (held.key_version.clone(), held.epoch);
                    if !versions.contains(&held.key_version) {
                        versions.push(held.key_version.clone());
                    }
                    let sealed =
                        self.cache.seal(tenant.uid, id, &held.dek, under, held.kms_request_id.clone(), true);
                    brought.push(PooledDek { id, sealed, wrapped, asked });
                }
                Err(error) => failed = Some(error),
            }
        }
        if self.pool.put(tenant.uid, &order, brought) {
            versions.iter().for_each(|version| self.note_in_memory(tenant.uid, version));
        }
        filling.outcome = match failed {
            None if !versions.is_empty() => Ok(()),
            None => Err(None),
            Some(error) => {
                warn!(tenant = tenant.name, ?error, "DEKs could not be made ahead of need");
                Err(match error {
                    // A login that pauses continues at once with another credential.
                    KeyringError::Kms(error) => {
                        error.retry_after.filter(|_| error.class == KmsErrorClass::BudgetSpent)
                    }
                    KeyringError::Missing
                    | KeyringError::Altered
                    | KeyringError::Unsealed
                    | KeyringError::RowMacKeyMissing
                    | KeyringError::KeyUnusable(_)
                    | KeyringError::Store(_) => None,
                })
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DekCache;
    use crate::crypto::Dek;
    use crate::keyring::cache::Cache;

    const LIFE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> BootTime {
        BootTime::at(Duration::from_secs(seconds))
    }

    fn tenant() -> Tenant {
        Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() }
    }

    fn pool(size: usize) -> Pool {
        let pool = Pool::new(DekPool { size }, LIFE);
        pool.want(&tenant(), at(0));
        pool
    }

    fn made(count: usize, asked: BootTime) -> Vec<PooledDek> {
        let cache = Cache::new(DekCache { time_to_live: LIFE, entries: 10 });
        let version = KeyVersion::new("byok", "1");
        let ready = |_| {
            let id = DekId::new();
            let under = (version.clone(), 0);
            let sealed = cache.seal(tenant().uid, id, &Dek::generate(), under, None, true);
            let wrapped = Wrapped { key_version: version.clone(), scheme: 1, bytes: vec![1] };
            PooledDek { id, sealed, wrapped, asked }
        };
        (0..count).map(ready).collect()
    }

    /// Runs a fill that brings as many DEKs as it was ordered to bring, or as many as given.
    fn fill(pool: &Pool, now: BootTime, brings: Option<usize>) {
        let order = pool.begin(tenant().uid, 1_000, now).unwrap();
        assert!(pool.put(tenant().uid, &order, made(brings.unwrap_or(order.count), now)));
        pool.end(tenant().uid, now, Ok(()));
    }

    fn is_due(pool: &Pool, now: BootTime) -> bool {
        !pool.look(now).is_empty()
    }

    fn take(pool: &Pool, count: usize, now: BootTime) -> Vec<DekId> {
        (0..count).filter_map(|_| pool.pop(tenant().uid, now)).map(|ready| ready.id).collect()
    }

    #[test]
    fn it_is_filled_to_its_size_and_refilled_at_half() {
        let pool = pool(10);
        assert!(is_due(&pool, at(0)));
        fill(&pool, at(0), None);
        assert_eq!(pool.counts(), PoolCounts { held: 10, made: 10, taken: 0, discarded: 0 });
        take(&pool, 4, at(1));
        assert!(!is_due(&pool, at(1)));
        take(&pool, 1, at(1));
        assert!(is_due(&pool, at(1)));
        assert_eq!(pool.begin(tenant().uid, 1_000, at(1)).unwrap().count, 5);
    }

    #[test]
    fn it_never_holds_more_than_its_size() {
        let pool = pool(10);
        fill(&pool, at(0), Some(25));
        assert_eq!(pool.counts(), PoolCounts { held: 10, made: 25, taken: 0, discarded: 15 });
        assert_eq!(take(&pool, 100, at(0)).len(), 10);
    }

    #[test]
    fn the_oldest_goes_first_and_none_goes_twice() {
        let pool = pool(4);
        fill(&pool, at(0), Some(2));
        let first = take(&pool, 1, at(1));
        fill(&pool, at(2), Some(2));
        let rest = take(&pool, 10, at(2));
        assert_eq!(rest.len(), 3);
        assert!(!rest.contains(&first[0]));
        assert!(rest.is_sorted(), "ids sort by the time they were made");
    }

    #[test]
    fn there_is_one_fill_at_a_time_of_at_most_a_batch() {
        let pool = pool(10);
        assert_eq!(pool.begin(tenant().uid, 3, at(0)).unwrap().count, 3);
        assert!(!is_due(&pool, at(0)));
        assert!(pool.begin(tenant().uid, 3, at(0)).is_none());
        pool.end(tenant().uid, at(0), Ok(()));
        assert!(is_due(&pool, at(0)));
    }

    #[test]
    fn what_was_requested_before_the_pool_was_emptied_is_not_added() {
        let pool = pool(10);
        fill(&pool, at(0), Some(3));
        let order = pool.begin(tenant().uid, 10, at(1)).unwrap();
        pool.empty(tenant().uid);
        assert_eq!(pool.counts(), PoolCounts { held: 0, made: 3, taken: 0, discarded: 3 });
        assert!(!pool.put(tenant().uid, &order, made(7, at(1))));
        assert_eq!(pool.counts(), PoolCounts { held: 0, made: 10, taken: 0, discarded: 10 });
    }

    #[test]
    fn what_is_old_is_replaced_early_and_never_given_out_late() {
        let pool = pool(4);
        fill(&pool, at(0), None);
        assert!(!is_due(&pool, at(224)));
        assert!(is_due(&pool, at(225)));
        let before = pool.counts();
        fill(&pool, at(225), None);
        assert_eq!(pool.counts(), PoolCounts { held: 4, made: 8, taken: 0, discarded: before.discarded + 4 });
        assert_eq!(take(&pool, 1, at(524)).len(), 1);
        assert!(take(&pool, 1, at(525)).is_empty());
        assert_eq!(pool.counts().held, 0);
    }

    #[test]
    fn who_makes_no_records_is_forgotten() {
        let pool = pool(2);
        fill(&pool, at(0), None);
        assert!(is_due(&pool, at(600)), "what was there is too old");
        assert!(!is_due(&pool, at(601)));
        assert!(pool.lock().is_empty());
        pool.want(&tenant(), at(700));
        assert!(is_due(&pool, at(700)));
    }

    #[test]
    fn a_fill_that_failed_is_followed_by_a_rest_that_doubles() {
        let pool = pool(2);
        let mut now = 0;
        for rest in [1, 2, 4, 8, 16, 32, 60, 60] {
            pool.want(&tenant(), at(now));
            pool.begin(tenant().uid, 2, at(now)).unwrap();
            pool.end(tenant().uid, at(now), Err(None));
            assert!(!is_due(&pool, at(now + rest - 1)), "{rest}");
            assert!(is_due(&pool, at(now + rest)), "{rest}");
            now += rest;
        }
        pool.begin(tenant().uid, 2, at(now)).unwrap();
        pool.end(tenant().uid, at(now), Err(Some(Duration::from_secs(90))));
        assert!(!is_due(&pool, at(now + 89)));
        fill(&pool, at(now + 90), Some(1));
        pool.begin(tenant().uid, 2, at(now + 90)).unwrap();
        pool.end(tenant().uid, at(now + 90), Err(None));
        assert!(is_due(&pool, at(now + 91)), "after a success it begins anew");
    }
}
