//! Keys that verify signatures with ring, and the selection of the key for a token.
//!
//! Each kind of key has its algorithms: an RSA key never verifies an `HS256` token, and there is no
//! algorithm `none` (RFC 8725, sections 2.1 and 3.1). The header of a token can only narrow the
//! selection.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

use super::pem::{PublicKey, without_leading_zeros};

/// A signature algorithm (RFC 7518, section 3.1; RFC 8037; RFC 9864).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Ed25519,
}

impl Algorithm {
    /// Parses the `alg` of a token's header or of a JWK. `ES512` is missing, since ring does not
    /// have it.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::Ed25519,
            _ => return None,
        })
    }

    /// The hash of an HMAC, and the least length of its key in bytes (RFC 7518, section 3.2).
    pub(super) fn hmac(self) -> Option<(hmac::Algorithm, usize)> {
        match self {
            Self::Hs256 => Some((hmac::HMAC_SHA256, 32)),
            Self::Hs384 => Some((hmac::HMAC_SHA384, 48)),
            Self::Hs512 => Some((hmac::HMAC_SHA512, 64)),
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => None,
            Self::Es256 | Self::Es384 | Self::Ed25519 => None,
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Hs256 | Self::Hs384 | Self::Hs512 | Self::Es256 | Self::Es384 | Self::Ed25519 => None,
        }
    }
}

enum Material {
    Hmac(hmac::Key),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    P256(UnparsedPublicKey<Vec<u8>>),
    P384(UnparsedPublicKey<Vec<u8>>),
    Ed25519(UnparsedPublicKey<Vec<u8>>),
}

/// One key.
pub(super) struct Key {
    id: Option<String>,
    /// The only algorithm for the key, if one is given.
    only: Option<Algorithm>,
    material: Material,
}

/// The size of an RSA key is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RsaKeySize;

/// Why a key of a JWK set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    NoObject,
    Use,
    Operations,
    Secret,
    Kind,
    Algorithm,
    Encoding,
    Size,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoObject => "it is not a JSON object",
            Self::Use => "its `use` is not `sig`",
            Self::Operations => "its `key_ops` do not contain `verify`",
            Self::Secret => "it is a shared secret (`oct`), but a key that a URL serves is not secret",
            Self::Kind => "its `kty` and `crv` are not supported",
            Self::Algorithm => "its `alg` is not supported, or not one of its `kty`",
            Self::Encoding => "one of its numbers is missing, padded or not base64url (RFC 7515, section 2)",
            Self::Size => "it does not have 2048 to 8192 bits, or the length of its curve",
        })
    }
}

/// A key of a JWK set that cannot be used.
pub(crate) struct Unused {
    /// The beginning of its `kid`.
    pub(crate) id: Option<String>,
    pub(crate) why: Unusable,
}

/// The most characters of a `kid` that are shown.
const MAX_SHOWN_ID: usize = 64;

impl Key {
    /// A shared secret for one algorithm.
    pub(super) fn hmac(algorithm: Algorithm, hash: hmac::Algorithm, secret: &[u8]) -> Self {
        Self { id: None, only: Some(algorithm), material: Material::Hmac(hmac::Key::new(hash, secret)) }
    }

