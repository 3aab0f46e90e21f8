//! Limits how many calls may wait for a KMS at once. A KMS that is slow, or hangs, holds each of
//! its calls until they time out. Past the tenant's share, further calls are refused at once, so
//! that calls whose DEKs are cached, and other tenants, are still served.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::{ErrorCode, Refusal, TenantUid};

/// The retry delay for a refused caller.
const COME_BACK: Duration = Duration::from_secs(1);

/// The permits of calls that wait for a KMS, out of all calls that the server works on.
pub(super) struct KmsPermits {
    most: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    all: usize,
    by_tenant: HashMap<TenantUid, usize>,
}

/// A permit, which is released when dropped.
pub(super) struct KmsPermit<'a> {
    permits: &'a KmsPermits,
    tenant: TenantUid,
}

impl KmsPermits {
    /// Creates the permits of a server that works on at most this many calls at once.
    pub(super) fn new(most: usize) -> Self {
        Self { most, waiting: Mutex::default() }
    }

    /// Takes a permit for a call that may have to wait for its tenant's KMS. A tenant may hold at
    /// most as many permits as are left for all: one slow KMS takes half of them, and `n` slow ones
    /// leave one part in `n + 1` to everybody else. If there is no permit left for the tenant, a
    /// call whose DEKs are all cached proceeds without one.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the tenant has its share, and a DEK of the call is not cached.
    pub(super) fn take(
        &self,
        tenant: TenantUid,
        is_cached: impl FnOnce() -> bool,
    ) -> Result<Option<KmsPermit<'_>>, Refusal> {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let left = self.most.saturating_sub(waiting.all);
            let own = waiting.by_tenant.entry(tenant).or_default();
            if *own < left {
                *own += 1;
                waiting.all += 1;
                return Ok(Some(KmsPermit { permits: self, tenant }));
            }
            if *own == 0 {
                waiting.by_tenant.remove(&tenant);
            }
        }
        if is_cached() { Ok(None) } else { Err(Refusal::from(ErrorCode::Unavailable).after(COME_BACK)) }
    }
}

impl Drop for KmsPermit<'_> {
    fn drop(&mut self) {
        let mut waiting = self.permits.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.all -= 1;
        if let Some(own) = waiting.by_tenant.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                waiting.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNCACHED: fn() -> bool = || false;

    fn fill(permits: &KmsPermits, tenant: u8) -> Vec<KmsPermit<'_>> {
        std::iter::from_fn(|| permits.take(TenantUid([tenant; 16]), UNCACHED).ok().flatten()).collect()
    }

    #[test]
    fn one_slow_kms_takes_half_and_two_leave_a_third() {
        let permits = KmsPermits::new(90);
        let one = fill(&permits, 1);
        assert_eq!(one.len(), 45);
        drop(one);
        assert_eq!(fill(&permits, 1).len(), 45, "they are free again");
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..90 {
            one.extend(permits.take(TenantUid([1; 16]), UNCACHED).ok().flatten());
            two.extend(permits.take(TenantUid([2; 16]), UNCACHED).ok().flatten());
        }
        assert_eq!((one.len(), two.len()), (30, 30));
        assert_eq!(fill(&permits, 3).len(), 15, "a third one has half of what is left");
    }

    #[test]
    fn past_its_share_a_tenant_is_served_what_is_cached() {
        let permits = KmsPermits::new(1);
        let held = fill(&permits, 1);
        assert_eq!(held.len(), 1, "even the only permit can be had");
        let refused = permits.take(TenantUid([1; 16]), UNCACHED).err().unwrap();
        assert_eq!((refused.code, refused.retry_after), (ErrorCode::Unavailable, Some(COME_BACK)));
        assert!(permits.take(TenantUid([1; 16]), || true).unwrap().is_none());
        drop(held);
        assert!(permits.waiting.lock().unwrap().by_tenant.is_empty(), "nothing is kept of who does not wait");
    }
}
