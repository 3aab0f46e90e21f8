//! Verifies logs. A walk along the log's tree takes in entries, roots of the other leaves, and
//! checkpoints, one by one, and reports what does not hold, and where. It needs memory for a few
//! thousand leaves, however long the log. [`verify_log`] feeds it from a database,
//! [`verify_bundle`] from a file.
//!
//! This module writes to no database, opens no file and prints nothing. It reads through
//! [`crate::store::LogReads`] or from a reader, and its result is a [`Report`].
//!
//! | file | what it holds |
//! |---|---|
//! | `entry`, `encoding` | an entry with everything that its leaf covers, as read from a database or a bundle |
//! | `finding`, `finding_text`, `report` | the violations, their names and their sentences; the claims and whether they hold |
//! | `walk`, `window`, `compare`, `erasures`, `withheld`, `claims` | the walk, and what it claims at its end |
//! | `pages`, `deks`, `reconciled_deks`, `rows` | entries as the database has them; the checks of the rows of DEKs against the log, and against their MACs |
//! | `log`, `past_end`, `tiles`, `held` | the walk of a log in a database |
//! | `bundle` | a bundle: its lines, writing one from a database, and its walk |
//!
//! A file imports only from its own row and from those above it.

mod bundle;
mod claims;
mod compare;
#[cfg(test)]
mod corpus_tests;
mod deks;
mod encoding;
mod entry;
mod erasures;
mod finding;
mod finding_text;
mod held;
mod log;
mod pages;
mod past_end;
mod reconciled_deks;
mod report;
mod rows;
mod tiles;
mod walk;
mod window;
mod withheld;

use std::ops::Range;

use crate::audit::{CheckpointKey, SignedCheckpoint, leaves_in};
use crate::model::{Operation, Outcome, TenantUid};

use entry::BundleEntry;
use walk::Walk;

pub use bundle::{BUNDLE_FORMAT, Export, ExportError, Exported, Wanted, verify_bundle};
pub use finding::{Against, Finding, PersonalValue};
pub use held::{HeldRows, hold_rows};
pub use log::verify_log;
pub use report::{Claim, Report, State};
pub use rows::{RowCounts, check_row_macs, count_row_seals};

/// What the auditor knows from other sources.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The public keys that are trusted. One of them must have signed.
    pub keys: Vec<CheckpointKey>,
    /// A checkpoint that was kept where the operators of byok cannot change it.
    pub pinned: Option<SignedCheckpoint>,
}

/// The log that is walked.
struct Subject {
    tenant: TenantUid,
    origin: String,
    /// The number of the log among the tenant's logs.
    log: u32,
    /// The position of its first leaf.
    first: u64,
}

/// Returns the leaves of this log that a prune's entry names.
fn pruned_by(entry: &BundleEntry, log: u32) -> Option<Range<u64>> {
    if entry.operation != Operation::Prune.as_str() || entry.outcome != Outcome::Ok.as_str() {
        return None;
    }
    let (of, leaves) = leaves_in(entry.detail.as_deref()?)?;
    (of == log).then_some(leaves)
}
