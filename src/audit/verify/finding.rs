//! What can be wrong with a log, by name and place; and what was claimed, whether it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::merkle::Hash;
use crate::model::{DekId, KeyVersion};

/// How many findings are kept; the rest are counted.
const KEPT: usize = 1_000;

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
    /// What an entry says is not what its digest covers.
    Content {
        /// Where.
        place: u64,
    },
    /// A name or an id is not the one that was hashed.
    Personal {
        /// Where.
        place: u64,
        /// Which value.
        what: PersonalValue,
    },
    /// Entries are gone, and no later entry says that they were pruned.
    Missing {
        /// From the first to before the next that is there.
        places: Range<u64>,
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
    /// The claim that it breaks.
    pub fn breaks(&self) -> Claim {
        match self {
            Self::Malformed { .. } => Claim::Form,
            Self::Unreadable { .. } | Self::Content { .. } => Claim::Content,
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

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line, why } => write!(f, "line {line}: {why}; the rest was not looked at"),
            Self::Unreadable { place } => {
                write!(f, "place {place}: changed field: the row is not of a form that the server writes")
            }
            Self::Content { place } => write!(
                f,
                "place {place}: changed field: what the entry or one of its items says is not what its digest covers, or \
                 the entry is another tenant's"
            ),
            Self::Personal { place, what } => {
                write!(f, "place {place}: changed value: {what} is not the one that was hashed")
            }
            Self::Missing { places } => {
                write!(f, "{}: removed: gone, and no later entry says that they were pruned", shown(places))
            }
            Self::CutOff { places } => write!(f, "{}: truncated tail: gone up to the log's end", shown(places)),
            Self::Doubled { place } => write!(f, "place {place}: doubled: it is taken more than once"),
            Self::BeyondHead { place } => {
                write!(f, "place {place}: beyond the head: an entry that was never appended")
            }
            Self::Swapped { place, with } => {
                write!(f, "places {place} and {with}: swapped: each entry stands in the other's place")
            }
            Self::Time { place } => {
                write!(f, "place {place}: changed time: far from the time that the entry's id was made at")
            }
            Self::Rewritten { places, against } => {
                write!(f, "{}: rewritten: not the entries that {against} speaks of", shown(places))
            }
            Self::Head => f.write_str("the log's head: changed: not of a form that the server writes"),
            Self::Shorter { has, against } => {
                write!(f, "truncated tail: the log has {has} entries, and {against} speaks of more")
            }
            Self::Forged { checkpoint } => {
                write!(f, "forged checkpoint: none of the keys given has signed {checkpoint}")
            }
            Self::NoCheckpoint { size } => {
                write!(f, "forged checkpoint: what is kept as of size {size} is not a checkpoint of that size")
            }
            Self::OtherLog { checkpoint, origin } => {
                write!(f, "forged checkpoint: {checkpoint} is of another log: {origin}")
            }
            Self::MissingCheckpoint { size: Some(size) } => {
                write!(f, "missing checkpoint: the pinned one of size {size} is not kept any more")
            }
            Self::MissingCheckpoint { size: None } => {
                f.write_str("missing checkpoint: nothing that was signed speaks of these entries")
            }
            Self::Forked { size, root } => {
                write!(f, "rewritten history: the checkpoint of size {size} that is kept has another root: {root}")
            }
            Self::PinnedElsewhere { size } => write!(
                f,
                "the bundle says nothing about the log at the pinned size {size}: export it with --checkpoint"
            ),
            Self::DekVersion { dek, row, log } => {
                write!(f, "DEK {dek}: key version changed by hand: its row says {row}, the log {log}")
            }
            Self::DekUnnamed { dek } => write!(f, "DEK {dek}: its row was never logged"),
            Self::DekGone { dek } => write!(f, "DEK {dek}: the log names it, and its row is gone"),
        }
    }
}

/// What is claimed of a log. In the order that they are told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// The file is a bundle, and whole.
    Form,
    /// What each entry says is what its leaf covers.
    Content,
    /// Names and ids are those that were hashed.
    Personal,
    /// Each place has its one entry.
    Order,
    /// The entries are those of the roots.
    Tree,
    /// The checkpoints were signed with a key that is known.
    Signed,
    /// The log goes on from the one that the auditor has pinned.
    Pinned,
    /// The rows of DEKs are as the log says.
    Deks,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    Holds,
    /// It does not; the findings say why.
    Fails,
    /// Nothing can be said of it, and the text says what it would take.
    Open,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which log, and how much of it.
    pub subject: String,
    /// Each claim, and what became of it.
    pub claims: Vec<(Claim, State, String)>,
    /// What does not hold, up to a thousand.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
    broken: BTreeMap<Claim, u64>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(in crate::audit) fn find(&mut self, finding: Finding) {
        *self.broken.entry(finding.breaks()).or_default() += 1;
        match self.findings.len() < KEPT {
            true => self.findings.push(finding),
            false => self.more += 1,
        }
    }

    /// Tells a claim: it fails where a finding breaks it, and is open where `open` says why.
    pub(in crate::audit) fn tell(&mut self, claim: Claim, holds: String, open: Option<String>) {
        let told = match (self.broken.get(&claim), open) {
            (None, None) => (claim, State::Holds, holds),
            (None, Some(open)) => (claim, State::Open, open),
            (Some(broken), _) => (claim, State::Fails, format!("{broken} finding(s)")),
        };
        self.claims.push(told);
    }
}
