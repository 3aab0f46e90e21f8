//! What this replica knows of each key version: its posture, and how old its proof is, counted on this machine's own clock
//! from the moment that the proof was first seen. So neither a database whose clock is set back nor a machine that was
//! suspended makes a proof younger than it is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;

use crate::model::{BootTime, KeyVersion, Posture, Proof, TenantUid, Timestamp};

/// A key version as this replica knows it.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) posture: Posture,
    pub(super) epoch: u64,
    proven_at: Timestamp,
    /// How old the proof was at `seen`, at least.
    age: Duration,
    seen: BootTime,
    /// When the last unwrap of this replica's own that succeeded was sent: a proof that needs no row.
    pub(super) unwrapped: Option<BootTime>,
    /// Until when DEKs of it may lie in this replica's memory.
    pub(super) in_memory_until: BootTime,
    /// When others were last told so.
    pub(super) told: Option<BootTime>,
    /// When a probe of this replica's last came to its end.
    pub(super) probed: Option<BootTime>,
}

impl View {
    /// How long ago the key version was shown to work, at least, by what this replica knows.
    pub(super) fn proof_age(&self, now: BootTime) -> Duration {
        let row = self.age.saturating_add(now.since(self.seen));
        self.unwrapped.map_or(row, |unwrapped| row.min(now.since(unwrapped)))
    }
}

/// When a reading of the database's clock was asked for and heard, on this machine, and what it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) sent: BootTime,
    pub(super) heard: BootTime,
    pub(super) now: Timestamp,
}

/// What became of a posture when a row was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It was not known before.
    Met,
    /// It is what it was.
    Same,
    /// Its epoch is another: what was unwrapped under the old one may not be used any more.
    Moved,
}

/// All key versions that this replica has met.
#[derive(Default)]
pub(super) struct Views {
    views: DashMap<(TenantUid, KeyVersion), View>,
    last: Mutex<Option<Reading>>,
}

impl Views {
    pub(super) fn get(&self, tenant: TenantUid, version: &KeyVersion) -> Option<View> {
        self.views.get(&(tenant, version.clone())).map(|view| view.clone())
    }

    pub(super) fn all(&self) -> Vec<(TenantUid, KeyVersion, View)> {
        self.views.iter().map(|view| (view.key().0, view.key().1.clone(), view.clone())).collect()
    }

    /// Changes what is known of a version that was met.
    pub(super) fn change(&self, tenant: TenantUid, version: &KeyVersion, change: impl FnOnce(&mut View)) {
        if let Some(mut view) = self.views.get_mut(&(tenant, version.clone())) {
            change(&mut view);
        }
    }

    /// Takes over what a row says.
    pub(super) fn learn(&self, tenant: TenantUid, proof: &Proof, reading: Reading) -> Learned {
        let age = self.age(proof.proven_at, reading);
        let mut learned = Learned::Met;
        self.views
            .entry((tenant, proof.key_version.clone()))
            .and_modify(|view| {
                learned = Learned::Same;
                // A row that was read earlier than the one that is known here may come later.
                if proof.epoch < view.epoch {
                    return;
                }
                if proof.epoch != view.epoch {
                    learned = Learned::Moved;
                    view.unwrapped = None;
                }
                (view.posture, view.epoch) = (proof.posture, proof.epoch);
                view.prove(proof.proven_at, age, reading.sent);
            })
            .or_insert_with(|| View {
                posture: proof.posture,
                epoch: proof.epoch,
                proven_at: proof.proven_at,
                age,
                seen: reading.sent,
                unwrapped: None,
                in_memory_until: BootTime::default(),
                told: None,
                probed: None,
            });
        learned
    }

    /// How old the proof of a version is that a commit found, when that commit was sent; counted by both clocks, and the
    /// older one counts.
    pub(super) fn age_found(
        &self,
        tenant: TenantUid,
        version: &KeyVersion,
        proven_at: Timestamp,
        reading: Reading,
    ) -> Duration {
        let age = self.age(proven_at, reading);
        match self.views.get_mut(&(tenant, version.clone())) {
            None => age,
            Some(mut view) => {
                view.prove(proven_at, age, reading.sent);
                match view.proven_at == proven_at {
                    true => age.max(view.age.saturating_add(reading.sent.since(view.seen))),
                    false => age,
                }
            }
        }
    }

    /// How old a proof is by the database's clock, and by how much that clock has fallen behind this machine's since it was
    /// last read.
    fn age(&self, proven_at: Timestamp, reading: Reading) -> Duration {
        let fallen = self.fallen(reading);
        match proven_at <= reading.now {
            true => reading.now.since(proven_at).saturating_add(fallen),
            // A proof from the future is none.
            false => Duration::MAX,
        }
    }

