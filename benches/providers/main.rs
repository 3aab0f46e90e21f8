//! The number of requests that byok makes to each KMS, and byok's own share of a call's cost. The
//! real binary serves; a relay in front of each provider's test server counts the requests.
//!
//! ```text
//! scripts/servers install                     once
//! cargo bench --bench providers               the tables of docs/performance.md
//! cargo bench --bench providers -- --json     and one JSON object on the last line
//! ```
//!
//! Counts are exact and the same on any machine. Times are of test servers on loopback: they show
//! byok's share of a call, not how fast a cloud is.

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

#[path = "../revocation/servers.rs"]
mod servers;

mod measure;

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use measure::{Calls, Measured};
use support::provider::Provided;

fn main() -> ExitCode {
    servers::bench("providers", read, |json| run(*json))
}

/// Whether the JSON object is wanted.
fn read(words: &[String]) -> Result<bool, String> {
    match words {
        [] => Ok(false),
        [word] if word == "--json" => Ok(true),
        _ => Err("takes --json, or nothing".to_owned()),
    }
}

fn run(json: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let measured = runtime.block_on(async {
        let mut measured = Vec::new();
        for provider in measure::PROVIDERS {
            eprintln!("{provider} …");
            measured.push(measure::measure(provider).await);
        }
        measured
    });
    print(&measured);
    if json {
        println!("{}", object(&measured));
    }
    Ok(())
}

fn print(measured: &[Measured]) {
    println!(
        "| calls at the KMS for | {} |",
        measured.iter().map(|one| one.provider).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---|".repeat(measured.len()));
    for (row, step) in measure::STEPS.iter().enumerate() {
        let cells: Vec<_> = measured.iter().map(|one| shown(&one.steps[row])).collect();
        println!("| {step} | {} |", cells.join(" | "));
    }
    println!();
    println!("| | {} |", measured.iter().map(|one| one.provider).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(measured.len()));
    let row = |name: &str, cell: &dyn Fn(&Measured) -> String| {
        println!("| {name} | {} |", measured.iter().map(cell).collect::<Vec<_>>().join(" | "));
    };
    row("requests at a time: one call of 1,000 items", &|one| one.most_of_one_call.to_string());
    row("requests at a time: ten such calls", &|one| one.most_of_many_calls.to_string());
    row("one unwrap, µs: whole", &|one| format!("{:.0}", one.whole_us));
    row("one unwrap, µs: processor time of ours", &|one| format!("{:.0}", one.ours_us));
    row("our share", &|one| format!("{:.0} %", 100.0 * one.ours_us / one.whole_us));
}

fn shown(calls: &Calls) -> String {
    let parts: Vec<_> = calls.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn object(measured: &[Measured]) -> Value {
    let one = |one: &Measured| {
        let steps: Map<String, Value> = measure::STEPS
            .iter()
            .zip(&one.steps)
            .map(|(step, calls)| ((*step).to_owned(), json!(calls)))
            .collect();
        json!({
            "calls": steps,
            "most_of_one_call": one.most_of_one_call,
            "most_of_many_calls": one.most_of_many_calls,
            "unwrap_us": one.whole_us,
            "unwrap_ours_us": one.ours_us,
        })
    };
    measured
        .iter()
        .map(|measured| (measured.provider.to_owned(), one(measured)))
        .collect::<Map<_, _>>()
        .into()
}
