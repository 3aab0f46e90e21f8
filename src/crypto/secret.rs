//! Types that hold secrets.

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// 32 random bytes for one record.
pub struct Dek(Zeroizing<[u8; 32]>);

impl Dek {
    /// A new one.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(bytes.as_mut()).expect("the system's random source works");
        Self(bytes)
    }

    /// From exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A credential or other secret text.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
