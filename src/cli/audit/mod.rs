//! `byok audit`: the log itself.

mod reconcile;

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
    /// Hold the log against the KMS's own, exported to a file: what is in one and not in the other
    Reconcile(reconcile::Arguments),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.what {
        What::Reconcile(arguments) => reconcile::run(arguments).await,
    }
}
