//! A compact token (RFC 7515, section 7.1; RFC 7519): its parts, its signature and its registered
//! claims.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::configuration::Configuration;
use super::keys::{Algorithm, KeySet};
use crate::model::{ErrorCode, Refusal, Timestamp};

/// The longest token that is parsed, in bytes. HTTP servers and proxies refuse headers long before.
pub(super) const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Why a token is refused. The texts are Hasura's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    TooLong,
    /// The token has this many parts instead of header, claims and signature.
    Parts(usize),
    /// The header is not a JSON object with an `alg`, or requires an extension (`crit`); none is
    /// supported.
    Header,
    /// The signature is wrong, there is no key for it, or the key is for another algorithm: one
    /// answer for all.
    Signature,
    /// The claims are not a JSON object, or `exp`, `nbf` or `iat` is not a number.
    Claims,
    /// No keys have been fetched from `jwk_url` yet.
    KeysNotFetched,
    /// The token names an unknown key, and `jwk_url` is out of reach.
    ProviderDown,
    Expired,
    ExpMissing,
    NotYetValid,
    IssuedInFuture,
    Issuer,
    Audience,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parts(parts) => {
                return write!(
                    f,
                    "JWSError (CompactDecodeError Invalid number of parts: Expected 3 parts; got {parts})"
                );
            }
            Self::TooLong => "JWSError (CompactDecodeError the token is too long)",
            Self::Header => "JWSError (JSONDecodeError the header is not one that we know)",
            Self::Signature => "JWSError JWSInvalidSignature",
            Self::Claims => "JWTClaimsSetDecodeError",
            Self::KeysNotFetched => "JWKNotFound: the identity provider's keys are not known yet",
            Self::ProviderDown => {
                "JWKNotFound: the identity provider is out of reach, and the key may be a new one"
            }
            Self::Expired => "JWTExpired",
            Self::ExpMissing => "JWTExpired: the token has no exp",
            Self::NotYetValid => "JWTNotYetValid",
            Self::IssuedInFuture => "JWTIssuedAtFuture",
            Self::Issuer => "JWTNotInIssuer",
            Self::Audience => "JWTNotInAudience",
        })
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let code = match error {
            // The token may be valid.
            TokenError::KeysNotFetched | TokenError::ProviderDown => ErrorCode::Unavailable,
            _ => ErrorCode::InvalidJwt,
        };
        Self::because(code, format!("Could not verify JWT: {error}"))
    }
}

/// Whether `text` has the form of a JWT: three parts. If not, it may be an admin token.
pub(in crate::auth) fn has_jwt_shape(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "is_present")]
    crit: bool,
}

/// True for any value: even `null` requires an extension (RFC 7515, 4.1.11).
fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The claims of a token whose signature one of `keys` verifies. Does not check times, issuer or
/// audience.
pub(super) fn verify_signature(token: &str, keys: &KeySet) -> Result<Value, TokenError> {
    let (message, header, claims, signature) = parts(token)?;
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Header)?;
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| TokenError::Header)?;
    if header.crit {
        return Err(TokenError::Header);
    }
    let algorithm = Algorithm::parse(&header.alg).ok_or(TokenError::Signature)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Signature)?;
    if !keys.verify(algorithm, header.kid.as_deref(), message.as_bytes(), &signature) {
        return Err(TokenError::Signature);
    }
    claims_of(claims)
}

/// The `kid` of an unverified token; `None` if it has none or its header is invalid.
pub(super) fn unverified_key_id(token: &str) -> Option<String> {
    let (_, header, _, _) = parts(token).ok()?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Header<'_> = serde_json::from_slice(&header).ok()?;
    header.kid.map(Cow::into_owned)
}

/// The `iss` of an unverified token, to select the configuration that will verify it.
pub(super) fn unverified_issuer(token: &str) -> Result<Option<String>, TokenError> {
    let (_, _, claims, _) = parts(token)?;
    Ok(claims_of(claims)?.get("iss").and_then(Value::as_str).map(str::to_owned))
}

fn parts(token: &str) -> Result<(&str, &str, &str, &str), TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    if !has_jwt_shape(token) {
        return Err(TokenError::Parts(token.split('.').count()));
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Parts(1))?;
    let (header, claims) = message.split_once('.').ok_or(TokenError::Parts(2))?;
    Ok((message, header, claims, signature))
}

fn claims_of(encoded: &str) -> Result<Value, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Claims)?;
    let claims: Value = serde_json::from_slice(&json).map_err(|_| TokenError::Claims)?;
    if claims.is_object() { Ok(claims) } else { Err(TokenError::Claims) }
}

/// Checks issuer and audience. If an audience is configured, a token without `aud` is refused.
pub(super) fn check_parties(claims: &Value, configuration: &Configuration) -> Result<(), TokenError> {
    if let Some(issuer) = &configuration.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(TokenError::Issuer);
    }
    if let Some(ours) = &configuration.audience {
        let is_known = |value: &Value| value.as_str().is_some_and(|text| ours.iter().any(|our| our == text));
        let has_known = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().any(is_known),
            Some(one) => is_known(one),
            None => false,
        };
        if !has_known {
            return Err(TokenError::Audience);
        }
    }
    Ok(())
}

/// The times of a token, with the allowed skew applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    not_before: Option<Timestamp>,
    issued_at: Option<Timestamp>,
    expires: Option<Timestamp>,
}

impl Validity {
    /// Reads `exp`, `nbf` and `iat` (RFC 7519, sections 4.1.4 to 4.1.6).
    pub(super) fn read(claims: &Value, configuration: &Configuration) -> Result<Self, TokenError> {
        let skew = i64::try_from(configuration.skew.as_micros()).unwrap_or(i64::MAX);
        let time = |name: &str, skew: i64| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = value.as_f64().ok_or(TokenError::Claims)?;
                // A cast of a float saturates: a time out of range becomes the latest or earliest
                // possible one.
                Ok(Some(Timestamp(((seconds * 1e6) as i64).saturating_add(skew))))
            }
        };
        let validity = Self {
            not_before: time("nbf", -skew)?,
            issued_at: time("iat", -skew)?,
            expires: time("exp", skew)?,
        };
        if configuration.require_exp && validity.expires.is_none() {
            return Err(TokenError::ExpMissing);
        }
        Ok(validity)
    }

    /// Checks the times at `now`.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), TokenError> {
        if self.expires.is_some_and(|expires| now >= expires) {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|begins| now < begins) {
            return Err(TokenError::NotYetValid);
        }
        if self.issued_at.is_some_and(|issued| now < issued) {
            return Err(TokenError::IssuedInFuture);
        }
        Ok(())
    }
}
