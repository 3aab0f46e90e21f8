//! Further fields of an entry of the audit log: a list of names and values, to which later versions
//! may add without changing the format of entries. Unknown names are stored, hashed and shown
//! unchanged.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{EntryId, ErrorCode};

const VOIDS: &str = "voids";
const UNLISTED_REFUSALS: &str = "unlisted-refusals";

/// Names and values, sorted by the bytes of the names; each name occurs once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions(BTreeMap<Arc<str>, Arc<str>>);

impl Extensions {
    /// These pairs; `None` unless their names are in strictly ascending order.
    pub fn from_pairs(pairs: Vec<(Arc<str>, Arc<str>)>) -> Option<Self> {
        pairs.is_sorted_by(|one, next| one.0 < next.0).then(|| Self(pairs.into_iter().collect()))
    }

    /// All pairs, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The earlier entry that this refusal replaces: its answer was withheld after it was
    /// committed.
    pub fn voids(&self) -> Option<EntryId> {
        let id = uuid::Uuid::parse_str(self.0.get(VOIDS)?).ok()?;
        Some(EntryId(id))
    }

    /// Records that the answer of that entry was withheld.
    pub fn set_voids(&mut self, entry: EntryId) {
        self.0.insert(VOIDS.into(), entry.0.to_string().into());
    }

    /// The number of refused items that are not listed, by code.
    pub fn unlisted_refusals(&self) -> Vec<(ErrorCode, u64)> {
        let Some(counts) = self.0.get(UNLISTED_REFUSALS) else { return Vec::new() };
        let count = |pair: &str| {
            let (code, count) = pair.split_once('=')?;
            Some((ErrorCode::parse(code)?, count.parse().ok()?))
        };
        counts.split(' ').filter_map(count).collect()
    }

    /// Sets the number of refused items that are not listed, by code.
    pub fn set_unlisted_refusals(&mut self, counts: &BTreeMap<&'static str, u64>) {
        let mut value = String::new();
        for (code, count) in counts {
            let separator = if value.is_empty() { "" } else { " " };
            let _ = write!(value, "{separator}{code}={count}");
        }
        self.0.insert(UNLISTED_REFUSALS.into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(names: &[&str]) -> Vec<(Arc<str>, Arc<str>)> {
        names.iter().map(|name| (Arc::from(*name), Arc::from("value"))).collect()
    }

    #[test]
    fn extensions_survive_a_round_trip() {
        let mut extensions = Extensions::default();
        let id = EntryId(uuid::Uuid::from_bytes([7; 16]));
        extensions.set_voids(id);
        let counts = BTreeMap::from([("DECRYPT_FAILED", 1_992), ("TOKEN_MALFORMED", 3)]);
        extensions.set_unlisted_refusals(&counts);
        assert_eq!(extensions.voids(), Some(id));
        assert_eq!(
            extensions.unlisted_refusals(),
            [(ErrorCode::DecryptFailed, 1_992), (ErrorCode::TokenMalformed, 3)]
        );
        let all: Vec<_> = extensions.iter().collect();
        assert_eq!(all[0], ("unlisted-refusals", "DECRYPT_FAILED=1992 TOKEN_MALFORMED=3"));
    }

    #[test]
    fn names_must_be_in_ascending_order() {
        assert!(Extensions::from_pairs(pairs(&["a", "b"])).is_some());
        assert!(Extensions::from_pairs(pairs(&["b", "a"])).is_none());
        assert!(Extensions::from_pairs(pairs(&["a", "a"])).is_none());
    }
}
