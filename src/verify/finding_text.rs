//! Describes a finding: its name, the claim that it breaks, and a sentence.

use std::fmt;
use std::ops::Range;

use super::finding::{Against, Finding};
use super::report::Claim;
use crate::store::TileId;

impl Finding {
    /// Returns the name of the finding, for tools that act on it. Names never change.
    /// `docs/audit-log.md` lists them.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed-bundle",
            Self::Unreadable { .. } | Self::Content { .. } | Self::Personal { .. } => "changed-field",
            Self::Unmarked { .. } => "unmarked-erasure",
            Self::OtherTenant { .. } => "wrong-tenant",
            Self::Missing { oldest: true, .. } => "unmarked-prune",
            Self::Missing { oldest: false, .. } => "removed-entry",
            Self::CutOff { .. } | Self::Shorter { .. } => "truncated-tail",
            Self::Doubled { .. } => "doubled-entry",
            Self::BeyondHead { .. } => "beyond-head",
            Self::Swapped { .. } => "swapped-pair",
            Self::Time { .. } => "changed-time",
            Self::Rewritten { .. } | Self::Forked { .. } => "rewritten-history",
            Self::Tile { .. } => "changed-tile",
            Self::Head => "changed-head",
            Self::WrongKey { .. } => "wrong-key",
            Self::Forged { .. } | Self::NoCheckpoint { .. } | Self::OtherLog { .. } => "forged-checkpoint",
            Self::MissingCheckpoint { .. } => "missing-checkpoint",
            Self::PinnedElsewhere { .. } => "pinned-not-shown",
            Self::VoidsNothing { .. } => "voids-nothing",
            Self::DekVersion { .. } => "dek-key-version",
            Self::DekWrapped { .. } => "dek-wrapped",
            Self::DekRecord { .. } => "dek-record",
            Self::DekMac { .. } => "dek-mac",
            Self::DekUnsealed { .. } => "dek-unsealed",
            Self::DekUnnamed { .. } => "dek-not-logged",
            Self::DekGone { .. } => "dek-removed",
        }
    }

    /// Returns the claim that the finding breaks.
    pub fn breaks(&self) -> Claim {
        match self {
            Self::Malformed { .. } => Claim::Form,
            Self::Unreadable { .. } | Self::Content { .. } | Self::OtherTenant { .. } => Claim::Content,
            Self::Personal { .. } | Self::Unmarked { .. } => Claim::Personal,
            Self::Missing { .. }
            | Self::CutOff { .. }
            | Self::Doubled { .. }
            | Self::BeyondHead { .. }
            | Self::Swapped { .. }
            | Self::VoidsNothing { .. } => Claim::Order,
            Self::Rewritten { against: Against::Pinned(_), .. }
            | Self::Shorter { against: Against::Pinned(_), .. }
            | Self::WrongKey { checkpoint: Against::Pinned(_), .. }
            | Self::Forged { checkpoint: Against::Pinned(_) }
            | Self::OtherLog { checkpoint: Against::Pinned(_), .. }
            | Self::Forked { .. }
            | Self::PinnedElsewhere { .. } => Claim::Pinned,
            Self::Time { .. }
            | Self::Rewritten { .. }
            | Self::Tile { .. }
            | Self::Head
            | Self::Shorter { .. } => Claim::Tree,
            Self::WrongKey { .. }
            | Self::Forged { .. }
            | Self::NoCheckpoint { .. }
            | Self::OtherLog { .. }
            | Self::MissingCheckpoint { .. } => Claim::Signed,
            Self::DekVersion { .. }
            | Self::DekWrapped { .. }
            | Self::DekRecord { .. }
            | Self::DekUnnamed { .. }
            | Self::DekGone { .. } => Claim::Deks,
            Self::DekMac { .. } | Self::DekUnsealed { .. } => Claim::Macs,
        }
    }
}

/// Formats the range for people: its last position is included.
fn positions(range: &Range<u64>) -> String {
    match range.end.saturating_sub(range.start) {
        0 | 1 => format!("place {}", range.start),
        _ => format!("places {} to {}", range.start, range.end - 1),
    }
}

