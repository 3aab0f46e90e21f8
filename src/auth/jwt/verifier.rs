//! The verifier of one configuration: its current keys, and a cache of the tokens that they have
//! verified.

use std::sync::{Arc, PoisonError, RwLock};

use moka::sync::Cache;

use super::claims::HasuraClaims;
use super::configuration::{Configuration, KeySource};
use super::keys::KeySet;
use super::refetch::Refetch;
use super::token::{self, TokenError, Validity};
use crate::crypto;
use crate::model::{Refusal, Timestamp};

/// The number of verified tokens in the cache.
const CACHED_TOKENS: u64 = 10_000;

/// Verifies the tokens of one configuration.
pub(super) struct Verifier {
    configuration: Configuration,
    /// `None` until they have been fetched.
    keys: RwLock<Option<Arc<KeySet>>>,
    refetch: Refetch,
    /// Verified tokens by their SHA-256. A token is sent many times, and verifying a signature
    /// takes 3 µs (HMAC) to 100 µs (P-256).
    verified: Cache<[u8; 32], Arc<Verified>>,
}

struct Verified {
    /// The keys that verified the token: once they are replaced, this entry is ignored.
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
        Self {
            configuration,
            keys: RwLock::new(keys),
            refetch: Refetch::default(),
            verified: Cache::new(CACHED_TOKENS),
        }
    }

    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Replaces the keys, for new tokens and for cached ones.
    pub(super) fn replace_keys(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
    }

    /// The early fetches of the keys.
    pub(super) fn refetch(&self) -> &Refetch {
        &self.refetch
    }

    /// Whether the keys are known; the set may be empty.
    pub(super) fn knows_keys(&self) -> bool {
        self.keys().is_some()
    }

    /// Takes over the keys of `before`.
    pub(super) fn inherit(&self, before: &Self) {
        let keys = before.keys();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// See [`super::Jwt::look_for_key`].
    pub(super) async fn look_for_key(&self, token: &str) -> Result<bool, Refusal> {
        if matches!(self.configuration.key, KeySource::Fixed(_)) {
            return Ok(false);
        }
        let Some(id) = token::unverified_key_id(token) else { return Ok(false) };
        let is_known = || self.keys().is_some_and(|keys| keys.has(&id));
        if is_known() {
            return Ok(false);
        }
        self.refetch.request().await;
        match (is_known(), self.refetch.is_failing()) {
            (false, true) => Err(TokenError::ProviderDown.into()),
            (is_known, _) => Ok(is_known),
        }
    }

    fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The Hasura claims of a token that is valid now. Times are checked at each call; signature,
    /// issuer, audience and claims only once while the keys stay the same.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<HasuraClaims>, Refusal> {
        if token.len() > token::MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong.into());
        }
        let keys = self.keys().ok_or(TokenError::KeysNotFetched)?;
        let digest = crypto::sha256(token.as_bytes());
        if let Some(verified) = self.verified.get(&digest)
            && Arc::ptr_eq(&verified.keys, &keys)
        {
            if let Err(error) = verified.validity.check(now) {
                self.verified.invalidate(&digest);
                return Err(error.into());
            }
            return Ok(Arc::clone(&verified.claims));
        }
        let claims = token::verify_signature(token, &keys)?;
        let validity = Validity::read(&claims, &self.configuration)?;
        validity.check(now)?;
        token::check_parties(&claims, &self.configuration)?;
        let claims = Arc::new(self.configuration.claims.read(&claims)?);
        self.verified.insert(digest, Arc::new(Verified { keys, validity, claims: Arc::clone(&claims) }));
        Ok(claims)
    }
}
