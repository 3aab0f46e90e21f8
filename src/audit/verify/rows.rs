//! Rows of DEKs: held against the log before they are sealed, and against the MACs that they have.

use std::time::Duration;

use super::super::row_macs::{RowMacs, RowSeal};
use super::deks::Deks;
use super::finding::Finding;
use super::pages::{Pages, Row};
use super::report::{Claim, Report};
use crate::model::{Operation, Tenant, TenantUid};
use crate::store::{DekRow, ReadError, Store};

/// After how many entries the walk pauses, and for how long: calls go before it.
const STRIDE: u64 = 512;
const PAUSE: Duration = Duration::from_millis(5);
/// How many rows are read at once.
const PAGE: u32 = 1_000;

/// Rows that were held against the log.
#[derive(Debug, Default)]
pub struct HeldRows {
    /// Those that nothing in the log contradicts.
    pub agreed: Vec<DekRow>,
    /// The others, each with what the log says.
    pub contradicted: Vec<(DekRow, Finding)>,
    /// Whether an entry says that all rows were sealed before.
    pub all_were_sealed: bool,
}

/// Walks along a tenant's current log and holds rows against it that were read before: each against the entry that made it or
/// re-wrapped it last. Where entries are pruned, or in an earlier log, nothing speaks against a row.
///
/// # Errors
/// The database's.
pub async fn hold_rows(store: &dyn Store, tenant: &Tenant, rows: Vec<DekRow>) -> Result<HeldRows, ReadError> {
    let mut held = HeldRows::default();
    let Some(head) = store.log_head(tenant.uid).await? else { return Ok(held) };
    let mut deks = Deks::of(&rows, head.first == 0);
    let mut next = head.first;
    let mut pages = Pages::new(store, tenant.uid, head.first..head.end());
    while let Some(row) = pages.next().await? {
        let place = row.place();
        if place > next {
            deks.gap();
        }
        next = place + 1;
        match row {
            Row::Entry(entry) if entry.computed(tenant.uid) == entry.digest.0 => {
                held.all_were_sealed |= entry.operation == Operation::Seal.as_str();
                deks.observe(&entry);
            }
            Row::Entry(_) | Row::Unreadable { .. } => deks.gap(),
        }
        if place.is_multiple_of(STRIDE) {
            tokio::time::sleep(PAUSE).await;
        }
    }
    if next < head.end() {
        deks.gap();
    }
    for row in rows {
        match deks.finding_of(row.id) {
            None => held.agreed.push(row),
            Some(finding) => held.contradicted.push((row, finding)),
        }
    }
    Ok(held)
}

/// How many rows are bound how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Under the secret.
    pub current: u64,
    /// Under the previous one.
    pub previous: u64,
    /// Not at all.
    pub unsealed: u64,
    /// By MACs that are not theirs.
    pub wrong: u64,
}

/// Looks at every row of a tenant's; `each` is given those that are not bound as they should be.
///
/// # Errors
/// The database's.
pub async fn count_row_seals(
    store: &dyn Store,
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

/// Tells in a report of a tenant's current log whether its rows have the MACs of the secret, where that is given.
///
/// # Errors
/// The database's.
pub async fn check_row_macs(
    store: &dyn Store,
    tenant: &Tenant,
    macs: Option<&RowMacs>,
    report: &mut Report,
) -> Result<(), ReadError> {
    let Some(macs) = macs else {
        let open = "no secret was given: nobody looked at the MACs of rows (BYOK_ROW_MAC_KEY)".to_owned();
        report.tell(Claim::Macs, String::new(), Some(open));
        return Ok(());
    };
    let all_were_sealed = report.all_were_sealed;
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
    report.tell(Claim::Macs, holds, unsealed);
    Ok(())
}
