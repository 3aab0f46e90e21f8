//! One batch of a rotation: which of its rows were re-wrapped, how far the job comes with it, and
//! what is committed of it. It asks nobody.

use std::sync::Arc;

use tracing::warn;

use crate::audit::recorded_id;
use crate::crypto::sha256;
use crate::kms::{ItemResult, KmsError, Verdict};
use crate::model::{DekId, Item, KeyVersion, Source, Wrapped};
use crate::store::{Change, DekRow};

/// The rows of a batch, and the answers of the KMS.
pub(super) struct Batch {
    /// The rows that are not under the target version.
    pub(super) old: Vec<DekRow>,
    /// One answer for each of the old rows.
    pub(super) answers: Vec<ItemResult<Wrapped>>,
    /// The rows that are under the target version already.
    current: Vec<DekRow>,
    /// The cursor before this batch.
    after: Option<DekId>,
    /// The last row of the batch.
    last: Option<DekId>,
}

/// What a batch did.
#[derive(Default)]
pub(super) struct Results {
    /// The items of the batch's entry.
    pub(super) items: Vec<Item>,
    /// The rewraps to commit.
    pub(super) changes: Vec<Change>,
    /// The DEKs that are under another version now.
    pub(super) rewrapped: Vec<DekId>,
    /// The number of DEKs that could not be re-wrapped.
    pub(super) failed: u64,
    /// A version other than the target that the KMS has wrapped under.
    pub(super) elsewhere: Option<KeyVersion>,
}

impl Batch {
    /// Makes a batch of these rows, which are in order of their ids. Its answers are still missing.
    pub(super) fn of(rows: Vec<DekRow>, target: &KeyVersion, after: Option<DekId>) -> Self {
        let last = rows.last().map(|row| row.id);
        let (old, current) = rows.into_iter().partition(|row| row.wrapped.key_version != *target);
        Self { old, answers: Vec::new(), current, after, last }
    }

    /// Returns how many rows the KMS was asked about.
    pub(super) fn asked(&self) -> u64 {
        self.answers.iter().filter(|answer| !answer.as_ref().is_err_and(is_unasked)).count() as u64
    }

    /// Returns the first row that byok's own budget left out. It is for the next batch.
    pub(super) fn first_unasked(&self) -> Option<DekId> {
        let mut answered = self.old.iter().zip(&self.answers);
        answered.find(|(_, answer)| answer.as_ref().is_err_and(is_unasked)).map(|(row, _)| row.id)
    }

    /// Returns the cursor after this batch: its last row, or the last row before the first unasked
    /// one.
    pub(super) fn cursor(&self) -> Option<DekId> {
        let Some(unasked) = self.first_unasked() else { return self.last };
        let ids = self.old.iter().chain(&self.current).map(|row| row.id);
        ids.filter(|id| *id < unasked).max().or(self.after)
    }

    /// Returns the error that keeps the job where it is. If nothing was re-wrapped, the key failed,
    /// not a single DEK.
    pub(super) fn stuck(&self) -> Option<&KmsError> {
        let any_rewrapped = self.answers.iter().any(Result::is_ok);
        let is_unmoved = self.cursor() == self.after;
        let mut failed = self.answers.iter().filter_map(|answer| answer.as_ref().err());
        failed.find(|error| match error.class.verdict() {
            Verdict::Item => false,
            Verdict::Unasked => !any_rewrapped && is_unmoved,
            Verdict::Revoked | Verdict::Outage | Verdict::Misconfigured => !any_rewrapped,
        })
    }

    /// Returns how many rows up to the new cursor were under the target version already.
    pub(super) fn skipped(&self) -> u64 {
        let cursor = self.cursor();
        self.current.iter().filter(|row| Some(row.id) <= cursor).count() as u64
    }

