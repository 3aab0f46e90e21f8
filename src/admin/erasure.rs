//! A personal value that is set to null wherever the log has it. An entry says so before the first is gone.

use std::borrow::Cow;
use std::ops::Range;

use crate::audit::{CommitFailed, Unit, recorded_id};
use crate::crypto::{hmac_sha256, random};
use crate::model::{Operation, TenantUid};
use crate::store::{Change, PersonalValue, WIDTH};

use super::{AdminError, LogAdmin, length};

/// How many entries one erasure's statement looks at, and how many bytes of them, as they are stored, but for the last of
/// them: an entry may have ten thousand items, and a statement has seconds.
const STEP: u64 = WIDTH;
const STEP_BYTES: u64 = 256 << 10;

/// What an erasure set to null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// In how many entries of the log.
    pub entries: u64,
    /// In how many rows of DEKs; 0 for a user.
    pub deks: u64,
}

impl LogAdmin {
    /// Sets a personal value to null wherever the tenant's log has it, and a record's id in the rows of its DEKs as well. The
    /// log still verifies: its leaves cover only HMACs. What was encrypted for the record still decrypts, as its ciphertexts
    /// name their DEK; a later encrypt for that id finds none and makes another. An erasure that was cut off is done again
    /// from the start.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn erase(&self, tenant: TenantUid, personal: &PersonalValue) -> Result<Erased, AdminError> {
        if self.database.on_hold(tenant).await? {
            return Err(AdminError::OnHold);
        }
        let end = self.database.log_size(tenant).await?;
        // With the entry only what shows the rights, and what is quick: an entry holds the log's head until its commit.
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

    /// Erases this very value from the entries before a place.
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
            for places in pieces(step.clone(), &sizes) {
                let in_index = places.end == step.end;
                erased += self.erase_at(tenant, personal, places, in_index).await?;
            }
            start = step.end;
        }
        Ok(erased)
    }

    /// Erases at these places; by halves where that takes too long at once.
    async fn erase_at(
        &self,
        tenant: TenantUid,
        personal: &PersonalValue,
        places: Range<u64>,
        in_index: bool,
    ) -> Result<u64, AdminError> {
        let change = Change::Erase { personal: personal.clone(), places: places.clone(), in_index };
        let unit = Unit::unconditional(tenant, None, vec![change]);
        match self.committer.commit(unit).await {
            Err(CommitFailed::Unavailable) if length(&places) > 1 => {
                let middle = places.start + length(&places) / 2;
                let first = Box::pin(self.erase_at(tenant, personal, places.start..middle, false)).await?;
                let second = Box::pin(self.erase_at(tenant, personal, middle..places.end, in_index)).await?;
                Ok(first + second)
            }
            committed => Ok(committed?.applied.iter().sum()),
        }
    }
}

/// The places in pieces of no more than [`STEP_BYTES`], or of one entry.
fn pieces(places: Range<u64>, sizes: &[(u64, u64)]) -> Vec<Range<u64>> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (places.start, 0);
    for (place, size) in sizes {
        if bytes > 0 && bytes + size > STEP_BYTES && *place > start {
            pieces.push(start..*place);
            (start, bytes) = (*place, 0);
        }
        bytes += size;
    }
    pieces.push(start..places.end);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parted_where_their_entries_are_large() {
        let large = STEP_BYTES / 2 + 1;
        let sizes = [(3, 10), (4, large), (5, large), (6, 3 * large), (9, 10), (10, 10)];
        assert_eq!(pieces(2..12, &sizes), [2..5, 5..6, 6..9, 9..12]);
        assert_eq!(pieces(2..12, &[]).len(), 1);
    }
}
