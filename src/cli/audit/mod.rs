//! `byok audit`: the log itself.

mod export;
mod shown;
mod verify;
mod verify_bundle;

use clap::{Args, Subcommand};

use super::Failure;

/// What to do with the log.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Verify the log in the database: every entry, the tree, the checkpoints, and the rows of DEKs
    Verify(verify::Arguments),
    /// Write a part of the log, with its proofs, as a bundle that verifies without us
    Export(export::Arguments),
    /// Verify a bundle: needs no server, no database and no configuration
    VerifyBundle(verify_bundle::Arguments),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.what {
        What::Verify(arguments) => verify::run(arguments).await,
        What::Export(arguments) => export::run(arguments).await,
        What::VerifyBundle(arguments) => verify_bundle::run(&arguments),
    }
}
