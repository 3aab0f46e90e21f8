//! How the result of a probe changes the posture of a key version: pure functions.
//! docs/kill-switch.md has a diagram.
//!
//! - A key that the KMS refuses is `revoked` at once. It is `active` again once probes have
//!   succeeded, without a failure between them, for as long as the deployment says. That time
//!   doubles for each time that the key was revoked within [`FLAP_WINDOW`] of having come back (up
//!   to [`MAX_DOUBLINGS`] times), so that a key that flaps stays unusable. An outage does not count
//!   as one of these times.
//! - A KMS that is out of reach of one replica is in doubt. It is `degraded` when another replica
//!   finds the same, or when the proof has expired. It is `active` again after one success.
//! - A posture that is not active is probed less and less often, down to once in [`LONGEST_PAUSE`].

use std::time::Duration;

use uuid::Uuid;

use crate::config::KeyGuard;
use crate::model::{Posture, Proof, Timestamp};

/// After this time in one posture, earlier revocations no longer count.
const FLAP_WINDOW: Duration = Duration::from_secs(600);
/// How often the wait doubles at most.
const MAX_DOUBLINGS: u32 = 4;
/// The longest time between two probes of a key that is not active.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// The canary was unwrapped.
    Works,
    /// The KMS refused.
    Refused,
    /// The KMS gave no answer about the key.
    OutOfReach,
}

/// Returns whether this replica must probe now. A replica that has just found an outage lets the
/// others go first.
pub(super) fn is_due(proof: &Proof, now: Timestamp, replica: Uuid, guard: &KeyGuard) -> bool {
    let head_start = match proof.doubted_by {
        Some(doubting) if doubting == replica => guard.probe_every / 2,
        Some(_) | None => Duration::ZERO,
    };
    // A time further ahead than the pause that it ends was written before the clock was set back.
    now >= proof.next_probe_at.plus(head_start)
        || proof.next_probe_at.since(now) > next_pause(proof.failures, guard).max(guard.probe_every)
}

/// Returns the row that says that a replica is probing. The replica that writes it first does the
/// probe.
pub(super) fn claim(proof: &Proof, now: Timestamp, guard: &KeyGuard) -> Proof {
    Proof { revision: proof.revision + 1, next_probe_at: now.plus(guard.probe_every), ..proof.clone() }
}

/// Returns the row after a probe. `at` is a time of the database's clock that was read before the
/// probe was sent. `took` is the time from then to the answer, or to the end of waiting for one.
pub(super) fn after_probe(
    proof: &Proof,
    result: ProbeResult,
    replica: Uuid,
    (at, took): (Timestamp, Duration),
    guard: &KeyGuard,
) -> Proof {
    let mut next = Proof { revision: proof.revision + 1, ..proof.clone() };
    let pause = match result {
        ProbeResult::Works => {
            next.proven_at = at;
            next.failures = 0;
            next.doubted_by = None;
            // Never later than now, or a clock that was set back would keep the key unusable.
            let steady_since = proof.steady_since.unwrap_or(at).min(at);
            next.steady_since = Some(steady_since);
            next.posture = match proof.posture {
                Posture::Active | Posture::Degraded => Posture::Active,
                Posture::Revoked if at.since(steady_since) >= resume_delay(proof, guard) => Posture::Active,
                Posture::Revoked => Posture::Revoked,
            };
            guard.probe_every
        }
        ProbeResult::Refused => {
            next.failures = proof.failures.saturating_add(1);
            next.doubted_by = None;
            next.steady_since = None;
            next.posture = Posture::Revoked;
            if proof.posture != Posture::Revoked {
                next.falls = (recent_falls(proof, at) + 1).min(MAX_DOUBLINGS + 1);
            }
            next_pause(next.failures, guard)
        }
        ProbeResult::OutOfReach => {
            next.failures = proof.failures.saturating_add(1);
            next.steady_since = None;
            let confirmed = proof.doubted_by.is_some_and(|doubting| doubting != replica);
            // A proof from the future does not count.
            let expired = proof.proven_at > at || at.plus(took).since(proof.proven_at) >= guard.bound();
            next.posture = match proof.posture {
                Posture::Active if confirmed || expired => {
                    next.falls = recent_falls(proof, at);
                    Posture::Degraded
                }
                unchanged => unchanged,
            };
            next.doubted_by = Some(replica);
            match next.posture {
                Posture::Active => guard.probe_every,
                Posture::Degraded | Posture::Revoked => next_pause(next.failures, guard),
            }
        }
    };
    next.next_probe_at = at.plus(pause);
    if next.posture != proof.posture {
        next.epoch = proof.epoch + 1;
        next.since = at;
    }
    next
}

/// Returns how long probes must have succeeded before a revoked key is used again.
pub(super) fn resume_delay(proof: &Proof, guard: &KeyGuard) -> Duration {
    guard.resume_after * 2_u32.pow(proof.falls.saturating_sub(1).min(MAX_DOUBLINGS))
}

