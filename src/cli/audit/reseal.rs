//! `byok audit reseal`: gives all rows of DEKs new MACs, after the secret was lost. Works as the
//! owner of the tables.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::admin::failed;
use super::report::{bar, print_report};
use super::trust::{checkpoint, keys};
use super::verify::row_mac;
use crate::admin::{LogAdmin, Resealed};
use crate::audit::{Committer, RowMacs};
use crate::cli::of_tenant::OfTenant;
use crate::cli::{Failure, assemble};
use crate::config::Env;
use crate::model::{Clock, SystemClock};
use crate::verify::{Trust, verify_log};

/// The operator, and the keys and checkpoint to verify the log with beforehand.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: OfTenant,
    /// A public key whose signatures on checkpoints are trusted: `NAME+ID+KEY`, or a file with such
    /// keys; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A checkpoint that was saved elsewhere
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Who does this; recorded as the user of the entry
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let trust = Trust { keys: keys(&arguments.keys)?, pinned: checkpoint(arguments.checkpoint.as_deref())? };
    let env = Env::of_process();
    let unset = || Failure::Running("set BYOK_ROW_MAC_KEY to the secret to seal with".to_owned());
    let macs = row_mac(&env)?.keys.map(RowMacs::new).ok_or_else(unset)?;
    let (database, tenant) = assemble::as_owner(&env, &arguments.of.tenant).await?;
    let bar = bar("{bar:40} {pos}/{len} entries  {per_sec}  {eta} left");
    let report = verify_log(&*database, &tenant, None, trust, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    let report = report.map_err(assemble::read_failure)?;
    if !report.is_clean() {
        println!("nothing was sealed: the log or a row does not verify");
        return print_report(&report, false);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(database.clone(), clock.clone()));
    let admin = LogAdmin::new(database, committer, clock, arguments.by);
    let Resealed { sealed, kept, contradicted, damaged } =
        admin.reseal(&tenant, &macs).await.map_err(failed)?;
    println!("{sealed} rows sealed; {kept} already had MACs of this secret");
    if let Some(finding) = damaged {
        println!("{}: {finding}", finding.name());
        return Err(Failure::Running("the log does not hold: the other rows were not sealed".to_owned()));
    }
    if contradicted.is_empty() {
        return Ok(());
    }
    contradicted.iter().for_each(|finding| println!("{}: {finding}", finding.name()));
    Err(Failure::Running("these rows contradict the log, and were not sealed".to_owned()))
}
