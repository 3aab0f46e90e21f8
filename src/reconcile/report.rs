//! The result of a reconciliation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::model::{EntryId, Operation, Timestamp};

use super::export::Export;
use super::record::{Format, Use};

/// The reason why a call in the provider's log is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The caller is not byok.
    Stranger,
    /// byok's identity made the call, it is not a probe, and no entry names it.
    NoEntry,
    /// byok's identity unwrapped a record's DEK, and no entry names the call.
    RecordWithoutEntry,
    /// byok's identity unwrapped something that is not known to be a canary.
    NoCanary,
    /// byok's identity exported the key itself.
    Exported,
}

impl Why {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::NoEntry => "no_entry",
            Self::RecordWithoutEntry => "record_without_entry",
            Self::NoCanary => "no_canary",
            Self::Exported => "exported",
        }
    }

    /// Returns the sentence for the reader.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Stranger => "someone else used the key",
            Self::NoEntry => "our identity used the key, and no entry says so",
            Self::RecordWithoutEntry => "our identity unwrapped a record's DEK, and no entry says so",
            Self::NoCanary => {
                "our identity unwrapped something that is not known to be a canary, and no entry says so"
            }
            Self::Exported => "our identity exported the key itself, which byok never does",
        }
    }
}

/// A call in the provider's log that no entry or probe of byok explains.
#[derive(Clone, Debug)]
pub struct Named {
    /// The provider's request id; at Google the id of the record.
    pub kms_request_id: Arc<str>,
    /// The time of the call.
    pub at: Timestamp,
    /// The use of the key.
    pub used: Use,
    /// The caller.
    pub principal: Arc<str>,
    /// Whether the provider refused it.
    pub refused: bool,
    /// The reason why it is named.
    pub why: Why,
}

/// A call that an entry names but the provider's log does not have.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The position of the entry in the log.
    pub place: u64,
    /// The id of the entry.
    pub entry: EntryId,
    /// The time of the entry.
    pub at: Timestamp,
    /// The operation of the entry.
    pub operation: Operation,
    /// The request id that it names.
    pub kms_request_id: Arc<str>,
}

/// A principal that used the key.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Its name at the provider.
    pub name: String,
    /// The number of its calls in the window.
    pub calls: u64,
    /// Whether it is byok.
    pub own: bool,
}

/// The result of a reconciliation. Counts are of the window.
#[derive(Clone, Debug)]
pub struct Report {
    /// The format of the provider's log.
    pub format: Format,
    /// The keys.
    pub keys: Vec<Arc<str>>,
    /// The start of the window, inclusive.
    pub from: Timestamp,
    /// The end of the window, exclusive.
    pub until: Timestamp,
    /// How far the time of an entry may be from that of its call.
    pub margin: Duration,
    /// The names of byok's own principals that were given.
    pub own: Vec<String>,
    /// The number of records in the export, whatever they are about and whenever they were written.
    pub records: u64,
    /// The number of calls of byok's keys.
    pub calls: u64,
    /// The number of calls that an entry names.
    pub matched: u64,
    /// The number of calls whose record shows that they are probes.
    pub probes: u64,
    /// The number of byok's own calls without an entry that look like probing, by use.
    pub without_entry: BTreeMap<Use, u64>,
    /// The number of byok's own calls without an entry that the provider refused.
    pub refused: u64,
    /// The number of different values that calls without an entry unwrapped, if the provider's log
    /// distinguishes values. These are canaries.
    pub unwrapped_values: u64,
    /// The number of calls that nothing explains.
    pub unexplained: u64,
    /// The unexplained calls; at most some thousands.
    pub named: Vec<Named>,
    /// The number of entries.
    pub entries: u64,
    /// The number of their items whose DEK came from the KMS by a call with an id.
    pub from_kms: u64,
    /// The number of their items whose DEK came from memory, so that there was no call.
    pub cache_hits: u64,
    /// The number of their items whose DEK came by a call without an id.
    pub without_id: u64,
    /// The number of their items under other keys.
    pub other_keys: u64,
    /// The number of calls that entries name and that may lie outside the export, judging by their
    /// time.
    pub at_the_edge: u64,
    /// The number of calls that entries name but the provider's log does not have.
    pub missing: u64,
    /// The missing calls; at most some thousands.
    pub named_missing: Vec<Missing>,
    /// The principals that called in the window.
    pub principals: Vec<Principal>,
    /// The number of parts of the export that cannot be read.
    pub unreadable: u64,
    /// The first lines of those parts.
    pub unreadable_lines: Vec<u64>,
    /// The number of entries whose items do not have a format that byok writes.
    pub unreadable_entries: u64,
}

