//! What an auditor is given: a part of a log as JSON Lines, `byok-audit-bundle/2`, that verifies with public keys alone.
//! `docs/audit-log.md` draws the format. The lines are a walk along the tree, from its beginning or from a frontier that
//! is known to the last checkpoint: whatever stands between is there as an entry, or as the roots of the largest complete
//! subtrees over it. Only the form is here, and how it is written; `verify` says what it proves.

mod entry;
mod export;
mod line;
#[cfg(test)]
mod vector_tests;
mod walked;
mod writer;

pub(super) use entry::{BundleEntry, BundleItem, Personal};
pub use export::{Export, ExportError, Exported, Wanted};
#[cfg(test)]
pub(super) use line::{Bytes, Id};
pub use walked::verify_bundle;

/// What the first line says the file is.
pub const BUNDLE_FORMAT: &str = "byok-audit-bundle/2";
/// What it said before entries had a second form. Such bundles are read for ever.
const FIRST_FORMAT: &str = "byok-audit-bundle/1";
