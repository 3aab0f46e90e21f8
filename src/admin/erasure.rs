//! The erasure of a personal value: it is set to null wherever the log has it. An entry records
//! this before the first is erased.

use std::borrow::Cow;
use std::ops::Range;

use crate::audit::{CommitFailed, Unit, recorded_id};
use crate::crypto::{hmac_sha256, random};
use crate::model::{Operation, TenantUid};
use crate::store::{Change, PersonalValue, WIDTH};

use super::{AdminError, LogAdmin, length};

/// The most entries that one statement of an erasure looks at, and the most stored bytes of them
/// without the last entry: an entry may have ten thousand items, and a statement must end within
/// seconds.
const STEP: u64 = WIDTH;
const STEP_BYTES: u64 = 256 << 10;

/// The number of values that an erasure set to null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// The number of entries of the log.
    pub entries: u64,
    /// The number of rows of DEKs; 0 for a user.
    pub deks: u64,
}

impl LogAdmin {
    /// Sets a personal value to null wherever the tenant's log has it, and a record's id in the
    /// rows of its DEKs as well. The log still verifies: its leaves cover only HMACs. Ciphertexts
    /// of the record can still be decrypted, as they name their DEK; a later encrypt for that id
    /// finds no DEK and makes another. An erasure that was interrupted must be repeated from the
    /// start.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn erase(&self, tenant: TenantUid, personal: &PersonalValue) -> Result<Erased, AdminError> {
        if self.database.on_hold(tenant).await? {
            return Err(AdminError::OnHold);
        }
        let end = self.database.log_size(tenant).await?;
        // Together with the entry only a change that shows that we have the rights, and one that is
        // quick: the commit of an entry locks the log's head.
        let mut changes = vec![Change::Erase { personal: personal.clone(), places: 0..0, in_index: false }];
        let what = match personal {
            PersonalValue::User(_) => "user",
            PersonalValue::Record(record) => {
                let hmac = hmac_sha256(&random::<16>(), record.as_bytes());
                changes.push(Change::EraseFromDeks { record_id: record.as_str().into(), hmac });
                "record"
            }
        };
        let entry = self.unit(tenant, Operation::Erase, &format!("erase {what} 0 {end}"), changes);
        let deks = self.committer.commit(entry).await?.applied.iter().sum();
        let mut entries = self.erase_before(tenant, personal, end).await?;
        if let PersonalValue::Record(record) = personal
            && let Cow::Owned(hash) = recorded_id(record)
        {
            entries += self.erase_before(tenant, &PersonalValue::Record(hash), end).await?;
        }
        if self.database.on_hold(tenant).await? {
            return Err(AdminError::OnHold);
        }
        Ok(Erased { entries, deks })
    }

    /// Erases exactly this value from the entries before a position.
    async fn erase_before(
        &self,
        tenant: TenantUid,
        personal: &PersonalValue,
        end: u64,
    ) -> Result<u64, AdminError> {
        let mut erased = 0;
        let mut start = 0;
        while start < end {
            let step = start..end.min(start + STEP);
            let sizes = self.database.sizes(tenant, step.clone()).await?;
            for range in pieces(step.clone(), &sizes) {
                let in_index = range.end == step.end;
                erased += self.erase_range(tenant, personal, range, in_index).await?;
            }
            start = step.end;
        }
        Ok(erased)
    }

    /// Erases the value from these entries; in halves if one statement takes too long.
    async fn erase_range(
        &self,
        tenant: TenantUid,
        personal: &PersonalValue,
        range: Range<u64>,
        in_index: bool,
    ) -> Result<u64, AdminError> {
        let change = Change::Erase { personal: personal.clone(), places: range.clone(), in_index };
        let unit = Unit::unconditional(tenant, None, vec![change]);
        match self.committer.commit(unit).await {
            Err(CommitFailed::Unavailable) if length(&range) > 1 => {
                let middle = range.start + length(&range) / 2;
                let first = Box::pin(self.erase_range(tenant, personal, range.start..middle, false)).await?;
                let second =
                    Box::pin(self.erase_range(tenant, personal, middle..range.end, in_index)).await?;
                Ok(first + second)
            }
            committed => Ok(committed?.applied.iter().sum()),
        }
    }
}

/// The range in pieces whose entries have at most [`STEP_BYTES`], or that are a single entry.
fn pieces(range: Range<u64>, sizes: &[(u64, u64)]) -> Vec<Range<u64>> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (range.start, 0);
    for (position, size) in sizes {
        if bytes > 0 && bytes + size > STEP_BYTES && *position > start {
            pieces.push(start..*position);
            (start, bytes) = (*position, 0);
        }
        bytes += size;
    }
    pieces.push(start..range.end);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_where_its_entries_are_large() {
        let large = STEP_BYTES / 2 + 1;
        let sizes = [(3, 10), (4, large), (5, large), (6, 3 * large), (9, 10), (10, 10)];
        assert_eq!(pieces(2..12, &sizes), [2..5, 5..6, 6..9, 9..12]);
        assert_eq!(pieces(2..12, &[]).len(), 1);
    }
}
