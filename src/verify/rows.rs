//! Checks the rows of DEKs against their MACs.

use super::finding::Finding;
use super::report::{Claim, Report};
use crate::audit::{RowMacs, RowSeal};
use crate::model::{Tenant, TenantUid};
use crate::store::{DekRow, LogReads, ReadError};

/// The number of rows that are read at once.
const PAGE: u32 = 1_000;

/// The number of rows by the state of their MACs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Rows with MACs of the current secret.
    pub current: u64,
    /// Rows with MACs of the previous secret.
    pub previous: u64,
    /// Rows without MACs.
    pub unsealed: u64,
    /// Rows with MACs that do not match.
    pub wrong: u64,
}

/// Checks every row of a tenant. `each` is called with the rows that are not sealed as they should
/// be.
///
/// # Errors
/// The errors of the database.
pub async fn count_row_seals(
    store: &dyn LogReads,
    tenant: TenantUid,
    macs: &RowMacs,
    each: &mut (dyn FnMut(&DekRow, RowSeal) + Send),
) -> Result<RowCounts, ReadError> {
    let (mut counts, mut after) = (RowCounts::default(), None);
    loop {
        let rows = store.deks_after(tenant, after, PAGE).await?;
        for row in &rows {
            let seal = macs.check(tenant, row);
            match seal {
                RowSeal::Current => counts.current += 1,
                RowSeal::Previous => counts.previous += 1,
                RowSeal::None => counts.unsealed += 1,
                RowSeal::Wrong => counts.wrong += 1,
            }
            if matches!(seal, RowSeal::None | RowSeal::Wrong) {
                each(row, seal);
            }
        }
        match rows.last() {
            Some(last) if rows.len() == PAGE as usize => after = Some(last.id),
            Some(_) | None => return Ok(counts),
        }
    }
}

/// Adds to a report of a tenant's current log the claim that its rows have the MACs of the secret,
/// if the secret is given. With `required`, a row without MACs counts as unsealed whatever the log
/// says.
///
/// # Errors
/// The errors of the database.
pub async fn check_row_macs(
    store: &dyn LogReads,
    tenant: &Tenant,
    macs: Option<&RowMacs>,
    required: bool,
    report: &mut Report,
) -> Result<(), ReadError> {
    let Some(macs) = macs else {
        let open = "no secret was given, so the MACs of rows were not checked (BYOK_ROW_MAC_KEY)".to_owned();
        report.claim(Claim::Macs, String::new(), Some(open));
        return Ok(());
    };
    let all_were_sealed = required || report.all_were_sealed;
    let mut each = |row: &DekRow, seal| match seal {
        RowSeal::Wrong => report.find(Finding::DekMac { dek: row.id }),
        RowSeal::None if all_were_sealed => report.find(Finding::DekUnsealed { dek: row.id }),
        RowSeal::None | RowSeal::Current | RowSeal::Previous => {}
    };
    let counts = count_row_seals(store, tenant.uid, macs, &mut each).await?;
    let unsealed = (counts.unsealed > 0 && !all_were_sealed).then(|| {
        format!("{} rows have no MAC yet: a server that has the secret seals them", counts.unsealed)
    });
    let bound = counts.current + counts.previous;
    let holds =
        format!("{bound} rows of DEKs have the MACs of the secret, {} of the previous one", counts.previous);
    report.claim(Claim::Macs, holds, unsealed);
    Ok(())
}
