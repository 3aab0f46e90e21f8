//! The context: a map of strings that a ciphertext is bound to, needed again to decrypt.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use super::provider::sha256;

/// The most pairs of a context.
pub const MAX_CONTEXT_PAIRS: usize = 64;

/// The most bytes of a context's canonical encoding.
pub const MAX_CONTEXT_BYTES: usize = 16 * 1024;

const LENGTH_BYTES: usize = 4;

/// A map of strings with a canonical encoding.
///
/// ```text
///          0               4
/// count    ├───────────────┤
///          │ u32 pairs     │
///          └───────────────┘
///
///          0               4         4+k              8+k       8+k+v
/// pair     ├───────────────┼──────────┼────────────────┼──────────┤ as many as counted, sorted by
///          │ u32 k         │ key      │ u32 v          │ value    │ key: bytewise, ascending, each
///          └───────────────┴──────────┴────────────────┴──────────┘ key once
/// ```
///
/// Numbers are unsigned and big-endian; keys and values are UTF-8, unchanged: no Unicode
/// normalisation, no case folding, no trimming. A key has at least one byte, a value may have none.
/// The empty context is four zero bytes. Each length precedes its value, so two different
/// maps never share an encoding.
///
/// Values may be personal data: `Debug` shows only the number of pairs.
#[derive(Clone, PartialEq, Eq)]
pub struct Context {
    pairs: BTreeMap<String, String>,
    canonical_bytes: usize,
}

impl Context {
    /// The context without pairs, for a caller's `null`.
    pub fn empty() -> Self {
        Self { pairs: BTreeMap::new(), canonical_bytes: LENGTH_BYTES }
    }

    /// A context of these pairs, in any order.
    ///
    /// # Errors
    ///
    /// The error of [`Self::insert`] for the first pair that is refused.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ContextError> {
        let mut context = Self::empty();
        for (key, value) in pairs {
            context.insert(key, value)?;
        }
        Ok(context)
    }

    /// Adds a pair. A refused pair leaves the context unchanged.
    ///
    /// # Errors
    ///
    /// A key that is empty or already present (even with the same value), or a pair beyond
    /// [`MAX_CONTEXT_PAIRS`] or [`MAX_CONTEXT_BYTES`].
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<(), ContextError> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() {
            return Err(ContextError::EmptyKey);
        }
        let pairs = self.pairs.len();
        let canonical_bytes = self.canonical_bytes + 2 * LENGTH_BYTES + key.len() + value.len();
        let Entry::Vacant(entry) = self.pairs.entry(key) else {
            return Err(ContextError::DuplicateKey);
        };
        if pairs == MAX_CONTEXT_PAIRS {
            return Err(ContextError::TooManyPairs);
        }
        if canonical_bytes > MAX_CONTEXT_BYTES {
            return Err(ContextError::TooLarge);
        }
        entry.insert(value);
        self.canonical_bytes = canonical_bytes;
        Ok(())
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs, sorted bytewise by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the encoding described above.
    pub fn canonical(&self) -> Vec<u8> {
        let mut encoding = Vec::with_capacity(self.canonical_bytes);
        encoding.extend_from_slice(&prefix(self.len()));
        for (key, value) in self.iter() {
            for text in [key, value] {
                encoding.extend_from_slice(&prefix(text.len()));
                encoding.extend_from_slice(text.as_bytes());
            }
        }
        encoding
    }

    /// SHA-256 of [`Self::canonical`], which tokens are bound to.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.canonical())
    }
}

fn prefix(number: usize) -> [u8; LENGTH_BYTES] {
    u32::try_from(number).expect("a context has at most MAX_CONTEXT_BYTES bytes").to_be_bytes()
}

impl Default for Context {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({} pairs)", self.len())
    }
}

/// Why pairs do not make a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextError {
    /// Two pairs have the same key.
    DuplicateKey,
    /// A key is the empty string.
    EmptyKey,
    /// There are more than [`MAX_CONTEXT_PAIRS`].
    TooManyPairs,
    /// The canonical encoding has more than [`MAX_CONTEXT_BYTES`].
    TooLarge,
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateKey => f.write_str("the context has a key twice"),
            Self::EmptyKey => f.write_str("the context has an empty key"),
            Self::TooManyPairs => write!(f, "the context has more than {MAX_CONTEXT_PAIRS} pairs"),
            Self::TooLarge => write!(f, "the context has more than {MAX_CONTEXT_BYTES} bytes"),
        }
    }
}

impl std::error::Error for ContextError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: usize) -> Result<Context, ContextError> {
        Context::from_pairs((0..count).map(|n| (n.to_string(), "")))
    }

    /// A context of one pair whose encoding has this many bytes.
    fn of_bytes(bytes: usize) -> Result<Context, ContextError> {
        Context::from_pairs([("k", "v".repeat(bytes - 13))])
    }

    #[test]
    fn the_order_of_the_pairs_does_not_matter() {
        let one = Context::from_pairs([("a", "1"), ("b", "2")]).unwrap();
        let other = Context::from_pairs([("b", "2"), ("a", "1")]).unwrap();
        assert_eq!(one.digest(), other.digest());
    }

    #[test]
    fn a_boundary_that_moves_changes_the_encoding() {
        let one = Context::from_pairs([("ab", "c")]).unwrap();
        let other = Context::from_pairs([("a", "bc")]).unwrap();
        assert_ne!(one.canonical(), other.canonical());
    }

    #[test]
    fn the_same_key_with_the_same_value_is_a_duplicate() {
        assert_eq!(Context::from_pairs([("a", "1"), ("a", "1")]), Err(ContextError::DuplicateKey));
    }

    #[test]
    fn a_refused_pair_leaves_the_context_as_it_was() {
        let mut context = Context::from_pairs([("a", "1")]).unwrap();
        let before = context.clone();
        assert_eq!(context.insert("a", "2"), Err(ContextError::DuplicateKey));
        assert_eq!(context.insert("b", "v".repeat(MAX_CONTEXT_BYTES)), Err(ContextError::TooLarge));
        assert_eq!(context, before);
    }

    #[test]
    fn an_empty_key_is_refused_and_an_empty_value_is_not() {
        assert_eq!(Context::from_pairs([("", "1")]), Err(ContextError::EmptyKey));
        assert_eq!(Context::from_pairs([("a", "")]).unwrap().get("a"), Some(""));
    }

    #[test]
    fn sixty_four_pairs_are_taken_and_one_more_is_not() {
        assert_eq!(numbered(MAX_CONTEXT_PAIRS).unwrap().len(), MAX_CONTEXT_PAIRS);
        assert_eq!(numbered(MAX_CONTEXT_PAIRS + 1), Err(ContextError::TooManyPairs));
    }

    #[test]
    fn the_limit_of_bytes_is_that_of_the_encoding() {
        assert_eq!(of_bytes(MAX_CONTEXT_BYTES).unwrap().canonical().len(), MAX_CONTEXT_BYTES);
        assert_eq!(of_bytes(MAX_CONTEXT_BYTES + 1), Err(ContextError::TooLarge));
    }

    #[test]
    fn debug_prints_no_value() {
        let context = Context::from_pairs([("record_id", "patient 7")]).unwrap();
        assert_eq!(format!("{context:?}"), "Context(1 pairs)");
    }
}
