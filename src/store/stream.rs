//! The streams of a tenant's log to what the customer watches it with: how far each has come, and whose turn it is.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{TenantUid, Timestamp};

use super::ReadError;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// Lines that are appended to a file.
    File,
    /// Batches that are posted.
    Webhook,
}

impl StreamName {
    /// The name in the table, in metrics and in what `doctor` says.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
        }
    }

    /// The stream of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::File, Self::Webhook].into_iter().find(|stream| stream.as_str() == name)
    }
}

/// What who sends a stream says of it. Times are the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStep {
    /// It is this holder's for so long from now; touches nothing while it is another's. The first one begins the stream,
    /// at the tenant's first entry.
    Lease {
        /// For how long.
        lease: Duration,
    },
    /// Everything before this place was taken; and it stays this holder's. Touches nothing where it does not stand at
    /// `from`, or is another's.
    Advance {
        /// Where it stood.
        from: u64,
        /// Where it stands.
        to: u64,
        /// For how long.
        lease: Duration,
    },
    /// What was sent was not taken. Another may try at once.
    Fail,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// Which.
    pub name: StreamName,
    /// The place of the first entry that was not taken yet.
    pub next: u64,
    /// Since when nothing was taken of what was sent.
    pub failing_since: Option<Timestamp>,
}

/// Reads of streams.
#[async_trait]
pub trait StreamReads {
    /// The tenant's streams that were ever begun.
    async fn streams(&self, tenant: TenantUid) -> Result<Vec<StreamRow>, ReadError>;
}
