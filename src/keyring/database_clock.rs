//! The database's clock as this machine sees it: by how much it was set back, and when this machine
//! noticed. This module decides nothing about proofs.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::{BootTime, Timestamp};

/// How many setbacks (times that the clock was set back) are recorded separately. Older ones are
/// added up.
const MAX_SETBACKS: usize = 16;

/// A reading of the database's clock: when this machine asked for it, when the answer arrived, and
/// the time that it showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockReading {
    pub(super) sent: BootTime,
    pub(super) received: BootTime,
    pub(super) now: Timestamp,
}

/// What the readings so far show about the database's clock.
#[derive(Debug, Default)]
pub(super) struct DatabaseClock {
    /// A lower bound on what the clock would have shown when this machine started, if it has not
    /// been set since. The reading with the shortest way back gives the best bound, so a slow
    /// reading does not loosen it.
    origin: Option<Timestamp>,
    /// When the newest reading arrived.
    received: BootTime,
    /// When each setback was noticed, and an upper bound on its size; oldest first.
    setbacks: VecDeque<(BootTime, Duration)>,
}

impl DatabaseClock {
    /// Takes a reading into account.
    pub(super) fn note(&mut self, reading: ClockReading) {
        let running = |at: BootTime| at.since(BootTime::default());
        // The database read its clock after the request was sent and before the answer arrived.
        let at_most = reading.now.minus(running(reading.sent));
        let at_least = reading.now.minus(running(reading.received));
        match self.origin {
            Some(origin) if at_most < origin => {
                self.setbacks.push_back((reading.received, origin.since(at_least)));
                self.origin = Some(at_least);
            }
            // A reading that arrived before another may have been made before a setback.
            Some(origin) if reading.received >= self.received => self.origin = Some(origin.max(at_least)),
            Some(_) => {}
            None => self.origin = Some(at_least),
        }
        self.received = self.received.max(reading.received);
        if self.setbacks.len() > MAX_SETBACKS
            && let Some((_, oldest)) = self.setbacks.pop_front()
            && let Some((_, next)) = self.setbacks.front_mut()
        {
            *next = next.saturating_add(oldest);
        }
    }

    /// Returns an upper bound on how far the clock was set back, over all setbacks noticed since
    /// `since`.
    pub(super) fn set_back_since(&self, since: BootTime) -> Duration {
        let recent = self.setbacks.iter().filter(|(noticed, _)| *noticed >= since);
        recent.fold(Duration::ZERO, |sum, (_, by)| sum.saturating_add(*by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(ms: u64) -> BootTime {
        BootTime::at(Duration::from_millis(ms))
    }

    fn reading(sent: u64, received: u64, now: i64) -> ClockReading {
        let now = Timestamp(1_000_000_000_000_000 + now * 1_000);
        ClockReading { sent: boot(sent), received: boot(received), now }
    }

    fn set_back(readings: &[ClockReading]) -> u128 {
        let mut clock = DatabaseClock::default();
        readings.iter().for_each(|reading| clock.note(*reading));
        clock.set_back_since(BootTime::default()).as_millis()
    }

    #[test]
    fn a_running_clock_is_never_set_back_by_slow_readings() {
        let readings = [reading(0, 10, 5), reading(100, 2_100, 110), reading(150, 2_150, 2_145)];
        assert_eq!(set_back(&readings), 0);
    }

    #[test]
    fn a_clock_set_back_during_a_reading_is_noticed_next() {
        let readings = [reading(0, 10, 10), reading(100, 2_100, 1_000), reading(2_200, 2_210, 1_205)];
        assert_eq!(set_back(&readings), 1_005);
    }

    #[test]
    fn a_late_reading_from_before_a_setback_is_no_second_setback() {
        let readings =
            [reading(0, 0, 0), reading(990, 1_010, 0), reading(980, 990, 985), reading(1_100, 1_100, 100)];
        assert_eq!(set_back(&readings), 1_010);
    }

    #[test]
    fn setbacks_are_counted_from_when_they_were_noticed() {
        let mut clock = DatabaseClock::default();
        for n in 0..40_u64 {
            clock.note(reading(n * 1_000, n * 1_000, 0));
        }
        assert_eq!(clock.set_back_since(boot(38_000)).as_secs(), 2);
        assert_eq!(clock.set_back_since(BootTime::default()).as_secs(), 39);
    }
}
