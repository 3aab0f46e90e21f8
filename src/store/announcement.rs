//! The announcement of an incident to the operator's webhook: which announcements are due, and the
//! result of each attempt.

use std::time::Duration;

use crate::model::{Incident, Tenant};

/// A step of one attempt to announce an incident: its start or its result. Times are by the
/// database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncementStep {
    /// This holder takes the attempt. Nobody else makes the next one until the lease ends, even if
    /// this holder dies.
    Begin {
        /// The duration of the lease.
        lease: Duration,
    },
    /// The attempt failed. The next one is due after `after`.
    Failed {
        /// The time until the next attempt.
        after: Duration,
    },
    /// The attempt was the last one.
    End(AnnouncementOutcome),
}

/// How an announcement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncementOutcome {
    /// The webhook accepted the announcement.
    Announced,
    /// The webhook rejected the announcement.
    Refused,
    /// byok stopped trying after the time limit.
    GivenUp,
}

impl AnnouncementOutcome {
    /// Returns the name that the table uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Refused => "refused",
            Self::GivenUp => "given_up",
        }
    }
}

/// An incident whose announcement is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueAnnouncement {
    /// The tenant that the incident belongs to.
    pub tenant: Tenant,
    /// The incident to announce.
    pub incident: Incident,
    /// The number of attempts so far.
    pub attempts: u32,
    /// The time since the incident, by the database's clock.
    pub age: Duration,
}
