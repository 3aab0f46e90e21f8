//! A meter of what a tenant may take per minute, and of the share of it that one of its users may
//! take. It is pure: each call passes the time in. `docs/limits.md` has the maths.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::one::RefMut;

use crate::model::TenantUid;

const MINUTE: Duration = Duration::from_secs(60);
/// The units of one call or item. With this value, a rate of `n` per minute refills exactly `n`
/// units per nanosecond.
const ONE: i64 = 60_000_000_000;
/// The number of users whose usage in a minute is kept, whatever names callers send. Further users
/// reduce each other's counts (Misra and Gries, 1982). So no user's usage is understated by more
/// than a 65th of all usage, and none is ever overstated.
const KEPT_USERS: usize = 64;
/// The number of users who get their first unit of a minute even if others have used up everything.
/// It is never more than the rate per minute.
const FIRSTS: usize = 256;

/// A user of a tenant, identified by the hash of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User(pub(super) u64);

/// Who takes from a meter: a user of a tenant, at the tenant's rate.
#[derive(Clone, Copy)]
pub(super) struct Taker {
    pub(super) tenant: TenantUid,
    pub(super) user: User,
    /// A rate that changes holds for all that refills from then on.
    pub(super) per_minute: NonZeroU32,
}

/// The reason why a request was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// There will be room after this time, if nobody else takes any.
    RetryAfter(Duration),
    /// The request is for more than a whole minute's worth, so there is never room.
    NeverFits,
}

/// Which usage of a user counts once there is another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CountedUsage {
    /// The usage from then on: the share is of what is left.
    FromTheSecondUser,
    /// All usage of the minute: a user who has used everything up alone has had their share.
    All,
}

/// What each tenant takes per minute. A whole minute's worth may be taken at once; then the meter
/// refills evenly, at the tenant's rate. In any minute no more than twice the rate passes, and in
/// `k` consecutive minutes no more than `k + 1` times the rate. While one user asks alone, that
/// user may take everything. While others have asked in the last minute, no user gets more than
/// half.
pub(super) struct Meter {
    counted: CountedUsage,
    /// The tenants of the last minute, and those that owe something.
    tenants: DashMap<TenantUid, Bucket>,
    /// When the tenants that are as if they had never asked were last dropped, in minutes.
    dropped_at: AtomicU64,
}

impl Meter {
    pub(super) fn new(counted: CountedUsage) -> Self {
        Self { counted, tenants: DashMap::new(), dropped_at: AtomicU64::new(0) }
    }

