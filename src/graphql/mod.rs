//! The GraphQL front, a remote schema for Hasura: translates between GraphQL and the use cases, nothing else.
//!
//! *Read the body → parse → survey → validate → run → write.* Nothing here logs or traces: a query's text and its
//! variables hold plaintexts, and a join holds ciphertexts in the text itself. For the same reason no error says more of
//! a request than where in it something is wrong, and by which names, and no document that holds a value is kept after its
//! request.
//!
//! | file | what it does |
//! |---|---|
//! | `http` | method, content type, size, identity; the steps above |
//! | `media` | the media type of an answer, and what its status says |
//! | `body` | the JSON of a request |
//! | `lexer`, `parser` | the document, into async-graphql's types |
//! | `plain` | documents that were valid before and hold no value: they are kept |
//! | `survey`, with `budget`, `ask`, `introspected` | how much a document may ask for, and does; whether it needs an identity |
//! | `denied` | documents of which the caller may do nothing |
//! | `validity` | whether a document is valid, with its variables |
//! | `schema` | the schema and its limits |
//! | `query`, `mutation` | the root fields |
//! | `call`, `collector` | what the fields of one request share; one call of many aliases |
//! | `item`, `rotation`, `audit`, `words`, `scalars` | the types |
//! | `error` | what a refusal looks like |

mod ask;
mod audit;
mod body;
mod budget;
mod call;
mod collector;
mod denied;
mod error;
mod http;
mod introspected;
mod item;
mod lexer;
mod media;
mod mutation;
mod parser;
mod plain;
mod query;
mod rotation;
mod scalars;
mod schema;
mod survey;
mod validity;
mod words;

#[cfg(test)]
mod schema_tests;

pub use self::http::{are_valid, refused, router};
pub use media::Media;
pub use schema::sdl;
