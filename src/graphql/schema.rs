//! The schema, built without data, so that the command line can print it without a database.

use async_graphql::{EmptySubscription, Schema, ValidationMode};

use super::mutation::Mutation;
use super::query::Query;

/// The type of the schema.
pub(super) type ByokSchema = Schema<Query, Mutation, EmptySubscription>;

/// The deepest nesting of fields. Hasura's introspection needs 13.
const MAX_DEPTH: usize = 16;
/// The deepest nesting, fragments included.
const MAX_RECURSION: usize = 32;
/// The most directives on one field.
const MAX_DIRECTIVES: usize = 8;

/// The schema, for documents that `validity` has found valid. Its limits add to those of `cost`.
/// There is no limit on complexity, which says little here: the largest join is more complex than
/// anything harmful.
pub(super) fn schema() -> ByokSchema {
    Schema::build(Query, Mutation, EmptySubscription)
        .validation_mode(ValidationMode::Fast)
        .limit_depth(MAX_DEPTH)
        .limit_recursive_depth(MAX_RECURSION)
        .limit_directives(MAX_DIRECTIVES)
        .disable_suggestions()
        .finish()
}

/// The schema in GraphQL's schema definition language: what `byok schema` prints and
/// `schema.graphql` holds.
pub fn sdl() -> String {
    let sdl = schema().sdl_with_options(
        async_graphql::SDLExportOptions::new().prefer_single_line_descriptions().use_space_ident(),
    );
    format!("{}\n", sdl.trim_end())
}
