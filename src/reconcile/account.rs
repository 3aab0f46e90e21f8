//! Compares both logs call by call: which calls an entry explains, which ones the server's own
//! probing explains, and which ones nothing explains.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::audit::unpack;
use crate::model::{Item, Operation, Source, Timestamp};
use crate::store::PlacedEntry;

use super::export::{Export, MOST_CALLS, Noted};
use super::record::{Format, Use};
use super::report::{Missing, Named, Principal, Report, Why};

/// How often, and over how long at least, a value must be unwrapped before it counts as a canary if
/// nothing else is known about it. Probes keep repeating.
const OFTEN: u32 = 3;
const LONG: Duration = Duration::from_secs(10);
/// The most calls of one kind that a report names; it counts all of them.
const MOST_NAMED: usize = 10_000;

/// The time window, and the basis on which a call counts as byok's own.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The start; the export's first record if it is not given.
    pub from: Option<Timestamp>,
    /// The end, exclusive; just after the export's last record if it is not given.
    pub until: Option<Timestamp>,
    /// How far the time of an entry may be from that of its call. It covers differences between
    /// clocks, the duration of the call, and DEKs made ahead of need.
    pub margin: Duration,
    /// The names of byok's own principals at the provider, in addition to those that made the calls
    /// that entries name.
    pub own: Vec<String>,
}

/// The comparison of the log with an export.
pub struct Reconciliation {
    export: Export,
    report: Report,
    missing: HashSet<Arc<str>>,
}

impl Reconciliation {
    /// Starts a comparison, before any entry is taken in.
    pub fn new(export: Export, terms: Terms) -> Self {
        let (first, last) = export.covers();
        // The last record is inside the window.
        let until = terms.until.unwrap_or(last.plus(Duration::from_micros(1)));
        let report = Report::of(&export, terms.from.unwrap_or(first), until, terms.margin, terms.own);
        Self { export, report, missing: HashSet::new() }
    }

    /// Returns the time range of the entries that may be relevant: at or after the first time,
    /// before the second.
    pub fn reads(&self) -> (Timestamp, Timestamp) {
        let Report { from, until, margin, .. } = &self.report;
        (from.minus(*margin), until.plus(*margin))
    }

    /// Takes in an entry from the range of [`Self::reads`]. The order of entries does not matter.
    pub fn take(&mut self, placed: &PlacedEntry) {
        let at = placed.row.at;
        let inside = at >= self.report.from && at < self.report.until;
        let Some(entry) = unpack(&placed.row) else {
            self.report.unreadable_entries += 1;
            return;
        };
        if inside {
            self.report.entries += 1;
        }
        for item in &entry.items {
            if item.key_version.as_ref().is_some_and(|version| !self.export.keys.contains(&version.key)) {
                self.report.other_keys += u64::from(inside);
                continue;
            }
            self.take_item(placed, item, inside);
        }
    }

    fn take_item(&mut self, placed: &PlacedEntry, item: &Item, inside: bool) {
        let cached = item.source == Some(Source::Cache);
        // If callers choose the ids, the id of a call long past proves nothing, because anybody may
        // have chosen it.
        let id = item.kms_request_id.as_ref().filter(|_| !(cached && self.export.format.caller_chooses_id()));
        let call = id.and_then(|id| self.export.calls.get_mut(id));
        let found = call.is_some();
        if let Some(call) = call {
            call.entered = true;
            call.of_incident |= placed.row.operation == Operation::Incident;
        }
        if !inside {
            return;
        }
        let asked = item.source == Some(Source::Kms) || (item.kms_request_id.is_some() && !cached);
        match (&item.kms_request_id, cached) {
            (_, true) => self.report.cache_hits += 1,
            (None, false) => self.report.without_id += u64::from(asked),
            (Some(_), false) if found => self.report.from_kms += 1,
            (Some(id), false) => {
                self.report.from_kms += 1;
                self.miss(placed, id);
            }
        }
    }

    /// Notes an id that the export does not have.
    fn miss(&mut self, placed: &PlacedEntry, id: &Arc<str>) {
        if !self.export.format.joins() || self.missing.contains(id) {
            return;
        }
        // Past that limit, an id that several entries name is counted once for each.
        if self.missing.len() < MOST_CALLS {
            self.missing.insert(id.clone());
        }
        let (at, report) = (placed.row.at, &mut self.report);
        // The call may lie before the start of the export, or after its end if the clocks differ.
        if at < report.from.plus(report.margin) || at.plus(report.margin) >= report.until {
            report.at_the_edge += 1;
            return;
        }
        report.missing += 1;
        if report.named_missing.len() < MOST_NAMED {
            report.named_missing.push(Missing {
                place: placed.seq,
                entry: placed.row.id,
                at,
                operation: placed.row.operation,
                kms_request_id: id.clone(),
            });
        }
    }

