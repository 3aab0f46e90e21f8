//! Checks rows of DEKs against the log before they are sealed. Sealed rows are trusted from then
//! on, so the log itself is verified in the same walk, as far as that is possible without a key or
//! a checkpoint from elsewhere. If the log does not hold, no row agrees with it.

use std::collections::HashMap;
use std::time::Duration;

use super::Trust;
use super::deks::Deks;
use super::finding::{Against, Finding};
use super::log::Log;
use crate::model::{DekId, Tenant};
use crate::store::{DekRow, LogReads, ReadError};

/// The number of entries after which the walk pauses, and the length of the pause. Calls have
/// priority over the walk.
const PACE: (u64, Duration) = (512, Duration::from_millis(5));
/// The number of rows that are read at once.
const PAGE: usize = 1_000;

/// The result of checking rows against the log.
#[derive(Debug, Default)]
pub struct HeldRows {
    /// The rows that nothing in the log contradicts. Empty if the log does not hold.
    pub agreed: Vec<DekRow>,
    /// The rows that the log contradicts, each with the finding. Empty if the log does not hold.
    pub contradicted: Vec<(DekRow, Finding)>,
    /// Whether an entry says that all rows were sealed before.
    pub all_were_sealed: bool,
    /// The first violation in the log itself.
    pub damaged: Option<Finding>,
}

/// Walks along a tenant's current log and checks these rows, which were read before, against it:
/// each row against the entries that made it, used it and last re-wrapped it. If the log's oldest
/// entries are pruned, or the log continues an earlier one, nothing contradicts a row whose DEK is
/// older than the existing entries. Rows that were changed during the walk are not reported as
/// contradicted.
///
/// # Errors
/// The errors of the database.
pub async fn hold_rows(
    store: &dyn LogReads,
    tenant: &Tenant,
    rows: Vec<DekRow>,
) -> Result<HeldRows, ReadError> {
    let Some(head) = store.log_head(tenant.uid).await? else {
        return Ok(HeldRows { damaged: Some(Finding::Head), ..HeldRows::default() });
    };
    let mut log = Log::of(store, tenant, head, Trust::default()).await?;
    log.deks = Deks::of(&rows, log.head.first == 0);
    log.pace = Some(PACE);
    log.entries(&mut |_, _| ()).await?;
    log.after().await?;
    let Log { walk, deks, .. } = log;
    let report = walk.finish(|size, has| Finding::Shorter { has, against: Against::Pinned(size) });
    let mut held = HeldRows { all_were_sealed: report.all_were_sealed, ..HeldRows::default() };
    held.damaged = report.findings.into_iter().next();
    if held.damaged.is_some() {
        return Ok(held);
    }
    for row in rows {
        match deks.finding_of(row.id) {
            None => held.agreed.push(row),
            Some(finding) => held.contradicted.push((row, finding)),
        }
    }
    keep_unchanged(store, tenant, &mut held.contradicted).await?;
    Ok(held)
}

/// Removes the rows that the server has changed since they were read, because the log may match
/// what they are now.
async fn keep_unchanged(
    store: &dyn LogReads,
    tenant: &Tenant,
    contradicted: &mut Vec<(DekRow, Finding)>,
) -> Result<(), ReadError> {
    let ids: Vec<DekId> = contradicted.iter().map(|(row, _)| row.id).collect();
    let mut now: HashMap<DekId, DekRow> = HashMap::new();
    for ids in ids.chunks(PAGE) {
        now.extend(store.deks(tenant.uid, ids).await?.into_iter().map(|row| (row.id, row)));
    }
    contradicted.retain(|(row, _)| now.get(&row.id) == Some(row));
    Ok(())
}
