//! JSON Web Tokens, verified as Hasura verifies them, from the same configuration.
//!
//! Signatures are verified by ring. Only the parsing of the compact form is written here: a JWT
//! library would bring another cryptographic library, or need an adapter to ring that is longer
//! than this.
//!
//! Stricter than Hasura: a token needs an `exp` (unless waived) and, if an audience is configured,
//! an `aud`; its `alg` must be the configured `type`; a duplicate header is refused; shared secrets
//! in a JWK set are ignored; the `kid` of token and key, if both have one, must be equal.
//!
//! A refusal shows nothing of the token. Only the state of `jwk_url` is logged.

mod claims;
mod configuration;
mod jwk_url;
mod keys;
mod mint;
mod path;
mod pem;
mod refetch;
mod token;
mod verifier;

#[cfg(test)]
mod case_tests;
#[cfg(test)]
pub(super) mod testkit;

use std::sync::Arc;

use futures_util::future::join_all;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use tokio_util::sync::CancellationToken;

use self::configuration::{KeySource, Location};
use self::verifier::Verifier;
use super::headers::the_one;
use crate::model::{Clock, ErrorCode, Refusal, Timestamp};

pub(super) use self::claims::HasuraClaims;
pub use self::jwk_url::KeysFound;
pub use self::mint::{MintClaims, MintError, hs256_configuration, mint};
pub(super) use self::token::has_jwt_shape;

/// The JWT mode: one configuration, or several, of which the location and the issuer of the token
/// select one.
pub(super) struct Jwt {
    verifiers: Vec<Verifier>,
}

impl Jwt {
    /// Reads the JSON of `HASURA_GRAPHQL_JWT_SECRET`.
    ///
    /// # Errors
    ///
    /// All errors in it; no text shows a value.
    pub(super) fn of_one(json: &str, require_exp: bool) -> Result<Self, Vec<String>> {
        let configuration = configuration::parse_one(json, require_exp)?;
        Ok(Self { verifiers: vec![Verifier::new(configuration)] })
    }

    /// Reads the JSON of `HASURA_GRAPHQL_JWT_SECRETS`.
    ///
    /// # Errors
    ///
    /// All errors in it. Each text begins with the index in the list, and none shows a value.
    pub(super) fn of_many(json: &str, require_exp: bool) -> Result<Self, Vec<String>> {
        let configurations = configuration::parse_many(json, require_exp)?;
        Ok(Self { verifiers: configurations.into_iter().map(Verifier::new).collect() })
    }

    /// The verified claims of the request's token. `None` if there is no token, or none for any of
    /// the configurations.
    pub(super) fn claims(
        &self,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Option<Arc<HasuraClaims>>, Refusal> {
        Ok(match self.selected(headers)? {
            Some((verifier, token)) => Some(verifier.verify(token, now)?),
            None => None,
        })
    }

    /// The request's token, and the configuration for it.
    fn selected<'h>(&self, headers: &'h HeaderMap) -> Result<Option<(&Verifier, &'h str)>, Refusal> {
        // A configuration matches if there is a token at its location, and the token's issuer may
        // be its own.
        let mut selected = None;
        for verifier in &self.verifiers {
            let Some(token) = verifier.configuration().location.token(headers)? else { continue };
            if self.verifiers.len() > 1 && !issuer_fits(verifier, token)? {
                continue;
            }
            if selected.replace((verifier, token)).is_some() {
                return Err(Refusal::because(
                    ErrorCode::InvalidHeaders,
                    "Could not verify JWT: Multiple JWTs found",
                ));
            }
        }
        Ok(selected)
    }

    /// Fetches keys early if the request's token names an unknown one. Returns whether the key is
    /// known now, so that the token should be verified again.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the keys cannot be fetched.
    pub(super) async fn look_for_key(&self, headers: &HeaderMap) -> Result<bool, Refusal> {
        let Ok(Some((verifier, token))) = self.selected(headers) else { return Ok(false) };
        verifier.look_for_key(token).await
    }

    /// Whether any configuration has keys.
    pub(super) fn knows_keys(&self) -> bool {
        self.verifiers.iter().any(Verifier::knows_keys)
    }

    /// Takes over the keys that `before` has fetched from the same URLs.
    pub(super) fn inherit(&self, before: &Self) {
        for verifier in &self.verifiers {
            if let KeySource::Url(url) = &verifier.configuration().key {
                let is_same = |other: &&Verifier| matches!(&other.configuration().key, KeySource::Url(theirs) if theirs == url);
                before.verifiers.iter().find(is_same).into_iter().for_each(|other| verifier.inherit(other));
            }
        }
    }

    /// Fetches the keys of every `jwk_url` once, and returns the results.
    pub(super) async fn try_keys(&self, client: &reqwest::Client) -> Vec<KeysFound> {
        join_all(self.verifiers.iter().filter_map(|verifier| match &verifier.configuration().key {
            KeySource::Url(url) => Some(jwk_url::try_once(client, url)),
            KeySource::Fixed(_) => None,
        }))
        .await
    }

    /// Whether the request has something in the form of a JWT at a configured location.
    pub(super) fn is_present(&self, headers: &HeaderMap) -> Result<bool, Refusal> {
        for verifier in &self.verifiers {
            if verifier.configuration().location.token(headers)?.is_some_and(has_jwt_shape) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps the keys of every `jwk_url` up to date until `stop`. Returns at once if there is none.
    pub(super) async fn keep_keys_fresh(
        &self,
        client: &reqwest::Client,
        clock: &dyn Clock,
        stop: &CancellationToken,
    ) {
        join_all(self.verifiers.iter().filter_map(|verifier| match &verifier.configuration().key {
            KeySource::Url(url) => Some(jwk_url::keep_fresh(verifier, url, client, clock, stop)),
            KeySource::Fixed(_) => None,
        }))
        .await;
    }
}

/// Whether a token may be for this configuration by its issuer. A configuration without an issuer
/// accepts any token, and a token without an issuer fits any configuration.
fn issuer_fits(verifier: &Verifier, token: &str) -> Result<bool, Refusal> {
    let Some(ours) = &verifier.configuration().issuer else { return Ok(true) };
    Ok(token::unverified_issuer(token)?.is_none_or(|theirs| theirs == *ours))
}

impl Location {
    /// The value at this location, if any.
    fn token<'h>(&self, headers: &'h HeaderMap) -> Result<Option<&'h str>, Refusal> {
        match self {
            Self::Authorization => bearer(headers),
            Self::Cookie(name) => {
                // HTTP/2 may split the header, but not a cookie (RFC 9113, section 8.2.3).
                let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
                let pairs =
                    cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
                let mut values = pairs.filter(|(key, _)| key == name).map(|(_, value)| value);
                match (values.next(), values.next()) {
                    (Some(_), Some(_)) => Err(Refusal::because(
                        ErrorCode::InvalidHeaders,
                        "The cookie of the JWT is present more than once",
                    )),
                    (value, _) => Ok(value),
                }
            }
            Self::Header(name) => the_one(headers, name),
        }
    }
}

/// The token of `Authorization: Bearer <token>`, parsed as by Hasura: two words, the first in
/// exactly this spelling.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let malformed = || Refusal::because(ErrorCode::InvalidHeaders, "Malformed Authorization header");
    let Some(value) = the_one(headers, &AUTHORIZATION).map_err(|_| malformed())? else { return Ok(None) };
    let mut words = value.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("Bearer"), Some(token), None) => Ok(Some(token)),
        _ => Err(malformed()),
    }
}
