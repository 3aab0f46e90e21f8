//! The streams of a tenant's log to the customer's monitoring: how far each has come, and which
//! replica sends it.

use std::time::Duration;

use crate::model::Timestamp;

/// The name of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// Lines that are appended to a file.
    File,
    /// Batches that are posted to a webhook.
    Webhook,
}

impl StreamName {
    /// Returns the name that the table, the metrics and the output of `doctor` use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
        }
    }

    /// Returns the stream of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::File, Self::Webhook].into_iter().find(|stream| stream.as_str() == name)
    }
}

/// A step that the sender of a stream records. Times are by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStep {
    /// This holder takes the stream for `lease` from now. Touches nothing while another holder has
    /// it. The first lease begins the stream, at the tenant's first entry.
    Lease {
        /// The duration of the lease.
        lease: Duration,
    },
    /// The receiver accepted everything before `to`, and this holder keeps the stream. Touches
    /// nothing if the stream is not at `from`, or if another holder has it.
    Advance {
        /// The position of the stream before this step.
        from: u64,
        /// The position of the stream after this step.
        to: u64,
        /// The duration of the lease.
        lease: Duration,
    },
    /// The receiver did not accept what was sent. Another replica may try at once.
    Fail,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// The stream's name.
    pub name: StreamName,
    /// The position of the first entry that the receiver has not accepted yet.
    pub next: u64,
    /// The time since when the receiver has accepted nothing of what was sent.
    pub failing_since: Option<Timestamp>,
}
