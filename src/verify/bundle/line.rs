//! Reads and writes the lines of a bundle in the format of `docs/audit-log.md`. The content of an
//! entry is in `verify::entry`.

use serde::{Deserialize, Serialize};

use crate::merkle::Hash;
use crate::verify::encoding::{Bytes, read_from_objects};
use crate::verify::entry::BundleEntry;

pub(super) type Root = Bytes<32>;

pub(super) fn roots_of(roots: &[Hash]) -> Vec<Root> {
    roots.iter().map(|root| Bytes(root.0)).collect()
}

pub(super) fn hashes_of(roots: &[Root]) -> Vec<Hash> {
    roots.iter().map(|root| Hash(root.0)).collect()
}

read_from_objects!(Header, Start, Subtrees, Unreadable, End);

/// One line: a JSON object with one member that has the name of the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Header(Header),
    /// A public key that signed, in the format of c2sp.org/signed-note. It proves nothing unless
    /// the auditor knows it.
    Key(String),
    /// The start of the walk: the tree as it was at that size.
    Start(Start),
    /// Leaves outside the range, of which only the covering roots are given.
    Skip(Subtrees),
    /// Leaves of entries that were pruned.
    Pruned(Subtrees),
    Entry(Box<BundleEntry>),
    /// A row that cannot be read as an entry.
    Unreadable(Unreadable),
    /// A signed note of the size that the walk has reached.
    Checkpoint(String),
    End(End),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Header {
    pub(super) format: String,
    /// The origin with which the checkpoints begin.
    pub(super) origin: String,
    /// The tenant's uid, 32 hexadecimal digits.
    pub(super) tenant: String,
    pub(super) log: u32,
    /// The position of the log's first leaf.
    pub(super) first: u64,
    /// The start of the range, inclusive.
    pub(super) from: u64,
    /// The end of the range, exclusive.
    pub(super) to: u64,
    /// The number of leaves that the closing checkpoint covers.
    pub(super) size: u64,
    /// Whether the range extends to the end of what that checkpoint covers, and entries after it
    /// say that values were erased.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) erasures_behind: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Start {
    pub(super) size: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Subtrees {
    pub(super) count: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Unreadable {
    #[serde(rename = "place")]
    pub(super) position: u64,
    pub(super) leaf: Root,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct End {
    /// The number of entries in the bundle.
    pub(super) entries: u64,
}
