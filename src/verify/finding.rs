//! The violations that a verifier can find in a log, with their positions.

use std::fmt;
use std::ops::Range;

use crate::merkle::Hash;
use crate::model::{DekId, KeyVersion, TenantUid};
use crate::store::TileId;

/// The source of a root that was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// A checkpoint of that size.
    Checkpoint(u64),
    /// The checkpoint that the auditor has kept.
    Pinned(u64),
    /// The frontier in the log's head, of that size.
    Head(u64),
    /// The entry of a restore, which states the size and the root of the log that it ended.
    Restore(u64),
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint(size) => write!(f, "the checkpoint of size {size}"),
            Self::Pinned(size) => write!(f, "the pinned checkpoint of size {size}"),
            Self::Head(size) => write!(f, "the log's head of size {size}"),
            Self::Restore(size) => write!(f, "the restore that ended the log at size {size}"),
        }
    }
}

/// A personal value of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersonalValue {
    /// The calling user.
    User,
    /// The request id that byok assigned.
    Request,
    /// The record of the item at this index.
    Record(usize),
}

impl fmt::Display for PersonalValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("the user"),
            Self::Request => f.write_str("the request id"),
            Self::Record(item) => write!(f, "the record id of item {item}"),
        }
    }
}

/// A violation. Positions count the tenant's entries from 0; sizes count a log's leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The file is not a bundle from this line on.
    Malformed {
        /// The line number, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A row does not have a format that the server writes.
    Unreadable {
        /// The position of the row.
        position: u64,
    },
    /// What an entry says is not what its leaf covers.
    Content {
        /// The position of the entry.
        position: u64,
        /// The leaf of the digest in the row.
        leaf: Hash,
        /// The leaf that the content of the entry would have.
        computed: Hash,
    },
    /// The entry belongs to another tenant's log.
    OtherTenant {
        /// The position of the entry.
        position: u64,
        /// The tenant that the entry belongs to.
        tenant: TenantUid,
    },
    /// A name or an id is not the one that was hashed.
    Personal {
        /// The position of the entry.
        position: u64,
        /// The value that was changed.
        what: PersonalValue,
    },
    /// A name or an id is missing, and no later entry says that it was erased.
    Unmarked {
        /// The position of the entry.
        position: u64,
        /// The missing value, or the first one if several are missing.
        what: PersonalValue,
    },
    /// Entries are missing, and no later entry says that they were pruned; or their hashes are
    /// missing as well.
    Missing {
        /// From the first missing position to before the next existing one.
        range: Range<u64>,
        /// Whether they are the oldest of the log, which is what a retention prunes.
        oldest: bool,
        /// Whether their hashes still exist.
        kept: bool,
    },
    /// The last entries are missing.
    CutOff {
        /// From the first missing position to the end of the log.
        range: Range<u64>,
    },
    /// A position has more than one entry.
    Doubled {
        /// The position.
        position: u64,
    },
    /// There is an entry at a position that the log's head has not reached.
    BeyondHead {
        /// The position.
        position: u64,
    },
    /// Two entries are in each other's position.
    Swapped {
        /// The lower position.
        position: u64,
        /// The higher position.
        with: u64,
    },
    /// The time of an entry is far from the time in its id, and the tree does not match.
    Time {
        /// The position of the entry.
        position: u64,
    },
    /// The entries at these positions are not those that the root was made of.
    Rewritten {
        /// From the first position that may be changed, which follows the last root that held.
        range: Range<u64>,
        /// The source of the expected root.
        against: Against,
        /// The expected root.
        expected: Hash,
        /// The root of the existing entries.
        found: Hash,
    },
    /// A tile of the tree, which proofs are read from, does not match the entries or the tiles
    /// below it.
    Tile {
        /// The tile.
        id: TileId,
        /// The positions that it spans.
        range: Range<u64>,
    },
    /// The log's head does not have a format that the server writes.
    Head,
    /// The log has fewer entries than a signature covers.
    Shorter {
        /// The number of entries in the log.
        has: u64,
        /// The source of the larger size.
        against: Against,
    },
    /// A checkpoint is signed with keys other than those that were given.
    WrongKey {
        /// The checkpoint.
        checkpoint: Against,
        /// The keys that it claims to be signed with: name and id.
        signers: Vec<String>,
    },
    /// A checkpoint has the name and the id of a given key, but that key has not signed it.
    Forged {
        /// The checkpoint.
        checkpoint: Against,
    },
    /// What is kept as a checkpoint is not one.
    NoCheckpoint {
        /// The size that it is kept under.
        size: u64,
    },
    /// A checkpoint belongs to another log.
    OtherLog {
        /// The checkpoint.
        checkpoint: Against,
        /// The origin in the checkpoint.
        origin: String,
    },
    /// A checkpoint is missing that must exist.
    MissingCheckpoint {
        /// Its size, if known.
        size: Option<u64>,
    },
    /// For this size, another root than the pinned one was signed: there are two histories.
    Forked {
        /// The size.
        size: u64,
        /// The root of the kept checkpoint.
        root: Hash,
    },
    /// The bundle says nothing about the log at the pinned size.
    PinnedElsewhere {
        /// The pinned size.
        size: u64,
    },
    /// An entry says that the answer of an earlier one was withheld, but names no entry of its
    /// request whose answer was to be given until then.
    VoidsNothing {
        /// The position of the entry that says so.
        position: u64,
    },
    /// A DEK's row has another key version than the log last gave it.
    DekVersion {
        /// The DEK.
        dek: DekId,
        /// The key version in the row.
        row: KeyVersion,
        /// The key version according to the log.
        log: KeyVersion,
    },
    /// A DEK's row holds other wrapped bytes than the log says it was last given.
    DekWrapped {
        /// The DEK.
        dek: DekId,
    },
    /// A DEK's row belongs to another record than the one that the log says the DEK was used for.
    DekRecord {
        /// The DEK.
        dek: DekId,
    },
    /// A DEK's row has MACs that do not match it.
    DekMac {
        /// The DEK.
        dek: DekId,
    },
    /// A DEK's row has no MAC, although the log says that all rows were sealed.
    DekUnsealed {
        /// The DEK.
        dek: DekId,
    },
    /// There is a DEK's row that no entry made.
    DekUnnamed {
        /// The DEK.
        dek: DekId,
    },
    /// The log names a DEK that has no row.
    DekGone {
        /// The DEK.
        dek: DekId,
    },
}
