//! MACs over stored rows: without the secret, write access to the database does not suffice to make
//! a row that is accepted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::provider::{KEY_BYTES, Prk, ct_eq_hashes, fill_random, hmac_sha256};
use super::secret::SecretText;

/// The label of the key's derivation. A change of the message or of the derivation requires another
/// label.
const LABEL: &[u8] = b"byok row mac 1";

/// A key for MACs over stored rows: HMAC-SHA256 under a key that HKDF-SHA256 derives from a secret
/// of 32 random bytes. The secret itself is not kept.
pub struct RowMacKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

/// The text is not 32 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRowMacKey;

impl RowMacKey {
    /// Parses 32 bytes in standard base64, with padding.
    ///
    /// # Errors
    /// [`NoRowMacKey`].
    pub fn from_base64(text: &SecretText) -> Result<Self, NoRowMacKey> {
        let secret = STANDARD.decode(text.expose()).map(Zeroizing::new).map_err(|_| NoRowMacKey)?;
        if secret.len() != KEY_BYTES {
            return Err(NoRowMacKey);
        }
        let mut key = Self(Box::new(Zeroizing::new([0; KEY_BYTES])));
        Prk::extract(&[], &secret).expand(&[LABEL], &mut **key.0).ok_or(NoRowMacKey)?;
        Ok(key)
    }

    /// A new secret, in the form that [`Self::from_base64`] parses.
    pub fn generate() -> SecretText {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        fill_random(&mut *secret);
        SecretText::new(STANDARD.encode(secret.as_slice()))
    }

    /// The MAC of these fields in this order; no two lists of fields have the same message.
    pub fn mac(&self, fields: &[&[u8]]) -> [u8; 32] {
        let mut message = Vec::with_capacity(fields.iter().map(|field| 8 + field.len()).sum());
        for field in fields {
            message.extend((field.len() as u64).to_be_bytes());
            message.extend(*field);
        }
        hmac_sha256(&**self.0, &message)
    }

    /// Whether this is the MAC of these fields; compared in constant time.
    pub fn verifies(&self, fields: &[&[u8]], mac: &[u8; 32]) -> bool {
        ct_eq_hashes(&self.mac(fields), mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RowMacKey {
        RowMacKey::from_base64(&SecretText::new(STANDARD.encode([7; 32]))).unwrap()
    }

    #[test]
    fn a_mac_is_that_of_its_fields_and_of_no_others() {
        let mac = key().mac(&[b"ab", b"c"]);
        assert!(key().verifies(&[b"ab", b"c"], &mac));
        let others: [&[&[u8]]; 4] = [&[b"a", b"bc"], &[b"abc"], &[b"ab", b"c", b""], &[b"ab", b"d"]];
        for other in others {
            assert!(!key().verifies(other, &mac));
        }
        let another = RowMacKey::from_base64(&RowMacKey::generate()).unwrap();
        assert!(!another.verifies(&[b"ab", b"c"], &mac));
    }

    #[test]
    fn a_secret_is_exactly_32_bytes_in_base64() {
        for text in ["", "hunter2", &STANDARD.encode([7; 31]), &STANDARD.encode([7; 33])] {
            assert!(RowMacKey::from_base64(&SecretText::new(text.to_owned())).is_err(), "{text}");
        }
    }

    #[test]
    fn the_mac_is_what_another_implementation_makes_of_the_same_secret() {
        // Python: hmac(hkdf_expand(hkdf_extract(b"", bytes([7] * 32)), b"byok row mac 1", 32),
        // message).
        let mac = key().mac(&[b"ab", b"c"]);
        assert_eq!(mac[..8], [0x1c, 0x05, 0xc5, 0x4a, 0x2f, 0xf1, 0x2f, 0xaf]);
    }
}
