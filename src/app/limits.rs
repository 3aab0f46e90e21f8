//! How often and how much: the meters of calls and items, by tenant. They live in this process's memory, so each replica has
//! its own; `docs/limits.md` has the maths. What goes to the KMS is metered where it goes out (`kms`).

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use crate::config::Limits;
use crate::model::{Caller, ErrorCode, Operation, Refusal, TenantUid};

use super::App;

/// So many a minute, by tenant: a whole minute's worth may come at once, then it fills up evenly (GCRA). In any minute no
/// more than twice as many pass, in a row of `k` minutes no more than `k + 1` times.
struct Meter<C: Clock = DefaultClock> {
    limiter: RateLimiter<TenantUid, DefaultKeyedStateStore<TenantUid>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
}

/// Why so many are not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// There is room for them after this long, if nobody else comes.
    Now(Duration),
    /// They are more than a whole minute's worth: there never is.
    Ever,
}

impl<C: Clock + Clone> Meter<C> {
    fn new(per_minute: NonZeroU32, clock: C) -> Self {
        let quota = Quota::per_minute(per_minute);
        let limiter = RateLimiter::new(quota, DefaultKeyedStateStore::default(), clock.clone());
        Self { limiter, clock }
    }

    /// All of them or none.
    fn take(&self, tenant: TenantUid, count: NonZeroU32) -> Result<(), Over> {
        match self.limiter.check_key_n(&tenant, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(Over::Now(until.wait_time_from(self.clock.now()))),
            Err(_) => Err(Over::Ever),
        }
    }
}

/// All meters of an [`App`].
pub(super) struct Meters {
    encrypt: Meter,
    decrypt: Meter,
    other: Meter,
    refusal: Meter,
    encrypt_items: Option<Meter>,
    decrypt_items: Option<Meter>,
}

