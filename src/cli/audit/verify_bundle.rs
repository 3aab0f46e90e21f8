//! `byok audit verify-bundle`: verifies a bundle. Needs the file and what the auditor has: public
//! keys, and a checkpoint if there is one.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Args;

use super::report::{bar, print_report};
use super::trust::{checkpoint, keys};
use crate::cli::Failure;
use crate::verify::{Trust, verify_bundle};

/// The bundle to verify, and the keys and checkpoint to verify it with.
#[derive(Args)]
pub(super) struct Arguments {
    /// The bundle
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A public key whose signatures on checkpoints are trusted: `NAME+ID+KEY`, or a file with such
    /// keys; may be repeated
    #[arg(long = "key", value_name = "KEY", required = true)]
    keys: Vec<String>,
    /// A checkpoint that was saved elsewhere
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let trust = Trust { keys: keys(&arguments.keys)?, pinned: checkpoint(arguments.checkpoint.as_deref())? };
    let failed = |error: std::io::Error| Failure::Running(format!("{}: {error}", arguments.file.display()));
    let file = File::open(&arguments.file).map_err(failed)?;
    let bar = bar("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
    bar.set_length(file.metadata().map_or(0, |file| file.len()));
    let report = verify_bundle(&mut BufReader::new(file), &trust, &mut |read| bar.set_position(read));
    bar.finish_and_clear();
    print_report(&report.map_err(failed)?, arguments.json)
}
