//! What this replica knows of each key version: its posture, and the age of its proof, counted on
//! this machine's own clock from the moment at which the proof was first seen. Neither a database
//! whose clock is set back nor a machine that was suspended can then make a proof younger than it
//! is:
//!
//! - A proof that was seen before only ages.
//! - A proof from the future does not count, even after the database's clock has reached it: only
//!   another proof counts.
//! - The age of a proof that was not seen before is taken from the database's clock. Added to it is
//!   the amount by which that clock has fallen since a time before the last read of the row. That
//!   time is earlier by as long as the writing of a proof may take.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;

use crate::model::{BootTime, KeyVersion, Posture, Proof, TenantUid, Timestamp};

use super::database_clock::{ClockReading, DatabaseClock};

/// A key version as this replica knows it.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    pub(super) posture: Posture,
    pub(super) epoch: u64,
    revision: u64,
    proven_at: Timestamp,
    /// A lower bound on the age of the proof at `seen`.
    age: Duration,
    seen: BootTime,
    /// When the last reading that found this proof in the row was sent, and when its answer
    /// arrived.
    read: (BootTime, BootTime),
    /// When this replica's last successful unwrap was sent. It is a proof that needs no row.
    pub(super) unwrapped: Option<BootTime>,
    /// Until when DEKs under it may be in this replica's memory.
    pub(super) in_memory_until: BootTime,
    /// When the other replicas were last announced of that.
    pub(super) announced: Option<BootTime>,
    /// When a probe by this replica last ended.
    pub(super) probed: Option<BootTime>,
}

impl KeyState {
    /// Returns a lower bound on how long ago the key version was shown to work, as far as this
    /// replica knows.
    pub(super) fn proof_age(&self, now: BootTime) -> Duration {
        let row = self.row_age(now);
        self.unwrapped.map_or(row, |unwrapped| row.min(now.since(unwrapped)))
    }

    /// Returns the same by the row alone.
    pub(super) fn row_age(&self, now: BootTime) -> Duration {
        self.age.saturating_add(now.since(self.seen))
    }
}

/// How a posture changed when a row was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStateChange {
    /// It was not known before.
    New,
    /// It is unchanged.
    Unchanged,
    /// Its epoch has changed: what was unwrapped under the old one may not be used any more.
    EpochChanged,
}

/// All key versions that this replica has met.
pub(super) struct KeyStates {
    states: DashMap<(TenantUid, KeyVersion), KeyState>,
    clock: Mutex<DatabaseClock>,
    late: Duration,
}

impl KeyStates {
    /// Makes states of rows in which a proof may appear up to `late` after the database's clock was
    /// read for it.
    pub(super) fn new(late: Duration) -> Self {
        Self { states: DashMap::new(), clock: Mutex::default(), late }
    }

    pub(super) fn get(&self, tenant: TenantUid, version: &KeyVersion) -> Option<KeyState> {
        self.states.get(&(tenant, version.clone())).map(|state| state.clone())
    }

    /// Forgets all versions.
    pub(super) fn clear(&self) {
        self.states.clear();
    }

    pub(super) fn all(&self) -> Vec<(TenantUid, KeyVersion, KeyState)> {
        self.states.iter().map(|state| (state.key().0, state.key().1.clone(), state.clone())).collect()
    }

    /// Changes what is known of a version that this replica has met.
    pub(super) fn change(&self, tenant: TenantUid, version: &KeyVersion, change: impl FnOnce(&mut KeyState)) {
        if let Some(mut state) = self.states.get_mut(&(tenant, version.clone())) {
            change(&mut state);
        }
    }

    /// Takes over the contents of a row.
    pub(super) fn apply_row(
        &self,
        tenant: TenantUid,
        proof: &Proof,
        reading: ClockReading,
    ) -> KeyStateChange {
        self.clock().note(reading);
        let mut change = KeyStateChange::New;
        self.states
            .entry((tenant, proof.key_version.clone()))
            .and_modify(|state| {
                change = KeyStateChange::Unchanged;
                let (known, announced) = ((state.epoch, state.revision), (proof.epoch, proof.revision));
                let is_newer = announced > known || reading.sent >= state.read.1;
                // A row that was read earlier than the one that is known here may arrive later.
                if announced < known && !is_newer {
                    return;
                }
                if proof.epoch != state.epoch {
                    change = KeyStateChange::EpochChanged;
                    state.unwrapped = None;
                }
                (state.posture, state.epoch, state.revision) = (proof.posture, proof.epoch, proof.revision);
                state.prove(
                    proof.proven_at,
                    self.age(proof.proven_at, reading, Some(state)),
                    reading,
                    is_newer,
                );
            })
            .or_insert_with(|| KeyState {
                posture: proof.posture,
                epoch: proof.epoch,
                revision: proof.revision,
                proven_at: proof.proven_at,
                age: self.age(proof.proven_at, reading, None),
                seen: reading.sent,
                read: (reading.sent, reading.received),
                unwrapped: None,
                in_memory_until: BootTime::default(),
                announced: None,
                probed: None,
            });
        change
    }

