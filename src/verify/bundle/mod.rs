//! The evidence that an auditor is given: a part of a log as JSON Lines, `byok-audit-bundle/2`,
//! that can be verified with public keys alone. `docs/audit-log.md` defines the format. The lines
//! are a walk along the tree, from its beginning or from a known frontier to the last checkpoint.
//! Everything in between is given as an entry, or as the roots of the largest complete subtrees
//! over it. `export` and `writer` make a bundle from a database. `verify_bundle` verifies one, with
//! the walk that also verifies a database.

mod export;
mod line;
#[cfg(test)]
mod vector_tests;
mod verify_bundle;
mod writer;

pub use export::{Export, ExportError, Exported, Wanted};
pub use verify_bundle::verify_bundle;

/// The format that the first line names.
pub const BUNDLE_FORMAT: &str = "byok-audit-bundle/2";
/// The format name from before entries had a second form. Such bundles stay readable forever.
const FIRST_FORMAT: &str = "byok-audit-bundle/1";
