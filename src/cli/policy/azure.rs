//! Placeholder.

use crate::config::Reader;

/// Placeholder.
pub(super) fn policy(_: &mut Reader<'_>) -> String {
    String::new()
}
