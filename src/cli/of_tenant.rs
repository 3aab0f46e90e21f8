//! The option of all commands that read or write a tenant's log or DEKs.

use clap::Args;

use super::assemble;

/// The tenant whose log a command reads or writes.
#[derive(Args)]
pub(super) struct OfTenant {
    /// The tenant that the command is for
    #[arg(long, default_value = assemble::PRIMARY, value_name = "NAME")]
    pub(super) tenant: String,
}
