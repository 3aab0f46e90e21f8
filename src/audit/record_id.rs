//! The name of a record in the log: its id, or the hash of an id that is too long to be kept.
//! Callers choose ids, and an entry can never be deleted, so what an item adds to it must be
//! bounded.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::crypto::sha256;

/// The longest record id that the log keeps, in bytes of UTF-8. byok does not encrypt for a longer
/// one, but decrypts tokens that earlier releases made for longer ones.
pub const MAX_RECORD_ID_BYTES: usize = 512;

/// Returns the name in the log of the record with this id: the id itself, or, if it is longer than
/// [`MAX_RECORD_ID_BYTES`], `sha256:` and the SHA-256 of its UTF-8 in lower-case hexadecimal.
pub fn recorded_id(record_id: &str) -> Cow<'_, str> {
    if record_id.len() <= MAX_RECORD_ID_BYTES {
        return Cow::Borrowed(record_id);
    }
    let mut recorded = String::from("sha256:");
    for byte in sha256(record_id.as_bytes()) {
        let _ = write!(recorded, "{byte:02x}");
    }
    Cow::Owned(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_512_bytes_is_kept_a_longer_one_hashed() {
        let longest = "ä".repeat(256);
        assert_eq!(recorded_id(&longest), longest);
        // Computed with `printf 'x%.0s' $(seq 513) | sha256sum`.
        assert_eq!(
            recorded_id(&"x".repeat(513)),
            "sha256:35ade0090e64e74d6ad04204009c23a4e34b82bdf0f4f317fbcc5f26f9b10241"
        );
    }
}
