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

fn shown(places: &Range<u64>) -> String {
    match places.end.saturating_sub(places.start) {
        0 | 1 => format!("place {}", places.start),
        _ => format!("places {} to {}", places.start, places.end - 1),
    }
}

/// Formats the position and the violation as a sentence, without the name.
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
            Self::Unmarked { place, what } => {
                write!(f, "place {place}: {what} is not there, and no later entry says that it was erased")
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
            Self::Tile { id: TileId { level, index }, places } => write!(
                f,
                "{}: tile {index} of level {level} is not what they make; their proofs are read from it",
                shown(places)
            ),
            Self::Head => f.write_str("the log's head is not of a form that the server writes"),
            Self::Shorter { has, against } => {
                write!(f, "the log has {has} entries, and {against} speaks of more")
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
            Self::VoidsNothing { place } => write!(
                f,
                "place {place}: it says that the answer of an earlier entry was withheld, and names none of its request that \
                 stood until then"
            ),
            Self::DekVersion { dek, row, log } => {
                write!(f, "DEK {dek}: its row says {row}; expected {log}, which the log gave it last")
            }
            Self::DekWrapped { dek } => {
                write!(f, "DEK {dek}: its row holds other wrapped bytes than the log gave it last")
            }
            Self::DekRecord { dek } => {
                write!(f, "DEK {dek}: its row is of another record than the log says that it was used for")
            }
            Self::DekMac { dek } => write!(f, "DEK {dek}: its row has MACs that are not its own"),
            Self::DekUnsealed { dek } => {
                write!(f, "DEK {dek}: its row has no MAC, and the log says that all were sealed")
            }
            Self::DekUnnamed { dek } => write!(f, "DEK {dek}: its row was never logged"),
            Self::DekGone { dek } => write!(f, "DEK {dek}: the log names it, and its row is gone"),
        }
    }
}
