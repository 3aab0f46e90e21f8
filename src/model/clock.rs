//! Time behind a trait: code that depends on the time takes a [`Clock`], so that a test can set it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// 0000-01-01T00:00:00Z.
const FIRST_OF_YEAR_0: i64 = -62_167_219_200_000_000;
/// 9999-12-31T23:59:59.999999Z.
const LAST_OF_YEAR_9999: i64 = 253_402_300_799_999_999;

/// A time in UTC, in microseconds since 1970, like PostgreSQL's `timestamptz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Parses RFC 3339 text, such as `2026-11-23T10:00:00Z`.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(Self::from)
    }

    /// Whole seconds since 1970, as `exp` and `nbf` count them (RFC 7519, section 2).
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This time plus `by`.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time minus `by`.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time since `earlier`; zero if this is before it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Converts to the `time` crate's type. A time outside the years 0 to 9999, which RFC 3339
    /// cannot express, becomes the nearest one inside.
    pub fn to_datetime(self) -> OffsetDateTime {
        let nearest = self.0.clamp(FIRST_OF_YEAR_0, LAST_OF_YEAR_9999);
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(nearest) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        Self(i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000)).unwrap_or(i64::MAX))
    }
}

/// RFC 3339 in UTC, within the limits of [`Timestamp::to_datetime`].
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_datetime().format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

/// The time since this machine started (`CLOCK_BOOTTIME`). It cannot be set, and unlike `Instant`
/// it goes on while the machine is suspended. Meaningless on another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The time this long after the start.
    pub fn at(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The time since `earlier`; zero if this is before it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This time plus `by`.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// This time minus `by`, but not before the start.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

/// A source of the time.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// The time since this machine started, for measuring ages.
    fn boot(&self) -> BootTime {
        use rustix::time::{ClockId, clock_gettime};
        #[cfg(target_os = "linux")]
        let clock = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = ClockId::Monotonic;
        let now = clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        BootTime(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the only code that reads the wall clock")]
    fn now(&self) -> Timestamp {
        OffsetDateTime::now_utc().into()
    }
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn boot(&self) -> BootTime {
        (**self).boot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_a_round_trip() {
        let moment = Timestamp::parse("2026-11-23T10:00:00.123456Z").unwrap();
        assert_eq!(moment.to_string(), "2026-11-23T10:00:00.123456Z");
        assert_eq!(Timestamp::parse("2026-11-23T11:00:00.123456+01:00"), Some(moment));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn a_time_beyond_rfc_3339_keeps_its_order_and_shows_nearest() {
        let last = Timestamp::parse("9999-12-31T23:59:59.999999Z").unwrap();
        let beyond = Timestamp::parse("9999-12-31T23:59:59-01:00").unwrap();
        assert!(beyond > last);
        for late in [last, beyond, Timestamp(i64::MAX)] {
            assert_eq!(late.to_string(), "9999-12-31T23:59:59.999999Z");
        }
        let first = Timestamp::parse("0000-01-01T00:00:00Z").unwrap();
        let before = Timestamp::parse("0000-01-01T00:00:00+01:00").unwrap();
        assert!(before < first);
        for early in [first, before, Timestamp(i64::MIN)] {
            assert_eq!(early.to_string(), "0000-01-01T00:00:00Z");
        }
    }
}
