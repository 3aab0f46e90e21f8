//! Counts the results of probes, and the incidents, since this replica started.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::Posture;

use super::super::posture::ProbeResult;

#[derive(Default)]
pub(in crate::keyring) struct ProbeCounts {
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
        self.incidents_to(to).fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many probes had each result, by name.
    pub(in crate::keyring) fn probes(&self) -> [(&'static str, u64); 3] {
        let Self { works, refused, out_of_reach, .. } = self;
        [("works", works), ("refused", refused), ("out_of_reach", out_of_reach)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Returns how many incidents were written, by the posture that they changed to.
    pub(in crate::keyring) fn incidents(&self) -> [(Posture, u64); 3] {
        Posture::ALL.map(|posture| (posture, self.incidents_to(posture).load(Ordering::Relaxed)))
    }

    fn incidents_to(&self, posture: Posture) -> &AtomicU64 {
        match posture {
            Posture::Active => &self.active,
            Posture::Degraded => &self.degraded,
            Posture::Revoked => &self.revoked,
        }
    }
}
