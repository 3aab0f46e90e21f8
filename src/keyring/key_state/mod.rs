//! What this replica knows of each key version: its posture, and the age of its proof, counted on
//! this machine's own clock from the moment at which the proof was first seen. Neither a database
//! whose clock is set back nor a machine that was suspended can then make a proof younger than it
//! is:
//!
//! - A proof that was seen before only ages.
//! - A proof from the future does not count, even after the database's clock has reached it: only
//!   another proof counts.
//! - The age of a proof that was not seen before is taken from the database's clock. Added to it is
//!   the amount by which that clock was set back since a time before the last read of the row. That
//!   time is earlier by as long as the writing of a proof may take.

#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Notify;

use crate::model::{BootTime, KeyVersion, Posture, Proof, TenantUid, Timestamp};

use super::current_version::CurrentVersions;
use super::database_clock::{ClockReading, DatabaseClock};

pub(super) use state::KeyState;

/// What a row that was read has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStateChange {
    /// The version was not known before.
    New,
    /// The epoch is the same.
    Unchanged,
    /// The epoch has changed: what was unwrapped under the old one may not be used any more.
    EpochChanged,
}

/// All key versions that this replica knows.
pub(super) struct KeyStates {
    /// The versions that the KMS wraps under now.
    pub(super) current: CurrentVersions,
    states: DashMap<(TenantUid, KeyVersion), KeyState>,
    clock: Mutex<DatabaseClock>,
    write_delay: Duration,
    deks_arrived: Notify,
}

impl KeyStates {
    /// Makes the states for rows in which a proof may appear up to `write_delay` after the
    /// database's clock was read for it.
    pub(super) fn new(write_delay: Duration) -> Self {
        Self {
            current: CurrentVersions::default(),
            states: DashMap::new(),
            clock: Mutex::default(),
            write_delay,
            deks_arrived: Notify::new(),
        }
    }

    pub(super) fn get(&self, tenant: TenantUid, version: &KeyVersion) -> Option<KeyState> {
        self.states.get(&(tenant, version.clone())).map(|state| state.clone())
    }

    pub(super) fn all(&self) -> Vec<(TenantUid, KeyVersion, KeyState)> {
        self.states.iter().map(|state| (state.key().0, state.key().1.clone(), state.clone())).collect()
    }

    /// Forgets all versions.
    pub(super) fn forget(&self, tenant: TenantUid) {
        self.states.retain(|(of, _), _| *of != tenant);
        self.current.forget(tenant);
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
                let (known, read) = ((state.epoch, state.revision), (proof.epoch, proof.revision));
                let is_newer = read > known || reading.sent >= state.last_read.1;
                // A row that was read earlier than the one that is known here may arrive later.
                if read < known && !is_newer {
                    return;
                }
                if proof.epoch != state.epoch {
                    change = KeyStateChange::EpochChanged;
                    state.last_unwrap = None;
                }
                (state.posture, state.epoch, state.revision) = (proof.posture, proof.epoch, proof.revision);
                let age = self.age(proof.proven_at, reading, Some(state));
                state.take_proof(proof.proven_at, age, reading, is_newer);
            })
            .or_insert_with(|| KeyState {
                posture: proof.posture,
                epoch: proof.epoch,
                revision: proof.revision,
                proven_at: proof.proven_at,
                age_when_seen: self.age(proof.proven_at, reading, None),
                seen_at: reading.sent,
                last_read: (reading.sent, reading.received),
                last_unwrap: None,
                in_memory_until: BootTime::default(),
                announced_at: None,
                last_probe_end: None,
            });
        change
    }

    /// Forgets the versions that are absent from a reading of all of the tenant's rows. Returns
    /// whether there were any.
    pub(super) fn forget_absent(&self, tenant: TenantUid, rows: &[Proof], reading: ClockReading) -> bool {
        let mut any = false;
        self.states.retain(|(owner, version), state| {
            let has_row = rows.iter().any(|proof| proof.key_version == *version);
            // A version that was read later may have been added later.
            let stays = *owner != tenant || has_row || state.last_read.1 > reading.sent;
            any |= !stays;
            stays
        });
        any
    }

    /// Returns how old the proof of a version that a commit found was when that commit was sent.
    /// The age is counted by both clocks, and the greater one counts.
    pub(super) fn age_at_commit(
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
                let is_newer = reading.sent >= state.last_read.1;
                state.take_proof(proven_at, age, reading, is_newer);
                if state.proven_at == proven_at { age.max(state.row_age(reading.sent)) } else { age }
            }
        }
    }

    /// Marks a version as unusable before its row says so.
    pub(super) fn set_posture(&self, tenant: TenantUid, version: &KeyVersion, posture: Posture) {
        self.change(tenant, version, |state| state.posture = posture);
    }

    /// Notes that the KMS has unwrapped something in a request that was sent at `sent`.
    pub(super) fn note_unwrap(&self, tenant: TenantUid, version: &KeyVersion, sent: BootTime) {
        self.change(tenant, version, |state| state.last_unwrap = state.last_unwrap.max(Some(sent)));
    }

    pub(super) fn note_probe_end(&self, tenant: TenantUid, version: &KeyVersion, ended: BootTime) {
        self.change(tenant, version, |state| state.last_probe_end = Some(ended));
    }

    pub(super) fn note_announced(&self, tenant: TenantUid, version: &KeyVersion, now: BootTime) {
        self.change(tenant, version, |state| state.announced_at = Some(now));
    }

    /// Notes that DEKs of a version are in memory for this long from now on. Ends the wait of
    /// [`Self::deks_arrived`] if there were none.
    pub(super) fn note_in_memory(
        &self,
        tenant: TenantUid,
        version: &KeyVersion,
        now: BootTime,
        duration: Duration,
    ) {
        let mut is_first = false;
        self.change(tenant, version, |state| {
            is_first = !state.is_in_memory(now);
            state.in_memory_until = state.in_memory_until.max(now.plus(duration));
        });
        if is_first {
            self.deks_arrived.notify_one();
        }
    }

    /// Waits until DEKs of a version are in memory of which there were none.
    pub(super) async fn deks_arrived(&self) {
        self.deks_arrived.notified().await;
    }

    /// Notes that no DEKs of a tenant are in memory any more.
    pub(super) fn note_dropped(&self, tenant: TenantUid) {
        for (owner, version, _) in self.all() {
            if owner == tenant {
                self.change(tenant, &version, |state| state.in_memory_until = BootTime::default());
            }
        }
    }

    fn change(&self, tenant: TenantUid, version: &KeyVersion, change: impl FnOnce(&mut KeyState)) {
        if let Some(mut state) = self.states.get_mut(&(tenant, version.clone())) {
            change(&mut state);
        }
    }

    /// Returns the age of a proof by the database's clock, which may have been set back since the
    /// proof was made.
    fn age(&self, proven_at: Timestamp, reading: ClockReading, known: Option<&KeyState>) -> Duration {
        // A proof from the future does not count.
        if proven_at > reading.now {
            return Duration::MAX;
        }
        let age = reading.now.since(proven_at);
        if known.is_some_and(|state| state.proven_at == proven_at) {
            // It has aged on this machine's clock since it was first seen.
            return age;
        }
        let last_read = known.map_or(reading.sent, |state| state.last_read.0);
        age.saturating_add(self.clock().set_back_since(last_read.minus(self.write_delay)))
    }

    fn clock(&self) -> MutexGuard<'_, DatabaseClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
