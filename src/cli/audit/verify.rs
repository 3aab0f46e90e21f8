//! `byok audit verify`: verifies the log in the database. Only reads.

use std::path::PathBuf;

use clap::Args;

use super::report::{bar, print_report};
use super::trust::{checkpoint, ended, keys};
use crate::audit::RowMacs;
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::{Env, Reader, RowMac};
use crate::verify::{Trust, check_row_macs, verify_log};

/// The log to verify, and the keys and checkpoint to verify it with.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: OfTenant,
    /// A public key whose signatures on checkpoints are trusted: `NAME+ID+KEY`, or a file with such
    /// keys; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// The number of a log, if a restored database continued in another. Default: the current one
    #[arg(long, value_name = "N")]
    log: Option<u32>,
    /// A checkpoint that was saved elsewhere
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let trust = Trust { keys: keys(&arguments.keys)?, pinned: checkpoint(arguments.checkpoint.as_deref())? };
    let env = Env::of_process();
    let RowMac { keys, required, .. } = row_mac(&env)?;
    let macs = keys.map(RowMacs::new);
    let (database, tenant) = assemble::log(&env, &arguments.of.tenant).await?;
    let bar = bar("{bar:40} {pos}/{len} entries  {per_sec}  {eta} left");
    let ended = ended(&*database, &tenant, arguments.log).await?;
    let report = verify_log(&*database, &tenant, ended, trust, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })
    .await;
    let mut report = report.map_err(assemble::read_failure)?;
    if arguments.log.is_none() {
        let checked = check_row_macs(&*database, &tenant, macs.as_ref(), required, &mut report).await;
        checked.map_err(assemble::read_failure)?;
    }
    bar.finish_and_clear();
    print_report(&report, arguments.json)
}

/// Reads the settings of the rows' MACs from the environment.
pub(super) fn row_mac(env: &Env) -> Result<RowMac, Failure> {
    let mut reader = Reader::new(env);
    let settings = RowMac::read(&mut reader);
    let errors = reader.into_errors();
    if errors.is_empty() { Ok(settings) } else { Err(Failure::Configuration(errors)) }
}
