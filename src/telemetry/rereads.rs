//! Outcomes of reading configuration files again while the server runs, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The outcome of reading a part of the configuration whose file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reread {
    /// The new content is in use.
    Taken,
    /// The new content is invalid; the previous one stays in use.
    Refused,
    /// The new content takes effect only after a restart.
    NeedsRestart,
}

impl Reread {
    /// The name in the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::NeedsRestart => "needs_restart",
        }
    }
}

/// The outcomes of each part, and its last one.
#[derive(Default)]
pub struct Rereads(Mutex<BTreeMap<&'static str, OfPart>>);

#[derive(Clone, Default)]
pub(super) struct OfPart {
    pub(super) counts: BTreeMap<Reread, u64>,
    /// Whether the file differs from the configuration in use.
    pub(super) is_behind: bool,
}

impl Rereads {
    /// Counts an outcome of a part.
    pub fn count(&self, part: &'static str, outcome: Reread) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = parts.entry(part).or_default();
        *part.counts.entry(outcome).or_default() += 1;
        part.is_behind = outcome != Reread::Taken;
    }

    pub(super) fn all(&self) -> BTreeMap<&'static str, OfPart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
