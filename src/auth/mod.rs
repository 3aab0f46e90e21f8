//! Authentication and authorization of callers. Independent of keys, plaintexts and tenants.
//!
//! | file | contents |
//! |---|---|
//! | `authn` | [`Authenticator`]: finds the [`Identity`](crate::model::Identity) for a request's headers |
//! | `jwt` | JSON Web Tokens, verified with Hasura's own configuration; [`mint`] signs them for development |
//! | `admin_tokens` | named tokens of operators, stored as hashes |
//! | `tenant_claim` | [`TenantClaim`]: the tenant that a verified JWT names |
//! | `policy` | [`Policy`]: whether a caller may do an operation; pure |
//!
//! No refusal and no log line of this module shows a credential or a claim's value.

mod admin_tokens;
mod authn;
mod headers;
mod jwt;
mod policy;
mod tenant_claim;

#[cfg(test)]
mod authn_tests;
#[cfg(test)]
mod corpus_tests;

pub use authn::{Authenticator, SECRET_HEADER};
pub use jwt::{KeysFound, MintClaims, MintError, hs256_configuration, mint};
pub use policy::Policy;
pub use tenant_claim::TenantClaim;

/// The position of a YAML error, for a message that quotes nothing of the file.
fn position_of(error: &serde_saphyr::Error) -> String {
    match error.location() {
        Some(location) => format!(" (line {}, column {})", location.line(), location.column()),
        None => String::new(),
    }
}
