//! Verification of a log: a walk along its tree that is fed entries, roots of what is not shown, and checkpoints, one by
//! one, and says what does not hold and where. Pure, and as large as a few thousand leaves, however long the log. Reads no
//! file and prints nothing; [`verify_log`] feeds it from a database, [`super::verify_bundle`] from a file.

mod behind;
mod compare;
mod deks;
mod erasures;
mod finding;
mod held;
mod log;
mod pages;
mod report;
mod rows;
mod said;
mod settle;
mod tiles;
mod told;
mod walk;
mod window;
mod withheld;

use std::ops::Range;

use crate::model::{Operation, Outcome, TenantUid};

use super::bundle::BundleEntry;
use super::checkpoint::{CheckpointKey, SignedCheckpoint};
use super::pruned::leaves_in;

pub use finding::{Against, Finding, PersonalValue};
pub use held::{HeldRows, hold_rows};
pub use log::verify_log;
pub(super) use pages::{Pages, Row};
pub use report::{Claim, Report, State};
pub use rows::{RowCounts, check_row_macs, count_row_seals};
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

/// The leaves of this log that a prune's entry names.
pub(super) fn pruned_by(entry: &BundleEntry, log: u32) -> Option<Range<u64>> {
    if entry.operation != Operation::Prune.as_str() || entry.outcome != Outcome::Ok.as_str() {
        return None;
    }
    let (of, leaves) = leaves_in(entry.detail.as_deref()?)?;
    (of == log).then_some(leaves)
}
