//! What is derived from the logs: tiles and proofs over them, filters and pages over them; on every
//! database. Whatever has been derived and whatever not, proofs and pages are the same.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use byok::audit::{Derivation, Derived, Tree, TreeError};
use byok::merkle::{Frontier, Hash, root_of, verify_consistency, verify_inclusion};
use byok::model::{ErrorCode, Operation, Outcome, TenantUid, Timestamp};
use byok::store::{
    Change, EntryFilter, EntryRow, FilterLevel, FilterRow, Sqlite, Store, Tile, TileId, WIDTH,
};
use byok::verify::{Claim, Finding, Trust, verify_log};
use tokio_util::sync::CancellationToken;

use crate::store_conformance::on_every_database;
use crate::support::postgres::{TestDatabase, connect, execute};
use crate::support::rows::{changes, entries, entry, now, salted, tenant};
use crate::support::server::TestServer;

on_every_database! {
    tiles_are_what_the_leaves_make_and_proofs_over_them_verify
    two_workers_at_once_derive_the_same_once
    a_damaged_log_holds_up_no_other
    a_worker_that_is_told_to_stop_leaves_the_rest
    a_tile_stays_as_it_was_and_damage_is_reported
    a_tile_that_stands_on_a_wrong_one_is_said_too
    a_tile_far_past_its_log_does_not_stop_the_derivation
    walked_pages_hold_all_matches_alone_however_far_the_worker_is
    a_filter_that_lets_everything_pass_gives_nothing_wrong
    pages_of_a_log_of_groups_hold_all_matches_alone
    two_workers_at_once_make_the_same_filters
    a_page_that_finds_nothing_in_a_long_log_ends
    an_entry_past_a_commits_named_records_is_found_by_each
    a_tenant_has_its_own_tiles_and_pages
}

type Db = Arc<dyn Store>;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

async fn pass(store: &Db) -> Derived {
    Derivation::default().pass(&**store, &CancellationToken::new()).await
}

/// The entry at a place; each has another leaf.
fn plain(place: u64) -> EntryRow {
    let mut row = entry();
    row.digest[..8].copy_from_slice(&place.to_be_bytes());
    row
}

/// Appends entries, and gives their leaves.
async fn append(store: &Db, tenant: TenantUid, rows: Vec<EntryRow>) -> Vec<Hash> {
    let mut base = store.log_size(tenant).await.unwrap();
    for rows in rows.chunks(2_048) {
        store.commit(&entries(tenant, base, rows.to_vec())).await.unwrap();
        base += rows.len() as u64;
    }
    rows.iter().map(EntryRow::leaf).collect()
}

async fn grow(store: &Db, tenant: TenantUid, leaves: &mut Vec<Hash>, to: u64) {
    let rows = (leaves.len() as u64..to).map(plain).collect();
    leaves.extend(append(store, tenant, rows).await);
}

/// That the tiles of a level are those that these hashes make, and gives their roots.
async fn check_tiles(store: &Db, tenant: TenantUid, log: u32, level: u32, hashes: &[Hash]) -> Vec<Hash> {
    let full = hashes.len() as u64 / WIDTH;
    assert_eq!(store.tiles_end(tenant, log, level, u64::MAX).await.unwrap(), full, "level {level}");
    let ids: Vec<TileId> = (0..full).map(|index| TileId { level, index }).collect();
    let mut tiles = store.tiles(tenant, log, &ids).await.unwrap();
    tiles.sort_by_key(|tile| tile.id);
    let expected: Vec<Tile> = ids
        .iter()
        .zip(hashes.chunks(WIDTH as usize))
        .map(|(id, hashes)| Tile { id: *id, hashes: hashes.to_vec() })
        .collect();
    assert!(tiles == expected, "level {level}");
    let roots = store.tile_roots(tenant, log, level, 0..u64::MAX).await.unwrap();
    assert!(roots.iter().map(|(index, _)| *index).eq(0..full), "level {level}");
    let roots: Vec<Hash> = roots.into_iter().map(|(_, root)| root).collect();
    assert!(roots.iter().copied().eq(tiles.iter().map(Tile::root)), "level {level}");
    roots
}

/// The roots of every size of the tree over these leaves.
fn roots_of(leaves: &[Hash]) -> Vec<Hash> {
    let mut frontier = Frontier::default();
    let mut roots = vec![frontier.root()];
    for leaf in leaves {
        frontier.append(*leaf);
        roots.push(frontier.root());
    }
    roots
}

/// That the tree proves some leaves and beginnings of these sizes, as a verifier who has the roots
/// checks it.
async fn check_proofs(store: &Db, tenant: TenantUid, leaves: &[Hash], sizes: &[u64], dice: &mut Dice) {
    let roots = roots_of(leaves);
    let tree = Tree::open(&**store, tenant).await.unwrap().unwrap();
    assert_eq!(tree.head.frontier.root(), roots[leaves.len()]);
    for size in sizes.iter().copied().filter(|size| *size <= leaves.len() as u64) {
        let root = roots[size as usize];
        let frontier = tree.frontier_at(size).await.unwrap();
        assert_eq!((frontier.size(), frontier.root()), (size, root));
        if size > 0 {
            for index in [0, size - 1, size / 2, dice.below(size)] {
                let proof = tree.inclusion(index, size).await.unwrap();
                let leaf = leaves[index as usize];
                assert!(verify_inclusion(leaf, index, size, &proof, root), "{index} of {size}");
            }
        }
        for from in [0, 1, size / 2, size.saturating_sub(1), size, dice.below(size + 1)] {
            let from = from.min(size);
            let proof = tree.consistency(from, size).await.unwrap();
            assert!(
                verify_consistency((from, roots[from as usize]), (size, root), &proof),
                "{from} to {size}"
            );
        }
    }
}

