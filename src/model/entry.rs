//! One row of the audit log: one call, with its items.

use std::sync::Arc;

use super::{DekId, EntryId, ErrorCode, Extensions, KeyVersion, Means, Operation, RequestId, Timestamp};

/// How a call, or one of its items, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done.
    Ok,
    /// Some items were refused, others done; only a call with items can end so.
    Partial,
    /// It was refused.
    Refused(ErrorCode),
}

impl Outcome {
    /// Every outcome that an entry can have.
    pub fn every() -> Vec<Self> {
        let codes = ErrorCode::ALL.iter().copied().filter(|code| !code.is_hasuras_own());
        [Self::Ok, Self::Partial].into_iter().chain(codes.map(Self::Refused)).collect()
    }

    /// The outcome of a call with these items. Where all of them were refused, that of the first.
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
    /// From memory, be it the cache or the pool of DEKs that were made ahead of need: no KMS call was made for it.
    Cache,
    /// From the KMS, in this call.
    Kms,
}

/// What was done with one record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The caller's name for what is protected; `None` where the deployment does not require one, or after an erasure.
    pub record_id: Option<Arc<str>>,
    /// The DEK, where one was found.
    pub dek_id: Option<DekId>,
    /// The version of the KEK that wrapped it.
    pub key_version: Option<KeyVersion>,
    /// Where the DEK came from; `None` where there was none.
    pub source: Option<Source>,
    /// The KMS's request id; for a DEK from memory, that of the request that brought it there: of the unwrap that filled the
    /// cache, or of what made it ahead of need.
    pub kms_request_id: Option<Arc<str>>,
    /// Why it was refused; `None` when it was done.
    pub refused: Option<ErrorCode>,
    /// SHA-256 of the wrapped DEK, where this item made it or re-wrapped it.
    pub wrapped_hash: Option<[u8; 32]>,
    /// Our own id of the key that `key_version` is of; `None` as long as a tenant has one key.
    pub key_id: Option<[u8; 16]>,
    /// Our own id of the key that wraps `key_id`; `None` where it is the customer's own.
    pub wrapping_key_id: Option<[u8; 16]>,
    /// The form in which a plaintext was answered; `None` where it was answered as it is.
    pub form: Option<Arc<str>>,
}

/// What one call leaves in the audit log. Holds no plaintext, no key, no other context value, no provider's message.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// When the call was made durable, by this server's clock.
    pub at: Timestamp,
    /// What was asked for.
    pub operation: Operation,
    /// How it ended.
    pub outcome: Outcome,
    /// The caller's role.
    pub role: Arc<str>,
    /// The caller; `None` when unknown, or after an erasure.
    pub user: Option<String>,
    /// How the caller was recognised ([`Means::as_str`]).
    pub means: Means,
    /// Our request id; `None` after an erasure.
    pub request_id: Option<String>,
    /// What an operation on the log itself did, or why: in our words, of which nothing is personal.
    pub detail: Option<Arc<str>>,
    /// The code of the reason that the caller gave, where one was asked for.
    pub reason: Option<Arc<str>>,
    /// SHA-256 of the row of the ledger that was written with the entry.
    pub ledger_hash: Option<[u8; 32]>,
    /// Who vouches for the caller's name: the issuer of their JWT.
    pub issuer: Option<Arc<str>>,
    /// What else it says.
    pub extensions: Extensions,
    /// The records, in the order of the call. Of those that were refused, the first; the others are counted
    /// ([`Extensions::unlisted_refusals`]).
    pub items: Vec<Item>,
}

impl Entry {
    /// What an operator did with the log itself, by the command line or by the server's own upkeep; `user` where it is said who.
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

    /// How many items the call had, those included that are only counted.
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
    fn a_call_whose_items_are_all_refused_has_the_first_ones_reason() {
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
