//! The fence: which key versions an answer relies on, what its commit must find of them, and until
//! when the answer may then be given. This file decides from what is known. It reads no database,
//! and does not find out whether a key works.

use std::time::Duration;

use crate::audit::FenceReceipt;
use crate::model::{BootTime, KeyVersion, Posture, TenantUid};
use crate::store::{Fence, Requirement};

use super::database_clock::ClockReading;
use super::dek::PlainDek;
use super::key_state::{KeyState, KeyStates};

/// The allowance that a replica makes for reading its own clock and for a thread to be scheduled.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);

/// The key versions that one answer relies on.
#[derive(Default)]
pub struct KeysUsed {
    pub(super) uses: Vec<KeyUse>,
}

/// A key version that an answer relies on, as the answer found it.
pub(super) struct KeyUse {
    pub(super) key_version: KeyVersion,
    pub(super) epoch: u64,
    /// The time from which this operation has the KMS unwrap DEKs under this version; `None` if it
    /// does not.
    pub(super) unwrapped_since: Option<BootTime>,
}

/// The permission to give an answer whose entry is durable: the key versions that the answer
/// relies on, and until when their proofs are recent enough.
pub struct Permit {
    pub(super) uses: Vec<KeyUse>,
    until: BootTime,
}

/// Why an answer may not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceFailure {
    /// A key version is not active, or was not shown to work in time.
    Unusable(Posture),
    /// The posture changed and is active again: start over, with DEKs that are unwrapped now.
    Retry,
}

impl KeysUsed {
    /// Returns whether the answer relies on no key.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// Adds the key version that a DEK is wrapped under.
    pub fn add(&mut self, dek: &PlainDek) {
        match self.uses.iter_mut().find(|used| used.key_version == dek.key_version) {
            // The older epoch decides: if they differ, nothing of the answer may be given.
            Some(used) => used.epoch = used.epoch.min(dek.epoch),
            None => {
                let (key_version, epoch) = (dek.key_version.clone(), dek.epoch);
                // A successful generation of a DEK does not show that it can be unwrapped.
                self.uses.push(KeyUse { key_version, epoch, unwrapped_since: None });
            }
        }
    }
}

impl KeyUse {
    /// Returns whether the version is active, but its newest proof too old for a commit to succeed.
    pub(super) fn needs_probe(&self, state: &KeyState, now: BootTime, bound: Duration) -> bool {
        state.posture == Posture::Active && self.proof_age(state, now) > bound
    }

    fn proof_age(&self, state: &KeyState, now: BootTime) -> Duration {
        let age = state.proof_age(now);
        self.unwrapped_since.map_or(age, |since| age.min(now.since(since)))
    }

    /// Returns what the commit of the answer must find of this version.
    ///
    /// # Errors
    /// Why the answer may not be given, as far as it is known before the commit.
    pub(super) fn condition(
        &self,
        state: &KeyState,
        now: BootTime,
        bound: Duration,
    ) -> Result<Fence, FenceFailure> {
        if state.posture != Posture::Active {
            return Err(FenceFailure::Unusable(state.posture));
        }
        if state.epoch != self.epoch {
            return Err(FenceFailure::Retry);
        }
        let epoch = self.epoch;
        // A proof of this replica's own replaces the one in the row if it leaves enough time for
        // the commit, or if the row's proof is too old. How old it may be in the end is checked
        // after the commit.
        let own = state.last_unwrap.max(self.unwrapped_since).map(|own| now.since(own));
        let own_suffices = own.is_some_and(|own| own <= bound / 2 || state.row_age(now) > bound);
        let requirement = if own_suffices {
            Requirement::Active { epoch }
        } else {
            Requirement::Proven { epoch, within: bound }
        };
        Ok(Fence { key_version: self.key_version.clone(), requirement })
    }

    /// Returns until when an answer that was permitted may still be given, from what is known of
    /// this version now.
    ///
    /// # Errors
    /// The posture that prevents it; `Active` if the version was not shown to work in time.
    pub(super) fn permitted_until(
        &self,
        state: &KeyState,
        now: BootTime,
        bound: Duration,
    ) -> Result<BootTime, Posture> {
        match state.posture {
            Posture::Active if state.epoch == self.epoch => {
                expiry(now, state.proof_age(now), bound).ok_or(Posture::Active)
            }
            // The key was turned off and on again in between.
            Posture::Active => Err(Posture::Degraded),
            unusable => Err(unusable),
        }
    }
}

impl Permit {
    /// Makes the permit of an answer whose entry is durable. It ends when the first of its proofs
    /// is too old by this machine's own clock. Returns `None` if one is too old already, or if the
    /// commit did not check it.
    pub(super) fn after_commit(
        states: &KeyStates,
        tenant: TenantUid,
        keys_used: KeysUsed,
        receipt: &FenceReceipt,
        now: BootTime,
        bound: Duration,
    ) -> Option<Self> {
        let reading =
            ClockReading { sent: receipt.sent, received: receipt.received, now: receipt.reading.now };
        let mut until = None;
        for used in &keys_used.uses {
            let proven_at = receipt.proven_at(&used.key_version)?;
            let found = states.age_at_commit(tenant, &used.key_version, proven_at, reading);
            let unwrap = states.get(tenant, &used.key_version).and_then(|state| state.last_unwrap);
            let by_row = found.saturating_add(now.since(receipt.sent));
            let age = match unwrap.max(used.unwrapped_since) {
                Some(own) => by_row.min(now.since(own)),
                None => by_row,
            };
            until = Some(earliest(until, expiry(now, age, bound)?));
        }
        Some(Self { uses: keys_used.uses, until: until? })
    }