    /// Returns the bucket of a tenant as of now.
    fn bucket(
        &self,
        tenant: TenantUid,
        per_minute: NonZeroU32,
        now: Duration,
    ) -> RefMut<'_, TenantUid, Bucket> {
        let minute = now.as_secs() / MINUTE.as_secs();
        let is_due = self.dropped_at.load(Ordering::Relaxed) != minute;
        if is_due && self.dropped_at.swap(minute, Ordering::Relaxed) != minute {
            self.tenants.retain(|_, bucket| !bucket.will_be_full(now));
        }
        let mut bucket = self.tenants.entry(tenant).or_insert_with(|| Bucket::full(per_minute, now));
        bucket.pass_time(per_minute, now);
        bucket
    }

    /// Takes all of `count` or nothing.
    pub(super) fn take(&self, taker: Taker, count: u32, now: Duration) -> Result<(), Exceeded> {
        let Taker { tenant, user, per_minute } = taker;
        let need = units(count, per_minute)?;
        let mut bucket = self.bucket(tenant, per_minute, now);
        let other = bucket.ask(user, now);
        if other.is_none() && self.counted == CountedUsage::FromTheSecondUser {
            bucket.share = Share::default();
        }
        bucket.room(user, need, other, per_minute, now)?;
        bucket.level -= need;
        if other.is_some() || self.counted == CountedUsage::All {
            bucket.share.note(user, need, now);
        }
        Ok(())
    }

    /// Takes one. A user's first of a minute passes even if others have used up everything, so that
    /// they cannot hide that user. What passes this way is owed, so in the long run no more passes
    /// than otherwise.
    pub(super) fn take_or_first(&self, taker: Taker, now: Duration) -> Result<(), Exceeded> {
        let over = match self.take(taker, 1, now) {
            Ok(()) => return Ok(()),
            Err(over) => over,
        };
        let Taker { tenant, user, per_minute } = taker;
        let most = usize::try_from(per_minute.get()).map_or(FIRSTS, |per_minute| per_minute.min(FIRSTS));
        let first = self.tenants.get_mut(&tenant).filter(|bucket| {
            let Share { firsts, .. } = &bucket.share;
            bucket.share.used(user) == 0 && firsts.len() < most && !firsts.contains(&user)
        });
        let mut bucket = first.ok_or(over)?;
        bucket.level -= ONE;
        bucket.share.firsts.push(user);
        bucket.share.note(user, ONE, now);
        Ok(())
    }

    /// Takes what has happened already, whether there was room for it or not. At most a minute's
    /// worth is owed. Returns `false` if that much was owed already: then this meter no longer
    /// bounds it, however many users there are, and the caller has to charge it elsewhere.
    pub(super) fn charge(&self, taker: Taker, count: u32, now: Duration) -> bool {
        let Taker { tenant, user, per_minute } = taker;
        let most = full(per_minute);
        let units = i64::from(count).saturating_mul(ONE).min(most);
        let mut bucket = self.bucket(tenant, per_minute, now);
        bucket.ask(user, now);
        let is_bounded = bucket.level > -most;
        bucket.level = bucket.level.saturating_sub(units).max(bucket.level.min(-most));
        bucket.share.note(user, units, now);
        is_bounded
    }

    /// Gives back what was taken and not used.
    pub(super) fn give_back(&self, taker: Taker, count: u32, now: Duration) {
        let Taker { tenant, user, per_minute } = taker;
        if let (Ok(units), Some(mut bucket)) = (units(count, per_minute), self.tenants.get_mut(&tenant)) {
            bucket.pass_time(per_minute, now);
            bucket.level = bucket.level.saturating_add(units).min(full(per_minute));
            bucket.share.refund(user, units);
        }
    }

    /// Checks whether this user may take one more, or has taken nothing in this minute; a user is
    /// not blocked for what others have used up. Takes nothing, and does not count as asking.
    pub(super) fn has_room(&self, taker: Taker, now: Duration) -> Result<(), Exceeded> {
        let Taker { tenant, user, per_minute } = taker;
        let Some(mut bucket) = self.tenants.get_mut(&tenant) else { return Ok(()) };
        bucket.pass_time(per_minute, now);
        match (bucket.share.used(user), bucket.other(user, now)) {
            (0, _) => Ok(()),
            (_, Some(other)) => bucket.share_room(user, ONE, other, per_minute, now, now),
            (_, None) => bucket.room(user, ONE, None, per_minute, now),
        }
    }
}

/// Returns this many in units, if they ever fit.
fn units(count: u32, per_minute: NonZeroU32) -> Result<i64, Exceeded> {
    if count > per_minute.get() {
        return Err(Exceeded::NeverFits);
    }
    Ok(i64::from(count) * ONE)
}

/// Returns a minute's worth, in units.
fn full(per_minute: NonZeroU32) -> i64 {
    i64::from(per_minute.get()).saturating_mul(ONE)
}

/// Returns the time in which this many units refill; zero if none are missing.
fn filling(missing: i128, per_minute: NonZeroU32) -> Duration {
    let missing = u64::try_from(missing.max(0)).unwrap_or(u64::MAX);
    Duration::from_nanos(missing.div_ceil(u64::from(per_minute.get())))
}

/// What a tenant has left, and who took how much.
struct Bucket {
    /// The units left. Negative if more was charged than was left.
    level: i64,
    filled_at: Duration,
    /// The two users who asked last, the most recent first, each with the time.
    asked: [Option<(User, Duration)>; 2],
    share: Share,
}

impl Bucket {
    fn full(per_minute: NonZeroU32, now: Duration) -> Self {
        Self { level: full(per_minute), filled_at: now, asked: [None; 2], share: Share::default() }
    }

