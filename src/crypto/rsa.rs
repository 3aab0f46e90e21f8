//! RS256 signatures (RFC 7518, 3.3: RSASSA-PKCS1-v1_5 with SHA-256), for credentials of Google's
//! service accounts. byok's own tokens are not signed with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::provider::RsaPrivateKey;
use super::secret::SecretText;

/// A private RSA key. Parsed for one use and dropped: ring does not wipe its own key objects.
pub struct RsaSigningKey(RsaPrivateKey);

/// The text is not a private RSA key of 2048 to 4096 bits in PKCS#8 and PEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRsaKey;

impl fmt::Display for NoRsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a private RSA key in PKCS#8 and PEM")
    }
}

impl std::error::Error for NoRsaKey {}

impl RsaSigningKey {
    /// Parses PKCS#8 (RFC 5958) in PEM (RFC 7468): `-----BEGIN PRIVATE KEY-----`.
    ///
    /// # Errors
    ///
    /// [`NoRsaKey`] for anything else.
    pub fn from_pem(pem: &SecretText) -> Result<Self, NoRsaKey> {
        let (_, rest) = pem.expose().split_once("-----BEGIN PRIVATE KEY-----").ok_or(NoRsaKey)?;
        let (body, _) = rest.split_once("-----END PRIVATE KEY-----").ok_or(NoRsaKey)?;
        // Neither grows: growing would leave a copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
        text.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; text.len()]);
        let length = STANDARD.decode_slice(&*text, &mut der).map_err(|_| NoRsaKey)?;
        RsaPrivateKey::from_pkcs8(&der[..length]).map(Self).ok_or(NoRsaKey)
    }

    /// The signature of `message`, as long as the modulus.
    pub fn sign_sha256(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign_sha256(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::sha256;

    const PEM: &str = include_str!("../auth/jwt/testdata/rsa2048.private.pem");

    fn key(pem: &str) -> Result<RsaSigningKey, NoRsaKey> {
        RsaSigningKey::from_pem(&SecretText::new(pem.to_owned()))
    }

    #[test]
    fn the_signature_is_the_one_that_openssl_makes() {
        // printf abc | openssl dgst -sha256 -sign rsa2048.private.pem | sha256sum
        let signature = key(PEM).unwrap().sign_sha256(b"abc");
        assert_eq!(sha256(&signature)[..8], 0x569bf1b26a150892_u64.to_be_bytes());
    }

    #[test]
    fn a_key_file_with_windows_line_breaks_is_read_too() {
        assert!(key(&PEM.replace('\n', "\r\n")).is_ok());
    }

    #[test]
    fn what_is_no_such_key_is_refused() {
        let public = include_str!("../auth/jwt/testdata/rsa2048.public.pem");
        let pkcs1 = include_str!("../auth/jwt/testdata/rsa2048.pkcs1.pem");
        let curve = include_str!("../auth/jwt/testdata/p256.private.pem");
        let torn = PEM.replacen("MII", "MIJ", 1);
        for other in ["", "-----BEGIN PRIVATE KEY-----", public, pkcs1, curve, &torn] {
            assert_eq!(key(other).err(), Some(NoRsaKey));
        }
    }
}
