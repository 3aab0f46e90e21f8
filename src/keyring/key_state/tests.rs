//! The rules for the age of a proof, and the order in which rows may arrive.

use super::*;

const WRITE_DELAY: Duration = Duration::from_secs(9);
const TENANT: TenantUid = TenantUid([1; 16]);

fn boot(ms: u64) -> BootTime {
    BootTime::at(Duration::from_millis(ms))
}

fn db(ms: i64) -> Timestamp {
    Timestamp(1_000_000_000_000_000 + ms * 1_000)
}

fn reading(boot_ms: u64, db_ms: i64) -> ClockReading {
    ClockReading { sent: boot(boot_ms), received: boot(boot_ms), now: db(db_ms) }
}

fn proof(epoch: u64, proven_ms: i64) -> Proof {
    Proof {
        key_version: KeyVersion::new("byok", "1"),
        posture: Posture::Active,
        epoch,
        revision: 0,
        proven_at: db(proven_ms),
        since: db(0),
        steady_since: None,
        failures: 0,
        falls: 0,
        doubted_by: None,
        next_probe_at: db(0),
    }
}

fn age(states: &KeyStates, now: u64) -> u128 {
    states.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().proof_age(boot(now)).as_millis()
}

#[test]
fn a_proof_ages_on_this_machines_clock() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
    assert_eq!(age(&states, 0), 100);
    assert_eq!(age(&states, 5_000), 5_100);
}

#[test]
fn a_clock_set_back_makes_no_known_proof_younger() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
    // Three seconds later the database's clock shows the same time as before.
    states.apply_row(TENANT, &proof(0, 900), reading(3_000, 1_000));
    assert_eq!(age(&states, 3_000), 3_100);
    let found = states.age_at_commit(TENANT, &KeyVersion::new("byok", "1"), db(900), reading(3_000, 1_000));
    assert_eq!(found.as_millis(), 3_100);
}

#[test]
fn a_proof_first_seen_after_a_setback_has_the_greatest_age() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
    // Set back by two seconds: a proof from before looks half a second old.
    let found = states.age_at_commit(TENANT, &KeyVersion::new("byok", "1"), db(1_500), reading(3_000, 2_000));
    assert_eq!(found.as_millis(), 2_500);
}

#[test]
fn a_known_proof_has_the_databases_age_after_setting() {
    for (now, at_least) in [(11_000, 10_100), (500, 1_000_000_000)] {
        let states = KeyStates::new(WRITE_DELAY);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        states.apply_row(TENANT, &proof(0, 900), reading(100, now));
        assert!(age(&states, 100) >= at_least, "{now}");
    }
}

#[test]
fn a_proof_from_the_future_does_not_count() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 5_000), reading(0, 1_000));
    assert!(age(&states, 0) > 1_000_000_000);
}

#[test]
fn a_proof_once_seen_in_the_future_stays_invalid_when_reached() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
    // Made by another replica while the clock was ahead by 1.4 s, and found by a commit.
    let found = states.age_at_commit(TENANT, &KeyVersion::new("byok", "1"), db(2_500), reading(100, 1_100));
    assert_eq!(found, Duration::MAX);
    for (boot, db) in [(200, 1_200), (1_600, 2_600), (3_000, 4_000)] {
        states.apply_row(TENANT, &Proof { revision: 2, ..proof(0, 2_500) }, reading(boot, db));
        assert!(age(&states, boot) > 1_000_000_000);
    }
    states.apply_row(TENANT, &Proof { revision: 4, ..proof(0, 3_900) }, reading(3_000, 4_000));
    assert_eq!(age(&states, 3_000), 100);
}

#[test]
fn a_proof_first_seen_later_also_has_the_greatest_age() {
    let states = KeyStates::new(WRITE_DELAY);
    states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
    // Set back by two seconds; the reading finds the same proof.
    states.apply_row(TENANT, &proof(0, 900), reading(3_000, 2_000));
    // A probe from before that, which was written late.
    states.apply_row(TENANT, &Proof { revision: 2, ..proof(0, 2_100) }, reading(3_200, 2_200));
    assert_eq!(age(&states, 3_200), 2_100);
}

#[test]
fn after_a_clock_jump_either_way_only_the_next_proof_counts() {
    for (jump, later) in [(3_600_000, 500), (-3_600_000, 9_700)] {
        let states = KeyStates::new(WRITE_DELAY);
        states.apply_row(TENANT, &proof(0, 900), reading(0, 1_000));
        states.apply_row(TENANT, &proof(0, 900), reading(500, 1_500 + jump));
        let proven = |after: u64| {
            let now = 1_500 + i64::try_from(after).unwrap() + jump;
            let next = Proof { revision: 2 + after, ..proof(0, now - 100) };
            states.apply_row(TENANT, &next, reading(500 + after, now));
            age(&states, 500 + after)
        };
        proven(later - 200);
        assert_eq!(proven(later), 100, "{jump}");
    }
}

#[test]
fn an_own_unwrap_is_a_proof_until_the_epoch_changes() {
    let states = KeyStates::new(WRITE_DELAY);
    let version = KeyVersion::new("byok", "1");
    states.apply_row(TENANT, &proof(0, 0), reading(9_000, 9_000));
    states.note_unwrap(TENANT, &version, boot(9_000));
    assert_eq!(age(&states, 9_500), 500);
    let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
    assert_eq!(states.apply_row(TENANT, &revoked, reading(9_600, 9_600)), KeyStateChange::EpochChanged);
    assert_eq!(age(&states, 9_600), 9_600);
    assert_eq!(states.get(TENANT, &version).unwrap().posture, Posture::Revoked);
}

#[test]
fn a_row_read_earlier_changes_nothing_when_it_arrives_later() {
    let states = KeyStates::new(WRITE_DELAY);
    let revoked = Proof { posture: Posture::Revoked, ..proof(1, 0) };
    states.apply_row(TENANT, &revoked, reading(100, 100));
    assert_eq!(states.apply_row(TENANT, &proof(0, 90), reading(90, 90)), KeyStateChange::Unchanged);
    assert_eq!(states.get(TENANT, &KeyVersion::new("byok", "1")).unwrap().posture, Posture::Revoked);
}
