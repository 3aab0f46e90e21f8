//! Reads a provider's export: the calls that used byok's keys, by request id.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::Arc;

use serde_json::Value;

use crate::model::Timestamp;

use super::objects::Objects;
use super::record::{Call, Format, NOBODY, Use};

/// The most calls of byok's keys that are held, at some 300 bytes each.
pub const MOST_CALLS: usize = 2_000_000;
/// The most values that are held, over all batches, at 8 bytes each.
const MOST_VALUES: usize = 20_000_000;
/// The longest id and the longest principal, in characters.
const ID_CHARACTERS: usize = 128;
const PRINCIPAL_CHARACTERS: usize = 256;
/// The number of unreadable lines that are named.
const NAMED_LINES: usize = 20;

/// The calls that used a tenant's keys, from the provider's log.
#[derive(Debug)]
pub struct Export {
    pub(super) format: Format,
    pub(super) keys: Vec<Arc<str>>,
    pub(super) calls: HashMap<Arc<str>, Noted>,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) records: u64,
    pub(super) values: usize,
    pub(super) unreadable: u64,
    pub(super) unreadable_lines: Vec<u64>,
}

/// What is kept of one call.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) at: Timestamp,
    pub(super) used: Use,
    /// The caller, shared with its other calls, because there are few callers.
    pub(super) principal: Arc<str>,
    pub(super) refused: bool,
    pub(super) probe: bool,
    pub(super) credential: Option<u64>,
    /// Whether other principals called under its id as well. Then an entry that has the id does not
    /// show which of them is byok.
    pub(super) shared: bool,
    /// Whether an entry has its id.
    pub(super) entered: bool,
    /// Whether that entry is an incident, whose call is a probe.
    pub(super) of_incident: bool,
    pub(super) given: Box<[u64]>,
    pub(super) made: Box<[u64]>,
}

/// The reason why an export cannot be used.
#[derive(Debug)]
pub enum UnusableExport {
    /// The export cannot be read.
    Io(io::Error),
    /// None of its records has a known format.
    NoRecords,
    /// It has more calls of byok's keys, or more values in them, than can be held.
    TooManyCalls,
}

/// The range of the records of an export that are read: at or after the first time, before the
/// second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Between(pub Option<Timestamp>, pub Option<Timestamp>);

impl Between {
    fn has(self, at: Timestamp) -> bool {
        self.0.is_none_or(|from| at >= from) && self.1.is_none_or(|until| at < until)
    }
}

impl Export {
    /// Reads an export. The first record of a known format determines the format.
    ///
    /// # Errors
    /// See [`UnusableExport`]. A record that cannot be read is not an error; it is counted.
    pub fn read(input: impl BufRead, keys: Vec<Arc<str>>, between: Between) -> Result<Self, UnusableExport> {
        let (mut objects, mut known) = (Objects::new(input), None);
        let mut principals: HashMap<String, Arc<str>> = HashMap::new();
        let mut holders: HashMap<u64, Arc<str>> = HashMap::new();
        let mut export = Self {
            format: Format::Vault,
            keys,
            calls: HashMap::new(),
            first: Timestamp(i64::MAX),
            last: Timestamp(i64::MIN),
            records: 0,
            values: 0,
            unreadable: 0,
            unreadable_lines: Vec::new(),
        };
        while let Some(object) = objects.next().map_err(UnusableExport::Io)? {
            let value: Option<Value> = object.text.and_then(|text| serde_json::from_slice(&text).ok());
            let formats = known.map_or(Format::ALL.to_vec(), |format| vec![format]);
            let read = value.and_then(|value| {
                formats.into_iter().find_map(|format| Some((format, format.read(&value, &export.keys)?)))
            });
            let Some((format, record)) = read else {
                export.unreadable += 1;
                if export.unreadable_lines.len() < NAMED_LINES {
                    export.unreadable_lines.push(object.line);
                }
                continue;
            };
            known = Some(format);
            export.records += 1;
            export.first = export.first.min(record.at);
            export.last = export.last.max(record.at);
            let Some(call) = record.call else { continue };
            if let Some(credential) = call.credential.filter(|_| !call.principal.starts_with(NOBODY))
                && holders.len() < MOST_CALLS
            {
                let holder = principal_of(&call, &mut principals);
                holders.entry(credential).or_insert(holder);
            }
            if !between.has(call.at) {
                continue;
            }
            if export.calls.len() >= MOST_CALLS || export.values >= MOST_VALUES {
                return Err(UnusableExport::TooManyCalls);
            }
            export.note(call, format, &mut principals);
        }
        export.format = known.ok_or(UnusableExport::NoRecords)?;
        export.name_callers(&holders);
        Ok(export)
    }

    /// Names the callers of calls with a credential that had expired: anybody else who called with
    /// it, before or after.
    fn name_callers(&mut self, holders: &HashMap<u64, Arc<str>>) {
        for call in self.calls.values_mut().filter(|call| call.principal.starts_with(NOBODY)) {
            if let Some(holder) = call.credential.and_then(|credential| holders.get(&credential)) {
                call.principal = Arc::clone(holder);
            }
        }
    }

    /// Notes a call. A request may have several records: Vault writes another one for the answer.
    fn note(&mut self, call: Call, format: Format, principals: &mut HashMap<String, Arc<str>>) {
        let principal = principal_of(&call, principals);
        let id = plain(&call.id, ID_CHARACTERS);
        // If callers choose the ids, an id names only the first call under it. But the same record
        // may have been delivered twice.
        let taken = format.caller_chooses_id()
            && self.calls.get_mut(&*id).is_some_and(|first| {
                first.shared |= first.principal != principal;
                (first.at, first.used, &first.principal) != (call.at, call.used, &principal)
            });
        let id: Arc<str> = match (id.is_empty(), taken) {
            (true, _) => format!("(record {})", self.records).into(),
            (false, true) => format!("{id} (again, record {})", self.records).into(),
            (false, false) => id.into(),
        };
        let fresh = || Noted {
            at: call.at,
            used: call.used,
            principal,
            refused: false,
            probe: call.probe,
            credential: call.credential,
            shared: false,
            entered: false,
            of_incident: false,
            given: Box::default(),
            made: Box::default(),
        };
        let noted = self.calls.entry(id).or_insert_with(fresh);
        noted.at = noted.at.min(call.at);
        noted.refused |= call.refused;
        for (kept, read) in [(&mut noted.given, call.given), (&mut noted.made, call.made)] {
            if kept.is_empty() {
                self.values += read.len();
                *kept = read.into();
            }
        }
    }

    /// Returns when the first and the last record were written, whatever they are about.
    pub fn covers(&self) -> (Timestamp, Timestamp) {
        (self.first, self.last)
    }
}

/// Returns the caller, with one shared string for each name.
fn principal_of(call: &Call, principals: &mut HashMap<String, Arc<str>>) -> Arc<str> {
    let name = plain(&call.principal, PRINCIPAL_CHARACTERS);
    let own = Arc::<str>::from(name.as_str());
    principals.entry(name).or_insert(own).clone()
}

/// Makes a text safe to show on a terminal, and shortens it. Others wrote it.
fn plain(text: &str, most: usize) -> String {
    text.chars()
        .take(most)
        .map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}
