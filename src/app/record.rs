//! Records a call: its entry is committed together with its changes, before anything is answered.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::{CommitFailed, Durable, Unit, pack, recorded_id};
use crate::crypto::Context;
use crate::keyring::{FenceFailure, KeyringError, KeysUsed, PlainDek};
use crate::kms::log_failure;
use crate::model::{DekId, Entry, EntryId, ErrorCode, Item, Operation, Outcome, Posture, Refusal, RequestId};
use crate::store::{Change, EntryRow, Fence, Gate, ReadError};
use crate::tenancy::{Caller, NotServed, TenantRuntime};

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
pub(super) fn note_dek(item: &mut Item, id: DekId, dek: &PlainDek) {
    item.dek_id = Some(id);
    item.key_id = dek.key_version.key_id.recorded();
    item.key_version = Some(dek.key_version.clone());
    item.source = Some(dek.source);
    item.kms_request_id.clone_from(&dek.kms_request_id);
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
        KeyringError::RowMacKeyMissing => ErrorCode::RowMacKeyRequired.into(),
        KeyringError::Kms(error) => {
            item.kms_request_id.clone_from(&error.request_id);
            log_failure(error, Some(request_id));
            error.refusal()
        }
        KeyringError::KeyUnusable(posture) => unusable_key_refusal(*posture),
        KeyringError::Store(error) => read_refusal(*error),
        KeyringError::NotServed(error) => not_served(*error),
    };
    item.refused = Some(refusal.code);
    refusal
}

/// Returns the refusal for a key version that may not be used. An active version gets here if it
/// was not shown to work in time.
pub(super) fn unusable_key_refusal(posture: Posture) -> Refusal {
    match posture {
        Posture::Revoked => ErrorCode::KmsAccessDenied.into(),
        Posture::Active | Posture::Degraded => ErrorCode::KmsUnavailable.into(),
    }
}

/// The outcome for an answer that depends on keys.
pub(super) enum AnswerOutcome {
    /// The answer may be given and its entry is durable. Holds the entry and the permit if the
    /// answer depends on a key.
    Given(Option<Committed>),
    /// The answer may not be given. What was withheld is recorded as refused for this reason.
    Withheld(Refusal),
    /// Nothing was recorded: a posture, or the tenant's stage or keys, changed meanwhile, and the
    /// call can be served now. It must start over with this runtime.
    Retry(Arc<TenantRuntime>),
}