async fn tiles_are_what_the_leaves_make_and_proofs_over_them_verify(store: Db) {
    let tenant = tenant(&*store).await;
    let mut dice = Dice(1);
    let mut leaves = Vec::new();
    for size in [0, 1, 255, 256, 257, 511, 512, 513, 1_023, 1_100, 2_048, 3_333] {
        grow(&store, tenant, &mut leaves, size).await;
        let sizes = [0, 1, 2, 255, 256, 257, 512, 1_000, 1_024, 2_047, dice.below(size + 1), size];
        // The tail that is not derived yet may be of several tiles.
        check_proofs(&store, tenant, &leaves, &sizes, &mut dice).await;
        assert_eq!(pass(&store).await, Derived::All);
        check_tiles(&store, tenant, 1, 0, &leaves).await;
        check_proofs(&store, tenant, &leaves, &sizes, &mut dice).await;
        assert_eq!(store.underived_logs().await.unwrap(), []);
    }
}

async fn a_log_past_a_tile_of_tiles_has_a_second_level((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    let start = now();
    let row = |place| EntryRow { at: start.plus(Duration::from_secs(place)), ..entry() };
    append(&store, tenant, vec![row(0)]).await;
    let mut leaves: Vec<Hash> = (0..65_535).map(|place| row(place).leaf()).collect();
    let store = reached.repeat_the_entry(&leaves).await;
    let mut dice = Dice(2);
    let sizes = [1, 256, 65_279, 65_280, 65_281, 65_535, 65_536, 65_537, 65_900];
    check_proofs(&store, tenant, &leaves, &[65_535], &mut dice).await;
    for size in [65_535, 65_536, 65_900] {
        leaves.extend(append(&store, tenant, (leaves.len() as u64..size).map(row).collect()).await);
        assert_eq!(pass(&store).await, Derived::All);
        let roots = check_tiles(&store, tenant, 1, 0, &leaves).await;
        let above = check_tiles(&store, tenant, 1, 1, &roots).await;
        assert_eq!(above.len() as u64, size / 65_536);
        check_tiles(&store, tenant, 1, 2, &above).await;
        check_proofs(&store, tenant, &leaves, &sizes, &mut dice).await;
    }
    // Where one chunk of chunks ends, times are found on both of its sides.
    for (from, until) in [(0, 3), (65_279, 65_281), (65_534, 65_540), (65_850, 65_900)] {
        let at = |place: u64| Some(start.plus(Duration::from_secs(place)));
        let filter = EntryFilter { from: at(from), until: at(until), ..none() };
        assert!(walk(&store, tenant, &filter, 7).await.into_iter().eq((from..until).rev()));
        let filter = EntryFilter { user: Some("user-7".into()), ..filter };
        assert!(walk(&store, tenant, &filter, 500).await.into_iter().eq((from..until).rev()));
    }
    let filter = EntryFilter { until: Some(start), ..none() };
    assert_eq!(walk(&store, tenant, &filter, 7).await, [0; 0]);
}

async fn two_workers_at_once_derive_the_same_once(store: Db) {
    let tenant = tenant(&*store).await;
    let mut leaves = Vec::new();
    for size in [700, 1_500, 5_000, 5_100, 9_000] {
        grow(&store, tenant, &mut leaves, size).await;
        let (one, other, third) = tokio::join!(pass(&store), pass(&store), pass(&store));
        for derived in [one, other, third] {
            assert!(derived < Derived::Wrong, "{derived:?}");
        }
        // What one of them left to another may be left by all.
        while !store.underived_logs().await.unwrap().is_empty() {
            assert!(pass(&store).await < Derived::Wrong);
        }
        check_tiles(&store, tenant, 1, 0, &leaves).await;
        check_proofs(&store, tenant, &leaves, &[size], &mut Dice(size)).await;
    }
    let all = walk(&store, tenant, &EntryFilter { user: Some("user-7".into()), ..none() }, 500).await;
    assert!(all.into_iter().eq((0..9_000).rev()));
}

async fn a_tile_far_past_its_log_does_not_stop_the_derivation(store: Db) {
    let tenant = tenant(&*store).await;
    let tiles = [1 << 60, i64::MAX as u64].map(|index| tile(0, index, 0)).to_vec();
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    grow(&store, tenant, &mut Vec::new(), 600).await;
    let derived = tokio::time::timeout(Duration::from_secs(30), pass(&store)).await;
    assert_eq!(derived, Ok(Derived::All));
    let ids = [0, 1].map(|index| TileId { level: 0, index });
    assert_eq!(store.tiles(tenant, 1, &ids).await.unwrap().len(), 2);
    assert_eq!(store.underived_logs().await.unwrap(), []);
}

async fn a_worker_that_is_told_to_stop_leaves_the_rest(store: Db) {
    let tenant = tenant(&*store).await;
    grow(&store, tenant, &mut Vec::new(), 600).await;
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(Derivation::default().pass(&*store, &stop).await, Derived::More);
    assert_eq!(store.tiles_end(tenant, 1, 0, u64::MAX).await, Ok(0));
    assert_eq!(pass(&store).await, Derived::All);
    assert_eq!(store.tiles_end(tenant, 1, 0, u64::MAX).await, Ok(2));
}

async fn a_damaged_log_holds_up_no_other(store: Db) {
    let (damaged, other) = (tenant(&*store).await, tenant(&*store).await);
    grow(&store, damaged, &mut Vec::new(), 600).await;
    let wrong = Change::AddTiles { log: 1, tiles: vec![tile(0, 0, 9)] };
    store.commit(&changes(damaged, vec![wrong])).await.unwrap();
    let (mut derivation, stop) = (Derivation::default(), CancellationToken::new());
    assert_eq!(derivation.pass(&*store, &stop).await, Derived::Wrong);
    // The worker comes back at once, and finds what there is to do for the other.
    let mut leaves = Vec::new();
    for (size, tiles) in [(300, 1), (600, 2)] {
        grow(&store, other, &mut leaves, size).await;
        assert_eq!(derivation.pass(&*store, &stop).await, Derived::All);
        assert_eq!(store.tiles_end(other, 1, 0, u64::MAX).await, Ok(tiles));
    }
}

fn tile(level: u32, index: u64, byte: u8) -> Tile {
    Tile { id: TileId { level, index }, hashes: vec![Hash([byte; 32]); WIDTH as usize] }
}

async fn a_tile_stays_as_it_was_and_damage_is_reported(store: Db) {
    let tenant = tenant(&*store).await;
    let mut leaves = Vec::new();
    grow(&store, tenant, &mut leaves, 600).await;
    let wrong = tile(0, 0, 9);
    let add = |tile: &Tile| changes(tenant, vec![Change::AddTiles { log: 1, tiles: vec![tile.clone()] }]);
    assert_eq!(store.commit(&add(&wrong)).await.unwrap().applied, [1]);
    assert_eq!(store.commit(&add(&tile(0, 0, 8))).await.unwrap().applied, [0]);
    assert_eq!(pass(&store).await, Derived::Wrong);
    assert_eq!(store.tiles(tenant, 1, &[wrong.id]).await.unwrap(), std::slice::from_ref(&wrong));
    // The leaves after it are derived, and nobody who verifies takes what is made with it.
    assert_eq!(store.tiles_end(tenant, 1, 0, u64::MAX).await, Ok(2));
    let tree = Tree::open(&*store, tenant).await.unwrap().unwrap();
    let proof = tree.inclusion(300, 600).await.unwrap();
    assert!(!verify_inclusion(leaves[300], 300, 600, &proof, tree.head.frontier.root()));
    // Pages do not read tiles.
    assert!(walk(&store, tenant, &none(), 100).await.into_iter().eq((0..600).rev()));
}

async fn a_tile_that_stands_on_a_wrong_one_is_said_too(store: Db) {
    let tenant = tenant(&*store).await;
    let mut leaves = Vec::new();
    grow(&store, tenant, &mut leaves, 600).await;
    assert_eq!(pass(&store).await, Derived::All);
    // Of the level above, before its time has come.
    let tiles = vec![tile(1, 0, 9)];
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    grow(&store, tenant, &mut leaves, 900).await;
    assert_eq!(pass(&store).await, Derived::Wrong);
}

fn none() -> EntryFilter {
    EntryFilter::default()
}

/// The places of all entries of a filter's pages. Each page goes on below the one before.
async fn walk(store: &Db, tenant: TenantUid, filter: &EntryFilter, limit: u32) -> Vec<u64> {
    let mut places = Vec::new();
    let mut before = None;
    loop {
        let page = store.entries(tenant, filter, before, limit).await.unwrap();
        assert!(page.entries.len() <= limit as usize);
        places.extend(page.entries.iter().map(|entry| entry.seq));
        let Some(next) = page.next else { return places };
        assert!(before.is_none_or(|before| next < before), "{filter:?} stays at {next}");
        assert!(places.last().is_none_or(|last| *last >= next));
        before = Some(next);
    }
}

/// An entry of few users, records and operations, some rare; times go back now and then.
fn varied(dice: &mut Dice, start: Timestamp, place: u64) -> EntryRow {
    let mut row = plain(place);
    row.at = start.plus(Duration::from_secs(place + dice.below(40)));
    if dice.one_in(300) {
        row.at = start.plus(Duration::from_secs(dice.below(10_000)));
    }
    row.operation = match dice.below(2_000) {
        0 => Operation::Rotate,
        1..300 => Operation::Encrypt,
        _ => Operation::Decrypt,
    };
    row.outcome = if dice.one_in(1_000) { Outcome::Refused(ErrorCode::KmsUnavailable) } else { Outcome::Ok };
    row.user = match dice.below(3_000) {
        0 => Some(salted("rare")),
        1 => Some(salted("")),
        2..500 => None,
        _ => Some(salted(&format!("user-{}", dice.below(4)))),
    };
    let records: Vec<String> = (0..dice.below(3))
        .map(|_| {
            if dice.one_in(20) {
                return "null".to_owned();
            }
            // A user's name too, and text that JSON escapes.
            format!(r#"[{:?},"AQEBAQEBAQEBAQEBAQEBAQ=="]"#, record(dice))
        })
        .collect();
    row.item_count = records.len() as u32;
    row.records = format!("[{}]", records.join(","));
    row
}

fn record(dice: &mut Dice) -> String {
    match dice.below(40) {
        0 => "rare".to_owned(),
        1 => "a \"quoted\" ä\\".to_owned(),
        _ => format!("record-{}", dice.below(900)),
    }
}

fn filter(dice: &mut Dice, start: Timestamp) -> EntryFilter {
    let at = |dice: &mut Dice| start.plus(Duration::from_secs(dice.below(11_000)));
    EntryFilter {
        from: dice.one_in(4).then(|| at(dice)),
        until: dice.one_in(4).then(|| at(dice)),
        operation: dice.one_in(3).then(|| [Operation::Rotate, Operation::Encrypt][dice.below(2) as usize]),
        outcome: dice
            .one_in(4)
            .then(|| [Outcome::Ok, Outcome::Refused(ErrorCode::KmsUnavailable)][dice.below(2) as usize]),
        user: dice.one_in(3).then(|| ["rare", "", "user-1", "nobody"][dice.below(4) as usize].to_owned()),
        record_id: dice.one_in(3).then(|| record(dice)),
        record_hash: None,
    }
}

/// Whether an entry matches, by what the filter says and nothing else.
fn matches(filter: &EntryFilter, row: &EntryRow) -> bool {
    let records: Vec<Option<(String, String)>> = serde_json::from_str(&row.records).unwrap();
    let user = row.user.as_ref().and_then(|user| user.value.as_ref());
    filter.from.is_none_or(|from| row.at >= from)
        && filter.until.is_none_or(|until| row.at < until)
        && filter.operation.is_none_or(|operation| row.operation == operation)
        && filter.outcome.is_none_or(|outcome| row.outcome == outcome)
        && filter.user.as_ref().is_none_or(|wanted| user == Some(wanted))
        && filter.record_id.as_ref().is_none_or(|wanted| records.iter().flatten().any(|(id, _)| id == wanted))
}

async fn walked_pages_hold_all_matches_alone_however_far_the_worker_is(store: Db) {
    let tenant = tenant(&*store).await;
    let mut dice = Dice(3);
    let start = now();
    let mut rows: Vec<EntryRow> = Vec::new();
    for (grown, derived) in
        [(0, true), (100, false), (3_000, true), (257, false), (6_000, false), (0, true), (700, false)]
    {
        let more: Vec<EntryRow> =
            (rows.len() as u64..).take(grown).map(|place| varied(&mut dice, start, place)).collect();
        append(&store, tenant, more.clone()).await;
        rows.extend(more);
        if derived {
            assert_eq!(pass(&store).await, Derived::All);
        }
        for _ in 0..15 {
            let filter = filter(&mut dice, start);
            let limit = [1, 2, 7, 32, 500][dice.below(5) as usize];
            let expected: Vec<u64> =
                (0..).zip(&rows).filter(|(_, row)| matches(&filter, row)).map(|(place, _)| place).collect();
            // Small pages of very many entries are many reads of the same kind.
            let limit = if expected.len() > 50 { limit.max(60) } else { limit };
            let found = walk(&store, tenant, &filter, limit).await;
            assert!(found.iter().rev().eq(&expected), "{filter:?} by {limit}: {found:?}, not {expected:?}");
        }
    }
}

async fn a_filter_that_lets_everything_pass_gives_nothing_wrong(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows: Vec<EntryRow> = (0..2_000).map(plain).collect();
    rows[700].user = Some(salted("rare"));
    append(&store, tenant, rows).await;
    let filters = (0..7).map(|index| filter_row(index, vec![u8::MAX; 64])).collect();
    let add = Change::AddFilters { group: 0, erasures: 0, level: FilterLevel::Chunk, filters };
    let added = store.commit(&changes(tenant, vec![Change::OpenGroup { group: 0 }, add])).await.unwrap();
    assert_eq!(added.applied, [1, 7]);
    assert_eq!(pass(&store).await, Derived::All);
    let filter = EntryFilter { user: Some("rare".into()), ..none() };
    assert_eq!(walk(&store, tenant, &filter, 10).await, [700]);
    let filter = EntryFilter { operation: Some(Operation::Rotate), ..filter };
    assert_eq!(walk(&store, tenant, &filter, 10).await, [0; 0]);
}

/// A filter of entries of any time.
fn filter_row(index: u64, filter: Vec<u8>) -> FilterRow {
    FilterRow { index, earliest: Timestamp(0), latest: now().plus(Duration::MAX), filter: Some(filter) }
}

/// The places of the entries that match, by what the filter says and nothing else.
fn matching(rows: &[EntryRow], filter: &EntryFilter) -> Vec<u64> {
    (0..rows.len() as u64).rev().filter(|place| matches(filter, &rows[*place as usize])).collect()
}

/// Filters that few entries match, one of each kind and some together.
fn rare_filters(start: Timestamp) -> Vec<EntryFilter> {
    let at = |seconds| Some(start.plus(Duration::from_secs(seconds)));
    let refused = Some(Outcome::Refused(ErrorCode::KmsUnavailable));
    let record = |record: &str| EntryFilter { record_id: Some(record.to_owned()), ..none() };
    let user = |user: &str| EntryFilter { user: Some(user.to_owned()), ..none() };
    vec![
        user("rare"),
        user("nobody"),
        record("record-17"),
        record("no-record"),
        EntryFilter { record_hash: Some("record-18".to_owned()), ..record("no-record") },
        EntryFilter { operation: Some(Operation::Rotate), ..none() },
        EntryFilter { outcome: refused, ..user("user-1") },
        EntryFilter { outcome: refused, operation: Some(Operation::Encrypt), ..record("rare") },
        EntryFilter { from: at(65_500), until: at(65_600), ..none() },
        EntryFilter { from: at(30_000), until: at(36_000), ..record("rare") },
        EntryFilter { until: at(20), ..none() },
    ]
}

async fn check_rare(store: &Db, tenant: TenantUid, rows: &[EntryRow], start: Timestamp) {
    for mut filter in rare_filters(start) {
        let found = walk(store, tenant, &filter, 100).await;
        // Either name of a record is a match.
        let other = filter.record_hash.take();
        let mut expected = matching(rows, &filter);
        if let Some(other) = other {
            expected.extend(matching(rows, &EntryFilter { record_id: Some(other), ..filter.clone() }));
            expected.sort_by(|one, other| other.cmp(one));
        }
        assert_eq!(found, expected, "{filter:?}");
    }
}

async fn pages_of_a_log_of_groups_hold_all_matches_alone(store: Db) {
    let tenant = tenant(&*store).await;
    let mut dice = Dice(6);
    let start = now();
    let mut rows: Vec<EntryRow> = (0..68_000).map(|place| varied(&mut dice, start, place)).collect();
    // An entry of as many records as a group's other chunks have together.
    let records: Vec<String> =
        (0..9_000).map(|id| format!(r#"["many-{id}","AQEBAQEBAQEBAQEBAQEBAQ=="]"#)).collect();
    rows[33_333].records = format!("[{}]", records.join(","));
    rows[33_333].item_count = 9_000;
    append(&store, tenant, rows.clone()).await;
    // Somebody has put a tile far past the log.
    let tiles = vec![tile(1, 1 << 40, 9)];
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    // Each pass is one of a server that was restarted.
    while pass(&store).await != Derived::All {}
    assert_eq!(store.tiles_end(tenant, 1, 1, 1 << 40).await, Ok(1));
    assert_eq!(store.unfilled(tenant, u64::MAX, 9).await, Ok(vec![(FilterLevel::Group, 1)]));
    check_rare(&store, tenant, &rows, start).await;
    for id in [0, 4_711, 8_999] {
        let filter = EntryFilter { record_id: Some(format!("many-{id}")), ..none() };
        assert_eq!(walk(&store, tenant, &filter, 10).await, [33_333]);
    }
    // One call finds the oldest.
    let oldest = matching(&rows, &EntryFilter { user: Some("rare".into()), ..none() }).pop().unwrap();
    let filter = EntryFilter { user: Some("rare".into()), until: Some(rows[oldest as usize].at), ..none() };
    let before =
        EntryFilter { until: Some(rows[oldest as usize].at.plus(Duration::from_micros(1))), ..filter };
    let page = store.entries(tenant, &before, None, 1_000).await.unwrap();
    assert!(page.entries.iter().any(|entry| entry.seq == oldest));
}

async fn two_workers_at_once_make_the_same_filters(store: Db) {
    let tenant = tenant(&*store).await;
    let mut dice = Dice(7);
    let start = now();
    let mut rows: Vec<EntryRow> = Vec::new();
    for grown in [700, 5_000, 3_000] {
        let more: Vec<EntryRow> =
            (rows.len() as u64..).take(grown).map(|place| varied(&mut dice, start, place)).collect();
        append(&store, tenant, more.clone()).await;
        rows.extend(more);
        let searched = check_rare(&store, tenant, &rows, start);
        let ((), one, other) = tokio::join!(searched, pass(&store), pass(&store));
        assert!(one < Derived::Wrong && other < Derived::Wrong);
        while !store.underived_logs().await.unwrap().is_empty() {
            assert!(pass(&store).await < Derived::Wrong);
        }
        check_rare(&store, tenant, &rows, start).await;
    }
    let filters = store.chunk_filters(tenant, 0..u64::MAX).await.unwrap();
    assert!(filters.iter().map(|row| row.index).eq(0..rows.len() as u64 / WIDTH));
}

async fn a_page_that_finds_nothing_in_a_long_log_ends(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows: Vec<EntryRow> = (0..10_000).map(plain).collect();
    rows[3].user = Some(salted("rare"));
    append(&store, tenant, rows).await;
    let filter = EntryFilter { user: Some("rare".into()), ..none() };
    // Nothing is derived: one call reads a part of the tail.
    let page = store.entries(tenant, &filter, None, 1).await.unwrap();
    assert_eq!((page.entries.len(), page.next.is_some()), (0, true));
    assert_eq!(walk(&store, tenant, &filter, 1).await, [3]);
    assert_eq!(pass(&store).await, Derived::All);
    // The index says where it is; the tail after it is less than a chunk.
    let page = store.entries(tenant, &filter, None, 1).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [3]);
}

async fn an_entry_past_a_commits_named_records_is_found_by_each(store: Db) {
    let tenant = tenant(&*store).await;
    let mut rows: Vec<EntryRow> = (0..512).map(plain).collect();
    let records: Vec<String> =
        (0..40_000).map(|id| format!(r#"["many-{id}","AQEBAQEBAQEBAQEBAQEBAQ=="]"#)).collect();
    for place in [17, 300] {
        rows[place].records = format!("[{}]", records.join(","));
        rows[place].item_count = 40_000;
    }
    append(&store, tenant, rows).await;
    assert_eq!(pass(&store).await, Derived::All);
    for id in [0, 1, 19_999, 32_768, 39_999] {
        let filter = EntryFilter { record_id: Some(format!("many-{id}")), ..none() };
        assert_eq!(walk(&store, tenant, &filter, 10).await, [300, 17]);
    }
}

async fn a_tenant_has_its_own_tiles_and_pages(store: Db) {
    let (one, other) = (tenant(&*store).await, tenant(&*store).await);
    let (mut of_one, mut of_other) = (Vec::new(), Vec::new());
    grow(&store, one, &mut of_one, 700).await;
    let rows =
        (0..300).map(|place| EntryRow { user: Some(salted("other's")), ..plain(place + 1_000) }).collect();
    of_other.extend(append(&store, other, rows).await);
    assert_eq!(pass(&store).await, Derived::All);
    check_tiles(&store, one, 1, 0, &of_one).await;
    check_tiles(&store, other, 1, 0, &of_other).await;
    let by = |user: &str| EntryFilter { user: Some(user.to_owned()), ..none() };
    assert_eq!(walk(&store, one, &by("other's"), 10).await, [0; 0]);
    assert_eq!(walk(&store, other, &by("user-7"), 10).await, [0; 0]);
    assert!(walk(&store, other, &by("other's"), 100).await.into_iter().eq((0..300).rev()));
    assert!(walk(&store, one, &none(), 100).await.into_iter().eq((0..700).rev()));
}

/// A database whose rows a superuser can reach.
enum Reached {
    Postgres(TestDatabase),
    Sqlite(tempfile::TempDir),
}

impl Reached {
    async fn postgres() -> (Self, Db) {
        let (database, store) = crate::support::postgres::migrated().await;
        (Self::Postgres(database), store)
    }

    async fn sqlite() -> (Self, Db) {
        let (folder, store): (_, Arc<Sqlite>) = crate::store_sqlite::migrated().await;
        (Self::Sqlite(folder), store)
    }

    async fn execute(&self, sql: &str) {
        match self {
            Self::Postgres(database) => execute(&database.url, sql).await,
            Self::Sqlite(folder) => {
                crate::store_sqlite::try_execute(folder, sql).await.unwrap();
            }
        }
    }

    /// As a server sees it that has just started.
    async fn again(&self) -> Db {
        match self {
            Self::Postgres(database) => Arc::new(connect(&database.url)),
            Self::Sqlite(folder) => Arc::new(Sqlite::open(&folder.path().join("byok.db")).await.unwrap()),
        }
    }

    /// Goes on in another log, as a database that was restored does.
    async fn next_log(&self) -> Db {
        let nothing = match self {
            Self::Postgres(_) => "''",
            Self::Sqlite(_) => "x''",
        };
        let next = format!("UPDATE np_byok_heads SET log = log + 1, first = size, frontier = {nothing}");
        self.execute(&next).await;
        self.again().await
    }

    /// The log's one entry again and again, a second later each, until there are these leaves.
    async fn repeat_the_entry(&self, leaves: &[Hash]) -> Db {
        let mut frontier = Frontier::default();
        leaves.iter().for_each(|leaf| frontier.append(*leaf));
        let hex: String = frontier.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let (count, last) = (leaves.len(), leaves.len() - 1);
        let (numbers, at, bytes) = match self {
            Self::Postgres(_) => (
                format!("generate_series(1, {last}) AS n"),
                "at + n * interval '1 second'",
                format!("'\\x{hex}'"),
            ),
            Self::Sqlite(_) => (
                format!(
                    "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {last})
                    SELECT n FROM s)"
                ),
                "at + n * 1000000",
                format!("x'{hex}'"),
            ),
        };
        let others =
            "id, operation, outcome, means, role, user_id, user_salt, user_hmac, request_id, request_salt,
            request_hmac, item_count, records, items, digest";
        self.execute(&format!(
            "INSERT INTO np_byok_audit (tenant, seq, at, {others})
            SELECT tenant, seq + n, {at}, {others} FROM np_byok_audit CROSS JOIN {numbers}"
        ))
        .await;
        self.execute(&format!("UPDATE np_byok_heads SET size = {count}, frontier = {bytes}")).await;
        self.again().await
    }

    async fn alter_tiles(&self, sql: &str) {
        let guards: &[&str] = match self {
            Self::Postgres(_) => &["ALTER TABLE np_byok_tiles DISABLE TRIGGER USER"],
            Self::Sqlite(_) => &[
                "DROP TRIGGER IF EXISTS np_byok_tiles_no_update",
                "DROP TRIGGER IF EXISTS np_byok_tiles_no_delete",
            ],
        };
        for guard in guards {
            self.execute(guard).await;
        }
        self.execute(sql).await;
    }

    async fn delete_entries(&self, places: Range<u64>) {
        let guard = match self {
            Self::Postgres(_) => "ALTER TABLE np_byok_audit DISABLE TRIGGER USER",
            Self::Sqlite(_) => "DROP TRIGGER np_byok_audit_no_delete",
        };
        self.execute(guard).await;
        let Range { start, end } = places;
        self.execute(&format!("DELETE FROM np_byok_audit WHERE seq >= {start} AND seq < {end}")).await;
    }
}

async fn a_second_log_has_tiles_of_its_own((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    let mut first_log = Vec::new();
    grow(&store, tenant, &mut first_log, 700).await;
    assert_eq!(pass(&store).await, Derived::All);
    let store = reached.next_log().await;
    let reopened = store.log_head(tenant).await.unwrap().unwrap();
    assert_eq!((reopened.log, reopened.first, reopened.end()), (2, 700, 700));
    let mut dice = Dice(4);
    let mut leaves = Vec::new();
    for size in [0_u64, 255, 256, 600] {
        let rows = (leaves.len() as u64..size).map(|place| plain(place + 5_000)).collect();
        leaves.extend(append(&store, tenant, rows).await);
        assert_eq!(pass(&store).await, Derived::All);
        check_tiles(&store, tenant, 2, 0, &leaves).await;
        check_tiles(&store, tenant, 1, 0, &first_log).await;
        check_proofs(&store, tenant, &leaves, &[0, 1, 255, 256, size], &mut dice).await;
    }
    // Pages go on over both.
    assert!(walk(&store, tenant, &none(), 100).await.into_iter().eq((0..1_300).rev()));
}

async fn a_missing_entry_ends_the_tree_but_no_page((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    grow(&store, tenant, &mut Vec::new(), 1_500).await;
    reached.delete_entries(600..601).await;
    assert_eq!(pass(&store).await, Derived::Wrong);
    assert_eq!(store.tiles_end(tenant, 1, 0, u64::MAX).await, Ok(2));
    let tree = Tree::open(&*store, tenant).await.unwrap().unwrap();
    assert_eq!(tree.frontier_at(1_500).await, Err(TreeError::Missing { seq: 600 }));
    assert_eq!(tree.frontier_at(512).await.map(|frontier| frontier.size()), Ok(512));
    let expected = || (0..1_500).rev().filter(|place| *place != 600);
    assert!(walk(&store, tenant, &none(), 100).await.into_iter().eq(expected()));
    let filter = EntryFilter { user: Some("user-7".into()), ..none() };
    assert!(walk(&store, tenant, &filter, 100).await.into_iter().eq(expected()));
}

async fn tiles_prove_what_is_left_where_entries_are_gone((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    let mut leaves = Vec::new();
    grow(&store, tenant, &mut leaves, 1_500).await;
    assert_eq!(pass(&store).await, Derived::All);
    reached.delete_entries(0..512).await;
    check_proofs(&store, tenant, &leaves, &[100, 512, 1_024, 1_500], &mut Dice(5)).await;
    assert_eq!(root_of(leaves), store.log_head(tenant).await.unwrap().unwrap().frontier.root());
    assert!(walk(&store, tenant, &none(), 100).await.into_iter().eq((512..1_500).rev()));
    // What was never derived of them has its place all the same.
    reached.execute("DELETE FROM np_byok_filters").await;
    assert_eq!(pass(&store).await, Derived::All);
    let filter = EntryFilter { from: Some(Timestamp(0)), user: Some("user-7".into()), ..none() };
    assert!(walk(&store, tenant, &filter, 100).await.into_iter().eq((512..1_500).rev()));
}

/// A writer of the database can add any row.
async fn filters_that_are_gone_or_junk_hide_nothing((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    let mut dice = Dice(8);
    let start = now();
    let rows: Vec<EntryRow> = (0..66_000).map(|place| varied(&mut dice, start, place)).collect();
    append(&store, tenant, rows.clone()).await;
    let (empty, junk) = match &reached {
        Reached::Postgres(_) => ("''", "decode('0102ff', 'hex')"),
        Reached::Sqlite(_) => ("x''", "x'0102ff'"),
    };
    for chunk in [300, 1 << 55, i64::MAX as u64 / 256, i64::MAX as u64] {
        for level in [0, 1] {
            reached
                .execute(&format!(
                    "INSERT INTO np_byok_filters (tenant, level, chunk, filter)
                     SELECT uid, {level}, {chunk}, {junk} FROM np_byok_tenants"
                ))
                .await;
        }
    }
    while pass(&store).await != Derived::All {}
    assert_eq!(store.chunk_filters(tenant, 0..257).await.map(|filters| filters.len()), Ok(257));
    check_rare(&store, tenant, &rows, start).await;
    for sql in [
        format!("UPDATE np_byok_filters SET filter = {junk} WHERE chunk IN (0, 3, 256)"),
        format!("UPDATE np_byok_filters SET filter = {empty} WHERE chunk IN (0, 4, 255)"),
        "UPDATE np_byok_filters SET filter = NULL WHERE level = 0 AND chunk IN (5, 6, 9)".to_owned(),
        "DELETE FROM np_byok_filters WHERE level = 0 AND chunk IN (17, 18, 200)".to_owned(),
        "UPDATE np_byok_filters SET filter = NULL WHERE level = 1".to_owned(),
        "DELETE FROM np_byok_filters WHERE level = 1".to_owned(),
    ] {
        reached.execute(&sql).await;
        check_rare(&store, tenant, &rows, start).await;
    }
    // What is null is made again, and with a group's what of its chunks is gone.
    let group = "INSERT INTO np_byok_filters (tenant, level, chunk) SELECT uid, 1, 0 FROM np_byok_tenants";
    reached.execute(group).await;
    while pass(&store).await != Derived::All {}
    let filters = store.chunk_filters(tenant, 0..257).await.unwrap();
    assert!(filters.iter().all(|row| row.filter.is_some()) && filters.len() == 257);
    assert_eq!(store.unfilled(tenant, 257, 9).await, Ok(vec![]));
    check_rare(&store, tenant, &rows, start).await;
}

/// Which tiles of the tenant's current log `byok audit verify` finds to be altered, and the places
/// that it names.
async fn altered_tiles(store: &Db, uid: TenantUid) -> Vec<(TileId, Range<u64>)> {
    let tenants = store.tenants().await.unwrap();
    let tenant = tenants.into_iter().find(|tenant| tenant.uid == uid).unwrap();
    let report = verify_log(&**store, &tenant, None, Trust::default(), &mut |_, _| ()).await.unwrap();
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.name() != "changed-tile" || finding.breaks() == Claim::Tree)
    );
    report
        .findings
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Tile { id, range } => Some((id, range)),
            _ => None,
        })
        .collect()
}

/// The entries are untouched; proofs of them are made of tiles.
async fn an_altered_tile_is_found_when_the_log_is_verified((reached, store): (Reached, Db)) {
    let tenant = tenant(&*store).await;
    let mut leaves = Vec::new();
    // Fewer than the findings that a report keeps: what these entries say is not what their digests
    // cover.
    grow(&store, tenant, &mut leaves, 900).await;
    assert_eq!(pass(&store).await, Derived::All);
    assert_eq!(altered_tiles(&store, tenant).await, []);

    let id = |level, index| TileId { level, index };
    let (other_hash, other_root) = match &reached {
        Reached::Postgres(_) => {
            ("set_byte(hashes, 40, get_byte(hashes, 40) # 1)", "set_byte(root, 0, get_byte(root, 0) # 1)")
        }
        Reached::Sqlite(_) => {
            ("CAST(substr(hashes, 1, 40) || randomblob(8) || substr(hashes, 49) AS BLOB)", "randomblob(32)")
        }
    };
    reached.alter_tiles(&format!("UPDATE np_byok_tiles SET hashes = {other_hash} WHERE tile = 1")).await;
    assert_eq!(altered_tiles(&store, tenant).await, [(id(0, 1), 256..512)]);
    reached.alter_tiles(&format!("UPDATE np_byok_tiles SET root = {other_root} WHERE tile = 2")).await;
    assert_eq!(altered_tiles(&store, tenant).await, [(id(0, 1), 256..512), (id(0, 2), 512..768)]);
    // What is not there is made from the entries.
    reached.alter_tiles("DELETE FROM np_byok_tiles WHERE tile = 1").await;
    assert_eq!(altered_tiles(&store, tenant).await, [(id(0, 2), 512..768)]);
    // Where the entries went, a tile has to make its own root.
    reached.alter_tiles("DELETE FROM np_byok_tiles WHERE tile = 2").await;
    reached.delete_entries(0..256).await;
    assert_eq!(altered_tiles(&store, tenant).await, []);
    reached.alter_tiles(&format!("UPDATE np_byok_tiles SET hashes = {other_hash} WHERE tile = 0")).await;
    assert_eq!(altered_tiles(&store, tenant).await, [(id(0, 0), 0..256)]);
    // One of a level above that does not stand on those below, and one that the log is too short
    // for.
    let tiles = vec![tile(1, 0, 9), tile(0, 3, 9)];
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    let found = altered_tiles(&store, tenant).await;
    assert_eq!(found, [(id(0, 0), 0..256), (id(0, 3), 768..1_024), (id(1, 0), 0..65_536)]);
    // Far behind all others: the check ends all the same.
    let far = 1 << 60;
    let tiles = vec![tile(0, far, 9), tile(1, far, 9)];
    store.commit(&changes(tenant, vec![Change::AddTiles { log: 1, tiles }])).await.unwrap();
    let found: Vec<TileId> = altered_tiles(&store, tenant).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(found, [id(0, 0), id(0, 3), id(0, far), id(1, 0), id(1, far)]);
}

macro_rules! where_rows_are_reached {
    ($($case:ident)+) => {
        mod reached_on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Reached::postgres().await).await;
            })+
        }

        mod reached_on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Reached::sqlite().await).await;
            })+
        }
    };
}