impl Meters {
    pub(super) fn new(limits: &Limits) -> Self {
        let budget = |per_minute| Meter::new(per_minute, DefaultClock::default());
        let rate = |per_minute| budget(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN));
        Self {
            encrypt: rate(limits.encrypt_per_minute),
            decrypt: rate(limits.decrypt_per_minute),
            other: rate(limits.decrypt_per_minute),
            refusal: rate(limits.decrypt_per_minute),
            encrypt_items: limits.encrypt_items_per_minute.map(budget),
            decrypt_items: limits.decrypt_items_per_minute.map(budget),
        }
    }

    fn call(&self, operation: Operation, tenant: TenantUid) -> Result<(), Refusal> {
        let meter = match operation {
            Operation::Encrypt => &self.encrypt,
            Operation::Decrypt | Operation::Reveal => &self.decrypt,
            Operation::Rotate
            | Operation::Audit
            | Operation::Health
            | Operation::Incident
            | Operation::Prune
            | Operation::Erase
            | Operation::Hold
            | Operation::Restore => &self.other,
        };
        meter.take(tenant, NonZeroU32::MIN).map_err(of_calls)
    }

    /// Of calls that are refused before they do anything.
    pub(super) fn refusal(&self, tenant: TenantUid) -> Result<(), Refusal> {
        self.refusal.take(tenant, NonZeroU32::MIN).map_err(of_calls)
    }

    fn items(&self, operation: Operation, tenant: TenantUid, items: usize) -> Result<(), Over> {
        let meter = match operation {
            Operation::Encrypt => &self.encrypt_items,
            Operation::Decrypt | Operation::Reveal => &self.decrypt_items,
            Operation::Rotate
            | Operation::Audit
            | Operation::Health
            | Operation::Incident
            | Operation::Prune
            | Operation::Erase
            | Operation::Hold
            | Operation::Restore => &None,
        };
        match (meter, u32::try_from(items).ok().and_then(NonZeroU32::new)) {
            (Some(meter), Some(items)) => meter.take(tenant, items),
            (Some(_), None) if items > 0 => Err(Over::Ever),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

fn of_calls(over: Over) -> Refusal {
    let refusal = Refusal::from(ErrorCode::RateLimited);
    match over {
        Over::Now(wait) => refusal.after(wait),
        // A call is one, and a rate is at least one.
        Over::Ever => refusal,
    }
}

impl App {
    /// Meters a call and asks whether its role may ever do this. A call is one, however many items it has. Calls that are
    /// refused here have a bucket of their own, so that who may do nothing can neither use up the tenant's budget nor flood
    /// its log: past that, a refusal leaves no entry.
    pub(super) async fn enter(&self, caller: &Caller, operation: Operation) -> Result<(), Refusal> {
        self.may_append()?;
        if !self.policy.may_ever(&caller.identity, operation) {
            return Err(self.refuse(caller, operation, ErrorCode::PermissionDenied.into()).await);
        }
        self.meters.call(operation, caller.tenant.uid)
    }

    /// Refuses a call that holds nothing, too much, or more than the tenant's items of this minute. Like a call over the
    /// rate, the last leaves no entry.
    pub(super) async fn bound(
        &self,
        caller: &Caller,
        operation: Operation,
        items: usize,
    ) -> Result<(), Refusal> {
        let refusal = match items {
            0 => Refusal::because(ErrorCode::RequestMalformed, "The request has no items."),
            items if items > self.limits.items => ErrorCode::TooManyItems.into(),
            items => match self.meters.items(operation, caller.tenant.uid, items) {
                Ok(()) => return Ok(()),
                Err(Over::Now(wait)) => {
                    let spent = "The items of this minute are used up for this tenant.";
                    return Err(Refusal::because(ErrorCode::RateLimited, spent).after(wait));
                }
                Err(Over::Ever) => Refusal::because(
                    ErrorCode::TooManyItems,
                    "The request holds more items than the tenant may send in a whole minute: it can never pass.",
                ),
            },
        };
        Err(self.refuse(caller, operation, refusal).await)
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const ONE: TenantUid = TenantUid([1; 16]);
    const OTHER: TenantUid = TenantUid([2; 16]);

    fn meter(per_minute: u32) -> (Meter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Meter::new(NonZeroU32::new(per_minute).unwrap(), clock.clone()), clock)
    }

    fn count(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    /// When calls passed, in milliseconds, of somebody who tries without end for `minutes`, after `quiet` of nothing.
    fn passed(per_minute: u32, quiet: u64, minutes: u64) -> Vec<u64> {
        let (meter, clock) = meter(per_minute);
        let mut passed = Vec::new();
        clock.advance(Duration::from_millis(quiet));
        for at in 0..=minutes * 60_000 {
            while meter.take(ONE, NonZeroU32::MIN).is_ok() {
                passed.push(at);
            }
            clock.advance(Duration::from_millis(1));
        }
        passed
    }

    #[test]
    fn in_any_minute_twice_the_rate_passes_at_most_and_in_k_minutes_k_and_one_times() {
        for (per_minute, quiet) in [(1, 0), (2, 0), (7, 90_000), (60, 0), (300, 3_600_000), (601, 17)] {
            let passed = passed(per_minute, quiet, 4);
            let within = |window: u64| {
                let from =
                    |start: &u64| passed.iter().filter(|at| (*start..start + window).contains(at)).count();
                passed.iter().map(from).max().unwrap()
            };
            for minutes in 1..=3 {
                let most = within(minutes * 60_000);
                let bound = (minutes as usize + 1) * per_minute as usize;
                assert!(most <= bound, "{most} of {per_minute} in {minutes} minutes");
                // And no less, but for the one at the window's very end: the bound is not a loose one.
                assert!(most >= bound - 1, "{most} of {per_minute} in {minutes} minutes");
            }
        }
    }

    #[test]
    fn a_minutes_worth_comes_at_once_and_then_one_by_one() {
        let (meter, clock) = meter(60);
        assert!((0..60).all(|_| meter.take(ONE, NonZeroU32::MIN).is_ok()));
        assert_eq!(meter.take(ONE, NonZeroU32::MIN), Err(Over::Now(Duration::from_secs(1))));
        clock.advance(Duration::from_millis(999));
        assert_eq!(meter.take(ONE, NonZeroU32::MIN), Err(Over::Now(Duration::from_millis(1))));
        clock.advance(Duration::from_millis(1));
        assert_eq!(meter.take(ONE, NonZeroU32::MIN), Ok(()));
    }

    #[test]
    fn items_pass_together_or_not_at_all() {
        let (meter, clock) = meter(100);
        assert_eq!(meter.take(ONE, count(70)), Ok(()));
        let Err(Over::Now(wait)) = meter.take(ONE, count(40)) else { panic!("30 are left") };
        assert_eq!(meter.take(ONE, count(30)), Ok(()), "what was refused took nothing");
        assert!(wait <= Duration::from_secs(6));
        clock.advance(Duration::from_secs(24));
        assert_eq!(meter.take(ONE, count(40)), Ok(()));
    }

    #[test]
    fn who_waits_as_long_as_was_said_gets_through() {
        let (meter, clock) = meter(7);
        for items in [7, 1, 3, 7, 2, 5] {
            if let Err(over) = meter.take(ONE, count(items)) {
                let Over::Now(wait) = over else { panic!("{items} can pass") };
                clock.advance(wait);
                assert_eq!(meter.take(ONE, count(items)), Ok(()));
            }
        }
    }

    #[test]
    fn more_than_a_minutes_worth_can_never_pass() {
        let (meter, clock) = meter(100);
        assert_eq!(meter.take(ONE, count(101)), Err(Over::Ever));
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(meter.take(ONE, count(101)), Err(Over::Ever));
        assert_eq!(meter.take(ONE, count(100)), Ok(()));
    }

    #[test]
    fn another_tenant_is_not_touched() {
        let (meter, _) = meter(10);
        assert_eq!(meter.take(ONE, count(10)), Ok(()));
        assert!(meter.take(ONE, NonZeroU32::MIN).is_err());
        assert_eq!(meter.take(OTHER, count(10)), Ok(()));
    }
}