/// Returns the number of revocations that still count when a posture changes: none if the posture
/// has lasted for [`FLAP_WINDOW`].
fn recent_falls(proof: &Proof, at: Timestamp) -> u32 {
    if at.since(proof.since) < FLAP_WINDOW { proof.falls } else { 0 }
}

fn next_pause(failures: u32, guard: &KeyGuard) -> Duration {
    let doubled = guard.probe_every * 2_u32.pow(failures.saturating_sub(1).min(10));
    doubled.min(LONGEST_PAUSE.max(guard.probe_every))
}

#[cfg(test)]
mod tests {
    use super::{
        Duration, KeyGuard, Posture, ProbeResult, Proof, Timestamp, Uuid, claim, is_due, resume_delay,
    };
    use crate::model::KeyVersion;

    /// Applies a probe whose answer took no time.
    fn after_probe(
        proof: &Proof,
        result: ProbeResult,
        replica: Uuid,
        at: Timestamp,
        guard: &KeyGuard,
    ) -> Proof {
        super::after_probe(proof, result, replica, (at, Duration::ZERO), guard)
    }

    const ME: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn guard() -> KeyGuard {
        let seconds = Duration::from_secs;
        KeyGuard { probe_every: seconds(1), probe_timeout: seconds(2), resume_after: seconds(3) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp(1_000_000_000_000_000 + seconds * 1_000_000)
    }

    fn active() -> Proof {
        Proof {
            key_version: KeyVersion::new("byok", "1"),
            posture: Posture::Active,
            epoch: 0,
            revision: 0,
            proven_at: at(0),
            since: at(0),
            steady_since: Some(at(0)),
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: at(1),
        }
    }

    /// Applies probes: each has a time in seconds, a result and the replica that probed.
    fn after_probes(mut proof: Proof, probes: &[(i64, ProbeResult, Uuid)]) -> Proof {
        for (seconds, result, replica) in probes {
            proof = after_probe(&proof, *result, *replica, at(*seconds), &guard());
        }
        proof
    }

    #[test]
    fn a_refusal_revokes_at_once_and_raises_the_epoch() {
        let proof = after_probe(&active(), ProbeResult::Refused, ME, at(5), &guard());
        assert_eq!((proof.posture, proof.epoch, proof.since), (Posture::Revoked, 1, at(5)));
        assert_eq!(proof.proven_at, at(0));
    }

    #[test]
    fn a_revoked_key_comes_back_only_after_lasting_successes() {
        let revoked = after_probe(&active(), ProbeResult::Refused, ME, at(5), &guard());
        let almost = after_probes(
            revoked,
            &[(10, ProbeResult::Works, ME), (11, ProbeResult::Works, OTHER), (12, ProbeResult::Works, ME)],
        );
        assert_eq!((almost.posture, almost.epoch), (Posture::Revoked, 1));
        let back = after_probe(&almost, ProbeResult::Works, ME, at(13), &guard());
        assert_eq!((back.posture, back.epoch, back.since), (Posture::Active, 2, at(13)));
    }

    #[test]
    fn a_failure_between_successes_restarts_the_wait() {
        for failure in [ProbeResult::Refused, ProbeResult::OutOfReach] {
            let proof = after_probes(
                after_probe(&active(), ProbeResult::Refused, ME, at(5), &guard()),
                &[
                    (10, ProbeResult::Works, ME),
                    (12, failure, ME),
                    (13, ProbeResult::Works, ME),
                    (15, ProbeResult::Works, ME),
                ],
            );
            assert_eq!(proof.posture, Posture::Revoked, "{failure:?}");
            assert_eq!(
                after_probe(&proof, ProbeResult::Works, ME, at(16), &guard()).posture,
                Posture::Active
            );
        }
    }

    #[test]
    fn a_flapping_key_waits_twice_as_long_within_a_bound() {
        let (mut proof, mut now) = (active(), 0);
        let mut waits = Vec::new();
        for _ in 0..7 {
            now += 1;
            proof = after_probe(&proof, ProbeResult::Refused, ME, at(now), &guard());
            let revoked_at = now;
            while proof.posture != Posture::Active {
                now += 1;
                proof = after_probe(&proof, ProbeResult::Works, ME, at(now), &guard());
            }
            waits.push(now - revoked_at - 1);
        }
        assert_eq!(waits, [3, 6, 12, 24, 48, 48, 48]);
        let calm = after_probe(&proof, ProbeResult::Refused, ME, at(now + 601), &guard());
        assert_eq!(resume_delay(&calm, &guard()), guard().resume_after);
    }

    #[test]
    fn an_outage_does_not_double_the_wait_after_a_revocation() {
        let outage =
            after_probes(active(), &[(9, ProbeResult::OutOfReach, ME), (10, ProbeResult::Works, ME)]);
        assert_eq!((outage.posture, outage.epoch), (Posture::Active, 2));
        let once = after_probe(&outage, ProbeResult::Refused, ME, at(12), &guard());
        assert_eq!(resume_delay(&once, &guard()), guard().resume_after);
        // The same holds for an outage that ends in a revocation, and for one between two
        // revocations.
        let from_outage =
            after_probes(active(), &[(9, ProbeResult::OutOfReach, ME), (10, ProbeResult::Refused, ME)]);
        assert_eq!(resume_delay(&from_outage, &guard()), guard().resume_after);
        let back = after_probes(once, &[(20, ProbeResult::Works, ME), (23, ProbeResult::Works, ME)]);
        let twice = after_probes(
            back,
            &[
                (33, ProbeResult::OutOfReach, ME),
                (34, ProbeResult::Works, ME),
                (35, ProbeResult::Refused, ME),
            ],
        );
        assert_eq!(resume_delay(&twice, &guard()), guard().resume_after * 2);
    }

    #[test]
    fn an_outage_that_one_replica_sees_is_not_the_tenants() {
        let doubted =
            after_probes(active(), &[(1, ProbeResult::OutOfReach, ME), (2, ProbeResult::OutOfReach, ME)]);
        assert_eq!((doubted.posture, doubted.epoch), (Posture::Active, 0));
        assert_eq!(
            after_probe(&doubted, ProbeResult::OutOfReach, OTHER, at(3), &guard()).posture,
            Posture::Degraded
        );
        let proven = after_probe(&doubted, ProbeResult::Works, OTHER, at(3), &guard());
        assert_eq!((proven.posture, proven.doubted_by), (Posture::Active, None));
    }

    #[test]
    fn an_outage_is_the_tenants_once_the_proof_has_expired() {
        let outage = |now| after_probe(&active(), ProbeResult::OutOfReach, ME, at(now), &guard()).posture;
        assert_eq!(outage(2), Posture::Active);
        assert_eq!(outage(3), Posture::Degraded);
        let waited = (at(1), Duration::from_secs(2));
        let hung = super::after_probe(&active(), ProbeResult::OutOfReach, ME, waited, &guard());
        assert_eq!(hung.posture, Posture::Degraded);
    }

    #[test]
    fn an_outage_is_over_after_one_success() {
        let degraded = after_probe(&active(), ProbeResult::OutOfReach, ME, at(9), &guard());
        let back = after_probe(&degraded, ProbeResult::Works, ME, at(10), &guard());
        assert_eq!((back.posture, back.epoch, back.proven_at), (Posture::Active, 2, at(10)));
    }

    #[test]
    fn an_outage_does_not_soften_a_revocation() {
        let revoked = after_probe(&active(), ProbeResult::Refused, ME, at(5), &guard());
        assert_eq!(
            after_probe(&revoked, ProbeResult::OutOfReach, ME, at(9), &guard()).posture,
            Posture::Revoked
        );
    }

    #[test]
    fn an_inactive_key_is_probed_less_often_within_a_bound() {
        let mut proof = active();
        let mut pauses = Vec::new();
        for now in 0..8 {
            proof = after_probe(&proof, ProbeResult::Refused, ME, at(now), &guard());
            pauses.push(proof.next_probe_at.since(at(now)).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn a_replica_that_found_an_outage_lets_others_probe_first() {
        let doubted = after_probe(&active(), ProbeResult::OutOfReach, ME, at(1), &guard());
        let due = |replica| is_due(&doubted, at(2), replica, &guard());
        assert_eq!((due(ME), due(OTHER)), (false, true));
        assert!(is_due(&doubted, at(3), ME, &guard()));
    }

    #[test]
    fn a_clock_set_back_stops_neither_probes_nor_recovery() {
        let revoked = after_probe(&active(), ProbeResult::Refused, ME, at(5_000), &guard());
        let steady = after_probe(&revoked, ProbeResult::Works, ME, at(5_001), &guard());
        assert!(is_due(&steady, at(0), ME, &guard()));
        let back = after_probes(steady, &[(0, ProbeResult::Works, ME), (3, ProbeResult::Works, ME)]);
        assert_eq!(back.posture, Posture::Active);
    }

    #[test]
    fn a_row_from_before_a_setback_is_probed_at_once() {
        let proof = after_probe(&active(), ProbeResult::Works, ME, at(20), &guard());
        assert!(is_due(&proof, at(17), OTHER, &guard()));
        assert!(!is_due(&proof, at(20), OTHER, &guard()));
        assert!(!is_due(&claim(&proof, at(17), &guard()), at(17), OTHER, &guard()));
        let mut revoked = active();
        for seconds in 0..8 {
            revoked = after_probe(&revoked, ProbeResult::Refused, ME, at(seconds), &guard());
            assert!(!is_due(&revoked, at(seconds), ME, &guard()), "{seconds}");
        }
    }

    #[test]
    fn a_future_proof_does_not_keep_an_unreachable_key_active() {
        let future = Proof { proven_at: at(3_600), ..active() };
        assert_eq!(
            after_probe(&future, ProbeResult::OutOfReach, ME, at(5), &guard()).posture,
            Posture::Degraded
        );
    }

    #[test]
    fn a_claim_changes_the_revision_and_nothing_that_a_fence_checks() {
        let claim = claim(&active(), at(1), &guard());
        assert_eq!((claim.revision, claim.next_probe_at), (1, at(2)));
        assert_eq!((claim.posture, claim.epoch, claim.proven_at), (Posture::Active, 0, at(0)));
    }
}
