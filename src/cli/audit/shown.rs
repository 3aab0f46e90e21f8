//! What the commands of `byok audit` have in common: what the auditor knows, how far it is, and how a report is shown.

use std::io::Write as _;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::audit::{CheckpointKey, Report, SignedCheckpoint, State};
use crate::cli::Failure;

/// Public keys: each as it is, or the file that it stands in.
pub(super) fn keys(texts: &[String]) -> Result<Vec<CheckpointKey>, Failure> {
    let key = |text: &String| match CheckpointKey::parse(text.trim()) {
        Ok(key) => Ok(key),
        Err(error) => {
            let read = std::fs::read_to_string(text).map_err(|_| error);
            let key = read.and_then(|read| CheckpointKey::parse(read.trim()));
            key.map_err(|error| Failure::Running(format!("--key {text}: {error}, nor a file with one")))
        }
    };
    texts.iter().map(key).collect()
}

/// A checkpoint that the auditor has kept.
pub(super) fn checkpoint(path: Option<&Path>) -> Result<Option<SignedCheckpoint>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let failed = |why: String| Failure::Running(format!("--checkpoint {}: {why}", path.display()));
    let note = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    SignedCheckpoint::parse(&note).map(Some).map_err(|error| failed(error.to_string()))
}

/// A bar on standard error, where that is a terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Prints a report. Fails where anything was found.
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
    let mut text = format!("{}\n", report.subject);
    for (claim, state, said) in &report.claims {
        let state = match state {
            State::Holds => "holds",
            State::Fails => "FAILS",
            State::Open => "open ",
        };
        text.push_str(&format!("  {state}  {:<8}  {said}\n", claim.as_str()));
    }
    for finding in &report.findings {
        text.push_str(&format!("{}: {finding}\n", finding.name()));
    }
    if report.more > 0 {
        text.push_str(&format!("and {} more\n", report.more));
    }
    text
}

fn json_of(report: &Report) -> serde_json::Value {
    let claim = |(claim, state, said): &(crate::audit::Claim, State, String)| json!({ "claim": claim.as_str(), "state": state.as_str(), "text": said });
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
