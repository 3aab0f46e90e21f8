//! New MACs for the rows of DEKs, for an operator who has lost the secret. Each row is checked
//! against the log, and sealed as it was when it was checked. Sealed rows stay sealed, so a run
//! that was interrupted can be repeated.

use crate::audit::{RowMacs, RowSeal};
use crate::model::{Operation, Tenant};
use crate::store::{Batch, Change, DekRow, ReadError};
use crate::verify::{Finding, hold_rows};

use super::{AdminError, LogAdmin};

/// The number of rows that are checked by one walk along the log.
const RANGE: usize = 100_000;
/// The number of rows that one statement reads or seals.
const PAGE: u32 = 1_000;

/// The result for the rows of a tenant.
#[derive(Debug, Default)]
pub struct Resealed {
    /// The number of rows that were sealed now.
    pub sealed: u64,
    /// The number of rows that this secret had sealed before.
    pub kept: u64,
    /// The contradictions between the log and the rows that were not sealed.
    pub contradicted: Vec<Finding>,
    /// The damage of the log itself, if there is any. Rows that were to be sealed after it was
    /// found were not.
    pub damaged: Option<Finding>,
}

impl LogAdmin {
    /// Seals every row that the current secret has not sealed and that nothing in the log
    /// contradicts. An entry records this before the first row is sealed; from then on an unsealed
    /// row is refused.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn reseal(&self, tenant: &Tenant, macs: &RowMacs) -> Result<Resealed, AdminError> {
        let entry = self.unit(tenant.uid, Operation::Seal, "rows resealed", Vec::new());
        self.committer.commit(entry).await?;
        let (mut resealed, mut after) = (Resealed::default(), None);
        let mut more = true;
        while more {
            let mut foreign = Vec::new();
            while more && foreign.len() < RANGE {
                let rows = self.database.deks_after(tenant.uid, after, PAGE).await?;
                more = rows.len() == PAGE as usize;
                after = rows.last().map(|row| row.id).or(after);
                let is_ours = |row: &DekRow| macs.check(tenant.uid, row) == RowSeal::Current;
                let (ours, others): (Vec<DekRow>, Vec<DekRow>) = rows.into_iter().partition(is_ours);
                resealed.kept += ours.len() as u64;
                foreign.extend(others);
            }
            let held = hold_rows(&*self.database, tenant, foreign).await?;
            resealed.damaged = held.damaged;
            if resealed.damaged.is_some() {
                break;
            }
            resealed.contradicted.extend(held.contradicted.into_iter().map(|(_, finding)| finding));
            let mut agreed = held.agreed;
            for page in agreed.chunks_mut(PAGE as usize) {
                page.iter_mut().for_each(|row| macs.seal(tenant.uid, row));
                let batch = Batch::of_changes(tenant.uid, vec![Change::SealDeks(page.to_vec())]);
                let committed = self.database.commit(&batch).await.map_err(|_| ReadError::Unavailable)?;
                resealed.sealed += committed.applied.iter().sum::<u64>();
            }
        }
        Ok(resealed)
    }
}