    /// Forgets the versions that are absent from a reading of all of the tenant's rows. Returns
    /// whether there were any.
    pub(super) fn forget_absent(&self, tenant: TenantUid, rows: &[Proof], reading: ClockReading) -> bool {
        let mut forgotten = false;
        self.states.retain(|(whose, version), state| {
            let is_there = rows.iter().any(|proof| proof.key_version == *version);
            // A version that was read later may have been added later.
            let stays = *whose != tenant || is_there || state.read.1 > reading.sent;
            forgotten |= !stays;
            stays
        });
        forgotten
    }

    /// Returns how old the proof of a version that a commit found was when that commit was sent.
    /// The age is counted by both clocks, and the greater one counts.
    pub(super) fn age_found(
        &self,
        tenant: TenantUid,
        version: &KeyVersion,
        proven_at: Timestamp,
        reading: ClockReading,
    ) -> Duration {
        self.clock().note(reading);
        match self.states.get_mut(&(tenant, version.clone())) {
            None => self.age(proven_at, reading, None),
            Some(mut state) => {
                let age = self.age(proven_at, reading, Some(&state));
                let is_newer = reading.sent >= state.read.1;
                state.prove(proven_at, age, reading, is_newer);
                match state.proven_at == proven_at {
                    true => age.max(state.row_age(reading.sent)),
                    false => age,
                }
            }
        }
    }

    /// Returns the age of a proof by the database's clock, which may have been set back since the
    /// proof was made.
    fn age(&self, proven_at: Timestamp, reading: ClockReading, known: Option<&KeyState>) -> Duration {
        // A proof from the future does not count.
        if proven_at > reading.now {
            return Duration::MAX;
        }
        let last_read = known.map_or(reading.sent, |state| state.read.0);
        let age = reading.now.since(proven_at);
        match known.is_some_and(|state| state.proven_at == proven_at) {
            // It has aged on this machine's clock since it was first seen.
            true => age,
            false => age.saturating_add(self.clock().fallen_since(last_read.minus(self.late))),
        }
    }

    fn clock(&self) -> MutexGuard<'_, DatabaseClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyState {
    /// Takes over the proof that a reading found in the row. A proof other than the known one is
    /// taken only from a newer reading.
    fn prove(&mut self, proven_at: Timestamp, age: Duration, reading: ClockReading, is_newer: bool) {
        let counts = match proven_at == self.proven_at {
            // The same proof does not get younger. It gets older if the database's clock was set,
            // because a commit is checked by that clock.
            true => age > self.row_age(reading.sent),
            // A proof from the future must be remembered, whichever reading has seen it.
            false => is_newer || age == Duration::MAX,
        };
        if counts {
            (self.proven_at, self.age, self.seen) = (proven_at, age, reading.sent);
        }
        if proven_at == self.proven_at {
            self.read = (self.read.0.max(reading.sent), self.read.1.max(reading.received));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(9);
    const TENANT: TenantUid = TenantUid([1; 16]);

    fn boot(ms: u64) -> BootTime {
        BootTime::at(Duration::from_millis(ms))
    }

    fn db(ms: i64) -> Timestamp {
        Timestamp(1_000_000_000_000_000 + ms * 1_000)
    }

    fn reading(boot_ms: u64, db_ms: i64) -> ClockReading {
        ClockReading { sent: boot(boot_ms), received: boot(boot_ms), now: db(db_ms) }
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

    fn age(states: &KeyStates, now: u64) -> u128 {
        states.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().proof_age(boot(now)).as_millis()
    }

    #[test]
    fn a_proof_ages_on_this_machines_clock() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        assert_eq!(age(&states, 0), 100);
        assert_eq!(age(&states, 5_000), 5_100);
    }

    #[test]
    fn a_clock_set_back_makes_no_known_proof_younger() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        // Three seconds later the database's clock shows the same time as before.
        states.apply_row(TENANT, &proof(0, 900), reading(3_000, 1_000));
        assert_eq!(age(&states, 3_000), 3_100);
        let found = states.age_found(TENANT, &KeyVersion::new("byok", "1"), db(900), reading(3_000, 1_000));
        assert_eq!(found.as_millis(), 3_100);
    }

    #[test]
    fn a_proof_first_seen_after_the_clock_fell_is_of_greatest_age() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        // Set back by two seconds: a proof from before looks half a second old.
        let found = states.age_found(TENANT, &KeyVersion::new("byok", "1"), db(1_500), reading(3_000, 2_000));
        assert_eq!(found.as_millis(), 2_500);
    }

