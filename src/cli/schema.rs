//! `byok schema`: what the fronts take and give.

use clap::Args;

use super::Failure;
use crate::{graphql, rest};

/// What to print.
#[derive(Args)]
pub(super) struct Arguments {
    /// The OpenAPI document of the REST front instead
    #[arg(long)]
    openapi: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match arguments.openapi {
        true => println!("{:#}", rest::document()),
        false => print!("{}", graphql::sdl()),
    }
    Ok(())
}
