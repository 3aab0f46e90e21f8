//! What is derived from a log's entries, so that a proof or a page need not read them all: tiles of its tree, and chunks with
//! the values that come in them. The types, and which values are named; who derives it is the worker.

use std::ops::Range;

use async_trait::async_trait;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::crypto::sha256_of;
use crate::merkle::{Hash, root_of};
use crate::model::{TenantUid, Timestamp};

use super::{EntryFilter, ReadError};

/// How many hashes a tile has, and how many places a chunk.
pub const WIDTH: u64 = 256;

/// How many levels of tiles a tree has at most: as many as the tables take.
pub const TILE_LEVELS: u32 = 8;

/// Which tile of a log's tree: level 0 is over leaves, level l over the tiles of level l-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// Below [`TILE_LEVELS`].
    pub level: u32,
    /// Its place among those of its level, from 0.
    pub index: u64,
}

/// A full tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Which.
    pub id: TileId,
    /// [`WIDTH`] hashes: of leaves, or the roots of the tiles below.
    pub hashes: Vec<Hash>,
}

impl Tile {
    /// The root of the subtree that it spans.
    pub fn root(&self) -> Hash {
        root_of(self.hashes.iter().copied())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|hash| hash.0).collect()
    }
}

/// The [`WIDTH`] places from `index * WIDTH` on, and between which times their entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Counted over all of the tenant's entries, whichever log they are of.
    pub index: u64,
    /// The time of the earliest entry.
    pub earliest: Timestamp,
    /// The time of the latest.
    pub latest: Timestamp,
}

/// That a value comes in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkValue {
    /// 64 bits of a hash of it, its kind and the tenant.
    pub value: i64,
    /// Which chunk.
    pub chunk: u64,
}

/// What an entry is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its place.
    pub seq: u64,
    /// Its time.
    pub at: Timestamp,
    /// Its user, records, operation and outcome; some may come twice.
    pub values: Vec<i64>,
}

/// A log of which not all is derived yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Whose.
    pub tenant: TenantUid,
    /// Which of the tenant's logs.
    pub log: u32,
    /// Its first entry's place.
    pub first: u64,
    /// The place after its last entry.
    pub end: u64,
    /// The first chunk that is to be derived.
    pub chunk: u64,
    /// The first tile of level 0 that is to be derived.
    pub tile: u64,
}

/// What an entry can be found by. A request id is none: no filter asks for it, and it would be a row of the index for every
/// entry.
#[derive(Clone, Copy)]
pub(super) enum Named<'a> {
    Record(&'a str),
    User(&'a str),
    Outcome(&'a str),
    Operation(&'a str),
}

/// The first 64 bits of SHA-256(tenant's uid ‖ kind ‖ value): an erasure can make it again from the value alone.
pub(super) fn value_of(tenant: TenantUid, named: Named<'_>) -> i64 {
    let (kind, value) = match named {
        Named::Record(value) => (b"r", value),
        Named::User(value) => (b"u", value),
        Named::Outcome(value) => (b"o", value),
        Named::Operation(value) => (b"p", value),
    };
    let digest = sha256_of(&[&tenant.0, kind, value.as_bytes()]);
    let [first, ..] = digest.as_chunks().0 else { return 0 };
    i64::from_be_bytes(*first)
}

/// The values that an entry must have for this filter, its record aside.
pub(super) fn values_asked(tenant: TenantUid, filter: &EntryFilter) -> Vec<i64> {
    let named = [
        filter.user.as_deref().map(Named::User),
        filter.outcome.map(|outcome| Named::Outcome(outcome.as_str())),
        filter.operation.map(|operation| Named::Operation(operation.as_str())),
    ];
    named.into_iter().flatten().map(|named| value_of(tenant, named)).collect()
}

/// The ids in `records`, as [`super::EntryRow::records`] holds them, given one after the other; `None` when it is not of that
/// form.
pub(super) fn each_record(records: &str, mut give: impl FnMut(&str)) -> Option<()> {
    #[derive(Deserialize)]
    struct Salted<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>, IgnoredAny);
    let ids: Vec<Option<Salted<'_>>> = serde_json::from_str(records).ok()?;
    ids.iter().flatten().for_each(|Salted(id, _)| give(id));
    Some(())
}

/// Reads for who derives, and of the tiles that are there.
#[async_trait]
pub trait DerivedReads {
    /// The logs that have a chunk or a tile of level 0 more than was derived; some of them, where there are very many.
    async fn behind(&self) -> Result<Vec<Behind>, ReadError>;

    /// What the entries at these places are found by, oldest first. Ends early once they have more than `items` items, or are
    /// large, and holds none only where none are left; what is missing is left out.
    async fn outlines(
        &self,
        tenant: TenantUid,
        places: Range<u64>,
        items: u32,
    ) -> Result<Vec<Outline>, ReadError>;

    /// How far the tiles of a level go: 1 more than the last one's index.
    async fn tiles_end(&self, tenant: TenantUid, log: u32, level: u32) -> Result<u64, ReadError>;

    /// These tiles, in any order; those that are not there are left out.
    async fn tiles(&self, tenant: TenantUid, log: u32, ids: &[TileId]) -> Result<Vec<Tile>, ReadError>;

    /// The roots of these tiles of one level, each with its tile's index, in order. What is missing is left out.
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
        let one = value_of(TenantUid([1; 16]), Named::User("a"));
        assert_eq!(one, value_of(TenantUid([1; 16]), Named::User("a")));
        assert_ne!(one, value_of(TenantUid([2; 16]), Named::User("a")));
        assert_ne!(one, value_of(TenantUid([1; 16]), Named::Record("a")));
        assert_ne!(one, value_of(TenantUid([1; 16]), Named::User("b")));
    }

    #[test]
    fn records_are_read_without_their_salts_and_without_what_was_erased() {
        let mut ids = Vec::new();
        let read = each_record(r#"[["a\"ä","c2FsdA"], null, ["","c2FsdA"]]"#, |id| ids.push(id.to_owned()));
        assert_eq!((read, ids), (Some(()), vec!["a\"ä".to_owned(), String::new()]));
        assert_eq!(each_record("{}", |_| ()), None);
    }
}
