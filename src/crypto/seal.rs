//! Sealing a plaintext into a token and opening it again.
//!
//! ```text
//! T          = SHA-256(suite ‖ tenant uid ‖ DEK id ‖ SHA-256(context))
//! PRK        = HKDF-Extract(salt = none, DEK)
//! key        = HKDF-Expand(PRK, "byok/v1/encryption" ‖ T, 32)
//! commitment = HKDF-Expand(PRK, "byok/v1/commitment" ‖ T, 32)
//! token      = DEK id ‖ commitment ‖ nonce ‖ AES-256-GCM(key, nonce, plaintext, no AAD)
//! ```
//!
//! **Why no salt.** The DEK already is 32 uniform random bytes; RFC 5869, 3.1 allows extract
//! without a salt then.
//!
//! **Why no associated data.** AAD binds a ciphertext to data under a key that is also used for
//! other data. Here tenant, DEK id and context are inputs of the key itself: a change of any of
//! them gives another key and another commitment. The rest of a token is either compared (DEK id,
//! commitment) or an input of GCM (nonce, ciphertext, tag). There is nothing left to authenticate.
//!
//! **Why the commitment.** With AES-GCM alone, a ciphertext can be made that decrypts under two
//! keys to two texts, so that swapping the stored wrapped DEK selects the text that is read (the
//! flaw class of CVE-2025-14762). The commitment is a collision-resistant hash of the DEK and `T`;
//! it is compared, in constant time, before the AEAD opens.
//!
//! **How often.** A nonce is 96 random bits, and a key belongs to one DEK and one context: SP
//! 800-38D, 8.3 allows 2³² encryptions with it, and each is one update of one field of one record.

use std::fmt;

use zeroize::Zeroizing;

use super::provider::{self, KEY_BYTES, NONCE_BYTES, TAG_BYTES, ct_eq_hashes, random, sha256_of};
use super::secret::{Dek, Plaintext};
use super::token::{MAX_PLAINTEXT_BYTES, Token};

/// The identifier of the algorithms of `v1`, an input of everything derived. Everything after it in
/// `T` has a fixed length.
const SUITE: &[u8] = b"byok/v1/HKDF-SHA256/AES-256-GCM";
/// The label of the encryption key. As long as [`COMMITMENT_LABEL`], so that neither is a prefix
/// of the other.
const ENCRYPTION_LABEL: &[u8] = b"byok/v1/encryption";
/// The label of the commitment.
const COMMITMENT_LABEL: &[u8] = b"byok/v1/commitment";

/// The tenant, DEK and context that a token is bound to: `T` above, with the DEK id.
#[derive(Clone)]
pub struct Binding {
    dek_id: [u8; 16],
    transcript: [u8; 32],
}

impl Binding {
    /// A binding to the tenant's uid, the DEK's id and [`Context::digest`](super::Context::digest).
    pub fn new(tenant_uid: &[u8; 16], dek_id: &[u8; 16], context_digest: &[u8; 32]) -> Self {
        Self { dek_id: *dek_id, transcript: sha256_of(&[SUITE, tenant_uid, dek_id, context_digest]) }
    }

    #[cfg(test)]
    pub(super) fn transcript(&self) -> &[u8; 32] {
        &self.transcript
    }
}

/// Seals `plaintext` under a key derived from `dek` and `binding`, with a fresh random nonce.
///
/// # Panics
///
/// If `dek_id` is not the one in `binding`, or `plaintext` is longer than [`MAX_PLAINTEXT_BYTES`]:
/// nobody could ever open such a token, and the plaintext would be lost. Callers refuse longer
/// plaintexts before.
pub fn seal(dek: &Dek, binding: &Binding, dek_id: &[u8; 16], plaintext: &[u8]) -> Token {
    assert!(*dek_id == binding.dek_id, "a token is sealed for the DEK that it is bound to");
    assert!(plaintext.len() <= MAX_PLAINTEXT_BYTES, "a plaintext fits into a token");
    seal_with_nonce(dek, binding, random(), plaintext)
}

/// Seals with a given nonce. Apart from [`seal`], only test vectors may call it: a nonce used twice
/// under one key gives away both plaintexts and GCM's authentication key.
pub(super) fn seal_with_nonce(
    dek: &Dek,
    binding: &Binding,
    nonce: [u8; NONCE_BYTES],
    plaintext: &[u8],
) -> Token {
    let keys = Keys::derive(dek, binding);
    // Room for the tag from the start: no growing, so no copy of the plaintext left behind in freed
    // memory.
    let mut buffer = Vec::with_capacity(plaintext.len() + TAG_BYTES);
    buffer.extend_from_slice(plaintext);
    let tag = provider::aead_seal(&keys.encryption, nonce, &[], &mut buffer);
    buffer.extend_from_slice(&tag);
    Token { dek_id: binding.dek_id, commitment: *keys.commitment, nonce, ciphertext_and_tag: buffer }
}

