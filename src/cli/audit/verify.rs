//! `byok audit verify`: the log in the database. Only reads.

use std::path::PathBuf;

use clap::Args;

use super::shown::{bar, checkpoint, keys, show};
use crate::audit::{Trust, verify_log};
use crate::cli::{Failure, assemble};
use crate::config::Env;

/// Against what to verify.
#[derive(Args)]
pub(super) struct Arguments {
    /// A public key that checkpoints count with, as `NAME+ID+KEY` or a file of that; may be given again
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A checkpoint that was kept elsewhere
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let trust = Trust { keys: keys(&arguments.keys)?, pinned: checkpoint(arguments.checkpoint.as_deref())? };
    let (database, tenant) = assemble::log(&Env::of_process()).await?;
    let bar = bar("{bar:40} {pos}/{len} entries  {per_sec}  {eta} left");
    let report = verify_log(&*database, &tenant, trust, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    show(&report.map_err(assemble::unread)?, arguments.json)
}
