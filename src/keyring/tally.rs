//! Counts the results of probes and the incidents, and reports the state of key versions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::{KeyVersion, Posture, Tenant, TenantUid};

use super::Keyring;
use super::posture::Met;

/// A key version, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
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
pub(super) struct Tally {
    works: AtomicU64,
    refused: AtomicU64,
    out_of_reach: AtomicU64,
    active: AtomicU64,
    degraded: AtomicU64,
    revoked: AtomicU64,
}

impl Tally {
    pub(super) fn probed(&self, met: Met) {
        let count = match met {
            Met::Works => &self.works,
            Met::Refused => &self.refused,
            Met::OutOfReach => &self.out_of_reach,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn turned(&self, to: Posture) {
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
        let Tally { works, refused, out_of_reach, .. } = &self.tally;
        [("works", works), ("refused", refused), ("out_of_reach", out_of_reach)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Returns how many incidents this replica has written, by the posture that they changed to.
    pub fn incidents(&self) -> [(Posture, u64); 3] {
        Posture::ALL.map(|posture| (posture, self.tally.incidents_of(posture).load(Ordering::Relaxed)))
    }

    /// Returns the state of each key version that this replica has met, without calling the
    /// database or the KMS.
    pub fn standing(&self, tenant: TenantUid) -> Vec<Standing> {
        let now = self.boot();
        let all = self.views.all().into_iter().filter(|(whose, ..)| *whose == tenant);
        all.map(|(_, key_version, view)| Standing {
            key_version,
            posture: view.posture,
            proof_age: Some(view.proof_age(now)).filter(|age| *age < Duration::MAX),
            in_memory: view.in_memory_until > now,
        })
        .collect()
    }

    /// Does the same with what the other replicas have written; without it if the database does not
    /// answer.
    pub async fn standing_of_all(&self, tenant: &Tenant) -> Vec<Standing> {
        self.read(tenant.uid).await;
        self.standing(tenant.uid)
    }

    /// Returns the version under which the last DEK of a tenant was made.
    pub fn current_version(&self, tenant: TenantUid) -> Option<KeyVersion> {
        self.current.get(&tenant).map(|current| current.0.clone())
    }
}
