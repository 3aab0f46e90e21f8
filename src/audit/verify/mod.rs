//! Verification of a log: a walk along its tree that is fed entries, roots of what is not shown, and checkpoints, one by
//! one, and says what does not hold and where. Pure, and as large as a few thousand leaves, however long the log. Reads no
//! file and prints nothing; [`verify_log`] feeds it from a database, [`super::verify_bundle`] from a file.

mod behind;
mod compare;
mod deks;
mod erasures;
mod finding;
mod log;
mod pages;
mod report;
mod rows;
mod said;
mod settle;
mod told;
mod walk;
mod window;
mod withheld;

use std::ops::Range;

use crate::model::{Operation, Outcome, TenantUid};

use super::bundle::BundleEntry;
use super::checkpoint::{CheckpointKey, SignedCheckpoint};

pub use finding::{Against, Finding, PersonalValue};
pub use log::verify_log;
pub(super) use pages::{Pages, Row};
pub use report::{Claim, Report, State};
pub use rows::{HeldRows, RowCounts, check_row_macs, count_row_seals, hold_rows};
pub(super) use walk::Walk;

/// What the auditor knows from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The public keys that count; one of them has to have signed.
    pub keys: Vec<CheckpointKey>,
    /// A checkpoint that was kept where nobody of ours can change it.
    pub pinned: Option<SignedCheckpoint>,
}

/// Which log is walked.
pub(super) struct Subject {
    pub(super) tenant: TenantUid,
    pub(super) origin: String,
    /// Which of the tenant's logs.
    pub(super) log: u32,
    /// The place of its first leaf.
    pub(super) first: u64,
}

/// The leaves of this log that a prune's entry names: `prune <log> <first> <end>`. In leaves, since their places stand on where
/// the log begins, which nobody signs.
pub(super) fn pruned_by(entry: &BundleEntry, log: u32) -> Option<Range<u64>> {
    if entry.operation != Operation::Prune.as_str() || entry.outcome != Outcome::Ok.as_str() {
        return None;
    }
    let mut words = entry.detail.as_deref()?.split(' ');
    let (Some("prune"), Some(of), Some(first), Some(end), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    if of.parse() != Ok(log) {
        return None;
    }
    let range = first.parse().ok()?..end.parse().ok()?;
    (range.start < range.end).then_some(range)
}
