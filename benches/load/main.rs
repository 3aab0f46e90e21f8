//! The cost of a call to byok, beside that of the libraries it is built on and of Vault. On one
//! machine, in the same minute, on pinned cores:
//!
//! - (a) a bare axum handler that echoes the body, (b) a stock async-graphql handler with a no-op
//!   mutation,
//! - (c) decrypting hot records over REST and GraphQL: JWT verified, entry durable in PostgreSQL,
//! - (d) encrypting new and known records, batches of 1,000 and a remote join of 1,000 rows,
//! - (e) Vault's own transit decrypt with its file audit device, single and in batches of 1,000.
//!
//! ```text
//! scripts/servers install                 once
//! cargo bench --bench load                the table
//! cargo bench --bench load -- --json      and one JSON object on the last line
//! cargo bench --bench load -- --quick     one short round: does it run at all?
//! cargo bench --bench load -- --only NAME only the scenario NAME; may be repeated
//! cargo bench --bench load -- --against BINARY  compares byok with another binary of it
//! ```
//!
//! `docs/performance.md` says how the processes are pinned and why, and has the results.

mod baselines;
mod generator;
mod processes;
mod scenarios;
mod servers;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use generator::Window;
use processes::Cores;
use scenarios::{Scenario, Target};
use servers::Servers;
use table::Measured;

/// The plan of a full run.
const FULL: Plan =
    Plan { rounds: 3, window: Window { warm_up: Duration::from_secs(1), length: Duration::from_secs(4) } };
/// The plan of `--quick`.
const QUICK: Plan = Plan {
    rounds: 1,
    window: Window { warm_up: Duration::from_millis(500), length: Duration::from_secs(1) },
};

struct Plan {
    rounds: usize,
    window: Window,
}

struct Arguments {
    plan: Plan,
    json: bool,
    only: Vec<String>,
    against: Option<String>,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments { plan: FULL, json: false, only: Vec::new(), against: None };
    while let Some(word) = words.next() {
        match word.as_str() {
            // `cargo bench` passes this to every bench.
            "--bench" => {}
            "--json" => arguments.json = true,
            "--quick" => arguments.plan = QUICK,
            "--only" => arguments.only.extend(words.next()),
            "--against" => arguments.against = words.next(),
            baselines::ECHO | baselines::NO_OP => return baselines::run(&word),
            _ => {
                eprintln!("load: `{word}` is none of --json, --quick, --only NAME, --against BINARY");
                return ExitCode::from(2);
            }
        }
    }
    // One thread, so that the generator does not take a core from the server it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        tokio::select! {
            done = load(&arguments) => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("load: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn load(arguments: &Arguments) -> Result<(), String> {
    let cores = Cores::of_this_machine()?;
    processes::pin(std::process::id(), &cores.rest)?;
    let servers = Servers::start(cores, arguments.against.as_deref()).await?;
    let mut scenarios = scenarios::all(&servers).await?;
    if arguments.against.is_some() {
        scenarios = scenarios.into_iter().flat_map(Scenario::against).collect();
    }
    let only = &arguments.only;
    let wanted = |scenario: &&Scenario| only.is_empty() || only.iter().any(|name| name == scenario.name);
    let chosen = || scenarios.iter().filter(wanted);
    let mut measured: Vec<Measured> =
        chosen().map(|scenario| Measured::new(scenario.name, scenario.target)).collect();
    // Round by round, so that scenarios that are compared run within the same minute.
    for round in 0..arguments.plan.rounds {
        for (scenario, measured) in chosen().zip(&mut measured) {
            eprintln!("round {} of {}: {}", round + 1, arguments.plan.rounds, scenario.name);
            let sample = run_scenario(&servers, scenario, arguments.plan.window).await;
            measured.rounds.push(sample.map_err(|problem| format!("{}: {problem}", scenario.name))?);
        }
    }
    table::print(&measured);
    if arguments.json {
        println!("{}", table::json(&measured));
    }
    Ok(())
}

async fn run_scenario(
    servers: &Servers,
    scenario: &Scenario,
    window: Window,
) -> Result<generator::Sample, String> {
    let pids = servers.pids(scenario.target);
    // Vault is the server under test, or is called by byok from time to time, but never both at
    // once.
    let vault_on =
        if scenario.target == Target::Vault { &servers.cores.under_test } else { &servers.cores.rest };
    processes::pin(servers.vault, vault_on)?;
    generator::run(scenario, servers.address(scenario.target), window, &pids).await
}
