//! What was published of a log at each destination.

use std::time::Duration;

use crate::model::Timestamp;

/// A step of one attempt to publish a checkpoint at a destination: its start or its result. Times
/// are by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicationStep {
    /// This holder takes the attempt, if one is due. Nobody else makes the next one until the lease
    /// ends.
    Begin {
        /// The duration of the lease.
        lease: Duration,
    },
    /// The attempt failed. The next one is due after `after`.
    Failed {
        /// The time until the next attempt.
        after: Duration,
    },
    /// The destination accepted the checkpoint. The next one is due after `after`.
    Done {
        /// The number of the tenant's log.
        log: u32,
        /// The number of leaves that the checkpoint covers.
        size: u64,
        /// The time until the next attempt.
        after: Duration,
    },
}

/// The checkpoint that was last published at a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The destination's name.
    pub place: String,
    /// The log and the number of leaves that the checkpoint covers. `None` while nothing was
    /// published.
    pub published: Option<(u32, u64)>,
    /// The time of that publication.
    pub published_at: Option<Timestamp>,
    /// The number of failed attempts since then.
    pub failures: u32,
    /// Whether the next attempt may be made.
    pub due: bool,
}