    /// A public key. An RSA modulus has 2048 to 8192 bits.
    pub(super) fn public(
        id: Option<String>,
        only: Option<Algorithm>,
        key: PublicKey,
    ) -> Result<Self, RsaKeySize> {
        let material = match key {
            PublicKey::Rsa { n, e } => {
                let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
                if !(2048..=8192).contains(&bits) {
                    return Err(RsaKeySize);
                }
                Material::Rsa(RsaPublicKeyComponents { n, e })
            }
            PublicKey::P256(point) => {
                Material::P256(UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point))
            }
            PublicKey::P384(point) => {
                Material::P384(UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point))
            }
            PublicKey::Ed25519(bytes) => {
                Material::Ed25519(UnparsedPublicKey::new(&signature::ED25519, bytes))
            }
        };
        Ok(Self { id, only, material })
    }

    /// Whether a key of this kind can verify this algorithm at all.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        match &self.material {
            Material::Hmac(_) => algorithm.hmac().is_some(),
            Material::Rsa(_) => algorithm.rsa().is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::Ed25519(_) => algorithm == Algorithm::Ed25519,
        }
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.material {
            Material::Hmac(key) => hmac::verify(key, message, signature),
            Material::Rsa(key) => match algorithm.rsa() {
                Some(parameters) => key.verify(parameters, message, signature),
                None => return false,
            },
            Material::P256(key) | Material::P384(key) | Material::Ed25519(key) => {
                key.verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

/// The keys of one configuration: that of `key`, or those of a JWK set.
pub(super) struct KeySet {
    keys: Vec<Key>,
    unused: Vec<Unused>,
}

/// The most keys in a JWK set: a token without `kid` is tried with all of them.
const MAX_KEYS: usize = 100;

/// Why a document is not accepted as a JWK set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JwkSetError {
    /// It is not a JSON object with a list `keys`.
    Malformed,
    /// It has more keys than [`MAX_KEYS`].
    TooManyKeys,
}

impl KeySet {
    /// A set of one key.
    pub(super) fn of(key: Key) -> Self {
        Self { keys: vec![key], unused: Vec::new() }
    }

    /// Parses a JWK set (RFC 7517, section 5). As that section requires, keys of an unknown kind or
    /// use are ignored. So are keys that are too small, and shared secrets (`oct`), since a key
    /// that a URL serves is not secret. All of them are in [`Self::unused`].
    pub(super) fn parse(document: &[u8]) -> Result<Self, JwkSetError> {
        let document: Value = serde_json::from_slice(document).map_err(|_| JwkSetError::Malformed)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(JwkSetError::Malformed)?;
        if keys.len() > MAX_KEYS {
            return Err(JwkSetError::TooManyKeys);
        }
        let mut set = Self { keys: Vec::new(), unused: Vec::new() };
        for key in keys {
            match key.as_object().ok_or(Unusable::NoObject).and_then(jwk) {
                Ok(key) => set.keys.push(key),
                Err(why) => {
                    let id = key.get("kid").and_then(Value::as_str);
                    set.unused.push(Unused { id: id.map(|id| id.chars().take(MAX_SHOWN_ID).collect()), why });
                }
            }
        }
        Ok(set)
    }

    /// The keys of the document that cannot be used.
    pub(super) fn unused(&self) -> &[Unused] {
        &self.unused
    }

    /// Whether a key has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// The number of usable keys.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a key for this algorithm, whose id does not contradict the token's `kid`, verifies
    /// the signature. A key without an id is tried for any `kid`.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        self.keys
            .iter()
            .filter(|key| key.fits(algorithm) && key.only.is_none_or(|only| only == algorithm))
            .filter(|key| key.id.is_none() || id.is_none() || key.id.as_deref() == id)
            .any(|key| key.verify(algorithm, message, signature))
    }
}

