//! Counts the results of probes and the incidents, and reports the state of key versions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::{KeyVersion, Posture, Tenant, TenantUid};

use super::Keyring;
use super::posture::ProbeResult;

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

/// How often each result and each change occurred on this replica since it started.
#[derive(Default)]
pub(super) struct ProbeCounts {
    works: AtomicU64,
    refused: AtomicU64,
    out_of_reach: AtomicU64,
    active: AtomicU64,
    degraded: AtomicU64,
    revoked: AtomicU64,
}

impl ProbeCounts {
    pub(super) fn count_probe(&self, result: ProbeResult) {
        let count = match result {
            ProbeResult::Works => &self.works,
            ProbeResult::Refused => &self.refused,
            ProbeResult::OutOfReach => &self.out_of_reach,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_incident(&self, to: Posture) {
        self.incidents_of(to).fetch_add(1, Ordering::Relaxed);
    }

    fn incidents_of(&self, posture: Posture) -> &AtomicU64 {
        match posture {
            Posture::Active => &self.active,
            Posture::Degraded => &self.degraded,
            Posture::Revoked => &self.revoked,
        }
    }
}

impl Keyring {
    /// Returns how many probes of this replica had each result, by name.
    pub fn probes(&self) -> [(&'static str, u64); 3] {
        let ProbeCounts { works, refused, out_of_reach, .. } = &self.counts;
        [("works", works), ("refused", refused), ("out_of_reach", out_of_reach)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Returns how many incidents this replica has written, by the posture that they changed to.
    pub fn incidents(&self) -> [(Posture, u64); 3] {
        Posture::ALL.map(|posture| (posture, self.counts.incidents_of(posture).load(Ordering::Relaxed)))
    }

    /// Returns the state of each key version that this replica has result, without calling the
    /// database or the KMS.
    pub fn key_statuses(&self, tenant: TenantUid) -> Vec<KeyStatus> {
        let now = self.boot();
        let all = self.states.all().into_iter().filter(|(whose, ..)| *whose == tenant);
        all.map(|(_, key_version, state)| KeyStatus {
            key_version,
            posture: state.posture,
            proof_age: Some(state.proof_age(now)).filter(|age| *age < Duration::MAX),
            in_memory: state.in_memory_until > now,
        })
        .collect()
    }

    /// Does the same with what the other replicas have written; without it if the database does not
    /// answer.
    pub async fn reread_key_statuses(&self, tenant: &Tenant) -> Vec<KeyStatus> {
        self.read(tenant.uid).await;
        self.key_statuses(tenant.uid)
    }

    /// Returns the version under which the last DEK of a tenant was made.
    pub fn current_version(&self, tenant: TenantUid) -> Option<KeyVersion> {
        self.current.get(&tenant).map(|current| current.0.clone())
    }
}
