//! How long a hot record still decrypts after the customer has turned the key off. Each provider
//! has a real `byok serve` with PostgreSQL and that provider's test server, at full load; see
//! `docs/performance.md`.
//!
//! ```text
//! scripts/servers install                           once
//! cargo bench --bench revocation                    100 trials of a disabled key at each provider
//! cargo bench --bench revocation -- --all           and every other outage, a tenth as often
//! cargo bench --bench revocation -- --json          and one JSON object on the last line
//! cargo bench --bench revocation -- --quick         two trials of each: does it run at all?
//! cargo bench --bench revocation -- --trials N --seed N --provider NAME --switch NAME
//!     --set NAME=VALUE
//! ```
//!
//! The only random value is the moment between two probes at which each trial begins. It comes from
//! the seed, which is printed.

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

mod arguments;
mod connection;
mod integrity;
mod load;
mod measure;
mod observations;
mod outage;
mod random;
mod servers;
mod table;
mod trial;
mod writer;

use std::process::ExitCode;

use futures_util::future::try_join_all;

use arguments::Arguments;
use measure::{Machine, Outcome};

fn main() -> ExitCode {
    servers::bench("revocation", Arguments::read, run)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    println!("seed {}", arguments.seed);
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let outcomes = runtime.block_on(async {
        let machine = Machine::default();
        // A server takes seconds to recover, and uses no processor meanwhile: another provider's
        // server is measured.
        let of_each = arguments.providers.iter().map(|provider| all_of(arguments, provider, &machine));
        tokio::select! {
            outcomes = try_join_all(of_each) => outcomes,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        }
    })?;
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    table::print(&outcomes);
    if arguments.json {
        println!("{}", table::json(&outcomes, arguments.seed));
    }
    if outcomes.iter().all(Outcome::passed) {
        Ok(())
    } else {
        Err("a plaintext came after the bound, or a record was lost or doubled".to_owned())
    }
}

async fn all_of(
    arguments: &Arguments,
    provider: &'static str,
    machine: &Machine,
) -> Result<Vec<Outcome>, String> {
    let mut outcomes = Vec::new();
    for (outage, trials) in arguments.outages() {
        let outcome = measure::measure(provider, (outage, trials), arguments, machine).await;
        outcomes.extend(outcome.map_err(|problem| format!("{provider}, {}: {problem}", outage.name()))?);
    }
    Ok(outcomes)
}
