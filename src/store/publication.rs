//! What of a log was published where, and the logs that have ended.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{TenantUid, Timestamp};

use super::{LogHead, ReadError};

/// One attempt to publish a checkpoint at a place: that it begins, or how it went. Times are the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// It is this holder's, if one is due. Nobody else makes the next one before so long from now.
    Begin {
        /// For how long.
        lease: Duration,
    },
    /// It failed; the next one is due so long from now.
    Again {
        /// After how long.
        after: Duration,
    },
    /// It was taken; the next one is due so long from now.
    Done {
        /// Of which of the tenant's logs.
        log: u32,
        /// How many leaves it speaks of.
        size: u64,
        /// After how long.
        after: Duration,
    },
}

/// What was last published at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The place's name.
    pub place: String,
    /// Of which log, and how many leaves it speaks of; `None` while nothing was.
    pub published: Option<(u32, u64)>,
    /// When.
    pub published_at: Option<Timestamp>,
    /// How many attempts have failed since.
    pub failures: u32,
    /// Whether the next attempt may be made.
    pub due: bool,
}

/// Reads of publications and of ended logs.
#[async_trait]
pub trait PublicationReads {
    /// What was last published at each place where something was tried.
    async fn publications(&self, tenant: TenantUid) -> Result<Vec<Publication>, ReadError>;

    /// The tenant's logs that have ended, each as its head stood then, by their number.
    async fn ended_logs(&self, tenant: TenantUid) -> Result<Vec<LogHead>, ReadError>;
}
