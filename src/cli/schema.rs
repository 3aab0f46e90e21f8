//! `byok schema`: prints the interfaces of the fronts, and the table of error codes.

use clap::Args;

use super::Failure;
use crate::model::ErrorCode;
use crate::{graphql, rest};

/// The document to print; the GraphQL schema by default.
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
        "# Error codes\n\nThe meaning of each error code and what to do about it, for callers and operators of byok. This page is made by\n\
         `byok schema --errors` from the table that both REST and GraphQL use, and a test compares the two.\n\n\
         REST answers with a problem document (RFC 9457) and the status below. GraphQL has the code in `extensions.code`, or in\n\
         an item's `error.code`, next to `retryable`. GraphQL's own status is 200 for every request that could be read. A client\n\
         that accepts `application/graphql-response+json` gets that media type, and the status below if nothing ran. Codes in\n\
         lower case are Hasura's.\n\n\
         An error names the wrong part of the request, if that is known. REST's `field`, GraphQL's `extensions.field` and an\n\
         item's `error.field` contain a path of the interface's names and of indexes in lists, such as `items[3].context`,\n\
         `byokAudit.filter.from`, or `$items[0].encoding` in a variable. No error contains a value of the request.\n\n\
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
