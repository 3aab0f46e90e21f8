//! What an auditor is given: a part of a log as JSON Lines, `byok-audit-bundle/2`, that verifies with public keys alone.
//! `docs/audit-log.md` draws the format. The lines are a walk along the tree, from its beginning or from a frontier that
//! is known to the last checkpoint: whatever stands between is there as an entry, or as the roots of the largest complete
//! subtrees over it. `export` and `writer` make one from a database; `verify_bundle` verifies one, by the walk that also
//! verifies a database.

mod export;
mod line;
#[cfg(test)]
mod vector_tests;
mod verify_bundle;
mod writer;

pub use export::{Export, ExportError, Exported, Wanted};
pub use verify_bundle::verify_bundle;

/// What the first line says the file is.
pub const BUNDLE_FORMAT: &str = "byok-audit-bundle/2";
/// What it said before entries had a second form. Such bundles are read for ever.
const FIRST_FORMAT: &str = "byok-audit-bundle/1";
