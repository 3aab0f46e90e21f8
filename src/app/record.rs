//! What a call leaves behind: its entry, committed together with what it changed, before anything is answered.

use std::sync::Arc;

use crate::audit::{CommitFailed, Unit, pack};
use crate::crypto::Context;
use crate::keyring::{Held, KeyringError};
use crate::kms::{KmsError, KmsErrorClass};
use crate::model::{Caller, DekId, Entry, EntryId, ErrorCode, Item, Operation, Outcome, Refusal, RequestId};
use crate::store::{Change, ReadError};

use super::App;

/// One item of a call as it comes to its end: what will be recorded of it.
pub(super) fn item_of(context: Option<&Context>) -> Item {
    let record_id = context.and_then(|context| context.get("record_id")).map(Arc::from);
    Item { record_id, dek_id: None, key_version: None, source: None, kms_request_id: None, refused: None }
}

/// Notes the DEK that an item used.
pub(super) fn note_dek(item: &mut Item, id: DekId, held: &Held) {
    item.dek_id = Some(id);
    item.key_version = Some(held.key_version.clone());
    item.source = Some(held.source);
    item.kms_request_id.clone_from(&held.kms_request_id);
}

/// Notes why a DEK could not be had, and says it to the caller.
pub(super) fn note_failure(item: &mut Item, error: &KeyringError, request_id: &RequestId) -> Refusal {
    let refusal: Refusal = match error {
        KeyringError::Missing => ErrorCode::DecryptFailed.into(),
        KeyringError::Kms(error) => {
            item.kms_request_id.clone_from(&error.request_id);
            log_kms(error, Some(request_id));
            error.refusal()
        }
        KeyringError::Store(error) => read_refusal(*error),
    };
    item.refused = Some(refusal.code);
    refusal
}

/// What our log may hold of a KMS's refusal; and whose request met it, where it was one.
pub(super) fn log_kms(error: &KmsError, request_id: Option<&RequestId>) {
    // Said once a minute where the budget is kept, and not for each of its items.
    if error.class == KmsErrorClass::BudgetSpent {
        return;
    }
    tracing::warn!(
        class = ?error.class,
        status = error.http_status,
        kms_request_id = error.request_id.as_deref(),
        request_id = request_id.map(RequestId::as_str),
        "the KMS refused or failed"
    );
}

/// A failed read, as the caller sees it.
pub(super) fn read_refusal(error: ReadError) -> Refusal {
    match error {
        ReadError::Unavailable => ErrorCode::StoreUnavailable.into(),
        ReadError::Rejected => ErrorCode::Internal.into(),
    }
}

/// How a call ended whose items ended so.
pub(super) fn outcome_of(items: &[Item]) -> Outcome {
    let mut refused = items.iter().filter_map(|item| item.refused);
    match refused.next() {
        None => Outcome::Ok,
        Some(first)
            if refused.clone().all(|code| code == first)
                && items.iter().all(|item| item.refused.is_some()) =>
        {
            Outcome::Refused(first)
        }
        Some(_) => Outcome::Partial,
    }
}

impl App {
    /// Makes a call's entry and changes durable.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`, or `INTERNAL` when the database refuses the entry: then the call must not be answered.
    pub(super) async fn record(
        &self,
        caller: &Caller,
        operation: Operation,
        outcome: Outcome,
        items: Vec<Item>,
        changes: Vec<Change>,
    ) -> Result<Vec<u64>, Refusal> {
        let entry = Entry {
            id: EntryId::new(),
            at: self.clock.now(),
            operation,
            outcome,
            role: caller.identity.role.clone(),
            user: caller.identity.user.clone(),
            means: caller.identity.means,
            request_id: Some(caller.request_id.as_str().to_owned()),
            items,
        };
        let unit = Unit { tenant: caller.tenant.uid, entry: Some(pack(&entry)), changes };
        let rewinds = self.committer.rewinds();
        let committed = self.committer.commit(unit).await;
        if self.committer.rewinds() != rewinds {
            self.keyring.clear();
        }
        committed.map_err(|failed| match failed {
            CommitFailed::Unavailable => Refusal::from(ErrorCode::StoreUnavailable),
            CommitFailed::Rejected => Refusal::from(ErrorCode::Internal),
        })
    }

    /// Records that a whole call was refused, and refuses it. Where even that cannot be recorded, the caller learns that
    /// instead: a refusal that left no entry must not look like one that did.
    pub async fn refuse(&self, caller: &Caller, operation: Operation, refusal: Refusal) -> Refusal {
        if let Err(limited) = self.meters.refusal(caller.tenant.uid) {
            return limited;
        }
        match self.record(caller, operation, Outcome::Refused(refusal.code), Vec::new(), Vec::new()).await {
            Ok(_) => refusal,
            Err(unrecorded) => unrecorded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(refused: &[Option<ErrorCode>]) -> Vec<Item> {
        refused.iter().map(|refused| Item { refused: *refused, ..item_of(None) }).collect()
    }

    #[test]
    fn a_call_is_refused_only_when_all_its_items_are_and_for_one_reason() {
        let code = Some(ErrorCode::DecryptFailed);
        assert_eq!(outcome_of(&items(&[None, None])), Outcome::Ok);
        assert_eq!(outcome_of(&items(&[code, code])), Outcome::Refused(ErrorCode::DecryptFailed));
        assert_eq!(outcome_of(&items(&[code, None])), Outcome::Partial);
        assert_eq!(outcome_of(&items(&[code, Some(ErrorCode::TokenMalformed)])), Outcome::Partial);
    }
}
