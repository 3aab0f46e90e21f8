//! Data derived from a log's entries, so that a proof or a page need not read all of them: tiles of
//! its tree, and filters of the values that occur in its chunks. This module has the types and
//! defines which values can be searched for; the worker derives the data.

use std::ops::Range;

use async_trait::async_trait;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::crypto::sha256_of;
use crate::merkle::{Hash, root_of};
use crate::model::{TenantUid, Timestamp};

use super::{EntryFilter, ReadError};

/// The number of hashes in a tile, and of positions in a chunk.
pub const WIDTH: u64 = 256;

/// The largest number of levels of tiles in a tree, which is what the tables accept.
pub const TILE_LEVELS: u32 = 8;

/// The id of a tile in a log's tree. Level 0 covers leaves; level l covers the tiles of level l-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// The level, below [`TILE_LEVELS`].
    pub level: u32,
    /// The index of the tile within its level, from 0.
    pub index: u64,
}

/// A full tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The tile's id.
    pub id: TileId,
    /// [`WIDTH`] hashes: those of leaves, or the roots of the tiles below.
    pub hashes: Vec<Hash>,
}

impl Tile {
    /// Returns the root of the subtree that the tile spans.
    pub fn root(&self) -> Hash {
        root_of(self.hashes.iter().copied())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|hash| hash.0).collect()
    }
}

/// What a filter is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilterLevel {
    /// A chunk: the entries at [`WIDTH`] positions, counted over all of the tenant's entries in all
    /// of its logs. The filter is a [`Filter`](super::Filter).
    Chunk,
    /// A group of [`WIDTH`] chunks. The filter is what a
    /// [`GroupFilterBuilder`](super::GroupFilterBuilder) makes.
    Group,
}

impl FilterLevel {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Chunk => 0,
            Self::Group => 1,
        }
    }
}

/// The filter of a chunk or of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRow {
    /// The index of the chunk or group, from 0.
    pub index: u64,
    /// The time of the earliest entry.
    pub earliest: Timestamp,
    /// The time of the latest entry.
    pub latest: Timestamp,
    /// The filter's bytes. `None` where it is to be made again.
    pub filter: Option<Vec<u8>>,
}

/// The values by which an entry can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryValues {
    /// The entry's position.
    pub seq: u64,
    /// The entry's time.
    pub at: Timestamp,
    /// The hashes of the entry's user, records, operation and outcome. Some may be repeated.
    pub values: Vec<i64>,
}

/// A log that is not fully derived yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderivedLog {
    /// The tenant that owns the log.
    pub tenant: TenantUid,
    /// The number of the tenant's log.
    pub log: u32,
    /// The position of the log's first entry.
    pub first: u64,
    /// The position after the log's last entry.
    pub end: u64,
    /// The first chunk that has no filter yet.
    pub next_chunk: u64,
    /// The first tile of level 0 to derive.
    pub next_tile: u64,
}

