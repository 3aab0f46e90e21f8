//! What became of files that were read again while the server runs, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What became of a part of the configuration whose file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reread {
    /// It is in use.
    Taken,
    /// It is of no use: what was there before stays in use.
    Refused,
    /// It is in use after a restart alone.
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

/// Counts by part and outcome, and what came last of each part.
#[derive(Default)]
pub struct Rereads(Mutex<BTreeMap<&'static str, OfPart>>);

#[derive(Clone, Default)]
pub(super) struct OfPart {
    pub(super) counts: BTreeMap<Reread, u64>,
    /// Whether its file holds something else than what is in use.
    pub(super) is_behind: bool,
}

impl Rereads {
    /// Counts one.
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
