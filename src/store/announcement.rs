//! The announcement of an incident to the operator's webhook: which are due, and what became of an attempt.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{Incident, Tenant};

use super::ReadError;

/// One attempt to announce an incident: that it begins, or how it went. Times are the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It is this holder's. Nobody else makes the next one before so long from now, also when this holder has died.
    Begin {
        /// For how long.
        lease: Duration,
    },
    /// It failed; the next one is due so long from now.
    Again {
        /// After how long.
        after: Duration,
    },
    /// It was the last.
    End(AnnouncementOutcome),
}

/// How an announcement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncementOutcome {
    /// The webhook has taken it.
    Announced,
    /// The webhook said that it does not want it.
    Refused,
    /// It was tried for long enough.
    GivenUp,
}

impl AnnouncementOutcome {
    /// The name in the table.
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
pub struct Unannounced {
    /// Whose.
    pub tenant: Tenant,
    /// What is to be announced.
    pub incident: Incident,
    /// How many attempts there were.
    pub attempts: u32,
    /// How long ago the incident was, by the database's clock.
    pub age: Duration,
}

/// Reads of announcements.
#[async_trait]
pub trait AnnouncementReads {
    /// Up to `limit` announcements that are due and nobody's, oldest first. Of each key version the first that has not
    /// ended, or none while that is not due: what came later waits for it.
    async fn unannounced(&self, limit: u32) -> Result<Vec<Unannounced>, ReadError>;
}
