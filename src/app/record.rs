//! Records a call: its entry is committed together with its changes, before anything is answered.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::{CommitFailed, Durable, Unit, pack, recorded_id};
use crate::crypto::Context;
use crate::keyring::{Fallen, Footing, Held, KeyringError};
use crate::kms::log_failure;
use crate::model::{
    Caller, DekId, Entry, EntryId, ErrorCode, Item, Operation, Outcome, Posture, Refusal, RequestId,
};
use crate::store::{Change, EntryRow, Fence, ReadError};

use super::App;
use super::listing::Listing;
use super::release::Committed;
use super::unsent::CommittedEntry;

/// The retry delay for a DEK whose row is not sealed yet.
const UNSEALED: Duration = Duration::from_secs(2);

/// The retry delay if too many calls wait for the database.
const BUSY: Duration = Duration::from_secs(1);

/// Starts the record of one item of a call, which is filled in while the item is processed.
pub(super) fn item_of(context: Option<&Context>) -> Item {
    let record_id = context.and_then(|context| context.get("record_id"));
    let record_id = record_id.map(|record_id| Arc::from(recorded_id(record_id)));
    Item { record_id, ..Item::default() }
}

/// Notes the DEK that an item used. The hash of a new wrapped DEK is noted by the code that made
/// it.
pub(super) fn note_dek(item: &mut Item, id: DekId, held: &Held) {
    item.dek_id = Some(id);
    item.key_version = Some(held.key_version.clone());
    item.source = Some(held.source);
    item.kms_request_id.clone_from(&held.kms_request_id);
}

/// Notes why a DEK was not available, and returns the refusal for the caller.
pub(super) fn note_failure(item: &mut Item, error: &KeyringError, request_id: &RequestId) -> Refusal {
    let refusal: Refusal = match error {
        KeyringError::Missing | KeyringError::Altered => ErrorCode::DecryptFailed.into(),
        KeyringError::Unsealed => Refusal::because(
            ErrorCode::Unavailable,
            "The record's DEK is not bound yet: a job of the server's does that, and the server's log says where it cannot.",
        )
        .after(UNSEALED),
        KeyringError::Unbound => ErrorCode::RowMacKeyRequired.into(),
        KeyringError::Kms(error) => {
            item.kms_request_id.clone_from(&error.request_id);
            log_failure(error, Some(request_id));
            error.refusal()
        }
        KeyringError::Dark(posture) => dark_refusal(*posture),
        KeyringError::Store(error) => read_refusal(*error),
    };
    item.refused = Some(refusal.code);
    refusal
}

/// Returns the refusal for a key version that may not be used. An active version gets here if it
/// was not shown to work in time.
pub(super) fn dark_refusal(posture: Posture) -> Refusal {
    match posture {
        Posture::Revoked => ErrorCode::KmsAccessDenied.into(),
        Posture::Active | Posture::Degraded => ErrorCode::KmsUnavailable.into(),
    }
}

/// The outcome for an answer that depends on keys.
pub(super) enum Standing {
    /// The answer may be given and its entry is durable. Holds the entry and the permit if the
    /// answer depends on a key.
    Given(Option<Committed>),
    /// The answer may not be given. What was withheld is recorded as refused for this reason.
    Withheld(Refusal),
    /// Nothing was recorded: the posture changed meanwhile, and the key can be used again. The call
    /// must begin anew.
    Anew,
}

/// Returns the refusal for a call that began anew and was overtaken by a change of posture each
/// time.
pub(super) fn moving() -> Refusal {
    dark_refusal(Posture::Degraded)
}

/// Replaces successful results with this refusal. Earlier refusals keep their own reason.
pub(super) fn withheld<T>(answers: Vec<Result<T, Refusal>>, refusal: &Refusal) -> Vec<Result<T, Refusal>> {
    answers.into_iter().map(|answer| answer.and(Err(refusal.clone()))).collect()
}

/// Does the same for the items that are recorded.
fn refused_items(items: &[Item], refusal: &Refusal) -> Vec<Item> {
    let refused = |item: &Item| Item { refused: item.refused.or(Some(refusal.code)), ..item.clone() };
    items.iter().map(refused).collect()
}