impl Report {
    pub(super) fn of(
        export: &Export,
        from: Timestamp,
        until: Timestamp,
        margin: Duration,
        own: Vec<String>,
    ) -> Self {
        Self {
            format: export.format,
            keys: export.keys.clone(),
            from,
            until,
            margin,
            own,
            records: export.records,
            calls: 0,
            matched: 0,
            probes: 0,
            without_entry: BTreeMap::new(),
            refused: 0,
            unwrapped_values: 0,
            unexplained: 0,
            named: Vec::new(),
            entries: 0,
            from_kms: 0,
            cache_hits: 0,
            without_id: 0,
            other_keys: 0,
            at_the_edge: 0,
            missing: 0,
            named_missing: Vec::new(),
            principals: Vec::new(),
            unreadable: export.unreadable,
            unreadable_lines: export.unreadable_lines.clone(),
            unreadable_entries: 0,
        }
    }

    pub(super) fn name(&mut self, named: Named, most: usize) {
        self.unexplained += 1;
        if self.named.len() < most {
            self.named.push(named);
        }
    }

    /// Returns whether nothing is left to look into.
    pub fn explained(&self) -> bool {
        self.unexplained == 0 && self.missing == 0 && self.unreadable == 0 && self.unreadable_entries == 0
    }

    /// Returns the whole report as JSON.
    pub fn json(&self) -> Value {
        let named = |named: &Named| {
            json!({
                "kms_request_id": named.kms_request_id, "at": named.at.to_string(), "use": named.used.as_str(),
                "principal": named.principal, "refused": named.refused, "why": named.why.as_str(),
            })
        };
        let missing = |missing: &Missing| {
            json!({
                "place": missing.place, "entry": missing.entry.to_string(), "at": missing.at.to_string(),
                "operation": missing.operation.as_str(), "kms_request_id": missing.kms_request_id,
            })
        };
        let principal = |principal: &Principal| json!({ "name": principal.name, "calls": principal.calls, "own": principal.own });
        let without_entry: BTreeMap<&str, u64> =
            self.without_entry.iter().map(|(used, count)| (used.as_str(), *count)).collect();
        json!({
            "explained": self.explained(),
            "format": self.format.as_str(),
            "joined_by_request_id": self.format.joins(),
            "keys": self.keys,
            "from": self.from.to_string(),
            "until": self.until.to_string(),
            "margin_seconds": self.margin.as_secs(),
            "provider": {
                "records": self.records,
                "calls": self.calls,
                "matched": self.matched,
                "probes": self.probes,
                "without_entry": without_entry,
                "without_entry_refused": self.refused,
                "without_entry_values_unwrapped": self.unwrapped_values,
                "unexplained": self.unexplained,
                "not_in_our_log": self.named.iter().map(named).collect::<Vec<_>>(),
                "principals": self.principals.iter().map(principal).collect::<Vec<_>>(),
                "unreadable": self.unreadable,
                "unreadable_lines": self.unreadable_lines,
            },
            "log": {
                "entries": self.entries,
                "items_from_kms": self.from_kms,
                "cache_hits": self.cache_hits,
                "items_without_request_id": self.without_id,
                "items_of_other_keys": self.other_keys,
                "at_the_edge": self.at_the_edge,
                "missing": self.missing,
                "not_in_theirs": self.named_missing.iter().map(missing).collect::<Vec<_>>(),
                "unreadable_entries": self.unreadable_entries,
            },
        })
    }
}
