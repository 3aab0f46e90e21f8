//! `byok audit`: the log itself.

mod keeping;
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
    /// Keep all entries whatever their age, and erase nothing: legal hold
    Hold(keeping::Hold),
    /// Set a personal value to null wherever the log has it; the log still verifies
    Erase(keeping::Erase),
    /// Drop the entries that are older than BYOK_AUDIT_RETENTION_DAYS, and keep their hashes
    Prune(keeping::Prune),
    /// Hold the log against the KMS's own, exported to a file: what is in one and not in the other
    Reconcile(reconcile::Arguments),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.what {
        What::Hold(arguments) => keeping::hold(arguments).await,
        What::Erase(arguments) => keeping::erase(arguments).await,
        What::Prune(arguments) => keeping::prune(arguments).await,
        What::Reconcile(arguments) => reconcile::run(arguments).await,
    }
}
