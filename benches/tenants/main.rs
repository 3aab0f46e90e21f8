//! How much one tenant's latency depends on the faults of other tenants: one server over a real
//! PostgreSQL serves four tenants; the latency of one of them is measured alone, and beside the
//! others with their faults. See `docs/performance.md`.
//!
//! ```text
//! scripts/servers install                         once
//! cargo bench --bench tenants                     five pairs, about four minutes
//! cargo bench --bench tenants -- --json           and one JSON object on the last line
//! cargo bench --bench tenants -- --quick          one pair of 2 s each: does it run at all?
//! cargo bench --bench tenants -- --only hung      beside one neighbour: hung, damaged or rotating
//! cargo bench --bench tenants -- --pairs N        so many pairs
//! cargo bench --bench tenants -- --rate N         calls per second; default: half of the capacity
//! ```

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

#[path = "../revocation/servers.rs"]
mod servers;

mod open_loop;
mod pair;
mod server;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use server::{NEIGHBOURS, Server};
use table::Report;

/// The size of a run.
pub(crate) struct Plan {
    /// The duration of each measurement.
    pub(crate) window: Duration,
    pub(crate) pairs: usize,
    /// The calls per second of the measured tenant; half of the server's capacity if not given.
    pub(crate) rate: Option<f64>,
    /// The neighbours that have faults and call.
    pub(crate) neighbours: Vec<&'static str>,
}

struct Arguments {
    plan: Plan,
    json: bool,
}

fn main() -> ExitCode {
    servers::bench("tenants", read, run)
}

fn read(words: &[String]) -> Result<Arguments, String> {
    let plan =
        Plan { window: Duration::from_secs(10), pairs: 5, rate: None, neighbours: NEIGHBOURS.to_vec() };
    let mut arguments = Arguments { plan, json: false };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => arguments.json = true,
            "--quick" => {
                arguments.plan.window = Duration::from_secs(2);
                arguments.plan.pairs = 1;
            }
            "--rate" => {
                let rate = words.next().and_then(|number| number.parse().ok());
                let rate = rate.filter(|rate| (1.0..=100_000.0).contains(rate));
                arguments.plan.rate = Some(rate.ok_or("--rate takes a number of calls per second")?);
            }
            "--pairs" => {
                let pairs = words.next().and_then(|number| number.parse().ok());
                arguments.plan.pairs = pairs.filter(|pairs| *pairs > 0).ok_or("--pairs takes a number")?;
            }
            "--only" => {
                let name = words.next().ok_or("--only takes the name of a neighbour")?;
                arguments.plan.neighbours.retain(|neighbour| neighbour == name);
                if arguments.plan.neighbours.is_empty() {
                    return Err(format!("`{name}` is none of {}", NEIGHBOURS.join(", ")));
                }
            }
            _ => {
                return Err(format!(
                    "`{word}` is none of --json, --only NEIGHBOUR, --pairs N, --quick, --rate N"
                ));
            }
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = measure(&arguments.plan) => report,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        }
    })?;
    report.print();
    if arguments.json {
        println!("{}", report.json());
    }
    report.verdict()
}

async fn measure(plan: &Plan) -> Result<Report, String> {
    let rate = match plan.rate {
        Some(rate) => rate,
        None => Server::start().await.capacity(plan.window / 2).await? / 2.0,
    };
    let mut pairs = Vec::new();
    for number in 1..=plan.pairs {
        eprintln!("pair {number} of {}, {rate:.0} calls/s", plan.pairs);
        pairs.push(pair::measure(plan, rate).await?);
    }
    Ok(Report { rate, pairs, neighbours: plan.neighbours.clone() })
}
