//! One configuration at work: its keys of the moment, and the tokens that they have verified.

use std::sync::{Arc, PoisonError, RwLock};

use moka::sync::Cache;

use super::claims::HasuraClaims;
use super::configuration::{Configuration, KeySource};
use super::keys::KeySet;
use super::token::{self, TokenError, Validity};
use crate::crypto;
use crate::model::{Refusal, Timestamp};

/// How many verified tokens are remembered.
const REMEMBERED: u64 = 10_000;

/// Verifies the tokens of one configuration.
pub(super) struct Verifier {
    configuration: Configuration,
    /// None until they have been fetched.
    keys: RwLock<Option<Arc<KeySet>>>,
    /// By SHA-256 of the token. A token comes many times, and a signature costs 3 µs (HMAC) to 100 µs (P-256).
    verified: Cache<[u8; 32], Arc<Verified>>,
}

struct Verified {
    /// The keys that verified it: once they are replaced, this entry counts no more.
    keys: Arc<KeySet>,
    validity: Validity,
    claims: Arc<HasuraClaims>,
}

impl Verifier {
    pub(super) fn new(configuration: Configuration) -> Self {
        let keys = match &configuration.key {
            KeySource::Fixed(keys) => Some(Arc::clone(keys)),
            KeySource::Url(_) => None,
        };
        Self { configuration, keys: RwLock::new(keys), verified: Cache::new(REMEMBERED) }
    }

    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// From now on, these keys and no others count, for new tokens and for remembered ones.
    pub(super) fn replace_keys(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
    }

    /// The Hasura claims of a token that is valid at this moment. Times are checked at every call; signature, issuer,
    /// audience and claims once, as long as the keys stay the same.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<HasuraClaims>, Refusal> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let keys = keys.ok_or(TokenError::KeysNotFetched)?;
        if token.len() > token::MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong.into());
        }
        let name = crypto::sha256(token.as_bytes());
        if let Some(verified) = self.verified.get(&name)
            && Arc::ptr_eq(&verified.keys, &keys)
        {
            if let Err(error) = verified.validity.check(now) {
                self.verified.invalidate(&name);
                return Err(error.into());
            }
            return Ok(Arc::clone(&verified.claims));
        }
        let claims = token::verify_signature(token, &keys)?;
        let validity = Validity::read(&claims, &self.configuration)?;
        validity.check(now)?;
        token::check_parties(&claims, &self.configuration)?;
        let claims = Arc::new(self.configuration.claims.read(&claims)?);
        self.verified.insert(name, Arc::new(Verified { keys, validity, claims: Arc::clone(&claims) }));
        Ok(claims)
    }
}
