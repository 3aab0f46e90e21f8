//! The age that [`KeyStates`] reports for a proof, while the database's clock is set at random,
//! reads are slow or late, and probes are written late. It must never be below the truth, or an
//! answer would be sent after the bound.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use crate::model::{BootTime, KeyVersion, Posture, Proof, TenantUid, Timestamp};

use super::super::database_clock::ClockReading;
use super::KeyStates;

const TENANT: TenantUid = TenantUid([1; 16]);
/// The values of the default settings, in milliseconds.
const BOUND: u64 = 3_000;
const WRITE_DELAY: u64 = 6_000;
/// The time that the answer of the quickest reading takes cannot be distinguished from a setback of
/// the clock.
const UNCERTAINTY: u64 = 50;
/// The length of one run.
const RUN: u64 = 40_000;

/// What happens at one moment, in milliseconds of this machine's own clock.
#[derive(Clone, Debug)]
enum Event {
    /// The database's clock is moved by this much.
    Set(i64),
    /// A replica reads the database's clock for a probe. The probe is sent, and its result written,
    /// after these times.
    Probe {
        sent: u64,
        written: u64,
    },
    /// The row gets this probe's time.
    Write(Timestamp),
    /// This replica asks for the row, as the prober does or in a commit. The row is read and the
    /// answer arrives after these times.
    Ask {
        made: u64,
        received: u64,
        commit: bool,
    },
    Read {
        sent: u64,
        received: u64,
        commit: bool,
    },
    Receive {
        reading: ClockReading,
        row: Proof,
        commit: bool,
    },
    /// The KMS refuses from now on.
    Off,
}

struct World {
    states: KeyStates,
    events: BTreeMap<(u64, usize), Event>,
    next: usize,
    /// How far the database's clock is ahead.
    ahead: i64,
    row: Proof,
    is_on: bool,
    /// When the last successful probe was sent.
    worked: u64,
}

fn boot(ms: u64) -> BootTime {
    BootTime::at(Duration::from_millis(ms))
}

fn version() -> KeyVersion {
    KeyVersion::new("byok", "1")
}

impl World {
    fn new() -> Self {
        let row = Proof {
            key_version: version(),
            posture: Posture::Active,
            epoch: 0,
            revision: 0,
            proven_at: Timestamp(0),
            since: Timestamp(0),
            steady_since: None,
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: Timestamp(0),
        };
        let write_delay = Duration::from_millis(BOUND + WRITE_DELAY);
        let mut world = Self {
            states: KeyStates::new(write_delay),
            events: BTreeMap::new(),
            next: 0,
            ahead: 1_000_000_000_000,
            row,
            is_on: true,
            worked: 20_000,
        };
        world.row.proven_at = world.clock(20_000);
        world.at(20_000, Event::Ask { made: 1, received: 2, commit: false });
        world
    }

    fn clock(&self, now: u64) -> Timestamp {
        Timestamp((self.ahead + i64::try_from(now).expect("small")) * 1_000)
    }

    fn at(&mut self, when: u64, event: Event) {
        self.events.insert((when, self.next), event);
        self.next += 1;
    }

    /// Fails if the reported age is below the truth.
    fn check_age(&self, now: u64, age: Duration) -> Result<(), TestCaseError> {
        let truth = Duration::from_millis((now - self.worked).saturating_sub(UNCERTAINTY));
        prop_assert!(age >= truth, "at {now} ms the proof is {truth:?} old and is reported as {age:?}");
        Ok(())
    }

