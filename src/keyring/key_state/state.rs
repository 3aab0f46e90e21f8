//! What this replica knows of one key version.

use std::time::Duration;

use crate::model::{BootTime, Posture, Timestamp};

use super::super::database_clock::ClockReading;

/// A key version as this replica knows it.
#[derive(Clone, Debug)]
pub(in crate::keyring) struct KeyState {
    pub(in crate::keyring) posture: Posture,
    pub(in crate::keyring) epoch: u64,
    pub(super) revision: u64,
    pub(super) proven_at: Timestamp,
    /// A lower bound on the age of the proof at `seen_at`.
    pub(super) age_when_seen: Duration,
    pub(super) seen_at: BootTime,
    /// When the last reading that found this proof in the row was sent, and when its answer
    /// arrived.
    pub(super) last_read: (BootTime, BootTime),
    /// When this replica's last successful unwrap was sent. It is a proof that needs no row.
    pub(in crate::keyring) last_unwrap: Option<BootTime>,
    /// Until when DEKs under it may be in this replica's memory.
    pub(in crate::keyring) in_memory_until: BootTime,
    /// When this replica last announced to the others that it needs the version.
    pub(in crate::keyring) announced_at: Option<BootTime>,
    /// When a probe by this replica last ended.
    pub(in crate::keyring) last_probe_end: Option<BootTime>,
}

impl KeyState {
    /// Returns whether DEKs under this version that were unwrapped under `epoch` may be used.
    pub(in crate::keyring) fn is_active_under(&self, epoch: u64) -> bool {
        self.posture == Posture::Active && self.epoch == epoch
    }

    /// Returns a lower bound on how long ago the key version was shown to work, as far as this
    /// replica knows.
    pub(in crate::keyring) fn proof_age(&self, now: BootTime) -> Duration {
        let row = self.row_age(now);
        self.last_unwrap.map_or(row, |unwrap| row.min(now.since(unwrap)))
    }

    /// Returns the same by the row alone.
    pub(in crate::keyring) fn row_age(&self, now: BootTime) -> Duration {
        self.age_when_seen.saturating_add(now.since(self.seen_at))
    }

    pub(in crate::keyring) fn is_in_memory(&self, now: BootTime) -> bool {
        self.in_memory_until > now
    }

    /// Takes over the proof that a reading found in the row. A proof other than the known one is
    /// taken only from a newer reading.
    pub(super) fn take_proof(
        &mut self,
        proven_at: Timestamp,
        age: Duration,
        reading: ClockReading,
        is_newer: bool,
    ) {
        let counts = if proven_at == self.proven_at {
            // The same proof does not get younger. It gets older if the database's clock was set,
            // because a commit is checked by that clock.
            age > self.row_age(reading.sent)
        } else {
            // A proof from the future must be remembered, whichever reading has seen it.
            is_newer || age == Duration::MAX
        };
        if counts {
            (self.proven_at, self.age_when_seen, self.seen_at) = (proven_at, age, reading.sent);
        }
        if proven_at == self.proven_at {
            let (sent, received) = self.last_read;
            self.last_read = (sent.max(reading.sent), received.max(reading.received));
        }
    }
}
