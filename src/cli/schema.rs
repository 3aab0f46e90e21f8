//! `byok schema`: prints the interfaces of the front ends.

use clap::Args;

use super::Failure;
use crate::model::ErrorCode;
use crate::{graphql, rest};

/// What to print.
#[derive(Args)]
pub(super) struct Arguments {
    /// The OpenAPI document of the REST front instead
    #[arg(long)]
    openapi: bool,
    /// The table of error codes instead, in Markdown
    #[arg(long, conflicts_with = "openapi")]
    errors: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match (arguments.openapi, arguments.errors) {
        (true, _) => println!("{:#}", rest::document()),
        (_, true) => print!("{}", errors()),
        (false, false) => print!("{}", graphql::sdl()),
    }
    Ok(())
}

/// Generates `docs/errors.md` from the single table of error codes.
fn errors() -> String {
    let mut text = String::from(
        "# Error codes\n\nWhat each error code means, and what to do about it; for callers and operators of byok.\n\
         Made by `byok schema --errors` from the table that both fronts use; a test keeps them the same.\n\n\
         REST answers a problem document (RFC 9457) with the status below; GraphQL puts the code into `extensions.code`, or\n\
         into `error.code` of an item, beside `retryable`. GraphQL's own status is 200 for all that could be read as a request;\n\
         a client that accepts `application/graphql-response+json` gets that media type, and the status below if nothing ran.\n\
         The lower-case ones are Hasura's own.\n\n\
         An error names the wrong part of the request where it can: REST's `field`, GraphQL's `extensions.field` and an item's\n\
         `error.field` hold a path of the interface's own names and of indexes in lists, such as `items[3].context`,\n\
         `byokAudit.filter.from`, or `$items[0].encoding` in a variable. No error holds a value of a request.\n\n\
         | code | HTTP | a retry helps | what it means | what to do |\n|---|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let retry = if code.retryable() { "yes" } else { "no" };
        let (name, status) = (code.as_str(), code.http_status());
        text.push_str(&format!(
            "| `{name}` | {status} | {retry} | {} | {} |\n",
            code.message(),
            code.remedy()
        ));
    }
    text
}