    /// Returns the time after which the answer may not be given, because the first of its proofs is
    /// then too old.
    pub fn until(&self) -> BootTime {
        self.until
    }

    /// Makes this the permit of an answer that holds both answers: the stricter terms of the two
    /// apply.
    pub fn merge(&mut self, other: Self) {
        self.until = self.until.min(other.until);
        for used in other.uses {
            match self.uses.iter_mut().find(|own| own.key_version == used.key_version) {
                Some(own) => own.epoch = own.epoch.min(used.epoch),
                None => self.uses.push(used),
            }
        }
    }
}

/// Returns the earlier of two times, of which there may be only the second.
pub(super) fn earliest(so_far: Option<BootTime>, next: BootTime) -> BootTime {
    so_far.map_or(next, |so_far| so_far.min(next))
}

/// Returns when a proof of this age becomes too old; `None` if it already is.
fn expiry(now: BootTime, age: Duration, bound: Duration) -> Option<BootTime> {
    (bound + CLOCK_TOLERANCE).checked_sub(age).map(|left| now.plus(left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Dek;
    use crate::model::{Proof, Source, Timestamp};

    const BOUND: Duration = Duration::from_secs(3);
    const TENANT: TenantUid = TenantUid([1; 16]);

    fn version() -> KeyVersion {
        KeyVersion::new("byok", "1")
    }

    /// This many milliseconds after the proof of [`state`] was made.
    fn after(ms: u64) -> BootTime {
        BootTime::at(Duration::from_millis(100_000 + ms))
    }

    /// A key version whose proof was read when it was made.
    fn state(posture: Posture, epoch: u64) -> KeyState {
        let now = Timestamp(1_000_000_000_000_000);
        let proof = Proof {
            key_version: version(),
            posture,
            epoch,
            revision: 0,
            proven_at: now,
            since: now,
            steady_since: None,
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: now,
        };
        let states = KeyStates::new(Duration::ZERO);
        states.apply_row(TENANT, &proof, ClockReading { sent: after(0), received: after(0), now });
        states.get(TENANT, &version()).unwrap()
    }

    fn used(epoch: u64, unwrapped_since: Option<BootTime>) -> KeyUse {
        KeyUse { key_version: version(), epoch, unwrapped_since }
    }

    fn dek(epoch: u64) -> PlainDek {
        let (plain, source) = (Dek::generate(), Source::Cache);
        PlainDek { plain, key_version: version(), epoch, source, kms_request_id: None, row_is_sealed: true }
    }

    /// Whether the commit must find a young proof in the row.
    fn asks_for_proof(used: &KeyUse, now: BootTime) -> bool {
        let fence = used.condition(&state(Posture::Active, 0), now, BOUND).unwrap();
        match fence.requirement {
            Requirement::Proven { epoch: 0, within: BOUND } => true,
            Requirement::Active { epoch: 0 } => false,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_commit_asks_for_the_proof_unless_an_own_unwrap_suffices() {
        assert!(asks_for_proof(&used(0, None), after(100)));
        assert!(asks_for_proof(&used(0, None), after(4_000)));
        let unwraps = used(0, Some(after(100)));
        assert!(!asks_for_proof(&unwraps, after(1_600)), "it leaves time for the commit");
        assert!(asks_for_proof(&unwraps, after(1_700)));
        assert!(!asks_for_proof(&unwraps, after(3_001)), "the row's proof is too old");
    }

    #[test]
    fn a_changed_epoch_starts_over_and_an_unusable_key_does_not() {
        let condition = |posture, epoch| used(0, None).condition(&state(posture, epoch), after(0), BOUND);
        assert_eq!(condition(Posture::Active, 1), Err(FenceFailure::Retry));
        for posture in [Posture::Degraded, Posture::Revoked] {
            assert_eq!(condition(posture, 0), Err(FenceFailure::Unusable(posture)));
        }
    }

    #[test]
    fn an_active_key_is_probed_once_its_proofs_are_old() {
        let needs_probe =
            |posture, since, ms| used(0, since).needs_probe(&state(posture, 0), after(ms), BOUND);
        assert!(!needs_probe(Posture::Active, None, 3_000));
        assert!(needs_probe(Posture::Active, None, 3_001));
        assert!(!needs_probe(Posture::Active, Some(after(1)), 3_001));
        assert!(!needs_probe(Posture::Revoked, None, 3_001));
    }

    #[test]
    fn a_permit_is_renewed_while_the_proof_is_young() {
        let until =
            |posture, epoch, ms| used(0, None).permitted_until(&state(posture, epoch), after(ms), BOUND);
        assert_eq!(until(Posture::Active, 0, 3_100), Ok(after(3_100)));
        assert_eq!(until(Posture::Active, 0, 3_101), Err(Posture::Active));
        assert_eq!(until(Posture::Active, 2, 0), Err(Posture::Degraded), "it was off in between");
        assert_eq!(until(Posture::Revoked, 0, 0), Err(Posture::Revoked));
    }

    #[test]
    fn of_two_epochs_of_one_version_the_older_one_counts() {
        let mut keys_used = KeysUsed::default();
        assert!(keys_used.is_empty());
        [5, 3, 4].iter().for_each(|epoch| keys_used.add(&dek(*epoch)));
        assert_eq!(keys_used.uses.iter().map(|used| used.epoch).collect::<Vec<_>>(), [3]);
        let permit = |epoch, ms| Permit { uses: vec![used(epoch, None)], until: after(ms) };
        let mut merged = permit(3, 200);
        merged.merge(permit(2, 300));
        assert_eq!((merged.uses.len(), merged.uses[0].epoch, merged.until()), (1, 2, after(200)));
    }
}
