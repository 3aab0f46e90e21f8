//! Who calls, and what they may do. Knows nothing of keys or of plaintext, and decides nothing about tenants.
//!
//! | file | what it holds |
//! |---|---|
//! | `authn` | [`Authenticator`]: from a request's headers to an [`Identity`](crate::model::Identity) |
//! | `jwt` | tokens, verified from Hasura's own configuration; [`mint`] signs some for development |
//! | `admin_tokens` | named tokens of operators, known by their hashes |
//! | `policy` | [`Policy`]: pure; may this caller do this |
//!
//! No refusal and no log line of this room shows a credential or a claim's value.

mod admin_tokens;
mod authn;
mod headers;
mod jwt;
mod policy;

#[cfg(test)]
mod authn_tests;
#[cfg(test)]
mod corpus_tests;

pub use authn::{Authenticator, SECRET_HEADER};
pub use jwt::{KeysFound, MintClaims, MintError, hs256_configuration, mint};
pub use policy::Policy;

/// Where in a file a YAML error stands, for a message that quotes nothing of the file.
fn place_of(error: &serde_saphyr::Error) -> String {
    match error.location() {
        Some(place) => format!(" (line {}, column {})", place.line(), place.column()),
        None => String::new(),
    }
}
