//! The DEK pool: DEKs that were made ahead of need, so that an encrypt of a new record does not
//! wait for the KMS. A DEK in the pool is sealed as in the cache, is stored in no table, and is
//! given out once. The fact that it was made does not show that the key works now, so it is used
//! under the same fence as a DEK from the cache. This file calls no KMS: `pool_fill` fills the
//! pool.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::DekPool;
use crate::model::{BootTime, DekId, Tenant, TenantUid, Wrapped};
use crate::telemetry::PoolCounts;

use super::cache::CachedDek;

/// For how long after its last new record a tenant's pool is filled.
const DEMAND_LASTS: Duration = Duration::from_secs(600);
/// The pause after the first fill that failed, and the longest pause. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A DEK that nobody has used.
pub(super) struct PooledDek {
    pub(super) id: DekId,
    pub(super) cached: CachedDek,
    /// The wrapped DEK, which is stored with the first use.
    pub(super) wrapped: Wrapped,
    /// When the KMS was asked for it.
    pub(super) requested: BootTime,
}

/// A fill that is under way.
pub(super) struct Fill {
    /// How many DEKs it is to bring.
    pub(super) count: usize,
    generation: u64,
}

/// The DEKs of one tenant.
struct TenantPool {
    tenant: Tenant,
    /// Oldest first.
    deks: VecDeque<PooledDek>,
    /// How often the pool was emptied. A fill that began before the last time adds nothing.
    generation: u64,
    /// When the last new record needed a DEK.
    last_demand: BootTime,
    is_filling: bool,
    failures: u32,
    /// No fill begins before this time.
    paused_until: BootTime,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantUid, TenantPool>,
    counts: PoolCounts,
}

/// The DEKs that are ready, for all tenants.
pub(super) struct Pool {
    /// The number of DEKs for each tenant; zero turns the pool off.
    size: usize,
    /// How long a DEK may stay here.
    time_to_live: Duration,
    state: Mutex<State>,
    fill_due: Notify,
}

