//! Ed25519 signatures (RFC 8032) for reports and checkpoints that third parties keep. Tokens and
//! credentials are not signed with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::provider::{Ed25519Pair, ed25519_verifies, random};
use super::secret::SecretText;

/// A private key in PKCS#8 (RFC 8410, section 7), before its 32 bytes: what `openssl genpkey
/// -algorithm ed25519` writes.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// A public key as SubjectPublicKeyInfo (RFC 8410, section 4), before its 32 bytes.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The text is not an Ed25519 key in PEM: `PRIVATE KEY` (PKCS#8) to sign, `PUBLIC KEY` to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEd25519Key;

impl fmt::Display for NoEd25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ed25519 key in PEM")
    }
}

impl std::error::Error for NoEd25519Key {}

/// A private key. Parsed for one use and dropped: ring does not wipe its own key objects.
pub struct Ed25519SigningKey(Ed25519Pair);

impl Ed25519SigningKey {
    /// A new key, as PKCS#8 in PEM.
    pub fn generate_pem() -> SecretText {
        let seed = Zeroizing::new(random::<32>());
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&PKCS8_HEAD);
        der[16..].copy_from_slice(&*seed);
        let body = Zeroizing::new(STANDARD.encode(*der));
        SecretText::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *body))
    }

    /// Parses PKCS#8 in PEM.
    ///
    /// # Errors
    ///
    /// [`NoEd25519Key`] for anything else.
    pub fn from_pem(pem: &SecretText) -> Result<Self, NoEd25519Key> {
        let der = der_of(pem.expose(), "PRIVATE KEY").ok_or(NoEd25519Key)?;
        Ed25519Pair::from_pkcs8(&der).map(Self).ok_or(NoEd25519Key)
    }

    /// The public key.
    pub fn verifying_key(&self) -> Ed25519VerifyingKey {
        Ed25519VerifyingKey(self.0.public())
    }

    /// The signature of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message)
    }
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ed25519VerifyingKey([u8; 32]);

impl Ed25519VerifyingKey {
    /// Parses SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    ///
    /// [`NoEd25519Key`] for anything else.
    pub fn from_pem(pem: &str) -> Result<Self, NoEd25519Key> {
        let der = der_of(pem, "PUBLIC KEY").ok_or(NoEd25519Key)?;
        let key = der.strip_prefix(&SPKI_HEAD).and_then(|key| key.try_into().ok());
        key.map(Self).ok_or(NoEd25519Key)
    }

    /// The key as SubjectPublicKeyInfo in PEM.
    pub fn to_pem(self) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", self.to_base64())
    }

    /// The key as SubjectPublicKeyInfo in DER and base64: the body of the PEM.
    pub fn to_base64(self) -> String {
        STANDARD.encode([&SPKI_HEAD[..], &self.0].concat())
    }

    /// The key of these 32 bytes (RFC 8032, 5.1.5).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Whether this is the signature of `message` by this key.
    pub fn verifies(self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_verifies(&self.0, message, signature)
    }
}

fn der_of(pem: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    // Neither grows: growing would leave a copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; text.len()]);
    let length = STANDARD.decode_slice(&*text, &mut der).ok()?;
    der.truncate(length);
    Some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2, as `openssl` writes the key.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n";

    fn key(pem: &str) -> Result<Ed25519SigningKey, NoEd25519Key> {
        Ed25519SigningKey::from_pem(&SecretText::new(pem.to_owned()))
    }

    #[test]
    fn it_signs_as_the_standard_says() {
        let key = key(PRIVATE).unwrap();
        assert_eq!(key.verifying_key().to_pem(), PUBLIC);
        let signature = key.sign(&[0x72]);
        assert_eq!(signature[..8], [0x92, 0xa0, 0x09, 0xa9, 0xf0, 0xd4, 0xca, 0xb8]);
        assert!(Ed25519VerifyingKey::from_pem(PUBLIC).unwrap().verifies(&[0x72], &signature));
    }

    #[test]
    fn what_was_changed_does_not_verify() {
        let key = key(Ed25519SigningKey::generate_pem().expose()).unwrap();
        let mut signature = key.sign(b"report");
        let public = Ed25519VerifyingKey::from_pem(&key.verifying_key().to_pem()).unwrap();
        assert!(public.verifies(b"report", &signature));
        assert!(!public.verifies(b"rapport", &signature));
        assert!(!public.verifies(b"report", &signature[..63]));
        signature[0] ^= 1;
        assert!(!public.verifies(b"report", &signature));
        let other = Ed25519VerifyingKey::from_pem(PUBLIC).unwrap();
        assert!(!other.verifies(b"report", &key.sign(b"report")));
    }

    #[test]
    fn what_is_no_such_key_is_refused() {
        let rsa = include_str!("../auth/jwt/testdata/rsa2048.private.pem");
        for other in ["", PUBLIC, rsa, &PRIVATE.replacen("MC4", "MC5", 1)] {
            assert!(key(other).is_err());
        }
        for other in ["", PRIVATE, include_str!("../auth/jwt/testdata/rsa2048.public.pem")] {
            assert!(Ed25519VerifyingKey::from_pem(other).is_err());
        }
    }
}
