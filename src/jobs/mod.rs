//! The background work of a replica. Each job has its own timer: re-wrapping DEKs, announcing
//! incidents, making and publishing checkpoints, streaming entries, deriving what reads need, and
//! dropping old entries. The database holds the progress of each job, so any replica can continue
//! after a kill. This module knows no caller and answers no request. `app` asks it only whether the
//! log is behind a published checkpoint, for a checkpoint, and for the progress of the streams.
//!
//! | file | the job |
//! |---|---|
//! | `timers` | when each job runs |
//! | `rotation` | re-wraps a tenant's DEKs |
//! | `announcements` | posts incidents to the operator's webhook |
//! | `checkpoints` | signs the heads of all logs |
//! | `tenant_checkpoints` | checks one tenant's log against what was published of it |
//! | `publication` | puts checkpoints where the customer keeps them |
//! | `restored` | opens another log after a restore: not a job, but an operator's command on checkpoints |
//! | `streams` | sends entries to a file or a webhook |
//! | `upkeep` | partitions and indexes of the database; drops entries past their retention |
//! | `webhooks` | applies webhook settings that were read again |

mod announcements;
mod checkpoints;
mod publication;
mod restored;
mod rotation;
mod streams;
mod tenant_checkpoints;
mod timers;
mod upkeep;
mod webhooks;

use std::sync::Arc;

use crate::audit::Committer;
use crate::keyring::Keyring;
use crate::model::Clock;
use crate::store::Store;
use crate::tenancy::Tenants;

pub use checkpoints::{CheckpointParts, Checkpoints, DestinationStatus};
pub use publication::{Destination, Receiver};
pub use restored::{RestoreFailed, Restored};
pub use streams::{Stream, StreamStatus};
pub use tenant_checkpoints::{Checked, CheckpointError, CurrentCheckpoint, TenantCheckpoints};
pub use upkeep::Upkeep;
pub use webhooks::Webhooks;

/// The jobs of one replica. Nothing runs before [`Self::start`].
pub struct Jobs {
    /// The tenants that are served.
    pub tenants: Tenants,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The DEKs in memory.
    pub keyring: Arc<Keyring>,
    /// The committer that makes entries durable.
    pub committer: Arc<Committer>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The checkpoints of all tenants' logs.
    pub checkpoints: Arc<Checkpoints>,
    /// The sinks that entries are streamed to, if any.
    pub streams: Arc<[Stream]>,
}