    /// Returns what the batch did. `reseal` makes the MAC of a row with its new wrapped DEK.
    pub(super) fn results(
        self,
        target: &KeyVersion,
        reseal: impl Fn(&DekRow, &Wrapped) -> Option<[u8; 32]>,
    ) -> Results {
        let unasked = self.first_unasked();
        let mut results = Results::default();
        for (row, answer) in self.old.into_iter().zip(self.answers) {
            // This row comes again in the next batch. Rows after the cursor that were re-wrapped
            // are kept, and skipped then.
            if answer.is_err() && unasked.is_some_and(|unasked| row.id >= unasked) {
                continue;
            }
            let record_id = row.record_id.as_ref().map(|record_id| Arc::from(recorded_id(record_id)));
            let mut item = Item { record_id, dek_id: Some(row.id), ..Item::default() };
            match answer {
                Ok(answer) => {
                    item.key_id = answer.value.key_version.key_id.recorded();
                    item.key_version = Some(answer.value.key_version.clone());
                    item.wrapped_hash = Some(sha256(&answer.value.bytes));
                    item.source = Some(Source::Kms);
                    item.kms_request_id = answer.request_id;
                    let (from, to) = (&row.wrapped.key_version, &answer.value.key_version);
                    if from != to {
                        results.rewrapped.push(row.id);
                    }
                    if to != target {
                        results.elsewhere = Some(to.clone());
                    }
                    let mac = reseal(&row, &answer.value);
                    let (from, to) = (row.wrapped, answer.value);
                    results.changes.push(Change::Rewrap { dek_id: row.id, from, to, mac });
                }
                Err(error) => {
                    warn!(dek_id = %row.id, class = ?error.class, "a DEK could not be re-wrapped");
                    item.key_id = row.wrapped.key_version.key_id.recorded();
                    item.key_version = Some(row.wrapped.key_version);
                    item.kms_request_id = error.request_id;
                    item.refused = Some(error.class.code());
                    results.failed += 1;
                }
            }
            results.items.push(item);
        }
        results
    }
}

/// Returns whether byok's own budget left the row out.
fn is_unasked(error: &KmsError) -> bool {
    error.class.verdict() == Verdict::Unasked
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::kms::{Answer, KmsErrorClass};
    use crate::model::Timestamp;

    fn wrapped(version: &str) -> Wrapped {
        Wrapped { bytes: vec![1], key_version: KeyVersion::new("k", version), scheme: 1 }
    }

    /// Rows with these ids and versions, of a job whose target is version 2. Each old row gets one
    /// of the answers; `None` is a re-wrap under version 2.
    fn batch(rows: &[(u128, &str)], answers: &[Option<KmsErrorClass>]) -> Batch {
        let row = |(id, version): &(u128, &str)| DekRow {
            id: DekId(Uuid::from_u128(*id)),
            record_id: None,
            wrapped: wrapped(version),
            created_at: Timestamp(0),
            mac: None,
            record_mac: None,
        };
        let answer = |class: &Option<KmsErrorClass>| match class {
            None => Ok(Answer { value: wrapped("2"), request_id: None }),
            Some(class) => Err(KmsError::local(*class)),
        };
        let target = KeyVersion::new("k", "2");
        let after = Some(DekId(Uuid::from_u128(0)));
        let batch = Batch::of(rows.iter().map(row).collect(), &target, after);
        Batch { answers: answers.iter().map(answer).collect(), ..batch }
    }

    fn cursor(batch: &Batch) -> u128 {
        batch.cursor().unwrap().0.as_u128()
    }

    #[test]
    fn the_cursor_stays_before_the_first_row_over_budget() {
        let spent = Some(KmsErrorClass::BudgetSpent);
        let rows = [(1, "1"), (2, "2"), (3, "1"), (4, "2")];
        let whole = batch(&rows, &[None, None]);
        assert_eq!((cursor(&whole), whole.skipped(), whole.asked()), (4, 2, 2));
        let cut = batch(&rows, &[None, spent]);
        assert_eq!((cursor(&cut), cut.skipped(), cut.asked()), (2, 1, 1));
        assert!(cut.stuck().is_none());
        let none = batch(&rows, &[spent, spent]);
        assert_eq!((cursor(&none), none.asked()), (0, 0));
        assert!(none.stuck().is_some());
    }

    #[test]
    fn a_row_over_budget_is_in_neither_items_nor_failures() {
        let answers = [None, Some(KmsErrorClass::InvalidWrappedDek), Some(KmsErrorClass::BudgetSpent), None];
        let batch = batch(&[(1, "1"), (2, "1"), (3, "1"), (4, "1")], &answers);
        let results = batch.results(&KeyVersion::new("k", "2"), |_, _| None);
        assert_eq!((results.items.len(), results.changes.len(), results.failed), (3, 2, 1));
        assert_eq!(results.rewrapped.len(), 2);
        assert_eq!(results.elsewhere, None);
    }

    #[test]
    fn a_key_that_fails_for_every_row_stops_the_batch() {
        let denied = Some(KmsErrorClass::AccessDenied);
        let rows = [(1, "1"), (2, "1")];
        assert!(batch(&rows, &[denied, denied]).stuck().is_some());
        assert!(batch(&rows, &[denied, None]).stuck().is_none());
        assert!(batch(&rows, &[Some(KmsErrorClass::InvalidWrappedDek); 2]).stuck().is_none());
    }
}
