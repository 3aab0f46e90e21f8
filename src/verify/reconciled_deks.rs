//! Checks the rows of DEKs against the log as it was walked, and against what the server did to
//! both meanwhile.

use std::ops::Range;

use super::deks::Deks;
use super::pages::{Pages, Row};
use super::report::Report;
use crate::model::Tenant;
use crate::store::{LogHead, LogReads, ReadError};

/// How many times to check again what the server may have changed meanwhile.
const ROUNDS: usize = 3;

/// Checks the rows of DEKs against the log, range by range. Returns the reason if some of them
/// cannot be checked.
pub(super) async fn reconcile_deks(
    store: &dyn LogReads,
    tenant: &Tenant,
    head: &LogHead,
    mut deks: Deks,
    report: &mut Report,
) -> Result<Option<String>, ReadError> {
    let mut whole = true;
    loop {
        whole &= deks.is_whole();
        let (next, began_whole) = (deks.next(), head.first == 0);
        let mut end = head.end();
        for _ in 0..ROUNDS {
            if !deks.keep_mismatches() {
                break;
            }
            let Some(now) = store.log_head(tenant.uid).await? else { break };
            observe(store, tenant, end..now.end(), &mut deks).await?;
            end = now.end();
            deks.read_again(store, tenant.uid).await?;
        }
        deks.report_mismatches(report);
        let Some(next) = next else { break };
        deks = Deks::read(store, tenant.uid, Some(next), began_whole).await?;
        observe(store, tenant, head.first..head.end(), &mut deks).await?;
    }
    let partial = "DEKs that were made or re-wrapped only in entries that are missing, altered, or in an earlier log \
                   cannot be checked";
    Ok((!whole).then(|| partial.to_owned()))
}

async fn observe(
    store: &dyn LogReads,
    tenant: &Tenant,
    range: Range<u64>,
    deks: &mut Deks,
) -> Result<(), ReadError> {
    let mut next = range.start;
    let mut pages = Pages::new(store, tenant.uid, range);
    while let Some(row) = pages.next().await? {
        let position = row.position();
        if position > next {
            deks.gap();
        }
        next = position + 1;
        match row {
            Row::Entry(entry) if entry.computed(tenant.uid) == entry.digest.0 => deks.observe(&entry),
            Row::Entry(_) | Row::Unreadable { .. } => deks.gap(),
        }
    }
    Ok(())
}