/// Formats the position and the violation as a sentence, without the name.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line, why } => write!(f, "line {line}: {why}; the rest was not read"),
            Self::Unreadable { position } => {
                write!(f, "place {position}: the row is not in a format that the server writes")
            }
            Self::Content { position, leaf, computed } => write!(
                f,
                "place {position}: the entry, or one of its items, was changed: expected leaf {leaf}, \
                 found {computed}"
            ),
            Self::OtherTenant { position, tenant } => {
                write!(f, "place {position}: the entry is one of tenant {tenant}")
            }
            Self::Personal { position, what } => {
                write!(f, "place {position}: {what} does not match its hash")
            }
            Self::Unmarked { position, what } => {
                write!(f, "place {position}: {what} is missing, and no later entry says that it was erased")
            }
            Self::Missing { range, kept: true, .. } => {
                write!(f, "{}: missing, and no later entry says that they were pruned", positions(range))
            }
            Self::Missing { range, kept: false, .. } => {
                write!(f, "{}: missing, and so are the hashes", positions(range))
            }
            Self::CutOff { range } => write!(f, "{}: missing, up to the log's end", positions(range)),
            Self::Doubled { position } => write!(f, "place {position}: there is more than one entry"),
            Self::BeyondHead { position } => {
                write!(f, "place {position}: an entry that was never appended")
            }
            Self::Swapped { position, with } => {
                write!(f, "places {position} and {with}: the two entries are swapped")
            }
            Self::Time { position } => {
                write!(f, "place {position}: the entry's time is far from the time in its id")
            }
            Self::Rewritten { range, against, expected, found } => write!(
                f,
                "{}: not the entries that {against} covers: expected root {expected}, found {found}",
                positions(range)
            ),
            Self::Tile { id: TileId { level, index }, range } => write!(
                f,
                "{}: tile {index} of level {level} does not match them; their proofs are read from it",
                positions(range)
            ),
            Self::Head => f.write_str("the log's head is not in a format that the server writes"),
            Self::Shorter { has, against } => {
                write!(f, "the log has {has} entries, but {against} covers more")
            }
            Self::WrongKey { checkpoint, signers } => write!(
                f,
                "no key that was given fits {checkpoint}: it says that it is signed with {}",
                signers.join(", ")
            ),
            Self::Forged { checkpoint } => {
                write!(f, "{checkpoint} names a key that was given, and that key has not signed it")
            }
            Self::NoCheckpoint { size } => {
                write!(f, "what is kept as the checkpoint of size {size} is not one of that size")
            }
            Self::OtherLog { checkpoint, origin } => {
                write!(f, "{checkpoint} is of another log: {origin}")
            }
            Self::MissingCheckpoint { size: Some(size) } => {
                write!(f, "the pinned checkpoint of size {size} is no longer kept")
            }
            Self::MissingCheckpoint { size: None } => {
                f.write_str("no signed checkpoint covers all of these entries")
            }
            Self::Forked { size, root } => {
                write!(f, "the kept checkpoint of size {size} has another root than the pinned one: {root}")
            }
            Self::PinnedElsewhere { size } => write!(
                f,
                "the bundle says nothing about the log at the pinned size {size}: export it with --checkpoint"
            ),
            Self::VoidsNothing { position } => write!(
                f,
                "place {position}: it says that the answer of an earlier entry was withheld, but names no entry of its request \
                 whose answer was still to be given"
            ),
            Self::DekVersion { dek, row, log } => {
                write!(
                    f,
                    "DEK {dek}: its row has key version {row}; expected {log}, which the log last gave it"
                )
            }
            Self::DekWrapped { dek } => {
                write!(f, "DEK {dek}: its row has other wrapped bytes than the log last gave it")
            }
            Self::DekRecord { dek } => {
                write!(
                    f,
                    "DEK {dek}: its row has another record than the one that the log says it was used for"
                )
            }
            Self::DekMac { dek } => write!(f, "DEK {dek}: the MACs in its row do not match the row"),
            Self::DekUnsealed { dek } => {
                write!(f, "DEK {dek}: its row has no MAC, but the log says that all rows were sealed")
            }
            Self::DekUnnamed { dek } => write!(f, "DEK {dek}: its row was never logged"),
            Self::DekGone { dek } => write!(f, "DEK {dek}: the log names it, but its row is missing"),
        }
    }
}
