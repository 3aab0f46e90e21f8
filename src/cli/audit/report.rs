//! The output of the commands of `byok audit`: a progress bar, and the report of a verification.

use std::io::Write as _;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::Failure;
use crate::verify::{Report, State};

/// The number of characters of a line that are printed. A bundle may hold much longer lines.
const LONGEST_LINE: usize = 2_000;

/// Creates a progress bar on standard error, if that is a terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Prints a report. Fails if anything was found.
pub(super) fn print_report(report: &Report, as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let printed =
        if as_json { writeln!(out, "{}", json_of(report)) } else { write!(out, "{}", text_of(report)) };
    printed.map_err(|error| Failure::Running(format!("standard output: {error}")))?;
    match report.findings.len() as u64 + report.more {
        0 => Ok(()),
        1 => Err(Failure::Running("the log does not hold: 1 finding".to_owned())),
        found => Err(Failure::Running(format!("the log does not hold: {found} findings"))),
    }
}

fn text_of(report: &Report) -> String {
    let mut text = format!("{}\n", plain(&report.subject));
    for (claim, state, result) in &report.claims {
        let state = match state {
            State::Holds => "holds",
            State::Fails => "FAILS",
            State::Open => "open ",
        };
        text.push_str(&format!("  {state}  {:<8}  {result}\n", claim.as_str()));
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
    text.chars()
        .take(LONGEST_LINE)
        .map(|char| if acts(char) { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

fn json_of(report: &Report) -> serde_json::Value {
    let claim = |(claim, state, text): &(crate::verify::Claim, State, String)| json!({ "claim": claim.as_str(), "state": state.as_str(), "text": text });
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