/// Opens a token.
///
/// # Errors
///
/// [`DecryptFailed`] for a wrong DEK, tenant, DEK id or context, and for anything changed in the
/// token.
pub fn open(dek: &Dek, binding: &Binding, token: &Token) -> Result<Plaintext, DecryptFailed> {
    let keys = Keys::derive(dek, binding);
    // The id is not secret: the token contains it.
    if token.dek_id != binding.dek_id || !ct_eq_hashes(&token.commitment, &keys.commitment) {
        return Err(DecryptFailed);
    }
    let (ciphertext, tag) = token.ciphertext_and_tag.split_last_chunk().ok_or(DecryptFailed)?;
    // The buffer is wiped when dropped, including whatever a failing AEAD leaves in it.
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    provider::aead_open(&keys.encryption, token.nonce, &[], &mut buffer, *tag).ok_or(DecryptFailed)?;
    Ok(Plaintext::new(std::mem::take(&mut *buffer)))
}

/// The keys that HKDF derives from a DEK and a binding.
pub(super) struct Keys {
    pub(super) encryption: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) commitment: Zeroizing<[u8; KEY_BYTES]>,
}

impl Keys {
    pub(super) fn derive(dek: &Dek, binding: &Binding) -> Self {
        let mut keys = Self { encryption: Zeroizing::new([0; _]), commitment: Zeroizing::new([0; _]) };
        let prk = provider::Prk::extract(&[], dek.expose());
        for (label, out) in
            [(ENCRYPTION_LABEL, &mut keys.encryption), (COMMITMENT_LABEL, &mut keys.commitment)]
        {
            prk.expand(&[label, &binding.transcript], &mut **out)
                .expect("32 bytes are within what HKDF can give");
        }
        keys
    }
}

/// The token does not open. There is one such error, whatever the cause: a distinction would help
/// only an attacker who tries tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecryptFailed;

impl fmt::Display for DecryptFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token cannot be decrypted: wrong context, or it was changed")
    }
}

impl std::error::Error for DecryptFailed {}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: [u8; 16] = [1; 16];
    const DEK_ID: [u8; 16] = [2; 16];

    fn binding() -> Binding {
        Binding::new(&TENANT, &DEK_ID, &super::super::Context::empty().digest())
    }

    #[test]
    fn what_was_sealed_opens() {
        let dek = Dek::generate();
        let token = seal(&dek, &binding(), &DEK_ID, b"attack at dawn");
        assert_eq!(open(&dek, &binding(), &token).unwrap().expose(), b"attack at dawn");
    }

    #[test]
    fn an_empty_plaintext_is_sealed_too() {
        let dek = Dek::generate();
        let token = seal(&dek, &binding(), &DEK_ID, b"");
        assert_eq!(open(&dek, &binding(), &token).unwrap().expose(), b"");
    }

    #[test]
    fn the_same_plaintext_is_never_sealed_the_same_way() {
        let dek = Dek::generate();
        assert_ne!(seal(&dek, &binding(), &DEK_ID, b"x"), seal(&dek, &binding(), &DEK_ID, b"x"));
    }

    #[test]
    fn encryption_key_and_commitment_differ() {
        let keys = Keys::derive(&Dek::generate(), &binding());
        assert_ne!(*keys.encryption, *keys.commitment);
    }

    #[test]
    fn a_ciphertext_shorter_than_the_tag_is_refused() {
        let dek = Dek::generate();
        let mut token = seal(&dek, &binding(), &DEK_ID, b"");
        token.ciphertext_and_tag.pop();
        assert_eq!(open(&dek, &binding(), &token).err(), Some(DecryptFailed));
    }

    #[test]
    #[should_panic(expected = "bound to")]
    fn sealing_for_another_dek_than_bound_to_stops() {
        seal(&Dek::generate(), &binding(), &[3; 16], b"");
    }

    #[test]
    #[should_panic(expected = "fits")]
    fn sealing_what_could_never_be_read_stops() {
        seal(&Dek::generate(), &binding(), &DEK_ID, &vec![0; MAX_PLAINTEXT_BYTES + 1]);
    }
}
