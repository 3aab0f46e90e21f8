//! The properties of the parsers of checkpoints and of their keys, for any text. The including file
//! brings `audit` and `crypto` into scope.

use super::audit::{CheckpointKey, SignedCheckpoint};
use super::crypto::Ed25519VerifyingKey;

/// Panics if a property does not hold.
pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(read) = SignedCheckpoint::parse(&text) {
        assert!(text.starts_with(&read.checkpoint.body()), "the body is the beginning of the text");
        let somebody = Ed25519VerifyingKey::from_bytes([7; 32]);
        let key = CheckpointKey { name: read.checkpoint.origin.clone(), key: somebody };
        assert!(!read.is_signed_by(&key), "nobody has that key");
    }
    if let Ok(key) = CheckpointKey::parse(&text) {
        assert_eq!(key.to_string(), text, "a key has one spelling");
    }
}