where_rows_are_reached! {
    an_altered_tile_is_found_when_the_log_is_verified
    a_log_past_a_tile_of_tiles_has_a_second_level
    a_second_log_has_tiles_of_its_own
    a_missing_entry_ends_the_tree_but_no_page
    filters_that_are_gone_or_junk_hide_nothing
    tiles_prove_what_is_left_where_entries_are_gone
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_derives() {
    let server = TestServer::start().await;
    let token = server.encrypt("plaintext", "r").await;
    let store: Db = Arc::new(connect(&server.database_url));
    let database = server.database().await;
    let uid: Vec<u8> =
        sqlx::query_scalar("SELECT uid FROM np_byok_tenants").fetch_one(&database).await.unwrap();
    let tenant = TenantUid(uid.try_into().unwrap());
    let rows: Vec<EntryRow> = (0..600).map(plain).collect();
    append(&store, tenant, rows).await;
    // Calls go on meanwhile, and their tenant's log with them.
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
    for _ in 0..600 {
        if store.underived_logs().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let size = store.log_size(tenant).await.unwrap();
    let leaves = store.leaves(tenant, 0..size).await.unwrap().into_iter().map(|(_, leaf)| leaf);
    check_tiles(&store, tenant, 1, 0, &leaves.collect::<Vec<Hash>>()).await;
    let page = server.get("/byok/audit?user=the-admin&first=1").await;
    assert_eq!((page.status.as_u16(), page.body["next"].is_string()), (200, true), "{}", page.body);
}
