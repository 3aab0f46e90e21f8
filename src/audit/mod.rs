//! The audit log: how an entry is packed for the store, the committer that makes it durable, its
//! tree and signed heads, and the data that is derived from it. An entry records who did what and
//! when. It never contains a plaintext, a key, a context value other than the record id, or a
//! provider's message. This module does not decide whether a log is intact: `verify` and
//! `reconcile` do.

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
mod record_id;
mod row_macs;
mod tree;

pub use checkpoint::{Checkpoint, CheckpointKey, NoCheckpoint, NoCheckpointKey, SignedCheckpoint, origin_of};
pub use committer::{CommitFailed, Committer, Durable, FenceReceipt, Unit};
pub use derive::{Derivation, Derived};
pub(crate) use digest::{EntryFields, ItemFields, optional_bytes, source_name};
pub use digest::{digest_of, item_leaves};
pub(crate) use form::EntryForm;
pub use ocsf::ocsf_event;
pub use pack::{pack, unpack};
pub(crate) use packed::Packed;
pub(crate) use pruned::leaves_in;
pub use pruned::{prune_detail, pruned_leaves};
pub use record_id::{MAX_RECORD_ID_BYTES, recorded_id};
pub use row_macs::{RowMacs, RowSeal, last_sealed};
pub use tree::{Tree, TreeError};