    fn fallen(&self, reading: Reading) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fallen = last.map_or(Duration::ZERO, |last| {
            // The last reading was made before it was heard, this one after it was sent.
            let at_least = match reading.sent >= last.heard {
                true => last.now.plus(reading.sent.since(last.heard)),
                false => last.now.minus(last.heard.since(reading.sent)),
            };
            at_least.since(reading.now)
        });
        if last.is_none_or(|last| reading.heard >= last.heard) {
            *last = Some(reading);
        }
        fallen
    }
}

impl View {
    fn prove(&mut self, proven_at: Timestamp, age: Duration, seen: BootTime) {
        // The same proof does not get younger, and an older one than is known says nothing new, unless the clock was set
        // back: then what is known lies in its future.
        if proven_at != self.proven_at {
            let known = self.age.saturating_add(seen.since(self.seen));
            if age <= known || known == Duration::MAX {
                (self.proven_at, self.age, self.seen) = (proven_at, age, seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantUid = TenantUid([1; 16]);

    fn boot(ms: u64) -> BootTime {
        BootTime::at(Duration::from_millis(ms))
    }

    fn db(ms: i64) -> Timestamp {
        Timestamp(1_000_000_000_000_000 + ms * 1_000)
    }

    fn reading(boot_ms: u64, db_ms: i64) -> Reading {
        Reading { sent: boot(boot_ms), heard: boot(boot_ms), now: db(db_ms) }
    }

    fn proof(epoch: u64, proven_ms: i64) -> Proof {
        Proof {
            key_version: KeyVersion::new("byok", "1"),
            posture: Posture::Active,
            epoch,
            revision: 0,
            proven_at: db(proven_ms),
            since: db(0),
            steady_since: None,
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: db(0),
        }
    }

    fn age(views: &Views, now: u64) -> u128 {
        views.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().proof_age(boot(now)).as_millis()
    }

    #[test]
    fn a_proof_ages_on_this_machines_clock() {
        let views = Views::default();
        views.learn(TENANT, &proof(0, 900), reading(0, 1_000));
        assert_eq!(age(&views, 0), 100);
        assert_eq!(age(&views, 5_000), 5_100);
    }

    #[test]
    fn a_proof_that_was_seen_before_is_not_made_younger_by_a_clock_that_is_set_back() {
        let views = Views::default();
        views.learn(TENANT, &proof(0, 900), reading(0, 1_000));
        // Three seconds later the database's clock shows what it showed then.
        views.learn(TENANT, &proof(0, 900), reading(3_000, 1_000));
        assert_eq!(age(&views, 3_000), 3_100);
        let found = views.age_found(TENANT, &KeyVersion::new("byok", "1"), db(900), reading(3_000, 1_000));
        assert_eq!(found.as_millis(), 3_100);
    }

    #[test]
    fn a_proof_first_seen_after_the_clock_was_set_back_is_as_old_as_it_may_be() {
        let views = Views::default();
        views.learn(TENANT, &proof(0, 900), reading(0, 1_000));
        // Set back by two seconds: a proof of before looks half a second old.
        let found = views.age_found(TENANT, &KeyVersion::new("byok", "1"), db(1_500), reading(3_000, 2_000));
        assert_eq!(found.as_millis(), 2_500);
    }

    #[test]
    fn a_proof_from_the_future_is_none() {
        let views = Views::default();
        views.learn(TENANT, &proof(0, 5_000), reading(0, 1_000));
        assert!(age(&views, 0) > 1_000_000_000);
    }

    #[test]
    fn after_a_jump_either_way_the_next_proof_counts() {
        for jump in [-3_600_000, 3_600_000] {
            let views = Views::default();
            views.learn(TENANT, &proof(0, 900), reading(0, 1_000));
            views.learn(TENANT, &proof(0, 900), reading(1_000, 2_000 + jump));
            views.learn(TENANT, &proof(0, 2_400 + jump), reading(1_500, 2_500 + jump));
            assert_eq!(age(&views, 1_500), 100, "{jump}");
        }
    }

    #[test]
    fn an_own_unwrap_is_a_proof_until_the_posture_moves() {
        let views = Views::default();
        let version = KeyVersion::new("byok", "1");
        views.learn(TENANT, &proof(0, 0), reading(9_000, 9_000));
        views.change(TENANT, &version, |view| view.unwrapped = Some(boot(9_000)));
        assert_eq!(age(&views, 9_500), 500);
        let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
        assert_eq!(views.learn(TENANT, &revoked, reading(9_600, 9_600)), Learned::Moved);
        assert_eq!(age(&views, 9_600), 9_600);
        assert_eq!(views.get(TENANT, &version).unwrap().posture, Posture::Revoked);
    }

    #[test]
    fn a_row_that_was_read_earlier_changes_nothing_when_it_comes_later() {
        let views = Views::default();
        let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
        views.learn(TENANT, &revoked, reading(100, 100));
        assert_eq!(views.learn(TENANT, &proof(0, 90), reading(90, 90)), Learned::Same);
        assert_eq!(views.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().posture, Posture::Revoked);
    }
}
