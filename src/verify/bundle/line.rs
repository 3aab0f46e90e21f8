//! The lines of a bundle as `docs/audit-log.md` draws them, read and written. What an entry says is in `verify::entry`.

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

/// One line. Each is a JSON object with one member, of this name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Header(Header),
    /// A public key that signed, as c2sp.org/signed-note writes it. Counts for nothing unless the auditor knows it.
    Key(String),
    /// Where the walk begins: the tree as it was at that size.
    Start(Start),
    /// Leaves outside the range: only the roots over them.
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
    /// What the checkpoints begin with.
    pub(super) origin: String,
    /// The tenant's uid, 32 hexadecimal digits.
    pub(super) tenant: String,
    pub(super) log: u32,
    /// The place of the log's first leaf.
    pub(super) first: u64,
    /// The range: from this place …
    pub(super) from: u64,
    /// … to before this one.
    pub(super) to: u64,
    /// How many leaves the closing checkpoint speaks of.
    pub(super) size: u64,
    /// Whether the range reaches the end of what that checkpoint speaks of, and behind it entries say that values were erased.
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
    pub(super) place: u64,
    pub(super) leaf: Root,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct End {
    /// How many entries stand in the bundle.
    pub(super) entries: u64,
}
