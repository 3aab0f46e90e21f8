//! Plain types shared by all modules. No I/O, no decisions, no secrets: their values may be logged,
//! unless the documentation says otherwise.

mod caller;
mod clock;
mod code;
mod entry;
mod extensions;
mod id;
mod job;
mod key;
mod media_range;
mod operation;
mod peer;
mod posture;
mod salted;

pub use caller::{Identity, Means, Session};
pub use clock::{BootTime, Clock, SystemClock, Timestamp};
pub use code::{ErrorCode, Refusal};
pub use entry::{Entry, Item, Outcome, Source};
pub use extensions::Extensions;
pub use id::{DekId, EntryId, IncidentId, InvalidId, JobId, RequestId, Tenant, TenantUid};
pub use job::{Job, JobCommand, JobState, Progress};
pub use key::{KeyId, KeyVersion, Wrapped};
pub use media_range::MediaRange;
pub use operation::Operation;
pub use peer::Peer;
pub use posture::{Canary, Incident, Posture, Proof};
pub use salted::Salted;
