//! The job that seals rows: those that a release without MACs has written, and those that are sealed under the previous
//! secret. A row is sealed only once it was held against the log. What is sealed stays so, so a job that was killed goes on
//! with the rest; several replicas may work at once, since a row is sealed only as it was read. When none has come for a
//! while, an entry says that all are sealed; from then on an unsealed row is refused, and `byok audit reseal` alone seals it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::audit::{RowMacs, RowSeal, Unit, last_sealed, pack};
use crate::model::{BootTime, DekId, Entry, Operation, Tenant, TenantUid};
use crate::store::{Batch, Change, DekRow, ReadError};
use crate::verify::hold_rows;

use super::Keyring;

/// How often unsealed rows are looked for while some may come, and when none should.
const BUSY: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(30);
/// How many rows one walk along the log is made for.
const RANGE: usize = 100_000;
/// How many rows are read, or sealed, by one statement.
const PAGE: u32 = 1_000;
/// Between two pages of rows that are gone through.
const PAUSE: Duration = Duration::from_millis(10);
/// How much longer than a walk along the log it takes until the next, where that one brought nothing: rows that somebody puts
/// there to be looked at cost a tenth of a reader at most.
const REST: u32 = 9;
/// Between two lines of the server's log that say the same.
const SAID_AGAIN: Duration = Duration::from_secs(3_600);
/// How often the log is told again: a retention drops what is old.
const TOLD_AGAIN: Duration = Duration::from_secs(24 * 3_600);

/// How far one tenant's rows are.
#[derive(Default)]
struct Course {
    /// Since when none came that had to be sealed.
    quiet_since: Option<BootTime>,
    /// Whether none is left that is sealed under the previous secret.
    renewed: bool,
    /// When the log's last word was looked at.
    looked: Option<BootTime>,
    /// Behind which row the next range begins; `None` for the first.
    after: Option<DekId>,
    /// Not before this is the log walked again.
    rests_until: BootTime,
    /// When the server's log said last that nothing can be sealed.
    complained: Option<BootTime>,
}

impl Course {
    /// Whether to say now that nothing can be sealed.
    fn complains(&mut self, now: BootTime) -> bool {
        let due = self.complained.is_none_or(|last| now.since(last) >= SAID_AGAIN);
        if due {
            self.complained = Some(now);
        }
        due
    }
}

impl Keyring {
    /// Keeps the rows of all tenants sealed until `stop` is cancelled; returns at once where there is no secret.
    pub async fn keep_sealing(self: Arc<Self>, stop: CancellationToken) {
        let Some(macs) = self.rows.macs() else { return };
        let mut courses: HashMap<TenantUid, Course> = HashMap::new();
        let mut pause = Duration::ZERO;
        while timeout(pause, stop.cancelled()).await.is_err() {
            pause = QUIET;
            for tenant in self.store.tenants().await.unwrap_or_default() {
                let course = courses.entry(tenant.uid).or_default();
                let work = self.seal_rows(&tenant, macs, course);
                let done = tokio::select! {
                    () = stop.cancelled() => return,
                    done = work => done,
                };
                if !matches!(done, Ok(true)) {
                    pause = BUSY;
                }
                let course = courses.entry(tenant.uid).or_default();
                if let Err(error) = done
                    && course.complains(self.boot())
                {
                    warn!(tenant = tenant.name, ?error, "rows of DEKs cannot be sealed, for now");
                }
            }
        }
    }

    /// Whether all is sealed, and stays so.
    async fn seal_rows(
        self: &Arc<Self>,
        tenant: &Tenant,
        macs: &RowMacs,
        course: &mut Course,
    ) -> Result<bool, ReadError> {
        if macs.has_previous() && !course.renewed {
            course.renewed = self.renew(tenant, macs).await?;
        }
        if self.all_sealed(tenant.uid).await? {
            let unsealed = self.store.unsealed_deks(tenant.uid, None, 1).await?;
            if let Some(row) = unsealed.first() {
                self.tell_of_row(tenant, row, RowSeal::None);
            }
            self.tell_again(tenant, course, unsealed.is_empty()).await?;
            return Ok(true);
        }
        let began = self.boot();
        if began < course.rests_until {
            return Ok(false);
        }
        let (unsealed, next) = self.unsealed(tenant.uid, course.after).await?;
        if unsealed.is_empty() && course.after.is_none() {
            self.end(tenant, course).await;
            return Ok(false);
        }
        let held = hold_rows(&*self.store, tenant, unsealed).await;
        let now = self.boot();
        course.rests_until = now.plus(now.since(began).saturating_mul(REST));
        let held = held?;
        if held.all_were_sealed {
            // Nobody found the entry that says so, and it is there: whoever hid it took the MACs away.
            self.rows.note_all_sealed(tenant.uid);
            return Ok(false);
        }
        self.rows.note_damaged(tenant.uid, held.damaged.is_some());
        if let Some(finding) = held.damaged {
            if course.complains(now) {
                error!(
                    tenant = tenant.name, %finding, "the log does not hold: no row is sealed by it, and nothing is encrypted under one without a MAC; run `byok audit verify`"
                );
            }
            return Ok(false);
        }
        for (row, finding) in &held.contradicted {
            if self.rows.note_contradicted(tenant.uid, row) {
                error!(tenant = tenant.name, %finding, "a DEK's row is not as the log says: it is refused and not sealed");
            }
            self.tell_of_row(tenant, row, RowSeal::None);
        }
        course.after = next;
        if !held.agreed.is_empty() {
            (course.quiet_since, course.rests_until) = (None, now);
            let sealed = self.seal_all(tenant.uid, macs, held.agreed).await?;
            info!(tenant = tenant.name, sealed, "rows of DEKs were held against the log and sealed");
        } else if course.after.is_none() {
            // Rows that are refused hold nothing up: else whoever writes some now and then would keep the end away.
            self.end(tenant, course).await;
        }
        Ok(false)
    }