/// Converts a failed read into the refusal that the caller sees.
pub(super) fn read_refusal(error: ReadError) -> Refusal {
    match error {
        ReadError::Unavailable => ErrorCode::StoreUnavailable.into(),
        ReadError::Busy => Refusal::from(ErrorCode::Unavailable).after(BUSY),
        ReadError::Rejected | ReadError::Malformed => ErrorCode::Internal.into(),
    }
}

impl App {
    /// Makes a call's entry and changes durable.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`, `STORE_UNAVAILABLE`, or `INTERNAL` if the database refuses the entry.
    /// Then the call must not be answered.
    pub(super) async fn record(
        &self,
        caller: &Caller,
        operation: Operation,
        outcome: Outcome,
        items: Vec<Item>,
        changes: Vec<Change>,
    ) -> Result<Vec<u64>, Refusal> {
        self.may_append()?;
        let (_, entry) = self.packed(caller, operation, outcome, None, items, None);
        let committed = self.commit(caller, entry, changes, Vec::new()).await;
        committed.map(|durable| durable.applied).map_err(commit_refusal)
    }

    /// Does the same for an answer that depends on keys. The commit is conditional on the fence,
    /// and the answer may be given only while the proofs that the commit found are young enough. An
    /// answer that may not be given is recorded as refused. `items` is left empty if the answer may
    /// be given.
    ///
    /// # Errors
    /// The errors of [`Self::record`].
    pub(super) async fn record_standing(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        items: &mut Vec<Item>,
        changes: Vec<Change>,
        footing: Footing,
    ) -> Result<Standing, Refusal> {
        self.may_append()?;
        let fence = match self.keyring.fence(&caller.tenant, &footing).await {
            Ok(fence) => fence,
            Err(Fallen::Anew) => return Ok(Standing::Anew),
            Err(Fallen::Dark(posture)) => return self.withhold(caller, operation, items, posture).await,
        };
        let (packed, row) =
            self.packed(caller, operation, Outcome::of_items(items), None, std::mem::take(items), None);
        if footing.is_empty() {
            let committed = self.commit(caller, row, changes, fence).await;
            return committed.map(|_| Standing::Given(None)).map_err(commit_refusal);
        }
        let entry = CommittedEntry { id: row.id, operation, items: packed };
        let (durable, entry) = match self.commit_unsent(caller, (row, entry), changes, fence).await {
            Ok(committed) => committed,
            Err((CommitFailed::Fenced, kept)) => {
                *items = kept;
                return match self.keyring.after_fenced(&caller.tenant, &footing).await {
                    Fallen::Anew => Ok(Standing::Anew),
                    Fallen::Dark(posture) => self.withhold(caller, operation, items, posture).await,
                };
            }
            Err((failed, _)) => return Err(commit_refusal(failed)),
        };
        if let Some(permit) = self.keyring.permit(&caller.tenant, footing, &durable) {
            return Ok(Standing::Given(Some(Committed { entry, permit })));
        }
        tracing::warn!(
            request_id = caller.request_id.as_str(),
            "an answer came too late after the key was last shown to work, and is withheld"
        );
        let refusal = dark_refusal(Posture::Active);
        let recorded = entry.void(&refusal).await;
        recorded.unwrap_or_else(|_| Err(ErrorCode::Internal.into())).map(|()| Standing::Withheld(refusal))
    }

    /// Records that an answer was withheld although its entry says that it was given. The refusal
    /// names that entry.
    ///
    /// # Errors
    /// The errors of [`Self::record`].
    pub(super) async fn record_withheld(
        &self,
        caller: &Caller,
        entry: &CommittedEntry,
        refusal: &Refusal,
    ) -> Result<(), Refusal> {
        let items = refused_items(&entry.items, refusal);
        self.may_append()?;
        let (operation, outcome) = (entry.operation, Outcome::of_items(&items));
        let (_, row) = self.packed(caller, operation, outcome, None, items, Some(entry.id));
        self.commit(caller, row, Vec::new(), Vec::new()).await.map(drop).map_err(commit_refusal)
    }

