//! `byok audit`: the log itself.

mod checkpoints;

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
    /// Print the public keys that verify checkpoints, for whoever pins them; or make a key that signs them
    Key(checkpoints::Key),
    /// After a restore of the database: end the log that is behind what was published, and open another that names it
    Restored(checkpoints::Restored),
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.what {
        What::Key(arguments) => checkpoints::key(&arguments),
        What::Restored(arguments) => checkpoints::restored(arguments).await,
    }
}