/// Returns the refusal for a call that started over and was overtaken by a change of posture each
/// time.
pub(super) fn retries_exhausted() -> Refusal {
    unusable_key_refusal(Posture::Degraded)
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
        self.may_append(caller)?;
        let (_, entry) = self.packed(caller, operation, outcome, None, items, None);
        let gate = match outcome {
            // A refusal is recorded whatever has become of the tenant.
            Outcome::Refused(_) => None,
            Outcome::Ok | Outcome::Partial => caller.runtime.gate(),
        };
        self.commit_entry(caller, entry, changes, gate).await
    }

    /// Does the same for an answer that depends on keys. The commit is conditional on the fence,
    /// and the answer may be given only while the proofs that the commit found are young enough. An
    /// answer that may not be given is recorded as refused. `items` is left empty if the answer may
    /// be given.
    ///
    /// # Errors
    /// The errors of [`Self::record`].
    pub(super) async fn record_answer(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        items: &mut Vec<Item>,
        changes: Vec<Change>,
        keys_used: KeysUsed,
    ) -> Result<AnswerOutcome, Refusal> {
        self.may_append(caller)?;
        let fence = match self.keyring.fence(caller.tenant(), &keys_used).await {
            Ok(fence) => fence,
            Err(FenceFailure::Retry) => return Ok(AnswerOutcome::Retry(caller.runtime.clone())),
            Err(FenceFailure::Unusable(posture)) => {
                return self.withhold(caller, operation, items, &unusable_key_refusal(posture)).await;
            }
        };
        let gate = caller.runtime.gate();
        let (packed, row) =
            self.packed(caller, operation, Outcome::of_items(items), None, std::mem::take(items), None);
        if keys_used.is_empty() {
            // Every item was refused.
            return self.commit_entry(caller, row, changes, None).await.map(|_| AnswerOutcome::Given(None));
        }
        let entry = CommittedEntry { id: row.id, operation, items: packed };
        let (durable, entry) = match self.commit_unsent(caller, (row, entry), changes, gate, fence).await {
            Ok(committed) => committed,
            Err((CommitFailed::Fenced, kept)) => {
                *items = kept;
                return match self.keyring.diagnose_fence_failure(caller.tenant(), &keys_used).await {
                    FenceFailure::Retry => Ok(AnswerOutcome::Retry(caller.runtime.clone())),
                    FenceFailure::Unusable(posture) => {
                        self.withhold(caller, operation, items, &unusable_key_refusal(posture)).await
                    }
                };
            }
            Err((CommitFailed::Gated, kept)) => {
                *items = kept;
                return match self.served_now(caller).await {
                    Ok(runtime) => Ok(AnswerOutcome::Retry(runtime)),
                    Err(refusal) => self.withhold(caller, operation, items, &refusal).await,
                };
            }
            Err((failed, _)) => return Err(self.commit_refusal(caller, failed).await),
        };
        if let Some(permit) = self.keyring.permit(caller.tenant(), keys_used, &durable) {
            return Ok(AnswerOutcome::Given(Some(Committed { entry, permit })));
        }
        tracing::warn!(
            request_id = caller.request_id.as_str(),
            "an answer came too late after the key was last shown to work, and is withheld"
        );
        let refusal = unusable_key_refusal(Posture::Active);
        let recorded = entry.void(&refusal).await;
        recorded
            .unwrap_or_else(|_| Err(ErrorCode::Internal.into()))
            .map(|()| AnswerOutcome::Withheld(refusal))
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
        self.may_append(caller)?;
        let (operation, outcome) = (entry.operation, Outcome::of_items(&items));
        let (_, row) = self.packed(caller, operation, outcome, None, items, Some(entry.id));
        self.commit_entry(caller, row, Vec::new(), None).await.map(drop)
    }

    /// Records that items were refused for this reason, which has come up since they were
    /// processed.
    pub(super) async fn withhold(
        &self,
        caller: &Caller,
        operation: Operation,
        items: &[Item],
        refusal: &Refusal,
    ) -> Result<AnswerOutcome, Refusal> {
        let items = refused_items(items, refusal);
        self.record(caller, operation, Outcome::of_items(&items), items, Vec::new()).await?;
        Ok(AnswerOutcome::Withheld(refusal.clone()))
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
        self.may_append(caller)?;
        let (_, entry) = self.packed(caller, operation, Outcome::Ok, Some(detail.into()), Vec::new(), None);
        self.commit_entry(caller, entry, Vec::new(), caller.runtime.gate()).await.map(drop)
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
        let row = pack(caller.tenant().uid, &entry);
        (rest.unwrap_or(entry.items), row)
    }

    pub(super) async fn commit(
        &self,
        caller: &Caller,
        entry: EntryRow,
        changes: Vec<Change>,
        gate: Option<Gate>,
        fence: Vec<Fence>,
    ) -> Result<Durable, CommitFailed> {
        let unit = Unit { tenant: caller.tenant().uid, entry: Some(entry), changes, gate, fence };
        let rewinds = self.committer.rewinds(caller.tenant().uid);
        let committed = self.committer.commit(unit).await;
        if self.committer.rewinds(caller.tenant().uid) != rewinds {
            self.keyring.clear(caller.tenant().uid);
        }
        committed
    }

    /// Returns what the tenant is served with now, for a call that the gate has refused.
    ///
    /// # Errors
    /// The reason why the tenant is no longer served to callers who claim that name.
    async fn served_now(&self, caller: &Caller) -> Result<Arc<TenantRuntime>, Refusal> {
        let claimed = caller.tenant();
        // Other calls may have met the same change.
        let known = self.tenants.known(claimed.uid);
        let runtime = match known.filter(|known| known.revision > caller.runtime.revision) {
            Some(known) => known,
            None => self.tenants.refreshed(claimed.uid).await.map_err(not_served)?,
        };
        // The name that was claimed may be another tenant's by now.
        if runtime.tenant.name != claimed.name {
            return Err(not_served(NotServed::Unknown));
        }
        Ok(runtime)
    }

    /// Makes an entry durable that depends on no key, and returns how many rows each of the changes
    /// affected.
    ///
    /// # Errors
    /// The refusal of the call.
    pub(super) async fn commit_entry(
        &self,
        caller: &Caller,
        entry: EntryRow,
        changes: Vec<Change>,
        gate: Option<Gate>,
    ) -> Result<Vec<u64>, Refusal> {
        match self.commit(caller, entry, changes, gate, Vec::new()).await {
            Ok(durable) => Ok(durable.applied),
            Err(failed) => Err(self.commit_refusal(caller, failed).await),
        }
    }

    /// Returns the refusal for a call whose commit failed.
    async fn commit_refusal(&self, caller: &Caller, failed: CommitFailed) -> Refusal {
        match failed {
            CommitFailed::Unavailable => ErrorCode::StoreUnavailable.into(),
            CommitFailed::Gated => match self.served_now(caller).await {
                Ok(_) => Refusal::from(ErrorCode::Unavailable).after(BUSY),
                Err(refusal) => refusal,
            },
            // Only a commit of an answer that depends on keys has a fence.
            CommitFailed::Rejected | CommitFailed::Fenced => ErrorCode::Internal.into(),
        }
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

/// Returns the refusal for a caller whose tenant is not served.
pub(super) fn not_served(not_served: NotServed) -> Refusal {
    match not_served {
        NotServed::Unknown | NotServed::Locked => ErrorCode::PermissionDenied.into(),
        NotServed::NoKey => ErrorCode::KmsMisconfigured.into(),
        NotServed::Store(error) => read_refusal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_id_that_is_too_long_is_hashed() {
        let recorded = |id: String| {
            let context = Context::from_pairs([("record_id".to_owned(), id)]).unwrap();
            item_of(Some(&context)).record_id.unwrap()
        };
        assert_eq!(*recorded("x".repeat(512)), "x".repeat(512));
        assert_eq!(*recorded("x".repeat(513)), *recorded_id(&"x".repeat(513)));
    }
}
