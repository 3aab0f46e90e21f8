//! The audit log: how an entry is packed for the store, and the committer that makes it durable. An entry holds who,
//! what and when; never a plaintext, a key, another context value or a provider's message.

mod bundle;
mod checkpoint;
mod committer;
#[cfg(test)]
mod corpus_tests;
mod derive;
mod digest;
mod form;
mod ocsf;
mod pack;
mod packed;
mod pruned;
pub mod reconcile;
mod record_id;
mod row_macs;
mod tree;
mod verify;

pub use bundle::{BUNDLE_FORMAT, Export, ExportError, Exported, Wanted, verify_bundle};
pub use checkpoint::{Checkpoint, CheckpointKey, NoCheckpoint, NoCheckpointKey, SignedCheckpoint, origin_of};
pub use committer::{CommitFailed, Committer, Durable, Passage, Unit};
pub use derive::{Derived, derive};
pub use digest::{digest_of, item_leaves};
pub use ocsf::ocsf_event;
pub use pack::{pack, unpack};
pub use pruned::{prune_detail, pruned_leaves};
pub use record_id::{MAX_RECORD_ID_BYTES, recorded_id};
pub use row_macs::{RowMacs, RowSeal, last_sealed};
pub use tree::{Tree, TreeError};
pub use verify::{
    Against, Claim, Finding, HeldRows, PersonalValue, Report, RowCounts, State, Trust, check_row_macs,
    count_row_seals, hold_rows, verify_log,
};
