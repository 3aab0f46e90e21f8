//! Types that hold secrets: wiped when dropped, without `Debug`, `Clone` or `Serialize`, so that a
//! secret is neither printed nor copied by accident. Reading one takes a call of `expose`, which is
//! easy to search for.
//!
//! A wipe clears only the current memory of the value. Each of these types keeps its bytes on the
//! heap, so that moving the value moves a pointer and leaves no copy on the stack.

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

use super::provider::{KEY_BYTES, fill_random};

/// A data encryption key: 32 random bytes that protect one record. Plain only in memory.
pub struct Dek(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Dek {
    /// A new DEK, from the operating system's random source.
    pub fn generate() -> Self {
        let mut dek = Self::zeroed();
        fill_random(dek.bytes_mut());
        dek
    }

    /// A DEK of the bytes that a KMS returned, which are wiped. `None` unless they are exactly 32.
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        Self::from_slice(&bytes)
    }

    /// A DEK of a copy of `bytes`. `None` unless they are exactly 32. The caller wipes the
    /// original.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_BYTES {
            return None;
        }
        let mut dek = Self::zeroed();
        dek.bytes_mut().copy_from_slice(bytes);
        Some(dek)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Memory for a key that the caller fills in place.
    pub(super) fn zeroed() -> Self {
        Self(Box::new(Zeroizing::new([0; KEY_BYTES])))
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        &mut self.0
    }
}

/// A plaintext, as bytes.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes ownership of the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The same memory, as text.
    ///
    /// # Errors
    ///
    /// [`NotText`] if the bytes are not UTF-8; they are wiped.
    pub fn into_text(mut self) -> Result<SecretText, NotText> {
        match String::from_utf8(std::mem::take(&mut *self.0)) {
            Ok(text) => Ok(SecretText::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(NotText)
            }
        }
    }
}

/// A credential, or a plaintext that is text.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes ownership of the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// The plaintext is not UTF-8, so it cannot be answered as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotText;

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plaintext is not UTF-8 text")
    }
}

impl std::error::Error for NotText {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_new_deks_differ() {
        assert_ne!(Dek::generate().expose(), Dek::generate().expose());
    }

    #[test]
    fn a_dek_is_exactly_32_bytes() {
        for length in [0, 16, 31, 33, 64] {
            assert!(Dek::from_slice(&vec![7; length]).is_none(), "{length}");
        }
        assert_eq!(Dek::from_bytes(Zeroizing::new(vec![7; 32])).unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn a_utf8_plaintext_is_text() {
        let text = Plaintext::new("żółć".as_bytes().to_vec()).into_text();
        assert_eq!(text.ok().unwrap().expose(), "żółć");
    }

    #[test]
    fn a_plaintext_that_is_not_utf8_is_not_text() {
        assert_eq!(Plaintext::new(vec![0xff]).into_text().err(), Some(NotText));
    }
}
