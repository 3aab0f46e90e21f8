//! What the commands of `byok audit` share: what the auditor knows, which log is meant, the
//! progress bar, and how a report is printed.

use std::io::Write as _;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::audit::{CheckpointKey, SignedCheckpoint};
use crate::cli::{Failure, assemble};
use crate::model::Tenant;
use crate::store::{Database, LogHead, ReadError};
use crate::verify::{Report, State};

/// The number of characters of a line that are shown. A bundle may hold much longer lines.
const SHOWN: usize = 2_000;

/// Reads public keys. Each text is a key, or the name of a file with one key a line, as `byok audit
/// key` prints them.
pub(super) fn keys(texts: &[String]) -> Result<Vec<CheckpointKey>, Failure> {
    let mut keys = Vec::new();
    for text in texts {
        let read = match CheckpointKey::parse(text.trim()) {
            Ok(key) => Ok(vec![key]),
            Err(error) => std::fs::read_to_string(text).map_err(|_| error).and_then(|read| {
                let lines = read.lines().map(str::trim).filter(|line| !line.is_empty());
                let read: Vec<_> = lines.map(CheckpointKey::parse).collect::<Result<_, _>>()?;
                if read.is_empty() { Err(error) } else { Ok(read) }
            }),
        };
        keys.extend(
            read.map_err(|error| Failure::Running(format!("--key {text}: {error}, nor a file with one")))?,
        );
    }
    Ok(keys)
}

/// Reads a checkpoint that the auditor has kept.
pub(super) fn checkpoint(path: Option<&Path>) -> Result<Option<SignedCheckpoint>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let failed = |why: String| Failure::Running(format!("--checkpoint {}: {why}", path.display()));
    let note = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    SignedCheckpoint::parse(&note).map(Some).map_err(|error| failed(error.to_string()))
}

/// Returns the head of the log of this number as it ended; `None` if it is the current log, or if
/// no number is given.
pub(super) async fn ended(
    database: &dyn Database,
    tenant: &Tenant,
    log: Option<u32>,
) -> Result<Option<LogHead>, Failure> {
    let Some(log) = log else { return Ok(None) };
    let unread = |error| match error {
        ReadError::Unavailable | ReadError::Busy | ReadError::Rejected => assemble::read_failure(error),
        ReadError::Malformed => {
            Failure::Running("the records of logs that have ended were altered".to_owned())
        }
    };
    let ended = database.ended_logs(tenant.uid).await.map_err(unread)?;
    if let Some(head) = ended.into_iter().find(|head| head.log == log) {
        return Ok(Some(head));
    }
    match database.log_head(tenant.uid).await.map_err(assemble::read_failure)? {
        Some(head) if head.log == log => Ok(None),
        _ => Err(Failure::Running(format!("there is no log {log}"))),
    }
}

/// Creates a progress bar on standard error, if that is a terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Prints a report. Fails if anything was found.
pub(super) fn show(report: &Report, as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let shown = match as_json {
        true => writeln!(out, "{}", json_of(report)),
        false => write!(out, "{}", text_of(report)),
    };
    shown.map_err(|error| Failure::Running(format!("standard output: {error}")))?;
    match report.findings.len() as u64 + report.more {
        0 => Ok(()),
        1 => Err(Failure::Running("the log does not hold: 1 finding".to_owned())),
        found => Err(Failure::Running(format!("the log does not hold: {found} findings"))),
    }
}

fn text_of(report: &Report) -> String {
    let mut text = format!("{}\n", plain(&report.subject));
    for (claim, state, said) in &report.claims {
        let state = match state {
            State::Holds => "holds",
            State::Fails => "FAILS",
            State::Open => "open ",
        };
        text.push_str(&format!("  {state}  {:<8}  {said}\n", claim.as_str()));
    }
    for finding in &report.findings {
        text.push_str(&format!("{}: {}\n", finding.name(), plain(&finding.to_string())));
    }
    if report.more > 0 {
        text.push_str(&format!("and {} more\n", report.more));
    }
    text
}

/// Puts a text on one line, and replaces everything that a terminal acts on. Others wrote the
/// bundle.
fn plain(text: &str) -> String {
    let acts =
        |char: char| char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().take(SHOWN).map(|char| if acts(char) { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

fn json_of(report: &Report) -> serde_json::Value {
    let claim = |(claim, state, said): &(crate::verify::Claim, State, String)| json!({ "claim": claim.as_str(), "state": state.as_str(), "text": said });
    json!({
        "subject": report.subject,
        "holds": report.is_clean(),
        "claims": report.claims.iter().map(claim).collect::<Vec<_>>(),
        "findings": report.findings.iter().map(|finding| {
            json!({ "name": finding.name(), "text": finding.to_string() })
        }).collect::<Vec<_>>(),
        "more": report.more,
    })
}