    /// Records that items were refused because their keys may not be used.
    pub(super) async fn withhold(
        &self,
        caller: &Caller,
        operation: Operation,
        items: &[Item],
        posture: Posture,
    ) -> Result<Standing, Refusal> {
        let refusal = dark_refusal(posture);
        let items = refused_items(items, &refusal);
        self.record(caller, operation, Outcome::of_items(&items), items, Vec::new()).await?;
        Ok(Standing::Withheld(refusal))
    }

    /// Records that the caller read a state. The entry has no items.
    ///
    /// # Errors
    /// The errors of [`Self::record`].
    pub(super) async fn record_read(
        &self,
        caller: &Caller,
        operation: Operation,
        detail: &'static str,
    ) -> Result<(), Refusal> {
        self.may_append()?;
        let (_, entry) = self.packed(caller, operation, Outcome::Ok, Some(detail.into()), Vec::new(), None);
        self.commit(caller, entry, Vec::new(), Vec::new()).await.map(|_| ()).map_err(commit_refusal)
    }

    /// Returns a call's packed entry, together with all of the call's items. `voids` is the earlier
    /// entry whose answer this one refuses.
    pub(super) fn packed(
        &self,
        caller: &Caller,
        operation: Operation,
        outcome: Outcome,
        detail: Option<Arc<str>>,
        items: Vec<Item>,
        voids: Option<EntryId>,
    ) -> (Vec<Item>, EntryRow) {
        let Listing { listed, mut extensions } = Listing::of(&items);
        if let Some(entry) = voids {
            extensions.set_voids(entry);
        }
        let (listed, rest) = match listed {
            None => (items, None),
            Some(listed) => (listed, Some(items)),
        };
        let entry = Entry {
            id: EntryId::new(),
            at: self.clock.now(),
            operation,
            outcome,
            role: caller.identity.role.clone(),
            user: caller.identity.user.clone(),
            means: caller.identity.means,
            request_id: Some(caller.request_id.as_str().to_owned()),
            detail,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions,
            items: listed,
        };
        let row = pack(caller.tenant.uid, &entry);
        (rest.unwrap_or(entry.items), row)
    }

    pub(super) async fn commit(
        &self,
        caller: &Caller,
        entry: EntryRow,
        changes: Vec<Change>,
        fence: Vec<Fence>,
    ) -> Result<Durable, CommitFailed> {
        let unit = Unit { tenant: caller.tenant.uid, entry: Some(entry), changes, fence };
        let rewinds = self.committer.rewinds();
        let committed = self.committer.commit(unit).await;
        if self.committer.rewinds() != rewinds {
            self.keyring.clear();
        }
        committed
    }

    /// Records that a whole call was refused, and returns the refusal. If even that cannot be
    /// recorded, the caller gets that error instead: a refusal that left no entry must not look
    /// like one that did.
    pub async fn refuse(&self, caller: &Caller, operation: Operation, refusal: Refusal) -> Refusal {
        if let Err(limited) = self.meters.take_refusal(caller) {
            return limited;
        }
        match self.record(caller, operation, Outcome::Refused(refusal.code), Vec::new(), Vec::new()).await {
            Ok(_) => refusal,
            Err(unrecorded) => unrecorded,
        }
    }
}

pub(super) fn commit_refusal(failed: CommitFailed) -> Refusal {
    match failed {
        CommitFailed::Unavailable => ErrorCode::StoreUnavailable.into(),
        // Only a commit of an answer that depends on keys has a fence.
        CommitFailed::Rejected | CommitFailed::Fenced => ErrorCode::Internal.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_id_that_is_too_long_is_recorded_as_its_hash() {
        let recorded = |id: String| {
            let context = Context::from_pairs([("record_id".to_owned(), id)]).unwrap();
            item_of(Some(&context)).record_id.unwrap()
        };
        assert_eq!(*recorded("x".repeat(512)), "x".repeat(512));
        assert_eq!(*recorded("x".repeat(513)), *recorded_id(&"x".repeat(513)));
    }
}