/// A value by which an entry can be found. Request ids are not included: no search asks for them.
#[derive(Clone, Copy)]
pub(super) enum Searchable<'a> {
    Record(&'a str),
    User(&'a str),
    Outcome(&'a str),
    Operation(&'a str),
}

/// Returns the first 64 bits of SHA-256(tenant's uid ‖ kind ‖ value). An erasure can compute it
/// again from the value alone.
pub(super) fn index_value(tenant: TenantUid, named: Searchable<'_>) -> i64 {
    let (kind, value) = match named {
        Searchable::Record(value) => (b"r", value),
        Searchable::User(value) => (b"u", value),
        Searchable::Outcome(value) => (b"o", value),
        Searchable::Operation(value) => (b"p", value),
    };
    let digest = sha256_of(&[&tenant.0, kind, value.as_bytes()]);
    let [first, ..] = digest.as_chunks().0 else { return 0 };
    i64::from_be_bytes(*first)
}

/// Returns the values that an entry must have to match this filter, except its record.
pub(super) fn filter_values(tenant: TenantUid, filter: &EntryFilter) -> Vec<i64> {
    let named = [
        filter.user.as_deref().map(Searchable::User),
        filter.outcome.map(|outcome| Searchable::Outcome(outcome.as_str())),
        filter.operation.map(|operation| Searchable::Operation(operation.as_str())),
    ];
    named.into_iter().flatten().map(|named| index_value(tenant, named)).collect()
}

/// Passes each id in `records` (in the form of [`super::EntryRow::records`]) to `give`, one after
/// the other. Returns `None` if `records` does not have that form.
pub(super) fn each_record(records: &str, mut give: impl FnMut(&str)) -> Option<()> {
    #[derive(Deserialize)]
    struct Salted<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>, IgnoredAny);
    let ids: Vec<Option<Salted<'_>>> = serde_json::from_str(records).ok()?;
    ids.iter().flatten().for_each(|Salted(id, _)| give(id));
    Some(())
}

/// Reads for the worker that derives, and reads of existing tiles.
#[async_trait]
pub trait DerivedReads {
    /// Returns the logs that have at least one tile of level 0 or filter that is not derived yet,
    /// or is to be made again. Returns only some of them if there are very many.
    async fn underived_logs(&self) -> Result<Vec<UnderivedLog>, ReadError>;

    /// Returns the values of the entries at these positions, oldest first. Ends early once the
    /// entries have more than `items` items or are large, and returns none only if none are left.
    /// Missing entries are left out.
    async fn entry_values(
        &self,
        tenant: TenantUid,
        places: Range<u64>,
        items: u32,
    ) -> Result<Vec<EntryValues>, ReadError>;

    /// Returns how often entries of a group of chunks were erased or dropped, or `None` if the
    /// group has no row yet.
    async fn erasures(&self, tenant: TenantUid, group: u64) -> Result<Option<u64>, ReadError>;

    /// Returns up to `limit` of the filters that are to be made again: of chunks below `end`, and
    /// then of groups that end there or before.
    async fn unfilled(
        &self,
        tenant: TenantUid,
        end: u64,
        limit: u64,
    ) -> Result<Vec<(FilterLevel, u64)>, ReadError>;

    /// Returns the filters of these chunks, in order. Ends early once they are large, and returns
    /// none only if none are left. Missing ones are left out.
    async fn chunk_filters(&self, tenant: TenantUid, chunks: Range<u64>)
    -> Result<Vec<FilterRow>, ReadError>;

    /// Returns the end of the tiles of a level whose index is below `before`: 1 more than the last
    /// tile's index.
    async fn tiles_end(&self, tenant: TenantUid, log: u32, level: u32, before: u64)
    -> Result<u64, ReadError>;

    /// Returns these tiles, in any order. Missing tiles are left out.
    async fn tiles(&self, tenant: TenantUid, log: u32, ids: &[TileId]) -> Result<Vec<Tile>, ReadError>;

    /// Returns the roots of these tiles of one level, each with its tile's index, in order. Missing
    /// tiles are left out.
    async fn tile_roots(
        &self,
        tenant: TenantUid,
        log: u32,
        level: u32,
        tiles: Range<u64>,
    ) -> Result<Vec<(u64, Hash)>, ReadError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_hashed_with_its_tenant_and_what_it_is() {
        let one = index_value(TenantUid([1; 16]), Searchable::User("a"));
        assert_eq!(one, index_value(TenantUid([1; 16]), Searchable::User("a")));
        assert_ne!(one, index_value(TenantUid([2; 16]), Searchable::User("a")));
        assert_ne!(one, index_value(TenantUid([1; 16]), Searchable::Record("a")));
        assert_ne!(one, index_value(TenantUid([1; 16]), Searchable::User("b")));
    }

    #[test]
    fn records_are_read_without_their_salts_and_without_what_was_erased() {
        let mut ids = Vec::new();
        let read = each_record(r#"[["a\"ä","c2FsdA"], null, ["","c2FsdA"]]"#, |id| ids.push(id.to_owned()));
        assert_eq!((read, ids), (Some(()), vec!["a\"ä".to_owned(), String::new()]));
        assert_eq!(each_record("{}", |_| ()), None);
    }
}