    /// Adds what has refilled since the last call, and forgets the usage of a minute that is over.
    fn pass_time(&mut self, per_minute: NonZeroU32, now: Duration) {
        let since = now.saturating_sub(self.filled_at).min(MINUTE);
        let came = i64::try_from(since.as_nanos()).unwrap_or(0) * i64::from(per_minute.get());
        self.level = self.level.saturating_add(came).min(full(per_minute));
        self.filled_at = self.filled_at.max(now);
        if self.share.ends() <= now {
            self.share = Share::default();
        }
    }

    /// Returns whether a minute without a call has made this bucket equal to a new one: a minute
    /// refills what does not owe anything, whatever the rate, and forgets who took how much.
    fn will_be_full(&self, now: Duration) -> bool {
        self.level >= 0 && self.filled_at + MINUTE <= now
    }

    /// Returns when a user other than this one last asked, if that was within a minute.
    fn other(&self, user: User, now: Duration) -> Option<Duration> {
        let other = self.asked.iter().flatten().find(|(asked, _)| *asked != user);
        other.map(|(_, at)| *at).filter(|at| *at + MINUTE > now)
    }

    /// Does the same, and notes that this user asks now.
    fn ask(&mut self, user: User, now: Duration) -> Option<Duration> {
        let other = self.other(user, now);
        if self.asked[0].is_some_and(|(latest, _)| latest != user) {
            self.asked[1] = self.asked[0];
        }
        self.asked[0] = Some((user, now));
        other
    }

    /// Checks whether the bucket, and the user's share of it, have enough.
    fn room(
        &self,
        user: User,
        need: i64,
        other: Option<Duration>,
        per_minute: NonZeroU32,
        now: Duration,
    ) -> Result<(), Exceeded> {
        let filled = now + filling(i128::from(need) - i128::from(self.level), per_minute);
        match other {
            Some(other) => self.share_room(user, need, other, per_minute, now, filled),
            None if filled == now => Ok(()),
            None => Err(Exceeded::RetryAfter(filled - now)),
        }
    }

    /// Checks whether the need is within half of the sum of what is left and what was taken. The
    /// half is rounded up to whole ones, because a rate of one per minute would otherwise let
    /// nobody through. The bucket has room for the need from `not_before` on.
    fn share_room(
        &self,
        user: User,
        need: i64,
        other: Duration,
        per_minute: NonZeroU32,
        now: Duration,
        not_before: Duration,
    ) -> Result<(), Exceeded> {
        // Above this value, half of it rounds up to what is needed.
        let enough = |used: i64| 2 * (i128::from(used) + i128::from(need - ONE));
        let used = self.share.used(user);
        let here = i128::from(self.level) + self.share.taken;
        if here > enough(used) && not_before == now {
            return Ok(());
        }
        // Room comes in one of three ways: the bucket refills before the minute is over; the next
        // minute begins, in which nothing was taken yet; or the user becomes the only one again.
        let most = i128::from(full(per_minute));
        let ends = self.share.ends();
        let filled = not_before.max(now + filling(enough(used) + 1 - here, per_minute));
        let can_fill = filled < ends && enough(used) < most + self.share.taken;
        let next = ends.max(now + filling(enough(0) + 1 - i128::from(self.level), per_minute));
        let can_next = enough(0) < most;
        let times = [(filled, can_fill), (next, can_next), (other + MINUTE, true)];
        let soonest = times.iter().filter(|(_, possible)| *possible).map(|(at, _)| *at).min();
        Err(Exceeded::RetryAfter(soonest.unwrap_or(now).max(not_before).saturating_sub(now)))
    }
}

/// What was taken within a minute, and by whom.
#[derive(Default)]
struct Share {
    /// When the first of it was taken.
    began: Option<Duration>,
    taken: i128,
    by: Vec<(User, i64)>,
    /// The users who got their first one although nothing was left.
    firsts: Vec<User>,
}

