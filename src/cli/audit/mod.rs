//! `byok audit`: the commands for the audit log.

mod admin;
mod checkpoints;
mod export;
mod reconcile;
mod report;
mod reseal;
mod trust;
mod verify;
mod verify_bundle;

use clap::{Args, Subcommand};

use super::Failure;

/// The command on the log.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Verify the log in the database: every entry, the tree, the checkpoints, and the rows of DEKs
    Verify(verify::Arguments),
    /// Write a part of the log, with its proofs, as a bundle that can be verified without us
    Export(export::Arguments),
    /// Verify a bundle: needs no server, no database and no configuration
    VerifyBundle(verify_bundle::Arguments),
    /// Print the public keys that verify checkpoints, for auditors to pin; or make a key that signs
    /// checkpoints
    Key(checkpoints::Key),
    /// After a restore of the database: end the log that is behind what was published, and open
    /// another that names it
    Restored(checkpoints::Restored),
    /// Legal hold: keep all entries whatever their age, and erase nothing
    Hold(admin::Hold),
    /// Set a personal value to null wherever the log has it; the log still verifies
    Erase(admin::Erase),
    /// Drop the entries that are older than BYOK_AUDIT_RETENTION_DAYS, and keep their hashes. Of
    /// all tenants: they share the partitions that are dropped
    Prune(admin::Prune),
    /// Give all rows of DEKs new MACs after BYOK_ROW_MAC_KEY was lost. The log and each row are
    /// verified first
    Reseal(reseal::Arguments),
    /// Compare the log with the KMS's own log, exported to a file, and show the calls that are in
    /// only one of them
    Reconcile(reconcile::Arguments),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.what {
        What::Verify(arguments) => verify::run(arguments).await,
        What::Export(arguments) => export::run(arguments).await,
        What::VerifyBundle(arguments) => verify_bundle::run(&arguments),
        What::Key(arguments) => checkpoints::key(&arguments).await,
        What::Restored(arguments) => checkpoints::restored(arguments).await,
        What::Hold(arguments) => admin::hold(arguments).await,
        What::Erase(arguments) => admin::erase(arguments).await,
        What::Prune(arguments) => admin::prune(arguments).await,
        What::Reseal(arguments) => reseal::run(arguments).await,
        What::Reconcile(arguments) => reconcile::run(arguments).await,
    }
}
