//! The entries of the audit log, their search, and the head of a log.

use std::sync::Arc;

use crate::merkle::{Frontier, Hash};
use crate::model::{EntryId, Means, Operation, Outcome, Salted, Timestamp};

/// A row of `np_byok_audit`, before it has a position in the log. `audit` packs the content of
/// `items`; the store does not look inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The entry's id.
    pub id: EntryId,
    /// The time when the call was made durable, by the server's clock.
    pub at: Timestamp,
    /// The operation that was requested.
    pub operation: Operation,
    /// The outcome of the call.
    pub outcome: Outcome,
    /// How the caller was authenticated.
    pub means: Means,
    /// The caller's role.
    pub role: Arc<str>,
    /// The calling user.
    pub user: Option<Salted>,
    /// The id of the request.
    pub request: Salted,
    /// What an operation on the log itself did.
    pub detail: Option<Arc<str>>,
    /// The number of items in the call.
    pub item_count: u32,
    /// The record ids with their salts, as a JSON array with one element per item, in order:
    /// `["<record id>","<salt, base64>"]`, or `null` if there is no record id or it was erased. A
    /// read returns the same JSON, but white space may differ.
    pub records: String,
    /// The packed items.
    pub items: Vec<u8>,
    /// SHA-256 of everything in the entry that never changes, except its time; `audit` defines how.
    /// All zeros for an entry that was written before the log was a tree.
    pub digest: [u8; 32],
}

impl EntryRow {
    /// Returns the entry's leaf in the tenant's Merkle tree: the hash of its time in microseconds
    /// since 1970 (8 bytes, big-endian) and its digest.
    pub fn leaf(&self) -> Hash {
        leaf_of(self.at, &self.digest)
    }
}

/// Returns the leaf of an entry with that time and digest.
pub fn leaf_of(at: Timestamp, digest: &[u8; 32]) -> Hash {
    let mut data = [0; 40];
    data[..8].copy_from_slice(&at.0.to_be_bytes());
    data[8..].copy_from_slice(digest);
    Hash::of_leaf(&data)
}

/// An entry with its position in the tenant's log, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEntry {
    /// The entry's position.
    pub seq: u64,
    /// The entry.
    pub row: EntryRow,
}

/// The conditions that entries of a page of the audit log must meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Only entries at or after this time.
    pub from: Option<Timestamp>,
    /// Only entries before this time.
    pub until: Option<Timestamp>,
    /// Only this operation.
    pub operation: Option<Operation>,
    /// Only this outcome.
    pub outcome: Option<Outcome>,
    /// Only this caller.
    pub user: Option<String>,
    /// Only calls with an item of this record.
    pub record_id: Option<String>,
    /// The other name that the log may have for that record: an id that is too long to store is
    /// recorded as its hash.
    pub record_hash: Option<String>,
}

/// A page of entries, newest first, and the position to continue from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The matching entries.
    pub entries: Vec<PlacedEntry>,
    /// The position down to which everything was searched; there may be more below it. `None` if
    /// everything was searched.
    pub next: Option<u64>,
}

/// The end of a tenant's log. Entries are counted from 0 over the whole life of the tenant; the
/// tree holds those of the current log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The number of this log among the tenant's logs, from 1. A restored database continues in
    /// another log.
    pub log: u32,
    /// The position of the log's first entry.
    pub first: u64,
    /// The frontier of the log's tree.
    pub frontier: Frontier,
}

impl LogHead {
    /// Returns the position of the next entry, which is also the number of entries that the tenant
    /// has had.
    pub fn end(&self) -> u64 {
        self.first + self.frontier.size()
    }

    /// Returns the head after these entries are appended.
    #[must_use]
    pub fn extended(&self, entries: &[EntryRow]) -> Self {
        let mut head = self.clone();
        entries.iter().for_each(|entry| head.frontier.append(entry.leaf()));
        head
    }
}
