//! Verifies a bundle line by line, with nothing but the file and what the auditor knows.

use std::io::{self, BufRead, Read as _};

use super::line::{Header, Line, Start, Subtrees, hashes_of};
use super::{BUNDLE_FORMAT, FIRST_FORMAT};
use crate::audit::CheckpointKey;
use crate::merkle::{Frontier, Hash};
use crate::verify::encoding::tenant_of;
use crate::verify::walk::Walk;
use crate::verify::{Claim, Finding, Report, Subject, Trust};

/// The longest line. Entries of releases that kept record ids of any length hold up to what
/// PostgreSQL accepts as one value.
const LINE: u64 = 512 << 20;
/// Larger than any position or size, because PostgreSQL's bigint is signed. The sum of two such
/// numbers does not overflow.
const NUMBERS: u64 = 1 << 62;

/// The reason why a line is not valid in a bundle.
type Why = String;

/// Verifies a bundle. From time to time, `progress` receives the number of bytes that were read.
///
/// # Errors
/// The file cannot be read. Anything wrong with its content is a finding instead.
pub fn verify_bundle(
    input: &mut dyn BufRead,
    trust: &Trust,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let mut reading = Reading::Header;
    let (mut number, mut read) = (0_u64, 0_u64);
    let mut line = Vec::new();
    let wrong = loop {
        line.clear();
        let length = input.take(LINE).read_until(b'\n', &mut line)? as u64;
        number += 1;
        read += length;
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        let taken = match (length, whole) {
            (0, _) => break reading.cut_off(number),
            (_, false) => Err("cut off, or longer than any line of a bundle".to_owned()),
            (_, true) => read_line(&line).and_then(|line| reading.take(line, trust)),
        };
        if let Err(why) = taken {
            break Some(Finding::Malformed { line: number, why });
        }
        if number.is_multiple_of(1_024) {
            progress(read);
        }
    };
    Ok(reading.report(wrong))
}

fn read_line(line: &[u8]) -> Result<Line, Why> {
    serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("not a line of a bundle: {error}"),
        _ => format!("not JSON: {error}"),
    })
}

/// How far the file was read.
enum Reading {
    Header,
    Keys(Box<Header>),
    Walking(Box<Walking>),
    Ended(Box<Walking>),
}

struct Walking {
    header: Header,
    walk: Walk,
    /// The number of entries in the file.
    entries: u64,
    /// Whether the last line was a checkpoint of the closing size.
    closed: bool,
}

impl Reading {
    /// Takes in the next line. If it is refused, what was read before it remains.
    fn take(&mut self, line: Line, trust: &Trust) -> Result<(), Why> {
        match (&mut *self, line) {
            (Self::Header, Line::Header(header)) => *self = Self::Keys(Box::new(checked(header)?)),
            (Self::Header, _) => return Err("a bundle begins with its header".to_owned()),
            (Self::Keys(header), Line::Key(key)) => match CheckpointKey::parse(&key) {
                Ok(key) if key.name == header.origin => {}
                Ok(_) => return Err("the key of another log".to_owned()),
                Err(error) => return Err(error.to_string()),
            },
            (Self::Keys(header), Line::Start(start)) => {
                let walk = started(header, &start, trust)?;
                let header = header.as_ref().clone();
                *self = Self::Walking(Box::new(Walking { header, walk, entries: 0, closed: false }));
            }
            (Self::Keys(_), _) => return Err("keys are followed by the start of the walk".to_owned()),
            (Self::Walking(walking), Line::End(end)) => {
                if end.entries != walking.entries {
                    return Err(format!(
                        "the last line says {} entries, but there are {}",
                        end.entries, walking.entries
                    ));
                }
                if let Self::Walking(walking) = std::mem::replace(self, Self::Header) {
                    *self = Self::Ended(walking);
                }
            }
            (Self::Walking(walking), line) => walking.take(line)?,
            (Self::Ended(_), _) => return Err("something follows the end".to_owned()),
        }
        Ok(())
    }

    /// Called when the file ends before this line. Returns a finding if that is not the end of the
    /// bundle.
    fn cut_off(&self, line: u64) -> Option<Finding> {
        match self {
            Self::Ended(walking) if walking.closed => None,
            Self::Ended(_) => Some(Finding::MissingCheckpoint { size: None }),
            Self::Header | Self::Keys(_) | Self::Walking(_) => {
                let why = "the bundle is cut off: its last line is missing".to_owned();
                Some(Finding::Malformed { line, why })
            }
        }
    }

