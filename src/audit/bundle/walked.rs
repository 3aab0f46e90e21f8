//! A bundle, verified: line by line, with nothing but the file and what the auditor knows.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read as _};

use super::super::checkpoint::CheckpointKey;
use super::super::verify::{Claim, Finding, Report, Subject, Trust, Walk};
use super::{BUNDLE_FORMAT, Header, Line, hashes_of, tenant_of};
use crate::merkle::{Frontier, Hash};

/// The longest line: an entry with as many items as a call may have.
const LINE: u64 = 64 << 20;
/// Larger than any number of a log's, and small enough to be added.
const NUMBERS: u64 = 1 << 61;

/// Why a line is not one of a bundle's.
type Why = String;

/// Verifies a bundle. `progress` is told how many bytes were read, from time to time.
///
/// # Errors
/// The file cannot be read. Whatever is wrong with what it holds is a finding.
pub fn verify_bundle(
    input: &mut dyn BufRead,
    trust: Trust,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let mut reading = Reading { trust, at: At::Header };
    let (mut number, mut read) = (0_u64, 0_u64);
    let mut line = Vec::new();
    let wrong = loop {
        line.clear();
        let length = input.take(LINE).read_until(b'\n', &mut line)? as u64;
        number += 1;
        read += length;
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        let taken = match (length, whole) {
            (0, _) => break reading.unended(),
            (_, false) => Err("cut off, or longer than any line of a bundle".to_owned()),
            (_, true) => read_line(&line).and_then(|line| reading.take(line)),
        };
        if let Err(why) = taken {
            break Some(why);
        }
        if number.is_multiple_of(1_024) {
            progress(read);
        }
    };
    Ok(reading.report(wrong.map(|why| Finding::Malformed { line: number, why })))
}

fn read_line(line: &[u8]) -> Result<Line, Why> {
    serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("not a line of a bundle: {error}"),
        _ => format!("not JSON: {error}"),
    })
}

struct Reading {
    trust: Trust,
    at: At,
}

/// How far the file was read.
enum At {
    Header,
    Keys(Box<Header>),
    Walk(Box<Walking>),
    Ended(Box<Walking>),
    /// Between two of them.
    Moving,
}

struct Walking {
    header: Header,
    walk: Walk,
    entries: u64,
    /// Whether the last line was the checkpoint of the closing size.
    closed: bool,
    places: BTreeSet<u64>,
}

impl Reading {
    fn take(&mut self, line: Line) -> Result<(), Why> {
        self.at = match (std::mem::replace(&mut self.at, At::Moving), line) {
            (At::Header, Line::Header(header)) => At::Keys(Box::new(checked(header)?)),
            (At::Header, _) => return Err("a bundle begins with its header".to_owned()),
            (At::Keys(header), Line::Key(key)) => match CheckpointKey::parse(&key) {
                Ok(key) if key.name == header.origin => At::Keys(header),
                Ok(_) => return Err("the key of another log".to_owned()),
                Err(error) => return Err(error.to_string()),
            },
            (At::Keys(header), Line::Start(start)) => {
                let roots = hashes_of(&start.roots);
                let frontier = Frontier::new(small(start.size)?, roots);
                let frontier = frontier.map_err(|_| "not as many roots as that size has".to_owned())?;
                if frontier.size() > header.from - header.first {
                    return Err("begins behind the range".to_owned());
                }
                let tenant = tenant_of(&header.tenant).ok_or("not a tenant's uid")?;
                let subject = Subject { tenant, origin: header.origin.clone(), first: header.first };
                let walk = Walk::start(subject, self.trust.clone(), frontier);
                At::Walk(Box::new(Walking { header: *header, walk, entries: 0, closed: false }))
            }
            (At::Keys(_), _) => return Err("keys are followed by the start of the walk".to_owned()),
            (At::Walk(walking), Line::End(end)) => {
                if end.entries != walking.entries {
                    return Err(format!("{} entries were said, {} were there", end.entries, walking.entries));
                }
                At::Ended(walking)
            }
            (At::Walk(mut walking), line) => {
                walking.take(line)?;
                At::Walk(walking)
            }
            (At::Ended(_), _) => return Err("something follows the end".to_owned()),
            (At::Moving, _) => return Err("nothing can follow".to_owned()),
        };
        Ok(())
    }

    /// The file has come to its end: was it that of the bundle?
    fn unended(&self) -> Option<Why> {
        match &self.at {
            At::Ended(walking) if walking.closed => None,
            At::Ended(_) => Some("the closing checkpoint is missing".to_owned()),
            _ => Some("the bundle is cut off: its last line is missing".to_owned()),
        }
    }
}
