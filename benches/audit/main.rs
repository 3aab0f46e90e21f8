//! The cost of the audit log, on a real PostgreSQL whose commits go to a disk, measured with the
//! code by which `byok serve` appends, derives and reads; see `docs/performance.md`.
//!
//! ```text
//! scripts/servers install                       once
//! cargo bench --bench audit                     everything: about 20 minutes, 10 GB in $TMPDIR
//! cargo bench --bench audit -- --json           and one JSON object on the last line
//! cargo bench --bench audit -- --quick          short, with 100,000 entries: does it run at all?
//! cargo bench --bench audit -- --entries N      a long log of N entries
//! ```

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

#[path = "../revocation/random.rs"]
#[expect(dead_code, reason = "the other bench uses the rest")]
mod random;
#[path = "../revocation/servers.rs"]
mod servers;

mod appends;
mod entries;
mod long;
mod rates;
mod reads;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use table::Report;

/// The size of a run.
pub(crate) struct Plan {
    /// The duration of each measurement in one round.
    pub(crate) window: Duration,
    pub(crate) rounds: usize,
    /// The number of entries in the long log.
    pub(crate) entries: u64,
    /// The number of proofs, and of pages with each filter.
    pub(crate) reads: usize,
}

struct Arguments {
    plan: Plan,
    json: bool,
}

fn main() -> ExitCode {
    servers::bench("audit", read, run)
}

fn read(words: &[String]) -> Result<Arguments, String> {
    let plan = Plan { window: Duration::from_secs(4), rounds: 3, entries: 10_000_000, reads: 200 };
    let mut arguments = Arguments { plan, json: false };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => arguments.json = true,
            "--quick" => {
                let window = Duration::from_secs(1);
                arguments.plan = Plan { window, rounds: 1, entries: 100_000, reads: 20 };
            }
            "--entries" => {
                let number = words.next().and_then(|number| number.parse().ok());
                let enough = number.filter(|number| *number >= 20_000);
                arguments.plan.entries = enough.ok_or("--entries takes a number, 20000 at least")?;
            }
            _ => return Err(format!("`{word}` is none of --json, --quick, --entries N")),
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
    Ok(())
}

async fn measure(plan: &Plan) -> Result<Report, String> {
    long::refuse_memory(&support::postgres::variable("DATABASE_URL")).await?;
    let rates = rates::measure(plan).await;
    let long = long::Long::fill(plan.entries).await;
    let appends = appends::measure(plan, &long).await;
    let reads = reads::measure(plan, &long).await;
    let disk = long.disk().await;
    Ok(Report { rates, long: long.filled, appends, reads, disk })
}
