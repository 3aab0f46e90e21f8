//! The budget of requests a minute to one tenant's KMS. It does not decide when they are made.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::{KmsError, Purpose};

/// The party that a request is made for, which decides how much of the budget it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// A caller, who may take everything that is left.
    Caller,
    /// A rotation, or DEKs that are made ahead of need: together half of the budget, so that
    /// something is left for callers.
    Rotation,
    /// A request of a rotation that [`Budget::take_all`] has already charged. Its retries are
    /// charged like other requests.
    Prepaid,
    /// A probe of the key. It takes what is left and is never refused, since without it the tenant
    /// would lose access.
    Probe,
}

impl Share {
    /// The share of a request that carries these purposes together: a caller's if any purpose is a
    /// caller's, and a probe's only if all are.
    pub(super) fn of(purposes: impl IntoIterator<Item = Purpose>) -> Self {
        purposes.into_iter().fold(Self::Probe, |share, purpose| match (share, purpose) {
            (Self::Caller, _) | (_, Purpose::Record) => Self::Caller,
            (_, Purpose::RecordAhead) => Self::Rotation,
            (share, Purpose::Probe | Purpose::RecordProbed | Purpose::Checkpoint(_)) => share,
        })
    }

    /// The share of a re-wrap of these purposes: a rotation's, unless it is a probe's.
    pub(super) fn of_rewrap(purposes: impl IntoIterator<Item = Purpose>) -> Self {
        match Self::of(purposes) {
            Self::Probe => Self::Probe,
            Self::Caller | Self::Rotation | Self::Prepaid => Self::Rotation,
        }
    }
}

impl From<Purpose> for Share {
    fn from(purpose: Purpose) -> Self {
        Self::of([purpose])
    }
}

type Meter<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The budget of one tenant's key: a whole minute's worth may be spent at once, and it refills
/// evenly.
pub(super) struct Budget<C: Clock = DefaultClock>(Option<Meters<C>>);

struct Meters<C: Clock> {
    clock: C,
    whole: Meter<C>,
    rotation: Meter<C>,
    /// The limit of one line a minute in our log.
    logged: Meter<C>,
}

