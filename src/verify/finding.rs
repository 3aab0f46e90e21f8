//! What can be wrong with a log, by name and place.

use std::fmt;
use std::ops::Range;

use crate::merkle::Hash;
use crate::model::{DekId, KeyVersion, TenantUid};
use crate::store::TileId;

/// What a root was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// A checkpoint of that size.
    Checkpoint(u64),
    /// The checkpoint that the auditor has kept.
    Pinned(u64),
    /// The frontier in the log's head, of that size.
    Head(u64),
    /// What the entry of a restore says of the log that it ended, of that size.
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

/// Which personal value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersonalValue {
    /// The caller.
    User,
    /// Our request id.
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

/// Something that does not hold. Places are those of the tenant's entries, counted from 0; sizes count a log's leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The file is not a bundle from this line on.
    Malformed {
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A row is not of a form that the server writes.
    Unreadable {
        /// Where.
        place: u64,
    },
    /// What an entry says is not what its leaf covers.
    Content {
        /// Where.
        place: u64,
        /// Its leaf, by the digest that it has.
        leaf: Hash,
        /// The leaf that what it says would have.
        said: Hash,
    },
    /// The entry of another tenant's log.
    OtherTenant {
        /// Where.
        place: u64,
        /// Whose it is.
        tenant: TenantUid,
    },
    /// A name or an id is not the one that was hashed.
    Personal {
        /// Where.
        place: u64,
        /// Which value.
        what: PersonalValue,
    },
    /// A name or an id is not there, and no later entry says that it was erased.
    Unmarked {
        /// Where.
        place: u64,
        /// Which value; the first of them, where several are not there.
        what: PersonalValue,
    },
    /// Entries are gone, and no later entry says that they were pruned; or their hashes are gone as well.
    Missing {
        /// From the first to before the next that is there.
        places: Range<u64>,
        /// Whether they are the log's oldest, as those are that a retention prunes.
        oldest: bool,
        /// Whether their hashes are there.
        kept: bool,
    },
    /// The last entries are gone.
    CutOff {
        /// From the first that is gone to the log's end.
        places: Range<u64>,
    },
    /// A place is taken more than once.
    Doubled {
        /// Which.
        place: u64,
    },
    /// An entry stands where the log's head says that there is none yet.
    BeyondHead {
        /// Where.
        place: u64,
    },
    /// Two entries stand in each other's place.
    Swapped {
        /// The lower place.
        place: u64,
        /// The higher.
        with: u64,
    },
    /// An entry's time is far from the one that its id was made at, where the tree does not fit.
    Time {
        /// Where.
        place: u64,
    },
    /// The entries at these places are not those that the root was made of.
    Rewritten {
        /// From the first that may be another, since the last root that held.
        places: Range<u64>,
        /// What says so.
        against: Against,
        /// The root that it has.
        expected: Hash,
        /// The root of the entries that are there.
        found: Hash,
    },
    /// A tile of the tree, which proofs are read from, is not what the entries or the tiles below it make.
    Tile {
        /// Which.
        id: TileId,
        /// The entries that it spans.
        places: Range<u64>,
    },
    /// The log's head is not of a form that the server writes.
    Head,
    /// The log has fewer entries than were signed.
    Shorter {
        /// How many it has.
        has: u64,
        /// What says so.
        against: Against,
    },
    /// It is signed with other keys than were given.
    WrongKey {
        /// Which.
        checkpoint: Against,
        /// The keys that it says it is signed with: name and id.
        signers: Vec<String>,
    },
    /// It bears the name and the id of a key that was given, and that key has not signed it.
    Forged {
        /// Which.
        checkpoint: Against,
    },
    /// Kept as a checkpoint, and none.
    NoCheckpoint {
        /// Kept as of this size.
        size: u64,
    },
    /// A checkpoint of another log.
    OtherLog {
        /// Which.
        checkpoint: Against,
        /// Whose it says it is.
        origin: String,
    },
    /// A checkpoint that should be there is not.
    MissingCheckpoint {
        /// Of which size, where that is known.
        size: Option<u64>,
    },
    /// Another root of the size was signed than was pinned: two histories.
    Forked {
        /// Of which size.
        size: u64,
        /// The root that is kept.
        root: Hash,
    },
    /// The bundle says nothing about the log at the pinned size.
    PinnedElsewhere {
        /// Which.
        size: u64,
    },
    /// An entry says that the answer of an earlier one was withheld, and names none of its request that stood until then.
    VoidsNothing {
        /// Where it says so.
        place: u64,
    },
    /// A DEK's row has another key version than the log gave it last.
    DekVersion {
        /// Which DEK.
        dek: DekId,
        /// What the row says.
        row: KeyVersion,
        /// What the log says.
        log: KeyVersion,
    },
    /// A DEK's row holds other wrapped bytes than the log says that it was given last.
    DekWrapped {
        /// Which DEK.
        dek: DekId,
    },
    /// A DEK's row is of another record than the log says that the DEK was used for.
    DekRecord {
        /// Which DEK.
        dek: DekId,
    },
    /// A DEK's row has MACs that are not its own.
    DekMac {
        /// Which DEK.
        dek: DekId,
    },
    /// A DEK's row has no MAC, and the log says that all were sealed.
    DekUnsealed {
        /// Which DEK.
        dek: DekId,
    },
    /// A DEK's row that no entry has made.
    DekUnnamed {
        /// Which DEK.
        dek: DekId,
    },
    /// A DEK that the log names, and no row is there.
    DekGone {
        /// Which DEK.
        dek: DekId,
    },
}
