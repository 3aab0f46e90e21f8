//! The DEKs in memory, cached and pooled, and whether they may still be used: only while their key
//! version is active under the epoch that they were unwrapped under.

use std::sync::Arc;

use crate::model::{Clock, DekId, KeyVersion, TenantUid};
use crate::tenancy::Tenants;

use super::cache::{Cache, CachedDek};
use super::key_state::KeyStates;
use super::pool::Pool;
use super::prober::DropDeks;

/// All DEKs that this process has in memory.
pub(super) struct DekMemory {
    pub(super) cache: Cache,
    pub(super) pool: Pool,
    states: Arc<KeyStates>,
    tenants: Tenants,
    clock: Arc<dyn Clock>,
}

/// Which key versions and epochs are current. It is kept during one pass over the memory: most
/// calls have many DEKs of one version.
#[derive(Default)]
pub(super) struct CurrentEpochs(Vec<(KeyVersion, u64, bool)>);

impl DekMemory {
    pub(super) fn new(
        cache: Cache,
        pool: Pool,
        states: Arc<KeyStates>,
        tenants: Tenants,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { cache, pool, states, tenants, clock }
    }

    /// Returns whether a DEK may be used.
    pub(super) fn is_current(&self, tenant: TenantUid, cached: &CachedDek) -> bool {
        let state = self.states.get(tenant, &cached.key_version).filter(|_| cached.opens());
        state.is_some_and(|state| state.is_active_under(cached.epoch))
    }

    /// Does the same for one of many DEKs: each version and epoch is looked up once.
    pub(super) fn is_current_among(
        &self,
        tenant: TenantUid,
        cached: &CachedDek,
        known: &mut CurrentEpochs,
    ) -> bool {
        let has_same = |(version, epoch, _): &&(KeyVersion, u64, bool)| {
            *epoch == cached.epoch && *version == cached.key_version
        };
        match known.0.iter().find(has_same) {
            Some((.., is_current)) => *is_current && cached.opens(),
            None => {
                let is_current = self.is_current(tenant, cached);
                known.0.push((cached.key_version.clone(), cached.epoch, is_current));
                is_current
            }
        }
    }

    /// Keeps a DEK in memory, unless the posture of its key version has changed since the DEK was
    /// requested.
    pub(super) fn cache_if_current(&self, tenant: TenantUid, id: DekId, cached: Arc<CachedDek>) {
        if self.cache.is_on() && self.is_current(tenant, &cached) {
            self.cache.put(tenant, id, cached.clone());
            self.note_in_memory(tenant, &cached.key_version);
        }
        // A DEK whose posture changed between the check and the put would otherwise stay.
        if !self.is_current(tenant, &cached) {
            self.cache.remove(tenant, id);
        }
    }

    /// Notes that DEKs of a version are in memory from now on.
    pub(super) fn note_in_memory(&self, tenant: TenantUid, version: &KeyVersion) {
        self.states.note_in_memory(tenant, version, self.clock.boot(), self.cache.time_to_live());
    }
}

impl DropDeks for DekMemory {
    /// Wipes the tenant's sealing key. The connections to its KMSes are closed as well, because
    /// their buffers hold the last data that came over them.
    fn drop_tenant_deks(&self, tenant: TenantUid) {
        self.cache.clear_tenant(tenant);
        self.pool.clear_tenant(tenant);
        if let Some(runtime) = self.tenants.known(tenant) {
            runtime.keys.hang_up();
        }
    }

    fn drop_pooled_deks(&self, tenant: TenantUid) {
        self.pool.clear_tenant(tenant);
    }
}
