//! Entries of the audit log: one for each call, with its items.

use std::sync::Arc;

use super::{DekId, EntryId, ErrorCode, Extensions, KeyVersion, Means, Operation, RequestId, Timestamp};

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All items were done.
    Ok,
    /// Some items were refused, others done.
    Partial,
    /// The call was refused.
    Refused(ErrorCode),
}

impl Outcome {
    /// Every outcome that an entry can have.
    pub fn every() -> Vec<Self> {
        let codes = ErrorCode::ALL.iter().copied().filter(|code| !code.is_hasuras_own());
        [Self::Ok, Self::Partial].into_iter().chain(codes.map(Self::Refused)).collect()
    }

    /// The outcome of a call with these items. If all of them were refused, this is the refusal of
    /// the first.
    pub fn of_items(items: &[Item]) -> Self {
        match items.iter().find_map(|item| item.refused) {
            None => Self::Ok,
            Some(first) if items.iter().all(|item| item.refused.is_some()) => Self::Refused(first),
            Some(_) => Self::Partial,
        }
    }

    /// `OK`, `PARTIAL`, or the code of the refusal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Partial => "PARTIAL",
            Self::Refused(code) => code.as_str(),
        }
    }

    /// The outcome that [`Self::as_str`] names.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "OK" => Some(Self::Ok),
            "PARTIAL" => Some(Self::Partial),
            other => ErrorCode::parse(other).map(Self::Refused),
        }
    }
}

/// Where the DEK of an item came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From memory, from the cache or the DEK pool: this call made no KMS request for it.
    Cache,
    /// From the KMS, during this call.
    Kms,
}

/// What was done with one record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The caller's name for the record; `None` if the call named none, or after an erasure.
    pub record_id: Option<Arc<str>>,
    /// The DEK, if one was found.
    pub dek_id: Option<DekId>,
    /// The version of the KEK that wrapped the DEK.
    pub key_version: Option<KeyVersion>,
    /// Where the DEK came from; `None` without a DEK.
    pub source: Option<Source>,
    /// The KMS's request id. For a DEK from memory, that of the earlier request that unwrapped or
    /// made it.
    pub kms_request_id: Option<Arc<str>>,
    /// Why the item was refused; `None` if it was done.
    pub refused: Option<ErrorCode>,
    /// SHA-256 of the wrapped DEK, if this item made or re-wrapped it.
    pub wrapped_hash: Option<[u8; 32]>,
    /// byok's own id of the key of `key_version`; `None` while a tenant has one key.
    pub key_id: Option<[u8; 16]>,
    /// byok's own id of the key that wraps `key_id`; `None` if `key_id` is the customer's own key.
    pub wrapping_key_id: Option<[u8; 16]>,
    /// The form in which a plaintext was answered; `None` if unchanged.
    pub form: Option<Arc<str>>,
}

/// The record of one call in the audit log. Contains no plaintext, no key, no context value other
/// than the record id, and no provider's message.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The id of the entry.
    pub id: EntryId,
    /// When the entry became durable, by this server's clock.
    pub at: Timestamp,
    /// The operation of the call, or the event.
    pub operation: Operation,
    /// The result.
    pub outcome: Outcome,
    /// The caller's role.
    pub role: Arc<str>,
    /// The caller; `None` if unknown, or after an erasure.
    pub user: Option<String>,
    /// How the caller was authenticated ([`Means::as_str`]).
    pub means: Means,
    /// The id of the request; `None` after an erasure.
    pub request_id: Option<String>,
    /// What an operation on the log itself did, or why. Contains nothing personal.
    pub detail: Option<Arc<str>>,
    /// The code of the reason that the caller gave, if one was required.
    pub reason: Option<Arc<str>>,
    /// SHA-256 of the row of the ledger that was written with the entry.
    pub ledger_hash: Option<[u8; 32]>,
    /// The issuer of the caller's JWT.
    pub issuer: Option<Arc<str>>,
    /// Further fields.
    pub extensions: Extensions,
    /// The items, in the order of the call. Of many refused items, only the first; the others are
    /// counted ([`Extensions::unlisted_refusals`]).
    pub items: Vec<Item>,
}

impl Entry {
    /// The entry of an operator's action on the log itself, by the command line or by the server's
    /// maintenance; `user` if it is known.
    pub fn of_operator(
        at: Timestamp,
        operation: Operation,
        user: Option<String>,
        detail: Option<Arc<str>>,
    ) -> Self {
        Self {
            id: EntryId::new(),
            at,
            operation,
            outcome: Outcome::Ok,
            role: "operator".into(),
            user,
            means: Means::Operator,
            request_id: Some(RequestId::fresh().as_str().to_owned()),
            detail,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items: Vec::new(),
        }
    }

    /// The number of items of the call, including those that are only counted.
    pub fn item_count(&self) -> u64 {
        let unlisted = self.extensions.unlisted_refusals();
        self.items.len() as u64 + unlisted.iter().map(|(_, count)| count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(refused: &[Option<ErrorCode>]) -> Vec<Item> {
        refused.iter().map(|refused| Item { refused: *refused, ..Item::default() }).collect()
    }

    #[test]
    fn a_call_of_refused_items_has_the_first_ones_reason() {
        let code = Some(ErrorCode::DecryptFailed);
        assert_eq!(Outcome::of_items(&items(&[None, None])), Outcome::Ok);
        assert_eq!(Outcome::of_items(&items(&[code, code])), Outcome::Refused(ErrorCode::DecryptFailed));
        assert_eq!(Outcome::of_items(&items(&[code, None])), Outcome::Partial);
        assert_eq!(
            Outcome::of_items(&items(&[Some(ErrorCode::TokenMalformed), code])),
            Outcome::Refused(ErrorCode::TokenMalformed)
        );
        assert_eq!(
            Outcome::of_items(&items(&[None, code, Some(ErrorCode::TokenMalformed)])),
            Outcome::Partial
        );
    }
}