fn jwk(jwk: &Map<String, Value>) -> Result<Key, Unusable> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes =
        |name: &str| text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(Unusable::Encoding);
    let coordinate = |name: &str, length| match bytes(name)? {
        bytes if bytes.len() == length => Ok(bytes),
        _ => Err(Unusable::Size),
    };
    let point = |length| Ok([vec![4], coordinate("x", length)?, coordinate("y", length)?].concat());

    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Err(Unusable::Use);
    }
    let may_verify = jwk.get("key_ops").is_none_or(|operations| {
        operations.as_array().is_some_and(|operations| operations.iter().any(|name| name == "verify"))
    });
    if !may_verify {
        return Err(Unusable::Operations);
    }
    let key = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => PublicKey::Rsa {
            n: without_leading_zeros(&bytes("n")?).to_vec(),
            e: without_leading_zeros(&bytes("e")?).to_vec(),
        },
        (Some("EC"), Some("P-256")) => PublicKey::P256(point(32)?),
        (Some("EC"), Some("P-384")) => PublicKey::P384(point(48)?),
        (Some("OKP"), Some("Ed25519")) => PublicKey::Ed25519(coordinate("x", 32)?),
        (Some("oct"), _) => return Err(Unusable::Secret),
        _ => return Err(Unusable::Kind),
    };
    let only = match jwk.get("alg") {
        Some(name) => Some(name.as_str().and_then(Algorithm::parse).ok_or(Unusable::Algorithm)?),
        None => None,
    };
    let key = Key::public(text("kid").map(str::to_owned), only, key).map_err(|RsaKeySize| Unusable::Size)?;
    if only.is_none_or(|only| key.fits(only)) { Ok(key) } else { Err(Unusable::Algorithm) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::jwt::testkit::{Signer, jwk_of};

    fn set(keys: Value) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn keys_that_are_not_for_us_are_passed_over() {
        let good = jwk_of("p256");
        let with = |name: &str, value: Value| {
            let mut key = good.clone();
            key[name] = value;
            key
        };
        assert_eq!(set(json!([good])).len(), 1);
        assert_eq!(set(json!([with("use", json!("sig"))])).len(), 1);
        assert_eq!(set(json!([with("key_ops", json!(["verify"]))])).len(), 1);
        for (other, why) in [
            (with("use", json!("enc")), Unusable::Use),
            (with("key_ops", json!(["deriveKey"])), Unusable::Operations),
            (with("alg", json!("ES512")), Unusable::Algorithm),
            (with("alg", json!("RS256")), Unusable::Algorithm),
            (with("alg", json!(5)), Unusable::Algorithm),
            (with("crv", json!("P-521")), Unusable::Kind),
            (with("kty", json!("AKP")), Unusable::Kind),
            (with("x", json!("AAAA")), Unusable::Size),
            (with("y", json!("not base64!")), Unusable::Encoding),
            (with("y", json!(format!("{}=", good["y"].as_str().unwrap()))), Unusable::Encoding),
            (
                json!({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyLWJ5dGVz"}),
                Unusable::Secret,
            ),
            (jwk_of("rsa1024"), Unusable::Size),
            (json!("a text"), Unusable::NoObject),
        ] {
            let set = set(json!([other, good]));
            assert_eq!((set.len(), set.unused().len()), (1, 1), "{other}");
            assert_eq!(set.unused()[0].why, why, "{other}");
        }
        let named = set(json!([{ "kid": "k".repeat(1_000), "kty": "oct" }]));
        assert_eq!(named.unused()[0].id.as_deref(), Some("k".repeat(MAX_SHOWN_ID).as_str()));
    }

    #[test]
    fn what_is_no_jwk_set_is_refused() {
        for document in ["", "[]", "{}", r#"{"keys": {}}"#, "<html>", r#"{"keys": [}"#] {
            assert_eq!(KeySet::parse(document.as_bytes()).err(), Some(JwkSetError::Malformed), "{document}");
        }
        let many = json!({ "keys": vec![json!({}); MAX_KEYS + 1] }).to_string();
        assert_eq!(KeySet::parse(many.as_bytes()).err(), Some(JwkSetError::TooManyKeys));
    }

    #[test]
    fn a_key_verifies_its_own_algorithms_only() {
        let signature = Signer::new("rsa2048").sign(b"message");
        let keys = set(json!([jwk_of("rsa2048")]));
        assert!(keys.verify(Algorithm::Rs256, None, b"message", &signature));
        for other in
            [Algorithm::Hs256, Algorithm::Rs512, Algorithm::Ps256, Algorithm::Es256, Algorithm::Ed25519]
        {
            assert!(!keys.verify(other, None, b"message", &signature), "{other:?}");
        }
    }

    #[test]
    fn the_algorithm_that_a_jwk_names_is_the_only_one() {
        let signature = Signer::new("rsa2048").sign(b"message");
        let mut key = jwk_of("rsa2048");
        key["alg"] = json!("RS512");
        assert!(!set(json!([key])).verify(Algorithm::Rs256, None, b"message", &signature));
    }

    #[test]
    fn a_key_id_excludes_other_keys_and_none_matches_any() {
        let signature = Signer::new("p256").sign(b"message");
        let (mut named, nameless) = (jwk_of("p256"), jwk_of("p256"));
        named["kid"] = json!("one");
        for (key, id, verified) in [
            (&named, Some("one"), true),
            (&named, None, true),
            (&named, Some("two"), false),
            (&named, Some("../one"), false),
            (&named, Some(""), false),
            (&nameless, Some("two"), true),
            (&nameless, None, true),
        ] {
            let keys = set(json!([key]));
            assert_eq!(keys.verify(Algorithm::Es256, id, b"message", &signature), verified, "{key} {id:?}");
        }
    }
}