    /// Says in the log that all rows are sealed, once none has come for as long as that takes.
    async fn end(&self, tenant: &Tenant, course: &mut Course) {
        let now = self.boot();
        let since = *course.quiet_since.get_or_insert(now);
        if now.since(since) >= self.rows.settle {
            self.tell_all_sealed(tenant).await;
        }
    }

    /// Rows without MACs from behind this one on, but those that are known to be contradicted by the log; and where to go on.
    async fn unsealed(
        &self,
        tenant: TenantUid,
        mut after: Option<DekId>,
    ) -> Result<(Vec<DekRow>, Option<DekId>), ReadError> {
        let mut unsealed = Vec::new();
        while unsealed.len() < RANGE {
            let rows = self.store.unsealed_deks(tenant, after, PAGE).await?;
            after = rows.last().map(|row| row.id);
            let more = rows.len() == PAGE as usize;
            unsealed.extend(rows.into_iter().filter(|row| !self.rows.is_contradicted(tenant, row)));
            if !more {
                return Ok((unsealed, None));
            }
        }
        Ok((unsealed, after))
    }

    /// Seals rows as they were read; how many were still the same.
    async fn seal_all(
        &self,
        tenant: TenantUid,
        macs: &RowMacs,
        mut rows: Vec<DekRow>,
    ) -> Result<u64, ReadError> {
        let mut sealed = 0;
        for page in rows.chunks_mut(PAGE as usize) {
            page.iter_mut().for_each(|row| macs.seal(tenant, row));
            let batch = Batch::of_changes(tenant, vec![Change::SealDeks(page.to_vec())]);
            let committed = self.store.commit(&batch).await.map_err(|_| ReadError::Unavailable)?;
            sealed += committed.applied.iter().sum::<u64>();
        }
        Ok(sealed)
    }

    /// Goes through all rows and moves those to the current secret that the previous one has sealed. Whether none is left.
    async fn renew(&self, tenant: &Tenant, macs: &RowMacs) -> Result<bool, ReadError> {
        let (mut after, mut renewed, mut left) = (None, 0, 0);
        loop {
            let rows = self.store.deks_after(tenant.uid, after, PAGE).await?;
            let more = rows.len() == PAGE as usize;
            after = rows.last().map(|row| row.id);
            let old: Vec<DekRow> =
                rows.into_iter().filter(|row| macs.check(tenant.uid, row) == RowSeal::Previous).collect();
            left += old.len() as u64;
            renewed += self.seal_all(tenant.uid, macs, old).await?;
            if !more {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        if renewed > 0 {
            info!(tenant = tenant.name, renewed, "rows of DEKs were moved to BYOK_ROW_MAC_KEY");
        }
        Ok(renewed == left)
    }

    async fn tell_all_sealed(&self, tenant: &Tenant) {
        let detail = Some("rows sealed".into());
        let entry = Entry::of_operator(self.clock.now(), Operation::Seal, None, detail);
        let entry = Some(pack(tenant.uid, &entry));
        let unit = Unit { tenant: tenant.uid, entry, changes: Vec::new(), fence: Vec::new() };
        match self.committer.commit(unit).await {
            Ok(_) => {
                self.rows.note_all_sealed(tenant.uid);
                info!(
                    tenant = tenant.name,
                    "all rows of DEKs are sealed: one without a MAC is refused from now on"
                );
            }
            Err(failed) => {
                warn!(tenant = tenant.name, ?failed, "it could not be logged that all rows are sealed")
            }
        }
    }

    async fn tell_again(&self, tenant: &Tenant, course: &mut Course, is_so: bool) -> Result<(), ReadError> {
        let now = self.boot();
        if course.looked.is_some_and(|looked| now.since(looked) < TOLD_AGAIN / 24) {
            return Ok(());
        }
        course.looked = Some(now);
        let last = last_sealed(&*self.store, tenant.uid).await?;
        // Where only the configuration says it, the log is not told what is not so.
        let is_due = last.map_or(is_so, |last| self.clock.now().since(last) >= TOLD_AGAIN);
        if is_due {
            self.tell_all_sealed(tenant).await;
        }
        Ok(())
    }
}
