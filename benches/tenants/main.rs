//! How much one tenant notices of others that are in trouble: one server over a real PostgreSQL serves four tenants, of which
//! one is measured, by itself and beside the others; see `docs/performance.md`.
//!
//! ```text
//! scripts/servers install                         once
//! cargo bench --bench tenants                     everything: some four minutes
//! cargo bench --bench tenants -- --json           and one JSON object on the last line
//! cargo bench --bench tenants -- --quick          one pair of two seconds: does it run at all?
//! cargo bench --bench tenants -- --rate N         calls a second, instead of half of what the server can do
//! ```

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

#[path = "../revocation/servers.rs"]
mod servers;

mod house;
mod offered;
mod pair;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use house::House;
use servers::Servers;
use table::Report;

/// How much is measured.
pub(crate) struct Plan {
    /// How long the measured tenant calls, by itself and beside the others.
    pub(crate) window: Duration,
    pub(crate) pairs: usize,
    /// Calls a second of the measured tenant; half of what the server can do if it is not given.
    pub(crate) rate: Option<f64>,
}

struct Arguments {
    plan: Plan,
    json: bool,
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let arguments = match read(&words) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("tenants: {problem}");
            return ExitCode::from(2);
        }
    };
    let outcome = match Servers::here() {
        true => run(&arguments),
        false => Servers::start().and_then(|servers| servers.run_us_again(&words)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("tenants: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn read(words: &[String]) -> Result<Arguments, String> {
    let plan = Plan { window: Duration::from_secs(10), pairs: 5, rate: None };
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
                arguments.plan.rate = Some(rate.ok_or("--rate takes a number of calls a second")?);
            }
            _ => return Err(format!("`{word}` is none of --json, --quick, --rate N")),
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
        None => House::new().await.most_per_second(plan.window / 2).await? / 2.0,
    };
    let mut pairs = Vec::new();
    for number in 1..=plan.pairs {
        eprintln!("pair {number} of {}, {rate:.0} calls/s", plan.pairs);
        pairs.push(pair::measure(plan, rate).await?);
    }
    Ok(Report { rate, pairs })
}