    fn run(&mut self) -> Result<(), TestCaseError> {
        while let Some(((now, _), event)) = self.events.pop_first() {
            self.apply(now, event)?;
            if let Some(state) = self.states.get(TENANT, &version()) {
                self.check_age(now, state.proof_age(boot(now)))?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, now: u64, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Set(by) => self.ahead += by,
            Event::Off => self.is_on = false,
            Event::Probe { sent, written } => {
                let at = self.clock(now);
                if self.is_on {
                    self.worked = self.worked.max(now);
                    self.at(now + sent + written, Event::Write(at));
                }
            }
            Event::Write(at) => {
                // As the prober does: not if there is a later one.
                if self.row.proven_at <= at || self.row.proven_at > self.clock(now) {
                    self.row.proven_at = at;
                }
                self.row.revision += 2;
            }
            Event::Ask { made, received, commit } => {
                self.at(now + made, Event::Read { sent: now, received: now + made + received, commit });
            }
            Event::Read { sent, received, commit } => {
                let reading =
                    ClockReading { sent: boot(sent), received: boot(received), now: self.clock(now) };
                self.at(received, Event::Receive { reading, row: self.row.clone(), commit });
            }
            Event::Receive { reading, row, commit: false } => {
                self.states.apply_row(TENANT, &row, reading);
            }
            Event::Receive { reading, row, commit: true } => {
                let age = self.states.age_at_commit(TENANT, &version(), row.proven_at, reading);
                self.check_age(now, age.saturating_add(boot(now).since(reading.sent)))?;
            }
        }
        Ok(())
    }
}

/// The times of events of one kind, each with its event.
fn at_intervals<T: Clone + std::fmt::Debug>(
    pause: std::ops::Range<u64>,
    event: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<(u64, T)>> {
    prop::collection::vec((pause, event), 200).prop_map(|pauses| {
        let mut now = 20_000;
        let events = pauses.into_iter().map(|(pause, event)| {
            now += pause;
            (now, event)
        });
        events.take_while(|(now, _)| *now < 20_000 + RUN).collect()
    })
}

/// Mostly low latencies, to the database and back.
fn latencies() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![8 => (1..20_u64, 1..20_u64), 1 => (1..1_000_u64, 1..1_000_u64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Between two settings of the clock the row is read, so that each is noticed. Nobody can know
    /// of a setting that nobody has seen.
    #[test]
    fn a_proof_is_never_reported_younger_than_it_is(
        sets in at_intervals(2_500..9_000, prop_oneof![-3_000..3_000_i64, -20_000..20_000_i64]),
        probes in at_intervals(800..1_300, (1..100_u64, prop_oneof![5 => 1..200_u64, 1 => 1..BOUND + WRITE_DELAY - 100])),
        watch in at_intervals(200..400, latencies()),
        commits in at_intervals(100..2_000, latencies()),
        off in 20_000 + BOUND..20_000 + RUN,
    ) {
        let mut world = World::new();
        sets.into_iter().for_each(|(at, by)| world.at(at, Event::Set(by)));
        probes.into_iter().for_each(|(at, (sent, written))| world.at(at, Event::Probe { sent, written }));
        for (reads, commit) in [(watch, false), (commits, true)] {
            reads.into_iter().for_each(|(at, (made, received))| world.at(at, Event::Ask { made, received, commit }));
        }
        world.at(off, Event::Off);
        world.run()?;
    }

    /// A proof that comes in time is young, if no setback is near.
    #[test]
    fn a_proof_is_young_while_the_clock_is_left_alone(
        by in -20_000..20_000_i64,
        probes in at_intervals(800..1_300, (1..100_u64, 1..200_u64)),
        watch in at_intervals(200..400, (1..20_u64, 1..20_u64)),
    ) {
        let mut world = World::new();
        world.at(25_000, Event::Set(by));
        probes.into_iter().for_each(|(at, (sent, written))| world.at(at, Event::Probe { sent, written }));
        let last = watch.last().map_or(0, |(at, _)| *at);
        watch.into_iter().for_each(|(at, (made, received))| world.at(at, Event::Ask { made, received, commit: false }));
        world.run()?;
        let age = world.states.get(TENANT, &version()).expect("it is known").proof_age(boot(last));
        prop_assert!(age < Duration::from_millis(2_500), "{age:?}");
    }
}
