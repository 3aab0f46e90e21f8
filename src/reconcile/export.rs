//! A provider's export, read: the calls that used our keys, by request id.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::Arc;

use serde_json::Value;

use crate::model::Timestamp;

use super::objects::Objects;
use super::record::{Call, Format, NOBODY, Use};

/// The most calls of our keys that are held: some 300 bytes each.
pub const MOST_CALLS: usize = 2_000_000;
/// The most values that are held, of all batches: 8 bytes each.
const MOST_VALUES: usize = 20_000_000;
/// The most characters of an id and of a principal.
const ID_CHARACTERS: usize = 128;
const PRINCIPAL_CHARACTERS: usize = 256;
/// How many lines that cannot be read are named.
const NAMED_LINES: usize = 20;

/// The calls that used a tenant's keys, as the provider's log has them.
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

/// What stays of one call.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) at: Timestamp,
    pub(super) used: Use,
    /// A place in the list of those who called: there are few.
    pub(super) principal: Arc<str>,
    pub(super) refused: bool,
    pub(super) probe: bool,
    pub(super) credential: Option<u64>,
    /// Whether others called under its id as well: an entry that has the id does not say who we are.
    pub(super) shared: bool,
    /// Whether an entry has its id.
    pub(super) entered: bool,
    /// Whether that is the entry of an incident, whose call is a probe.
    pub(super) of_incident: bool,
    pub(super) given: Box<[u64]>,
    pub(super) made: Box<[u64]>,
}

/// Why an export cannot be used.
#[derive(Debug)]
pub enum UnusableExport {
    /// It cannot be read.
    Io(io::Error),
    /// None of its records is of a format that is known.
    NoRecords,
    /// Our keys have more calls in it, or these more values, than are held.
    TooManyCalls,
}

/// Which records of an export are read: those at or after, and before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Between(pub Option<Timestamp>, pub Option<Timestamp>);

impl Between {
    fn has(self, at: Timestamp) -> bool {
        self.0.is_none_or(|from| at >= from) && self.1.is_none_or(|until| at < until)
    }
}

impl Export {
    /// Reads it; its first record that is known says of which format it is.
    ///
    /// # Errors
    /// See [`UnusableExport`]. A record that cannot be read is no error, but counted.
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

    /// Names who made calls with a credential that had ended: whoever called with it before, or after.
    fn name_callers(&mut self, holders: &HashMap<u64, Arc<str>>) {
        for call in self.calls.values_mut().filter(|call| call.principal.starts_with(NOBODY)) {
            if let Some(holder) = call.credential.and_then(|credential| holders.get(&credential)) {
                call.principal = Arc::clone(holder);
            }
        }
    }

    /// A request may have several records: Vault's has one more when it is answered.
    fn note(&mut self, call: Call, format: Format, principals: &mut HashMap<String, Arc<str>>) {
        let principal = principal_of(&call, principals);
        let id = plain(&call.id, ID_CHARACTERS);
        // One that the caller chose names only the first call under it; the same record may have been delivered twice.
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

    /// When its first and its last record were written, whatever they are about.
    pub fn covers(&self) -> (Timestamp, Timestamp) {
        (self.first, self.last)
    }
}

/// Who called, once in the list of those who did.
fn principal_of(call: &Call, principals: &mut HashMap<String, Arc<str>>) -> Arc<str> {
    let name = plain(&call.principal, PRINCIPAL_CHARACTERS);
    let own = Arc::<str>::from(name.as_str());
    principals.entry(name).or_insert(own).clone()
}

/// What may be shown on a terminal, and is not too long: others wrote it.
fn plain(text: &str, most: usize) -> String {
    text.chars()
        .take(most)
        .map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}