    #[test]
    fn a_known_proof_is_as_old_as_the_database_says_after_setting() {
        for (now, at_least) in [(11_000, 10_100), (500, 1_000_000_000)] {
            let states = KeyStates::new(LATE);
            states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
            states.apply_row(TENANT, &proof(0, 900), reading(100, now));
            assert!(age(&states, 100) >= at_least, "{now}");
        }
    }

    #[test]
    fn a_proof_from_the_future_is_none() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 5_000), reading(0, 1_000));
        assert!(age(&states, 0) > 1_000_000_000);
    }

    #[test]
    fn a_proof_once_seen_in_the_future_stays_invalid_when_reached() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        // Made by another replica while the clock was ahead by 1.4 s, and found by a commit.
        let found = states.age_found(TENANT, &KeyVersion::new("byok", "1"), db(2_500), reading(100, 1_100));
        assert_eq!(found, Duration::MAX);
        for (boot, db) in [(200, 1_200), (1_600, 2_600), (3_000, 4_000)] {
            states.apply_row(TENANT, &Proof { revision: 2, ..proof(0, 2_500) }, reading(boot, db));
            assert!(age(&states, boot) > 1_000_000_000);
        }
        states.apply_row(TENANT, &Proof { revision: 4, ..proof(0, 3_900) }, reading(3_000, 4_000));
        assert_eq!(age(&states, 3_000), 100);
    }

    #[test]
    fn a_proof_first_seen_some_readings_later_is_also_of_greatest_age() {
        let states = KeyStates::new(LATE);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        // Set back by two seconds; the reading finds the same proof.
        states.apply_row(TENANT, &proof(0, 900), reading(3_000, 2_000));
        // A probe from before that, which was written late.
        states.apply_row(TENANT, &Proof { revision: 2, ..proof(0, 2_100) }, reading(3_200, 2_200));
        assert_eq!(age(&states, 3_200), 2_100);
    }

    #[test]
    fn after_a_clock_jump_only_the_next_proof_counts_in_both_directions() {
        for (jump, later) in [(3_600_000, 500), (-3_600_000, 9_700)] {
            let states = KeyStates::new(LATE);
            states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
            states.apply_row(TENANT, &proof(0, 900), reading(500, 1_500 + jump));
            let proven = |after: u64| {
                let now = 1_500 + i64::try_from(after).unwrap() + jump;
                let next = Proof { revision: 2 + after, ..proof(0, now - 100) };
                states.apply_row(TENANT, &next, reading(500 + after, now));
                age(&states, 500 + after)
            };
            proven(later - 200);
            assert_eq!(proven(later), 100, "{jump}");
        }
    }

    #[test]
    fn an_own_unwrap_is_a_proof_until_the_posture_moves() {
        let states = KeyStates::new(LATE);
        let version = KeyVersion::new("byok", "1");
        states.apply_row(TENANT, &proof(0, 0), reading(9_000, 9_000));
        states.change(TENANT, &version, |state| state.unwrapped = Some(boot(9_000)));
        assert_eq!(age(&states, 9_500), 500);
        let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
        assert_eq!(states.apply_row(TENANT, &revoked, reading(9_600, 9_600)), KeyStateChange::EpochChanged);
        assert_eq!(age(&states, 9_600), 9_600);
        assert_eq!(states.get(TENANT, &version).unwrap().posture, Posture::Revoked);
    }

    #[test]
    fn a_row_that_was_read_earlier_changes_nothing_when_it_comes_later() {
        let states = KeyStates::new(LATE);
        let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
        states.apply_row(TENANT, &revoked, reading(100, 100));
        assert_eq!(states.apply_row(TENANT, &proof(0, 90), reading(90, 90)), KeyStateChange::Unchanged);
        assert_eq!(states.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().posture, Posture::Revoked);
    }
}