impl Budget {
    /// A budget of this many requests a minute (`BYOK_KMS_CALLS_PER_MINUTE`); `None` is no bound.
    pub(super) fn new(per_minute: Option<NonZeroU32>) -> Self {
        Self::by(per_minute, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Budget<C> {
    fn by(per_minute: Option<NonZeroU32>, clock: C) -> Self {
        let meter = |per_minute| RateLimiter::direct_with_clock(Quota::per_minute(per_minute), clock.clone());
        Self(per_minute.map(|per_minute| Meters {
            whole: meter(per_minute),
            rotation: meter(NonZeroU32::new(per_minute.get() / 2).unwrap_or(NonZeroU32::MIN)),
            logged: meter(NonZeroU32::MIN),
            clock: clock.clone(),
        }))
    }

    /// Takes one request from the budget. The error is [`super::KmsErrorClass::BudgetSpent`]: do
    /// not make it.
    pub(super) fn take(&self, share: Share) -> Result<(), KmsError> {
        self.take_all(share, NonZeroU32::MIN)
    }

    /// Takes this many requests that belong together, or none: half a re-wrap would be a wasted
    /// request.
    pub(super) fn take_all(&self, share: Share, count: NonZeroU32) -> Result<(), KmsError> {
        let Some(meters) = &self.0 else { return Ok(()) };
        let taken = match share {
            Share::Caller => meters.take(&meters.whole, count),
            Share::Rotation | Share::Prepaid => {
                meters.take(&meters.rotation, count).and_then(|()| meters.take(&meters.whole, count))
            }
            Share::Probe => {
                let _ = meters.whole.check_n(count);
                Ok(())
            }
        };
        taken.map_err(|wait| {
            if meters.logged.check().is_ok() {
                tracing::warn!(?share, "the budget of KMS calls is spent: BYOK_KMS_CALLS_PER_MINUTE");
            }
            KmsError::budget_spent(wait)
        })
    }
}

impl<C: Clock> Meters<C> {
    /// Takes `count` requests; the error is the time to wait.
    fn take(&self, meter: &Meter<C>, count: NonZeroU32) -> Result<(), Duration> {
        match meter.check_n(count) {
            Ok(taken) => taken.map_err(|until| until.wait_time_from(self.clock.now())),
            // More than a whole minute's worth. The least budget that can be configured is larger
            // than what belongs together.
            Err(_) => Err(Duration::from_secs(60)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::kms::{KmsErrorClass, Verdict};

    fn budget(per_minute: u32) -> (Budget<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Budget::by(NonZeroU32::new(per_minute), clock.clone()), clock)
    }

    fn taken(budget: &Budget<FakeRelativeClock>, share: Share, tries: usize) -> usize {
        (0..tries).filter(|_| budget.take(share).is_ok()).count()
    }

    #[test]
    fn a_whole_minutes_worth_goes_at_once_and_refills_evenly() {
        let (budget, clock) = budget(60);
        assert_eq!(taken(&budget, Share::Caller, 100), 60);
        let spent = budget.take(Share::Caller).unwrap_err();
        assert_eq!((spent.class, spent.class.verdict()), (KmsErrorClass::BudgetSpent, Verdict::Unasked));
        assert_eq!(spent.retry_after, Some(Duration::from_secs(1)));
        clock.advance(Duration::from_secs(7));
        assert_eq!(taken(&budget, Share::Caller, 100), 7);
    }

    #[test]
    fn a_caller_who_waits_as_long_as_the_refusal_says_succeeds() {
        let (budget, clock) = budget(7);
        taken(&budget, Share::Caller, 7);
        for _ in 0..20 {
            let wait = budget.take(Share::Caller).unwrap_err().retry_after.unwrap();
            clock.advance(wait);
            assert!(budget.take(Share::Caller).is_ok());
        }
    }

    #[test]
    fn a_probe_counts_and_is_never_refused() {
        let (budget, _) = budget(10);
        assert_eq!(taken(&budget, Share::Probe, 4), 4);
        assert_eq!(taken(&budget, Share::Caller, 10), 6);
        assert_eq!(taken(&budget, Share::Probe, 100), 100);
    }

    #[test]
    fn a_rotation_leaves_half_of_it_to_the_callers() {
        let (budget, clock) = budget(60);
        for _ in 0..5 {
            let rotated = taken(&budget, Share::Rotation, 100);
            assert!(rotated <= 30, "{rotated}");
            assert!(taken(&budget, Share::Caller, 30) >= 30);
            clock.advance(Duration::from_secs(60));
        }
        let (of_one, _) = self::budget(1);
        assert_eq!(taken(&of_one, Share::Rotation, 2), 1);
    }

    #[test]
    fn what_belongs_together_is_taken_together_or_not_at_all() {
        let (budget, clock) = budget(20);
        let two = NonZeroU32::new(2).unwrap();
        assert_eq!((0..20).filter(|_| budget.take_all(Share::Rotation, two).is_ok()).count(), 5);
        clock.advance(Duration::from_secs(6));
        assert!(budget.take_all(Share::Rotation, two).is_err());
        clock.advance(Duration::from_secs(6));
        assert!(budget.take_all(Share::Rotation, two).is_ok());
    }

    #[test]
    fn another_tenants_budget_is_its_own() {
        let ((one, _), (other, _)) = (budget(3), budget(3));
        assert_eq!(taken(&one, Share::Caller, 10), 3);
        assert_eq!(taken(&other, Share::Caller, 10), 3);
    }

    #[test]
    fn without_a_bound_nothing_is_refused() {
        let budget = Budget::new(None);
        assert!((0..10_000).all(|_| budget.take(Share::Rotation).is_ok()));
    }

    #[test]
    fn a_batch_is_a_probe_only_if_all_items_are() {
        assert_eq!(Share::of([Purpose::Probe, Purpose::Probe]), Share::Probe);
        assert_eq!(Share::of([Purpose::Probe, Purpose::Record]), Share::Caller);
        assert_eq!(Share::of([Purpose::Record, Purpose::RecordAhead]), Share::Caller);
        assert_eq!(Share::of([Purpose::RecordAhead, Purpose::Probe]), Share::Rotation);
        assert_eq!(Share::from(Purpose::Record), Share::Caller);
        assert_eq!(Share::of_rewrap([Purpose::Probe, Purpose::Record]), Share::Rotation);
        assert_eq!(Share::of_rewrap([Purpose::Probe]), Share::Probe);
    }
}