impl Share {
    /// Returns when the minute is over; time zero if nothing was taken.
    fn ends(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began + MINUTE)
    }

    fn used(&self, user: User) -> i64 {
        self.by.iter().find(|(taker, _)| *taker == user).map_or(0, |(_, used)| *used)
    }

    fn note(&mut self, user: User, units: i64, now: Duration) {
        self.began.get_or_insert(now);
        self.taken += i128::from(units);
        if let Some((_, used)) = self.by.iter_mut().find(|(taker, _)| *taker == user) {
            *used = used.saturating_add(units);
            return;
        }
        let mut rest = units;
        if self.by.len() == KEPT_USERS {
            let least = self.by.iter().map(|(_, used)| *used).min().unwrap_or(0).min(rest);
            self.by.iter_mut().for_each(|(_, used)| *used -= least);
            self.by.retain(|(_, used)| *used > 0);
            rest -= least;
        }
        if rest > 0 {
            self.by.push((user, rest));
        }
    }

    fn refund(&mut self, user: User, units: i64) {
        if let Some((_, used)) = self.by.iter_mut().find(|(taker, _)| *taker == user) {
            let refunded = units.min(*used);
            *used -= refunded;
            self.taken -= i128::from(refunded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantUid = TenantUid([1; 16]);
    const OTHER_TENANT: TenantUid = TenantUid([2; 16]);
    const ANNA: User = User(1);
    const BERT: User = User(2);
    const START: Duration = Duration::from_secs(1_000);

    fn seconds(seconds: u64) -> Duration {
        START + Duration::from_secs(seconds)
    }

    /// A meter that everybody takes from at one rate.
    struct Rated {
        meter: Meter,
        per_minute: NonZeroU32,
    }

    impl Rated {
        fn taker(&self, tenant: TenantUid, user: User) -> Taker {
            Taker { tenant, user, per_minute: self.per_minute }
        }

        fn take(&self, tenant: TenantUid, user: User, count: u32, now: Duration) -> Result<(), Exceeded> {
            self.meter.take(self.taker(tenant, user), count, now)
        }

        fn take_or_first(&self, tenant: TenantUid, user: User, now: Duration) -> Result<(), Exceeded> {
            self.meter.take_or_first(self.taker(tenant, user), now)
        }

        fn charge(&self, tenant: TenantUid, user: User, count: u32, now: Duration) -> bool {
            self.meter.charge(self.taker(tenant, user), count, now)
        }

        fn give_back(&self, tenant: TenantUid, user: User, count: u32, now: Duration) {
            self.meter.give_back(self.taker(tenant, user), count, now);
        }

        fn has_room(&self, tenant: TenantUid, user: User, now: Duration) -> Result<(), Exceeded> {
            self.meter.has_room(self.taker(tenant, user), now)
        }
    }

    fn meter_of(per_minute: u32, counted: CountedUsage) -> Rated {
        Rated { meter: Meter::new(counted), per_minute: NonZeroU32::new(per_minute).unwrap() }
    }

    fn meter(per_minute: u32) -> Rated {
        meter_of(per_minute, CountedUsage::FromTheSecondUser)
    }

    /// Returns how many of this many calls of a user pass at this time.
    fn passed(meter: &Rated, user: User, calls: u32, now: Duration) -> u32 {
        (0..calls).map(|_| u32::from(meter.take(TENANT, user, 1, now).is_ok())).sum()
    }

    /// Returns when calls passed, in milliseconds, for a user who tries continuously for `minutes`
    /// after `quiet` milliseconds without calls.
    fn passed_at(per_minute: u32, quiet: u64, minutes: u64) -> Vec<u64> {
        let meter = meter(per_minute);
        let mut passed = Vec::new();
        for at in 0..=minutes * 60_000 {
            while meter.take(TENANT, ANNA, 1, START + Duration::from_millis(quiet + at)).is_ok() {
                passed.push(at);
            }
        }
        passed
    }

    #[test]
    fn a_minute_allows_twice_the_rate_k_minutes_k_plus_one() {
        for (per_minute, quiet) in [(1, 0), (2, 0), (7, 90_000), (60, 0), (300, 3_600_000), (601, 17)] {
            let passed = passed_at(per_minute, quiet, 4);
            let within = |window: u64| {
                let from =
                    |start: &u64| passed.iter().filter(|at| (*start..start + window).contains(at)).count();
                passed.iter().map(from).max().unwrap()
            };
            for minutes in 1..=3 {
                let most = within(minutes * 60_000);
                let bound = (minutes as usize + 1) * per_minute as usize;
                assert!(most <= bound, "{most} of {per_minute} in {minutes} minutes");
                // And no less, except for the one at the very end of the window: the bound is
                // tight.
                assert!(most >= bound - 1, "{most} of {per_minute} in {minutes} minutes");
            }
        }
    }

    #[test]
    fn a_tenant_is_forgotten_after_a_minute_unless_it_owes() {
        let meter = meter(1);
        let other = |n: u8| TenantUid([n; 16]);
        for n in 101..=110 {
            assert_eq!(meter.take(other(n), ANNA, 1, START), Ok(()));
        }
        assert!(meter.charge(other(101), ANNA, 1, START));
        assert_eq!(meter.take(TENANT, ANNA, 1, START + MINUTE), Ok(()));
        let kept: Vec<_> = meter.meter.tenants.iter().map(|bucket| *bucket.key()).collect();
        assert!(kept.len() == 2 && kept.contains(&other(101)) && kept.contains(&TENANT), "{kept:?}");
    }

    #[test]
    fn a_minutes_worth_comes_at_once_and_then_one_by_one() {
        let meter = meter(60);
        assert_eq!(passed(&meter, ANNA, 61, START), 60);
        assert_eq!(meter.take(TENANT, ANNA, 1, START), Err(Exceeded::RetryAfter(Duration::from_secs(1))));
        let almost = START + Duration::from_millis(999);
        assert_eq!(meter.take(TENANT, ANNA, 1, almost), Err(Exceeded::RetryAfter(Duration::from_millis(1))));
        assert_eq!(meter.take(TENANT, ANNA, 1, seconds(1)), Ok(()));
    }

    #[test]
    fn items_pass_together_or_not_at_all() {
        let meter = meter(100);
        assert_eq!(meter.take(TENANT, ANNA, 70, START), Ok(()));
        assert_eq!(meter.take(TENANT, ANNA, 40, START), Err(Exceeded::RetryAfter(Duration::from_secs(6))));
        assert_eq!(meter.take(TENANT, ANNA, 30, START), Ok(()), "what was refused took nothing");
        assert_eq!(meter.take(TENANT, ANNA, 40, seconds(24)), Ok(()));
    }

    #[test]
    fn more_than_a_minutes_worth_can_never_pass() {
        let meter = meter(100);
        assert_eq!(meter.take(TENANT, ANNA, 101, START), Err(Exceeded::NeverFits));
        assert_eq!(meter.take(TENANT, ANNA, u32::MAX, seconds(3_600)), Err(Exceeded::NeverFits));
        assert_eq!(meter.take(TENANT, ANNA, 100, seconds(3_600)), Ok(()));
    }

    #[test]
    fn another_tenant_is_not_touched() {
        let meter = meter(10);
        assert_eq!(passed(&meter, ANNA, 11, START), 10);
        assert_eq!(meter.take(OTHER_TENANT, ANNA, 10, START), Ok(()));
        assert_eq!(
            meter.take(OTHER_TENANT, ANNA, 1, START),
            Err(Exceeded::RetryAfter(Duration::from_secs(6)))
        );
    }

    #[test]
    fn a_rate_that_changes_holds_for_what_comes_from_then_on() {
        let mut meter = meter(600);
        assert_eq!(passed(&meter, ANNA, 600, START), 600);
        meter.per_minute = NonZeroU32::new(60).unwrap();
        assert_eq!(passed(&meter, ANNA, 620, seconds(10)), 10);
        meter.per_minute = NonZeroU32::new(1_200).unwrap();
        assert_eq!(passed(&meter, ANNA, 620, seconds(20)), 200);
        assert_eq!(passed(&meter, ANNA, 1_300, seconds(3_600)), 1_200);
    }

    #[test]
    fn the_largest_rate_does_not_overflow() {
        let meter = meter(100_000_000);
        assert_eq!(meter.take(TENANT, ANNA, 1, START), Ok(()));
        assert_eq!(meter.take(TENANT, BERT, 50_000_000, START), Ok(()));
        assert_eq!(meter.take(TENANT, ANNA, 49_999_999, START), Ok(()));
        assert_eq!(meter.take(TENANT, ANNA, 100_000_000, seconds(100_000_000)), Ok(()));
    }

    #[test]
    fn one_user_alone_has_all_of_it() {
        assert_eq!(passed(&meter(600), ANNA, 620, START), 600);
    }

    #[test]
    fn of_two_greedy_users_each_gets_nearly_half() {
        for turn in [1, 7, 100, 600] {
            let meter = meter(600);
            let (mut anna, mut bert) = (passed(&meter, ANNA, 1, START), 0);
            bert += passed(&meter, BERT, 1, START);
            for _ in 0..600 / turn {
                anna += passed(&meter, ANNA, turn, START);
                bert += passed(&meter, BERT, turn, START);
            }
            assert!(anna >= 299 && bert >= 299, "{anna} and {bert} in turns of {turn}");
        }
    }

    #[test]
    fn from_the_second_user_each_gets_half_the_rest_at_most() {
        let meter = meter(600);
        assert_eq!(passed(&meter, ANNA, 200, START), 200);
        assert_eq!(passed(&meter, BERT, 600, START), 200);
        assert_eq!(passed(&meter, ANNA, 600, START), 200);
        // Of what refills, neither gets more than half.
        assert_eq!(passed(&meter, ANNA, 600, seconds(10)), 50);
        assert_eq!(passed(&meter, BERT, 600, seconds(10)), 50);
    }

    #[test]
    fn a_greedy_user_leaves_others_half_and_takes_the_unused() {
        let meter = meter(600);
        let (mut anna, mut bert) = (0, 0);
        for second in 0..600 {
            anna += passed(&meter, ANNA, 100, seconds(second));
            if second % 6 == 5 {
                bert += passed(&meter, BERT, 1, seconds(second));
            }
        }
        assert_eq!(bert, 100, "each passed");
        assert!(anna > 5_000, "{anna} of some 6,600 that came");
        assert!(passed(&meter, BERT, 600, seconds(600)) >= 250);
    }

    #[test]
    fn whoever_asks_alone_for_a_minute_has_all_of_it_again() {
        let meter = meter(60);
        assert_eq!(passed(&meter, BERT, 1, START), 1);
        assert_eq!(passed(&meter, ANNA, 60, seconds(30)), 30);
        assert_eq!(passed(&meter, ANNA, 60, seconds(59)), 15, "half of what came");
        assert_eq!(passed(&meter, ANNA, 60, seconds(60)), 45);
    }

    #[test]
    fn who_waits_as_long_as_was_said_gets_through() {
        for counted in [CountedUsage::FromTheSecondUser, CountedUsage::All] {
            for per_minute in [1, 2, 7, 60] {
                let meter = meter_of(per_minute, counted);
                let mut now = START;
                for round in 0..200_u32 {
                    let _ = meter.take(TENANT, BERT, round % per_minute + 1, now);
                    let count = (round * 5) % per_minute + 1;
                    if let Err(over) = meter.take(TENANT, ANNA, count, now) {
                        let Exceeded::RetryAfter(wait) = over else {
                            panic!("{count} of {per_minute} can pass")
                        };
                        assert!(!wait.is_zero());
                        now += wait;
                        assert_eq!(
                            meter.take(TENANT, ANNA, count, now),
                            Ok(()),
                            "{count} of {per_minute} after {wait:?}"
                        );
                    }
                    now += Duration::from_millis(u64::from(round) * 97 % 9_000);
                }
            }
        }
    }

    #[test]
    fn what_is_refunded_can_be_taken_again_and_is_not_counted() {
        let meter = meter(600);
        assert_eq!(passed(&meter, BERT, 1, START), 1);
        for _ in 0..2_000 {
            assert_eq!(meter.take(TENANT, ANNA, 1, START), Ok(()));
            meter.give_back(TENANT, ANNA, 1, START);
        }
        assert_eq!(passed(&meter, ANNA, 600, START), 300);
        assert_eq!(passed(&meter, BERT, 600, START), 299);
        meter.give_back(TENANT, BERT, 299, START);
        assert_eq!(passed(&meter, User(3), 600, START), 299, "theirs is half of all, as anybody's");
    }

    #[test]
    fn a_user_who_used_all_refusals_has_none_others_have() {
        let meter = meter_of(600, CountedUsage::All);
        assert_eq!(passed(&meter, ANNA, 620, START), 600);
        assert!(matches!(meter.has_room(TENANT, ANNA, START), Err(Exceeded::RetryAfter(_))));
        assert_eq!(meter.has_room(TENANT, BERT, START), Ok(()));
        let _ = meter.take(TENANT, BERT, 1, START);
        assert!(matches!(meter.has_room(TENANT, ANNA, seconds(5)), Err(Exceeded::RetryAfter(_))));
        assert_eq!(passed(&meter, BERT, 1, seconds(5)), 1);
        assert_eq!(meter.has_room(TENANT, ANNA, seconds(60)), Ok(()), "that minute is over");
        // What was charged without being taken is owed, and only by its own user.
        meter.charge(TENANT, ANNA, 6_000, seconds(60));
        assert!(matches!(meter.has_room(TENANT, ANNA, seconds(60)), Err(Exceeded::RetryAfter(_))));
        assert_eq!(meter.has_room(TENANT, BERT, seconds(60)), Ok(()));
        assert_eq!(meter.has_room(OTHER_TENANT, ANNA, START), Ok(()));
    }

    #[test]
    fn accomplices_cannot_hide_a_users_first_refusal_in_a_minute() {
        let meter = meter_of(600, CountedUsage::All);
        let refused = |user, now| meter.take_or_first(TENANT, user, now).is_ok();
        for second in 0..600 {
            for _ in 0..20 {
                let _ = (refused(ANNA, seconds(second)), refused(BERT, seconds(second)));
            }
            if second % 60 == 59 {
                let third = User(3);
                assert!(refused(third, seconds(second)), "{second}");
            }
        }
    }

    #[test]
    fn any_number_of_users_first_refusals_passes_a_bounded_number() {
        for per_minute in [10, 600] {
            let meter = meter_of(per_minute, CountedUsage::All);
            let mut passed = [0; 5];
            for (minute, passed) in (0..).zip(&mut passed) {
                for tenth in 0..600 {
                    let now = seconds(minute * 60) + Duration::from_millis(tenth * 100);
                    let users = (tenth * 20..tenth * 20 + 20).map(User);
                    *passed += users.filter(|user| meter.take_or_first(TENANT, *user, now).is_ok()).count();
                }
            }
            let (rate, firsts) = (per_minute as usize, FIRSTS.min(per_minute as usize));
            assert!(passed[0] <= 2 * rate + firsts, "{passed:?}");
            let all: usize = passed.iter().sum();
            assert!(all <= 6 * rate + 2 * firsts, "{passed:?}: what was owed is paid");
            assert!(meter.meter.tenants.get(&TENANT).unwrap().share.firsts.len() <= firsts);
        }
    }

    #[test]
    fn all_refused_users_are_charged_two_minutes_worth_at_most() {
        for users in [1, 6, 70] {
            let meter = meter(600);
            let charged = (0..10_000).filter(|n| meter.charge(TENANT, User(n % users), 1, START)).count();
            assert_eq!(charged, 1_200, "{users}");
        }
    }

    #[test]
    fn kept_names_are_bounded_in_number_and_hide_no_greedy_user() {
        let meter = meter(600_000);
        let mut anna = 0;
        for name in 0..250_000 {
            assert_eq!(meter.take(TENANT, User(1_000 + name), 1, START), Ok(()));
            anna += passed(&meter, ANNA, 2, START);
        }
        assert!(meter.meter.tenants.get(&TENANT).unwrap().share.by.len() <= KEPT_USERS);
        assert!((290_000..300_000 + 600_000 / 65).contains(&anna), "{anna}");
    }
}