    /// Returns the result.
    pub fn report(mut self) -> Report {
        let mut report = self.report;
        let (from, until) = (report.from, report.until);
        let mut principals: BTreeMap<Arc<str>, Principal> = BTreeMap::new();
        for call in self.export.calls.values() {
            let of = || Principal { name: call.principal.to_string(), calls: 0, own: false };
            let principal = principals.entry(call.principal.clone()).or_insert_with(of);
            principal.calls += u64::from(call.at >= from && call.at < until);
            principal.own |= (call.entered && !call.shared) || report.own.contains(&principal.name);
        }
        let values = Values::of(&self.export, &principals);
        let mut opened: HashSet<u64> = HashSet::new();
        for (id, call) in self.export.calls.drain() {
            if call.at < from || call.at >= until {
                continue;
            }
            report.calls += 1;
            let own = principals.get(&call.principal).is_some_and(|principal| principal.own);
            // If several principals called under its id, byok's own call is the one that the entry
            // names.
            if call.entered && (own || !call.shared) {
                report.matched += 1;
                continue;
            }
            if call.probe {
                report.probes += 1;
                continue;
            }
            match own.then(|| values.why_not(self.export.format, &call)) {
                Some(None) if call.refused => report.refused += 1,
                Some(None) => {
                    *report.without_entry.entry(call.used).or_default() += 1;
                    if call.used == Use::Unwrap {
                        opened.extend(call.given);
                    }
                }
                Some(Some(why)) => report.name(named(id, call, why), MOST_NAMED),
                None => report.name(named(id, call, Why::Stranger), MOST_NAMED),
            }
        }
        report.unwrapped_values = opened.len() as u64;
        report.principals = principals.into_values().filter(|principal| principal.calls > 0).collect();
        report.named.sort_by(|a, b| (a.at, &a.kms_request_id).cmp(&(b.at, &b.kms_request_id)));
        report.named_missing.sort_by_key(|missing| missing.place);
        report
    }
}

fn named(id: Arc<str>, call: Noted, why: Why) -> Named {
    Named {
        kms_request_id: id,
        at: call.at,
        used: call.used,
        principal: call.principal,
        refused: call.refused,
        why,
    }
}

/// What is known about the values that byok's own calls without an entry unwrapped, if the format
/// can distinguish values.
struct Values {
    /// The values of calls that have an entry: the DEKs of records.
    records: HashSet<u64>,
    /// The values of the probes that incidents name. If the KMS wraps under another version by now,
    /// such a value is a record's DEK as well.
    canaries: HashSet<u64>,
    /// The values that byok's own calls without an entry made: canaries, and the DEKs of health
    /// checks.
    made: HashSet<u64>,
    /// How often such calls unwrapped each value, and the times of the first and the last one.
    unwrapped: HashMap<u64, (u32, Timestamp, Timestamp)>,
}

impl Values {
    fn of(export: &Export, principals: &BTreeMap<Arc<str>, Principal>) -> Self {
        let mut values = Self {
            records: HashSet::new(),
            canaries: HashSet::new(),
            made: HashSet::new(),
            unwrapped: HashMap::new(),
        };
        for call in export.calls.values() {
            if call.of_incident {
                values.canaries.extend(&call.given);
            } else if call.entered {
                values.records.extend(call.given.iter().chain(&call.made));
            } else if principals.get(&call.principal).is_some_and(|principal| principal.own) {
                match call.used {
                    Use::Wrap => values.made.extend(&call.made),
                    Use::Unwrap if !call.refused => {
                        for value in &call.given {
                            let (times, first, last) =
                                values.unwrapped.entry(*value).or_insert((0, call.at, call.at));
                            (*times, *first, *last) = (*times + 1, call.at.min(*first), call.at.max(*last));
                        }
                    }
                    Use::Unwrap | Use::Rewrap | Use::Export => {}
                }
            }
        }
        values
    }

    fn are_canaries(&self, values: &[u64]) -> bool {
        !values.is_empty() && values.iter().all(|value| self.canaries.contains(value))
    }

    /// Returns the reason why one of byok's own calls without an entry needs attention; `None` if
    /// it looks like probing.
    fn why_not(&self, format: Format, call: &Noted) -> Option<Why> {
        match (call.used, format) {
            (Use::Export, _) => Some(Why::Exported),
            _ if call.refused => None,
            // A call that only makes a DEK discloses nothing: this may be a DEK ahead of need that
            // was never used.
            (Use::Wrap, _) => None,
            // Probes are recognized by their own records. The exception is a probe of a record's
            // DEK, which an incident may name.
            (Use::Unwrap, Format::CloudTrail) if self.are_canaries(&call.given) => None,
            (Use::Unwrap | Use::Rewrap, Format::CloudTrail) => Some(Why::NoEntry),
            (Use::Unwrap, Format::Vault) => {
                let often = |value: &u64| {
                    let unwrapped = self.unwrapped.get(value);
                    unwrapped
                        .is_some_and(|(times, first, last)| *times >= OFTEN && last.since(*first) >= LONG)
                };
                let mut others = call.given.iter().filter(|value| !self.canaries.contains(*value));
                if others.clone().any(|value| self.records.contains(value)) {
                    Some(Why::RecordWithoutEntry)
                } else if others.any(|value| !self.made.contains(value) && !often(value)) {
                    Some(Why::NoCanary)
                } else {
                    None
                }
            }
            (Use::Unwrap | Use::Rewrap, Format::Vault | Format::Google | Format::KeyVault) => None,
        }
    }
}