impl Pool {
    pub(super) fn new(settings: DekPool, time_to_live: Duration) -> Self {
        Self { size: settings.size, time_to_live, state: Mutex::default(), fill_due: Notify::new() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.size == 0
    }

    /// Notes that a tenant makes records.
    pub(super) fn note_demand(&self, tenant: &Tenant, now: BootTime) {
        let mut state = self.lock();
        let pool = state.tenants.entry(tenant.uid).or_insert_with(|| TenantPool {
            tenant: tenant.clone(),
            deks: VecDeque::new(),
            generation: 0,
            last_demand: now,
            is_filling: false,
            failures: 0,
            paused_until: BootTime::default(),
        });
        pool.last_demand = now;
    }

    /// Takes out the oldest DEK for good. The caller counts whether it was used.
    pub(super) fn take(&self, tenant: TenantUid, now: BootTime) -> Option<PooledDek> {
        let state = &mut *self.lock();
        let pool = state.tenants.get_mut(&tenant)?;
        state.counts.discarded += pool.drop_old(now, self.time_to_live);
        let dek = pool.deks.pop_front();
        if pool.deks.len() <= self.low_mark() {
            self.fill_due.notify_one();
        }
        dek
    }

    /// Counts the DEKs that were taken out: those that were used, and those that could not be.
    pub(super) fn count_taken(&self, used: usize, discarded: usize) {
        let mut state = self.lock();
        state.counts.taken += used as u64;
        state.counts.discarded += discarded as u64;
    }

    /// Discards what a tenant has, and what a fill under way will bring.
    pub(super) fn clear_tenant(&self, tenant: TenantUid) {
        let state = &mut *self.lock();
        if let Some(pool) = state.tenants.get_mut(&tenant) {
            state.counts.discarded += pool.clear();
        }
    }

    pub(super) fn counts(&self) -> PoolCounts {
        let state = self.lock();
        let held = state.tenants.values().map(|pool| pool.deks.len() as u64).sum();
        PoolCounts { held, ..state.counts }
    }

    /// Waits until a fill may be due.
    pub(super) async fn fill_due(&self) {
        self.fill_due.notified().await;
    }

    /// Drops what is too old and the tenants that need no pool. Returns the tenants whose pool must
    /// be filled.
    pub(super) fn due_fills(&self, now: BootTime) -> Vec<Tenant> {
        let state = &mut *self.lock();
        for pool in state.tenants.values_mut() {
            state.counts.discarded += pool.drop_old(now, self.time_to_live);
        }
        state.tenants.retain(|_, pool| pool.is_needed(now) || pool.is_filling || !pool.deks.is_empty());
        let is_due = |pool: &&TenantPool| {
            pool.is_needed(now)
                && !pool.is_filling
                && now >= pool.paused_until
                && pool.count_lasting(now, self.time_to_live) <= self.low_mark()
        };
        state.tenants.values().filter(is_due).map(|pool| pool.tenant.clone()).collect()
    }

    /// Begins a fill of at most `batch` DEKs. Returns `None` if one is under way.
    pub(super) fn begin_fill(&self, tenant: TenantUid, batch: usize, now: BootTime) -> Option<Fill> {
        let mut state = self.lock();
        let pool = state.tenants.get_mut(&tenant).filter(|pool| !pool.is_filling)?;
        pool.is_filling = true;
        let count = (self.size - pool.count_lasting(now, self.time_to_live)).min(batch);
        Some(Fill { count, generation: pool.generation })
    }

    /// Puts in what a fill brought, unless the pool was emptied since the fill began. If there is
    /// no room, the oldest DEKs are dropped.
    pub(super) fn add(&self, tenant: TenantUid, fill: &Fill, brought: Vec<PooledDek>) -> bool {
        let state = &mut *self.lock();
        state.counts.made += brought.len() as u64;
        let pool = state.tenants.get_mut(&tenant).filter(|pool| pool.generation == fill.generation);
        let Some(pool) = pool else {
            state.counts.discarded += brought.len() as u64;
            return false;
        };
        pool.deks.extend(brought);
        let excess = pool.deks.len().saturating_sub(self.size);
        state.counts.discarded += pool.drop_oldest(excess);
        true
    }

    /// Ends a fill. After a failure none begins for a while: twice as long each time, or at least
    /// as long as the KMS said.
    pub(super) fn end_fill(&self, tenant: TenantUid, now: BootTime, outcome: Result<(), Option<Duration>>) {
        let mut state = self.lock();
        let Some(pool) = state.tenants.get_mut(&tenant) else { return };
        pool.is_filling = false;
        match outcome {
            Ok(()) => pool.failures = 0,
            Err(retry_after) => {
                let pause = (FIRST_PAUSE * 2_u32.pow(pool.failures.min(6))).min(LONGEST_PAUSE);
                pool.failures = pool.failures.saturating_add(1);
                pool.paused_until = now.plus(retry_after.map_or(pause, |asked| asked.max(pause)));
            }
        }
        self.fill_due.notify_one();
    }

    /// Returns the number of DEKs at which the pool is filled again, so that a fill is a batch.
    fn low_mark(&self) -> usize {
        self.size / 2
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TenantPool {
    fn is_needed(&self, now: BootTime) -> bool {
        now.since(self.last_demand) <= DEMAND_LASTS
    }

    /// Returns how many DEKs are not about to be too old. Those in the last quarter of their life
    /// are replaced before it ends.
    fn count_lasting(&self, now: BootTime, time_to_live: Duration) -> usize {
        self.deks.len() - self.count_older(now, time_to_live.mul_f64(0.75))
    }

    fn count_older(&self, now: BootTime, age: Duration) -> usize {
        self.deks.partition_point(|dek| now.since(dek.requested) >= age)
    }

    /// Drops what is too old. Returns how many that were.
    fn drop_old(&mut self, now: BootTime, time_to_live: Duration) -> u64 {
        self.drop_oldest(self.count_older(now, time_to_live))
    }

    fn drop_oldest(&mut self, count: usize) -> u64 {
        self.deks.drain(..count);
        count as u64
    }

    /// Drops everything, and what a fill under way will bring. Returns how many were dropped.
    fn clear(&mut self) -> u64 {
        self.generation += 1;
        std::mem::take(&mut self.deks).len() as u64
    }
}
