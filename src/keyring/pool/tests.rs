//! The pool without a KMS: how many DEKs it holds, and when it is filled.

use super::*;
use crate::config::DekCache;
use crate::crypto::Dek;
use crate::keyring::cache::Cache;
use crate::model::KeyVersion;

const TIME_TO_LIVE: Duration = Duration::from_secs(300);

fn at(seconds: u64) -> BootTime {
    BootTime::at(Duration::from_secs(seconds))
}

fn tenant() -> Tenant {
    Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() }
}

fn pool(size: usize) -> Pool {
    let pool = Pool::new(DekPool { size }, TIME_TO_LIVE);
    pool.note_demand(&tenant(), at(0));
    pool
}

fn made(count: usize, requested: BootTime) -> Vec<PooledDek> {
    let cache = Cache::new(DekCache { time_to_live: TIME_TO_LIVE, entries: 10 });
    let version = KeyVersion::new("byok", "1");
    let dek = |_| {
        let id = DekId::new();
        let under = (version.clone(), 0);
        let cached = cache.seal(tenant().uid, id, &Dek::generate(), under, None, true);
        let wrapped = Wrapped { key_version: version.clone(), scheme: 1, bytes: vec![1] };
        PooledDek { id, cached, wrapped, requested }
    };
    (0..count).map(dek).collect()
}

/// Runs a fill that brings as many DEKs as it is to bring, or as many as given.
fn fill(pool: &Pool, now: BootTime, brings: Option<usize>) {
    let begun = pool.begin_fill(tenant().uid, 1_000, now).unwrap();
    assert!(pool.add(tenant().uid, &begun, made(brings.unwrap_or(begun.count), now)));
    pool.end_fill(tenant().uid, now, Ok(()));
}

fn is_due(pool: &Pool, now: BootTime) -> bool {
    !pool.due_fills(now).is_empty()
}

fn take(pool: &Pool, count: usize, now: BootTime) -> Vec<DekId> {
    (0..count).filter_map(|_| pool.take(tenant().uid, now)).map(|dek| dek.id).collect()
}

#[test]
fn it_is_filled_to_its_size_and_refilled_at_half() {
    let pool = pool(10);
    assert!(is_due(&pool, at(0)));
    fill(&pool, at(0), None);
    assert_eq!(pool.counts(), PoolCounts { held: 10, made: 10, taken: 0, discarded: 0 });
    take(&pool, 4, at(1));
    assert!(!is_due(&pool, at(1)));
    take(&pool, 1, at(1));
    assert!(is_due(&pool, at(1)));
    assert_eq!(pool.begin_fill(tenant().uid, 1_000, at(1)).unwrap().count, 5);
}

#[test]
fn it_never_holds_more_than_its_size() {
    let pool = pool(10);
    fill(&pool, at(0), Some(25));
    assert_eq!(pool.counts(), PoolCounts { held: 10, made: 25, taken: 0, discarded: 15 });
    assert_eq!(take(&pool, 100, at(0)).len(), 10);
}

#[test]
fn the_oldest_goes_first_and_none_goes_twice() {
    let pool = pool(4);
    fill(&pool, at(0), Some(2));
    let first = take(&pool, 1, at(1));
    fill(&pool, at(2), Some(2));
    let rest = take(&pool, 10, at(2));
    assert_eq!(rest.len(), 3);
    assert!(!rest.contains(&first[0]));
    assert!(rest.is_sorted(), "ids sort by the time they were made");
}

#[test]
fn one_fill_runs_at_a_time_of_one_batch_at_most() {
    let pool = pool(10);
    assert_eq!(pool.begin_fill(tenant().uid, 3, at(0)).unwrap().count, 3);
    assert!(!is_due(&pool, at(0)));
    assert!(pool.begin_fill(tenant().uid, 3, at(0)).is_none());
    pool.end_fill(tenant().uid, at(0), Ok(()));
    assert!(is_due(&pool, at(0)));
}

#[test]
fn what_was_requested_before_the_pool_was_emptied_is_not_added() {
    let pool = pool(10);
    fill(&pool, at(0), Some(3));
    let begun = pool.begin_fill(tenant().uid, 10, at(1)).unwrap();
    pool.clear_tenant(tenant().uid);
    assert_eq!(pool.counts(), PoolCounts { held: 0, made: 3, taken: 0, discarded: 3 });
    assert!(!pool.add(tenant().uid, &begun, made(7, at(1))));
    assert_eq!(pool.counts(), PoolCounts { held: 0, made: 10, taken: 0, discarded: 10 });
}

#[test]
fn what_is_old_is_replaced_early_and_never_given_out_late() {
    let pool = pool(4);
    fill(&pool, at(0), None);
    assert!(!is_due(&pool, at(224)));
    assert!(is_due(&pool, at(225)));
    let before = pool.counts();
    fill(&pool, at(225), None);
    assert_eq!(pool.counts(), PoolCounts { held: 4, made: 8, taken: 0, discarded: before.discarded + 4 });
    assert_eq!(take(&pool, 1, at(524)).len(), 1);
    assert!(take(&pool, 1, at(525)).is_empty());
    assert_eq!(pool.counts().held, 0);
}

#[test]
fn a_tenant_without_new_records_is_forgotten() {
    let pool = pool(2);
    fill(&pool, at(0), None);
    assert!(is_due(&pool, at(600)), "what was there is too old");
    assert!(!is_due(&pool, at(601)));
    assert!(pool.lock().tenants.is_empty());
    pool.note_demand(&tenant(), at(700));
    assert!(is_due(&pool, at(700)));
}

#[test]
fn a_failed_fill_is_followed_by_a_pause_that_doubles() {
    let pool = pool(2);
    let mut now = 0;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        pool.note_demand(&tenant(), at(now));
        pool.begin_fill(tenant().uid, 2, at(now)).unwrap();
        pool.end_fill(tenant().uid, at(now), Err(None));
        assert!(!is_due(&pool, at(now + pause - 1)), "{pause}");
        assert!(is_due(&pool, at(now + pause)), "{pause}");
        now += pause;
    }
    pool.begin_fill(tenant().uid, 2, at(now)).unwrap();
    pool.end_fill(tenant().uid, at(now), Err(Some(Duration::from_secs(90))));
    assert!(!is_due(&pool, at(now + 89)));
    fill(&pool, at(now + 90), Some(1));
    pool.begin_fill(tenant().uid, 2, at(now + 90)).unwrap();
    pool.end_fill(tenant().uid, at(now + 90), Err(None));
    assert!(is_due(&pool, at(now + 91)), "after a success the pause starts over");
}