    fn report(self, wrong: Option<Finding>) -> Report {
        let (Self::Walking(walking) | Self::Ended(walking)) = self else {
            let mut report = Report::of("no bundle".to_owned());
            wrong.into_iter().for_each(|wrong| report.find(wrong));
            report.claim(Claim::Form, "the file is a complete bundle".to_owned(), None);
            return report;
        };
        let Walking { header, mut walk, entries, .. } = *walking;
        let whole = !matches!(wrong, Some(Finding::Malformed { .. }));
        wrong.into_iter().for_each(|wrong| walk.report.find(wrong));
        walk.report.claim(Claim::Form, "the file is a complete bundle".to_owned(), None);
        let end = header.first + header.size;
        if whole && walk.position() != end {
            let range = walk.position().min(end)..end;
            walk.report.find(Finding::CutOff { range });
        }
        if header.to < end || header.erasures_behind {
            walk.continues_unseen();
        }
        let mut report = walk.finish(|size, _| Finding::PinnedElsewhere { size });
        report.subject = format!(
            "log {}: {entries} entries, the range is places {} to before {} of {}",
            header.origin, header.from, header.to, end
        );
        report
    }
}

fn checked(header: Header) -> Result<Header, Why> {
    if ![BUNDLE_FORMAT, FIRST_FORMAT].contains(&&*header.format) {
        return Err(format!("the format is neither {BUNDLE_FORMAT} nor {FIRST_FORMAT}"));
    }
    for number in [header.first, header.size, header.from, header.to] {
        small(number)?;
    }
    tenant_of(&header.tenant).ok_or("not a tenant's uid")?;
    if !header.origin.ends_with(&format!("/{}", header.log)) {
        return Err("the origin is that of another log".to_owned());
    }
    let end = header.first + header.size;
    if header.first <= header.from && header.from < header.to && header.to <= end {
        Ok(header)
    } else {
        Err("the range is not within the log".to_owned())
    }
}

fn small(number: u64) -> Result<u64, Why> {
    if number < NUMBERS { Ok(number) } else { Err("a number that no log reaches".to_owned()) }
}

fn started(header: &Header, start: &Start, trust: &Trust) -> Result<Walk, Why> {
    if start.size > header.from - header.first {
        return Err("the walk begins after the range".to_owned());
    }
    let frontier = Frontier::new(start.size, hashes_of(&start.roots));
    let frontier = frontier.map_err(|_| "the number of roots does not match the size".to_owned())?;
    let tenant = tenant_of(&header.tenant).ok_or("not a tenant's uid")?;
    let (log, first) = (header.log, header.first);
    let subject = Subject { tenant, origin: header.origin.clone(), log, first };
    Ok(Walk::start(subject, trust.clone(), frontier))
}

impl Walking {
    fn take(&mut self, line: Line) -> Result<(), Why> {
        self.closed = false;
        match line {
            Line::Skip(subtrees) => {
                let end = self.walk.position().saturating_add(subtrees.count);
                // A part of the range itself that is skipped counts as missing there.
                let within = self.walk.position() < self.header.to && end > self.header.from;
                self.subtrees(&subtrees, within)
            }
            Line::Pruned(subtrees) => self.subtrees(&subtrees, true),
            Line::Entry(entry) => {
                self.within(entry.position)?;
                if !entry.is_of_its_form() {
                    return Err("an entry with fields that its form does not have".to_owned());
                }
                // The digest does not cover the tenant's name, so only the maker of the bundle
                // vouches for it.
                if entry.tenant.is_some() && entry.computed(self.walk.tenant()) == entry.digest.0 {
                    return Err("an entry of this log that names a tenant".to_owned());
                }
                if self.header.format == FIRST_FORMAT && !entry.form.is_one() {
                    return Err("an entry of a later form than the bundle".to_owned());
                }
                self.entries += 1;
                self.walk.entry(&entry);
                Ok(())
            }
            Line::Unreadable(row) => {
                self.within(row.position)?;
                self.walk.unreadable(row.position, Hash(row.leaf.0));
                Ok(())
            }
            Line::Checkpoint(note) => {
                self.closed = self.walk.size() == self.header.size;
                self.walk.checkpoint(&note);
                Ok(())
            }
            Line::Header(_) | Line::Key(_) | Line::Start(_) | Line::End(_) => {
                Err("a line of another part of a bundle".to_owned())
            }
        }
    }

    fn within(&self, position: u64) -> Result<(), Why> {
        if position < self.header.first + self.header.size {
            Ok(())
        } else {
            Err("an entry that the closing checkpoint does not cover".to_owned())
        }
    }

    fn subtrees(&mut self, subtrees: &Subtrees, pruned: bool) -> Result<(), Why> {
        if subtrees.count == 0 || subtrees.count > self.header.size.saturating_sub(self.walk.size()) {
            return Err("leaves that the closing checkpoint does not cover".to_owned());
        }
        let added = self.walk.roots(subtrees.count, &hashes_of(&subtrees.roots), pruned);
        added.map_err(|_| "the number of roots does not match the leaves".to_owned())
    }
}
