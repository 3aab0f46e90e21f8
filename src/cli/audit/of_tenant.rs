//! The option that all commands on a log share.

use clap::Args;

use crate::cli::assemble;

/// The tenant whose log a command reads or writes.
#[derive(Args)]
pub(super) struct OfTenant {
    /// The tenant whose log it is
    #[arg(long, default_value = assemble::PRIMARY, value_name = "NAME")]
    pub(super) tenant: String,
}
