//! What the tests of this room share: keys, tokens, a clock, an authenticator made from variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName};
use ring::rand::SystemRandom;
use ring::{hmac, signature};
use serde_json::{Value, json};

use super::configuration::parse_one;
use super::pem::{self, PublicKey};
use super::verifier::Verifier;
use crate::auth::Authenticator;
use crate::config::{self, ConfigError, Env, Reader};
use crate::model::{Clock, Identity, Refusal, Timestamp};

/// 2026-11-23T10:00:00Z.
pub(crate) const NOW: i64 = 1_795_428_000;

pub(crate) const SECRET: &str = "a shared secret of 32 bytes or more, for tests";

pub(crate) fn now() -> Timestamp {
    Timestamp(NOW * 1_000_000)
}

/// A clock that stands at [`NOW`] until it is moved.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(now().0)))
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// A file of `testdata/`.
pub(crate) fn pem(name: &str) -> String {
    let path = format!("{}/src/auth/jwt/testdata/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The public key of that name, as a JWK.
pub(crate) fn jwk_of(name: &str) -> Value {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let point = |point: &[u8]| {
        let (x, y) = point[1..].split_at(point.len() / 2);
        (encode(x), encode(y))
    };
    match pem::parse(&pem(&format!("{name}.public"))).unwrap() {
        PublicKey::Rsa { n, e } => json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)}),
        PublicKey::P256(bytes) => {
            let (x, y) = point(&bytes);
            json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
        }
        PublicKey::P384(bytes) => {
            let (x, y) = point(&bytes);
            json!({"kty": "EC", "crv": "P-384", "x": x, "y": y})
        }
        PublicKey::Ed25519(bytes) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&bytes)}),
    }
}

/// Signs as an identity provider does. Made from the name of a private key of `testdata/`, whose
/// usual algorithm it takes, or with [`Signer::hmac`] and [`Signer::rsa`].
pub(crate) struct Signer {
    algorithm: &'static str,
    key: SigningKey,
}

enum SigningKey {
    Hmac(hmac::Key),
    Rsa(signature::RsaKeyPair, &'static dyn signature::RsaEncoding),
    Ecdsa(signature::EcdsaKeyPair),
    Ed25519(signature::Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn new(name: &str) -> Self {
        match name {
            "rsa2048" => Self::rsa("RS256", &signature::RSA_PKCS1_SHA256),
            "p256" => Self::from_pkcs8("ES256", &private(name)),
            "p384" => Self::from_pkcs8("ES384", &private(name)),
            "ed25519" => Self::from_pkcs8("EdDSA", &private(name)),
            _ => panic!("no signing key {name}"),
        }
    }

    pub(crate) fn from_pkcs8(algorithm: &'static str, der: &[u8]) -> Self {
        let ecdsa = |curve| {
            SigningKey::Ecdsa(signature::EcdsaKeyPair::from_pkcs8(curve, der, &SystemRandom::new()).unwrap())
        };
        let key = match algorithm {
            "ES256" => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            _ => SigningKey::Ed25519(signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).unwrap()),
        };
        Self { algorithm, key }
    }

    pub(crate) fn rsa(algorithm: &'static str, encoding: &'static dyn signature::RsaEncoding) -> Self {
        let key = signature::RsaKeyPair::from_pkcs8(&private("rsa2048")).unwrap();
        Self { algorithm, key: SigningKey::Rsa(key, encoding) }
    }

    pub(crate) fn hmac(algorithm: &'static str, secret: &str) -> Self {
        let (hash, _) = super::keys::Algorithm::parse(algorithm).unwrap().hmac().unwrap();
        Self { algorithm, key: SigningKey::Hmac(hmac::Key::new(hash, secret.as_bytes())) }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            SigningKey::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
            SigningKey::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(*encoding, &random, message, &mut signature).unwrap();
                signature
            }
            SigningKey::Ecdsa(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            SigningKey::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "typ": "JWT"}), claims)
    }

    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    pub(crate) fn token_of(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

fn private(name: &str) -> Vec<u8> {
    let text = pem(&format!("{name}.private"));
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body).unwrap()
}

/// The Hasura claims of user 7.
pub(crate) fn hasura_claims() -> Value {
    json!({
        "x-hasura-user-id": "7",
        "x-hasura-allowed-roles": ["user", "editor"],
        "x-hasura-default-role": "user",
    })
}

/// Claims that count for an hour from [`NOW`].
pub(crate) fn claims() -> Value {
    with(&json!({"https://hasura.io/jwt/claims": hasura_claims()}))
}

/// Those registered claims and these.
pub(crate) fn with(more: &Value) -> Value {
    let mut claims = json!({"sub": "7", "iat": NOW - 5, "exp": NOW + 3600});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

/// A configuration for tokens of `Signer::hmac("HS256", SECRET)`.
pub(crate) fn hs256(more: &Value) -> Value {
    let mut configuration = json!({"type": "HS256", "key": SECRET});
    configuration.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    configuration
}

pub(crate) fn hs256_token(claims: &Value) -> String {
    Signer::hmac("HS256", SECRET).token(claims)
}

pub(super) fn verifier_of(configuration: &Value) -> Verifier {
    Verifier::new(parse_one(&configuration.to_string(), true).unwrap())
}

pub(crate) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

pub(crate) fn bearer_of(token: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {token}"))])
}

/// An HTTP client as the server makes one.
pub(crate) fn client() -> reqwest::Client {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// An authenticator from variables, and the clock that it reads.
pub(crate) fn authenticator(pairs: &[(&str, &str)]) -> Result<(Authenticator, TestClock), Vec<ConfigError>> {
    let env = Env::from_pairs(pairs.iter().copied());
    let mut reader = Reader::new(&env);
    let settings = config::Auth::read(&mut reader);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(errors);
    }
    let clock = TestClock::default();
    Authenticator::new(&settings, client(), Arc::new(clock.clone())).map(|made| (made, clock))
}

/// What an authenticator with this one JWT configuration makes of these headers.
pub(crate) fn authenticate(configuration: &Value, headers: &HeaderMap) -> Result<Identity, Refusal> {
    let (authenticator, _) =
        authenticator(&[("HASURA_GRAPHQL_JWT_SECRET", &configuration.to_string())]).unwrap();
    authenticator.authenticate(headers)
}

pub(crate) async fn wait_until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to hold within ten seconds");
}
