//! Decides which items of a call its entry lists. It lists all items that succeeded. Of the refused
//! items, it lists the first ones, and each one that cost a request to the KMS, because an auditor
//! finds that request in the KMS's own log. The others are counted by code. Otherwise a caller who
//! may do nothing could fill the log with refusals.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::model::{Extensions, Item};

/// The number of refused items that are listed whether or not they cost a request.
const LISTED: usize = 8;

/// The part of an entry that describes the items of a call.
pub(super) struct Listing {
    /// The listed items; `None` if all are listed.
    pub(super) listed: Option<Vec<Item>>,
    /// The number of unlisted items, by code.
    pub(super) extensions: Extensions,
}

impl Listing {
    /// Builds the listing of these items, which are in the order of the call.
    pub(super) fn of(items: &[Item]) -> Self {
        let mut extensions = Extensions::default();
        if items.len() <= LISTED || items.iter().filter(|item| item.refused.is_some()).count() <= LISTED {
            return Self { listed: None, extensions };
        }
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut requests: HashSet<Arc<str>> = HashSet::new();
        let mut refused = 0;
        let mut listed = Vec::new();
        for item in items {
            let Some(code) = item.refused else {
                listed.push(item.clone());
                continue;
            };
            refused += 1;
            let costs = item.kms_request_id.as_ref().is_some_and(|id| requests.insert(id.clone()));
            if refused <= LISTED || costs {
                listed.push(item.clone());
            } else {
                *counts.entry(code.as_str()).or_default() += 1;
            }
        }
        if counts.is_empty() {
            return Self { listed: None, extensions };
        }
        extensions.set_unlisted_refusals(&counts);
        Self { listed: Some(listed), extensions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorCode;

    fn item(record: usize, refused: Option<ErrorCode>, request: Option<&str>) -> Item {
        let record_id = Some(record.to_string().into());
        Item { record_id, refused, kms_request_id: request.map(Arc::from), ..Item::default() }
    }

    fn records(listing: &Listing) -> Vec<String> {
        let listed = listing.listed.as_ref().unwrap().iter();
        listed.map(|item| item.record_id.as_deref().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_was_done_is_listed_whole() {
        let items: Vec<Item> = (0..20_000).map(|record| item(record, None, None)).collect();
        assert!(Listing::of(&items).listed.is_none());
    }

    #[test]
    fn of_many_refusals_the_first_are_listed_and_the_others_counted() {
        let refused = |record: usize| {
            let code = if record % 4 == 3 { ErrorCode::TokenMalformed } else { ErrorCode::PermissionDenied };
            item(record, (record != 100).then_some(code), None)
        };
        let items: Vec<Item> = (0..2_000).map(refused).collect();
        let listing = Listing::of(&items);
        assert_eq!(records(&listing), ["0", "1", "2", "3", "4", "5", "6", "7", "100"]);
        assert_eq!(
            listing.extensions.unlisted_refusals(),
            [(ErrorCode::PermissionDenied, 1_493), (ErrorCode::TokenMalformed, 498)]
        );
    }

    #[test]
    fn a_refusal_after_a_kms_request_is_listed_once_a_request() {
        let code = Some(ErrorCode::KmsAccessDenied);
        let mut items: Vec<Item> = (0..10).map(|record| item(record, code, Some("one"))).collect();
        items.push(item(10, code, Some("another")));
        let listing = Listing::of(&items);
        assert_eq!(records(&listing), ["0", "1", "2", "3", "4", "5", "6", "7", "10"]);
        assert_eq!(listing.extensions.unlisted_refusals(), [(ErrorCode::KmsAccessDenied, 2)]);
    }

    #[test]
    fn a_few_refusals_are_listed_as_they_are() {
        let items: Vec<Item> = (0..16)
            .map(|record| item(record, (record % 2 == 0).then_some(ErrorCode::DecryptFailed), None))
            .collect();
        let listing = Listing::of(&items);
        assert!(listing.listed.is_none() && listing.extensions.is_empty());
    }
}
