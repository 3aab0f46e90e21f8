//! The primitives: AES-256-GCM (NIST SP 800-38D), HKDF-SHA256 (RFC 5869), HMAC-SHA256 (RFC 2104),
//! SHA-256, random bytes; RS256 (RFC 8017) and Ed25519 (RFC 8032) signatures.
//!
//! The only `use ring` of this module is here, so that a library with the same API can replace it.
//! Nothing here depends on the meaning of the bytes.
//!
//! ring does not wipe its own key objects. Here they live on the stack for one call each; what
//! outlives a call is held by types of this module, which do wipe.

use ring::{aead, digest, hkdf, hmac, rand, signature};
use std::sync::LazyLock;
use subtle::ConstantTimeEq as _;

use rand::SecureRandom as _;

/// The bytes of an AES-256 key, and of every other symmetric key in this module.
pub(super) const KEY_BYTES: usize = 32;
/// The bytes of a GCM nonce (SP 800-38D, 8.2: 96 bits).
pub(super) const NONCE_BYTES: usize = 12;
/// The bytes of a GCM tag, never truncated.
pub(super) const TAG_BYTES: usize = 16;

/// Fills `bytes` from the operating system's random source.
///
/// # Panics
///
/// If the operating system returns no random bytes: no key may be made then.
pub fn fill_random(bytes: &mut [u8]) {
    rand::SystemRandom::new().fill(bytes).expect("the operating system's random source works");
}

/// `N` bytes from the operating system's random source. For secrets, prefer [`fill_random`] on
/// memory that is wiped.
///
/// # Panics
///
/// If the operating system returns no random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    sha256_of(&[data])
}

/// SHA-256 of the concatenation of `parts`. The caller must ensure that the concatenation is
/// unambiguous.
pub fn sha256_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    array(context.finish().as_ref())
}

/// HMAC-SHA256 of `data` under `key`, of any length.
pub fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    array(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref())
}

/// Whether two secrets are equal, in a time that reveals neither where they differ nor their
/// lengths: both are hashed under a key of this process, and the hashes are compared in constant
/// time.
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    static COMPARE: LazyLock<hmac::Key> =
        LazyLock::new(|| hmac::Key::new(hmac::HMAC_SHA256, &random::<KEY_BYTES>()));
    hmac::verify(&COMPARE, a, hmac::sign(&COMPARE, b).as_ref()).is_ok()
}

/// Whether two hashes are equal, in constant time. Their length is known, so they are not hashed
/// again.
pub(super) fn ct_eq_hashes(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// A pseudorandom key: HKDF-SHA256 after its extract step (RFC 5869, 2.2).
pub(super) struct Prk(hkdf::Prk);

impl Prk {
    /// The extract step. An empty salt is RFC 5869's "not provided".
    pub(super) fn extract(salt: &[u8], secret: &[u8]) -> Self {
        /// Prepared once, because every token is made without a salt.
        static NO_SALT: LazyLock<hkdf::Salt> = LazyLock::new(|| hkdf::Salt::new(hkdf::HKDF_SHA256, &[]));
        Self(match salt {
            [] => NO_SALT.extract(secret),
            salt => hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret),
        })
    }

    /// The expand step (RFC 5869, 2.3) into all of `out`; `info` is the concatenation of its parts.
    /// `None` if `out` is longer than 255 hashes, and then nothing is written.
    pub(super) fn expand(&self, info: &[&[u8]], out: &mut [u8]) -> Option<()> {
        self.0.expand(info, Length(out.len())).ok()?.fill(out).ok()
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A private RSA key of 2048 to 4096 bits.
pub(super) struct RsaPrivateKey(signature::RsaKeyPair);

impl RsaPrivateKey {
    /// Parses PKCS#8 in DER. `None` if it is not such a key.
    pub(super) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        signature::RsaKeyPair::from_pkcs8(der).ok().map(Self)
    }

    /// The signature by RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2).
    pub(super) fn sign_sha256(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        let random = rand::SystemRandom::new();
        self.0
            .sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signature)
            .expect("a key of at least 2048 bits holds a SHA-256 signature");
        signature
    }
}

/// An Ed25519 key pair.
pub(super) struct Ed25519Pair(signature::Ed25519KeyPair);

impl Ed25519Pair {
    /// Parses PKCS#8 in DER, with or without the public key. `None` if it is not such a key.
    pub(super) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(Self)
    }

    pub(super) fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(signature::KeyPair::public_key(&self.0).as_ref());
        public
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

/// Whether this is the signature of `message` by that public key.
pub(super) fn ed25519_verifies(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public).verify(message, signature).is_ok()
}

/// Encrypts `in_out` in place with AES-256-GCM and returns the tag. A nonce must never be used
/// twice under one key.
///
/// # Panics
///
/// If `in_out` is longer than GCM can take (about 64 GiB).
pub(super) fn aead_seal(
    key: &[u8; KEY_BYTES],
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    in_out: &mut [u8],
) -> [u8; TAG_BYTES] {
    let tag = aead_key(key)
        .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), aead::Aad::from(aad), in_out)
        .expect("the data is within what GCM can take");
    array(tag.as_ref())
}

/// Decrypts `in_out` in place with AES-256-GCM. `None` if the tag does not match; `in_out` must not
/// be used then.
pub(super) fn aead_open(
    key: &[u8; KEY_BYTES],
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    in_out: &mut [u8],
    tag: [u8; TAG_BYTES],
) -> Option<()> {
    let nonce = aead::Nonce::assume_unique_for_key(nonce);
    aead_key(key)
        .open_in_place_separate_tag(nonce, aead::Aad::from(aad), aead::Tag::from(tag), in_out, 0..)
        .ok()?;
    Some(())
}

fn aead_key(key: &[u8; KEY_BYTES]) -> aead::LessSafeKey {
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
    aead::LessSafeKey::new(key)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a hash or tag has its algorithm's length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_secrets_are_equal() {
        assert!(ct_eq(b"hunter2", b"hunter2"));
    }

    #[test]
    fn secrets_that_differ_in_one_bit_are_not_equal() {
        assert!(!ct_eq(b"hunter2", b"hunter3"));
    }

    #[test]
    fn a_prefix_is_not_equal() {
        assert!(!ct_eq(b"hunter2", b"hunter"));
    }

    #[test]
    fn two_draws_of_randomness_differ() {
        assert_ne!(random::<32>(), random::<32>());
    }

    #[test]
    fn sha256_is_that_of_fips_180_2() {
        assert_eq!(sha256(b"abc")[..8], [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea]);
    }

    #[test]
    fn hmac_sha256_is_that_of_rfc_4231_case_2() {
        assert_eq!(
            hmac_sha256(b"Jefe", b"what do ya want for nothing?")[..6],
            [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60]
        );
    }
}
