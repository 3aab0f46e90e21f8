//! What a reconciliation found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::model::{EntryId, Operation, Timestamp};

use super::export::Export;
use super::record::{Format, Use};

/// Why a call of the provider's log is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Whoever called is not who calls for us.
    Stranger,
    /// It was called as we call, is no probe, and no entry names it.
    NoEntry,
    /// It was called as we call and unwrapped a record's DEK, and no entry names it.
    RecordWithoutEntry,
    /// It was called as we call and unwrapped something that is not known to be a canary.
    NoCanary,
    /// It was called as we call, and gave out the key itself.
    Exported,
}

impl Why {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::NoEntry => "no_entry",
            Self::RecordWithoutEntry => "record_without_entry",
            Self::NoCanary => "no_canary",
            Self::Exported => "exported",
        }
    }

    /// The sentence for who reads it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Stranger => "someone else used the key",
            Self::NoEntry => "our identity used the key, and no entry says so",
            Self::RecordWithoutEntry => "our identity unwrapped a record's DEK, and no entry says so",
            Self::NoCanary => "our identity unwrapped what is not known to be a canary, and no entry says so",
            Self::Exported => "our identity took the key itself, which nothing of ours does",
        }
    }
}

/// A call in the provider's log that nothing of ours explains.
#[derive(Clone, Debug)]
pub struct Named {
    /// The provider's request id; the record's own id at Google.
    pub kms_request_id: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// What for.
    pub used: Use,
    /// By whom.
    pub principal: Arc<str>,
    /// Whether the provider refused it.
    pub refused: bool,
    /// Why it is named.
    pub why: Why,
}

/// A call that an entry names and the provider's log does not have.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The entry's place in the log.
    pub place: u64,
    /// The entry's id.
    pub entry: EntryId,
    /// The entry's time.
    pub at: Timestamp,
    /// The entry's operation.
    pub operation: Operation,
    /// What it names.
    pub kms_request_id: Arc<str>,
}

/// Who used the key.
#[derive(Clone, Debug)]
pub struct Principal {
    /// As the provider names them.
    pub name: String,
    /// How many calls in the window.
    pub calls: u64,
    /// Whether it is we.
    pub own: bool,
}

/// What came out. Counts are of the window.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whose log it was held against.
    pub format: Format,
    /// The keys.
    pub keys: Vec<Arc<str>>,
    /// The window: at or after.
    pub from: Timestamp,
    /// The window: before.
    pub until: Timestamp,
    /// How far an entry's time may be from its call's.
    pub margin: Duration,
    /// Who we are, as far as it was said.
    pub own: Vec<String>,
    /// Records of the export, whatever they are about and whenever they were written.
    pub records: u64,
    /// Calls of our keys.
    pub calls: u64,
    /// Those that an entry names.
    pub matched: u64,
    /// Those whose record shows that they are a probe's.
    pub probes: u64,
    /// Those of ours that no entry names, as our probing is; by use.
    pub without_entry: BTreeMap<Use, u64>,
    /// Those of ours that no entry names and the provider refused.
    pub refused: u64,
    /// How many different values those unwrapped, where the provider's log tells one from another: canaries.
    pub unwrapped_values: u64,
    /// Those that nothing explains.
    pub unexplained: u64,
    /// The same by name; not more than some thousands.
    pub named: Vec<Named>,
    /// Entries.
    pub entries: u64,
    /// Their items whose DEK came from the KMS by a call with an id.
    pub from_kms: u64,
    /// Their items whose DEK came from memory: for these there was no call.
    pub cache_hits: u64,
    /// Their items whose DEK came by a call that has no id.
    pub without_id: u64,
    /// Their items under other keys.
    pub other_keys: u64,
    /// Calls that entries name, and that may be outside of the export by their time.
    pub at_the_edge: u64,
    /// Calls that entries name and the provider's log does not have.
    pub missing: u64,
    /// The same by name; not more than some thousands.
    pub named_missing: Vec<Missing>,
    /// Who called, in the window.
    pub principals: Vec<Principal>,
    /// What of the export cannot be read.
    pub unreadable: u64,
    /// Where: the first lines.
    pub unreadable_lines: Vec<u64>,
    /// Entries whose items are not of a form that we write.
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

    /// Whether nothing is left to look into.
    pub fn explained(&self) -> bool {
        self.unexplained == 0 && self.missing == 0 && self.unreadable == 0 && self.unreadable_entries == 0
    }

    /// All of it.
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
