//! `byok migrate`: brings the schema up to date, without serving.

use clap::Args;

use super::{Failure, assemble};
use crate::config::Env;

/// The command's arguments.
#[derive(Args)]
pub(super) struct Arguments {
    /// Also take away what only servers of the previous release need; none of them may run any more
    #[arg(long)]
    finish: bool,
}

pub(super) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let database = assemble::database_only(&Env::of_process()).await?;
    let migrated = if arguments.finish { database.finish_rollout().await } else { database.migrate().await };
    let report = migrated.map_err(|error| Failure::Running(format!("migrate: {error}")))?;
    database.build_indexes().await.map_err(|error| Failure::Running(format!("indexes: {error:?}")))?;
    println!("{} of {} migrations applied, {} of them now", report.applied, report.expected, report.ran);
    if report.waiting > 0 {
        println!("{}", waiting(report.waiting));
    }
    Ok(())
}

/// Returns the sentence about migrations that wait for the end of an upgrade.
pub(super) fn waiting(migrations: u32) -> String {
    let verb = if migrations == 1 { "waits" } else { "wait" };
    format!(
        "{migrations} {verb} until no server of the previous release runs: then run `byok migrate --finish`"
    )
}
