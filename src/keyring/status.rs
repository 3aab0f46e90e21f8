//! What the keyring reports without calling the KMS: which DEKs are in memory, the status of each
//! key version, and counts.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{DekId, KeyVersion, Posture, Tenant, TenantUid};

use super::Keyring;

/// A key version, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// The key version.
    pub key_version: KeyVersion,
    /// Whether it can be used.
    pub posture: Posture,
    /// A lower bound on how long ago it was shown to work; `None` if that is not known.
    pub proof_age: Option<Duration>,
    /// Whether its DEKs may be in this replica's memory.
    pub in_memory: bool,
}

impl Keyring {
    /// Returns whether the DEKs with these ids are all in memory. That may change a moment later.
    pub fn are_cached(&self, tenant: TenantUid, ids: &[DekId]) -> bool {
        let is_cached = |id: &DekId| {
            let cached = self.memory.cache.get(tenant, *id);
            cached.is_some_and(|cached| self.memory.is_current(tenant, &cached))
        };
        ids.iter().all(is_cached)
    }

    /// Returns whether the newest DEKs of these records are all in memory. `false` if any record is
    /// `None`, because a DEK is always made for it.
    pub fn are_records_cached(&self, tenant: TenantUid, records: &[Option<Arc<str>>]) -> bool {
        let is_cached = |record: &Arc<str>| {
            let id = self.memory.cache.get_record(tenant, record);
            id.is_some_and(|id| self.are_cached(tenant, &[id]))
        };
        records.iter().all(|record| record.as_ref().is_some_and(is_cached))
    }

    /// Returns the approximate number of DEKs in the cache.
    pub fn cached_count(&self) -> u64 {
        self.memory.cache.len()
    }

    /// Returns the version under which the last DEK of a tenant was made.
    pub fn current_version(&self, tenant: TenantUid) -> Option<KeyVersion> {
        self.states.current.get(tenant)
    }

    /// Returns the status of each key version that this replica knows, without calling the
    /// database or the KMS.
    pub fn key_statuses(&self, tenant: TenantUid) -> Vec<KeyStatus> {
        let now = self.clock.boot();
        let all = self.states.all().into_iter().filter(|(owner, ..)| *owner == tenant);
        all.map(|(_, key_version, state)| KeyStatus {
            key_version,
            posture: state.posture,
            proof_age: Some(state.proof_age(now)).filter(|age| *age < Duration::MAX),
            in_memory: state.is_in_memory(now),
        })
        .collect()
    }

    /// Does the same with what the other replicas have written; without it if the database does not
    /// answer.
    pub async fn reread_key_statuses(&self, tenant: &Tenant) -> Vec<KeyStatus> {
        self.prober.read_proofs(tenant.uid).await;
        self.key_statuses(tenant.uid)
    }

    /// Returns how many probes of this replica had each result, by name.
    pub fn probes(&self) -> [(&'static str, u64); 3] {
        self.prober.counts().probes()
    }

    /// Returns how many incidents this replica has written, by the posture that they changed to.
    pub fn incidents(&self) -> [(Posture, u64); 3] {
        self.prober.counts().incidents()
    }
}
