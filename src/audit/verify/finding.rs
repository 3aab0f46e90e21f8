//! What can be wrong with a log, by name and place.

use std::fmt;
use std::ops::Range;

use super::report::Claim;
use crate::merkle::Hash;
use crate::model::{DekId, KeyVersion, TenantUid};

/// What a root was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// A checkpoint of that size.
    Checkpoint(u64),
    /// The checkpoint that the auditor has kept.
    Pinned(u64),
    /// The frontier in the log's head, of that size.
    Head(u64),
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint(size) => write!(f, "the checkpoint of size {size}"),
            Self::Pinned(size) => write!(f, "the pinned checkpoint of size {size}"),
            Self::Head(size) => write!(f, "the log's head of size {size}"),
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
    /// The log's head is not of a form that the server writes.
    Head,
    /// The log has fewer entries than were signed.
    Shorter {
        /// How many it has.
        has: u64,
        /// What says so.
        against: Against,
    },
    /// None of the keys that are known has signed it.
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
    /// A DEK's row has another key version than the log gave it last.
    DekVersion {
        /// Which DEK.
        dek: DekId,
        /// What the row says.
        row: KeyVersion,
        /// What the log says.
        log: KeyVersion,
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

impl Finding {
    /// Its name, for those who act on it; never changes. `docs/audit-log.md` lists them.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed-bundle",
            Self::Unreadable { .. } | Self::Content { .. } | Self::Personal { .. } => "changed-field",
            Self::OtherTenant { .. } => "wrong-tenant",
            Self::Missing { oldest: true, .. } => "unmarked-prune",
            Self::Missing { oldest: false, .. } => "removed-entry",
            Self::CutOff { .. } | Self::Shorter { .. } => "truncated-tail",
            Self::Doubled { .. } => "doubled-entry",
            Self::BeyondHead { .. } => "beyond-head",
            Self::Swapped { .. } => "swapped-pair",
            Self::Time { .. } => "changed-time",
            Self::Rewritten { .. } | Self::Forked { .. } => "rewritten-history",
            Self::Head => "changed-head",
            Self::Forged { .. } | Self::NoCheckpoint { .. } | Self::OtherLog { .. } => "forged-checkpoint",
            Self::MissingCheckpoint { .. } => "missing-checkpoint",
            Self::PinnedElsewhere { .. } => "pinned-not-shown",
            Self::DekVersion { .. } => "dek-key-version",
            Self::DekUnnamed { .. } => "dek-not-logged",
            Self::DekGone { .. } => "dek-removed",
        }
    }

    /// The claim that it breaks.
    pub fn breaks(&self) -> Claim {
        match self {
            Self::Malformed { .. } => Claim::Form,
            Self::Unreadable { .. } | Self::Content { .. } | Self::OtherTenant { .. } => Claim::Content,
            Self::Personal { .. } => Claim::Personal,
            Self::Missing { .. }
            | Self::CutOff { .. }
            | Self::Doubled { .. }
            | Self::BeyondHead { .. }
            | Self::Swapped { .. } => Claim::Order,
            Self::Rewritten { against: Against::Pinned(_), .. }
            | Self::Shorter { against: Against::Pinned(_), .. }
            | Self::Forged { checkpoint: Against::Pinned(_) }
            | Self::OtherLog { checkpoint: Against::Pinned(_), .. }
            | Self::Forked { .. }
            | Self::PinnedElsewhere { .. } => Claim::Pinned,
            Self::Time { .. } | Self::Rewritten { .. } | Self::Head | Self::Shorter { .. } => Claim::Tree,
            Self::Forged { .. }
            | Self::NoCheckpoint { .. }
            | Self::OtherLog { .. }
            | Self::MissingCheckpoint { .. } => Claim::Signed,
            Self::DekVersion { .. } | Self::DekUnnamed { .. } | Self::DekGone { .. } => Claim::Deks,
        }
    }
}

fn shown(places: &Range<u64>) -> String {
    match places.end.saturating_sub(places.start) {
        0 | 1 => format!("place {}", places.start),
        _ => format!("places {} to {}", places.start, places.end - 1),
    }
}

/// A sentence of where and what; its name goes before it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line, why } => write!(f, "line {line}: {why}; the rest was not looked at"),
            Self::Unreadable { place } => {
                write!(f, "place {place}: the row is not of a form that the server writes")
            }
            Self::Content { place, leaf, said } => write!(
                f,
                "place {place}: the entry, or one of its items, was changed: expected what gives leaf {leaf}, \
                 what is there gives {said}"
            ),
            Self::OtherTenant { place, tenant } => {
                write!(f, "place {place}: the entry is one of tenant {tenant}")
            }
            Self::Personal { place, what } => {
                write!(f, "place {place}: {what} is not the one that was hashed")
            }
            Self::Missing { places, kept: true, .. } => {
                write!(f, "{}: gone, and no later entry says that they were pruned", shown(places))
            }
            Self::Missing { places, kept: false, .. } => {
                write!(f, "{}: gone, and nothing is kept of their hashes", shown(places))
            }
            Self::CutOff { places } => write!(f, "{}: gone, up to the log's end", shown(places)),
            Self::Doubled { place } => write!(f, "place {place}: it is taken more than once"),
            Self::BeyondHead { place } => {
                write!(f, "place {place}: an entry that was never appended")
            }
            Self::Swapped { place, with } => {
                write!(f, "places {place} and {with}: each entry stands in the other's place")
            }
            Self::Time { place } => {
                write!(f, "place {place}: its time is far from the one that the entry's id was made at")
            }
            Self::Rewritten { places, against, expected, found } => write!(
                f,
                "{}: not the entries that {against} speaks of: expected root {expected}, what is there gives {found}",
                shown(places)
            ),
            Self::Head => f.write_str("the log's head is not of a form that the server writes"),
            Self::Shorter { has, against } => {
                write!(f, "the log has {has} entries, and {against} speaks of more")
            }
            Self::Forged { checkpoint } => {
                write!(f, "none of the keys given has signed {checkpoint}")
            }
            Self::NoCheckpoint { size } => {
                write!(f, "what is kept as of size {size} is not a checkpoint of that size")
            }
            Self::OtherLog { checkpoint, origin } => {
                write!(f, "{checkpoint} is of another log: {origin}")
            }
            Self::MissingCheckpoint { size: Some(size) } => {
                write!(f, "the pinned checkpoint of size {size} is not kept any more")
            }
            Self::MissingCheckpoint { size: None } => {
                f.write_str("nothing that was signed speaks of all of these entries")
            }
            Self::Forked { size, root } => {
                write!(
                    f,
                    "the checkpoint of size {size} that is kept has another root than the pinned one: {root}"
                )
            }
            Self::PinnedElsewhere { size } => write!(
                f,
                "the bundle says nothing about the log at the pinned size {size}: export it with --checkpoint"
            ),
            Self::DekVersion { dek, row, log } => {
                write!(f, "DEK {dek}: its row says {row}; expected {log}, which the log gave it last")
            }
            Self::DekUnnamed { dek } => write!(f, "DEK {dek}: its row was never logged"),
            Self::DekGone { dek } => write!(f, "DEK {dek}: the log names it, and its row is gone"),
        }
    }
}
