//! The GraphQL front, a remote schema for Hasura: translates between GraphQL and the use cases,
//! nothing else.
//!
//! *Read the body → parse → estimate the cost → validate → run → write.* Nothing here logs or
//! traces: a query's text and its variables hold plaintexts, and a join holds ciphertexts in the
//! text itself. For the same reason an error names only the location and the schema's names of what
//! is wrong in a request, and no document that holds a value is kept after its request.
//!
//! | file | what it does |
//! |---|---|
//! | `http` | method, content type, size, identity; the response |
//! | `execution` | the steps above |
//! | `media` | the media type and the status of an answer |
//! | `body` | the JSON of a request |
//! | `parser` | the document, parsed into async-graphql's types |
//! | `validated_cache` | documents that were valid before and hold no value |
//! | `cost` | the cost of a document and the budget for it; whether it needs an identity |
//! | `denied` | documents that ask only for what the caller may not do |
//! | `validity` | whether a document is valid, with its variables |
//! | `schema` | the schema and its limits |
//! | `query`, `mutation` | the root fields |
//! | `call`, `collector` | the state that the fields of one request share; one call for many aliases |
//! | `item`, `rotation`, `audit`, `enums`, `scalars` | the types |
//! | `error` | the JSON of an answer and of its errors |

mod audit;
mod body;
mod call;
mod collector;
mod cost;
mod denied;
mod enums;
mod error;
mod execution;
mod http;
mod item;
mod media;
mod mutation;
mod parser;
mod query;
mod rotation;
mod scalars;
mod schema;
mod validated_cache;
mod validity;

#[cfg(test)]
mod schema_tests;

pub use self::http::{refused, router};
pub use execution::are_valid;
pub use media::Media;
pub use schema::sdl;
