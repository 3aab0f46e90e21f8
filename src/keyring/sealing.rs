//! The job that seals rows: those that a release without MACs has written, and those that are
//! sealed under the previous secret. A row is sealed only after it was compared with the log.
//! Sealed rows stay sealed, so a job that was killed continues with the rest. Several replicas may
//! work at once, because a row is sealed only in the state in which it was read. When no unsealed
//! row has appeared for a while, an entry says that all rows are sealed. From then on an unsealed
//! row is refused, and only `byok audit reseal` seals it.

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

/// How often unsealed rows are looked for: while some may come, and when none should.
const BUSY: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(30);
/// The number of rows for which one walk along the log is made.
const RANGE: usize = 100_000;
/// How many rows are read, or sealed, by one statement.
const PAGE: u32 = 1_000;
/// The pause between two pages of a pass over all rows.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause after a walk along the log that achieved nothing, as a multiple of its duration. Rows
/// that somebody plants there to be checked then take up a tenth of a reader at most.
const REST: u32 = 9;
/// The time between two identical lines in the server's log.
const SAID_AGAIN: Duration = Duration::from_secs(3_600);
/// How often the entry that all rows are sealed is written again, because a retention drops old
/// entries.
const TOLD_AGAIN: Duration = Duration::from_secs(24 * 3_600);

/// How far the sealing of one tenant's rows is.
#[derive(Default)]
struct Course {
    /// The time since which no row has appeared that had to be sealed.
    quiet_since: Option<BootTime>,
    /// Whether no row is left that is sealed under the previous secret.
    renewed: bool,
    /// When the log's last entry that all rows are sealed was looked up.
    looked: Option<BootTime>,
    /// The row after which the next range begins; `None` for the first range.
    after: Option<DekId>,
    /// The log is not walked again before this time.
    rests_until: BootTime,
    /// When the server's log last said that nothing can be sealed.
    complained: Option<BootTime>,
}

impl Course {
    /// Returns whether to log now that nothing can be sealed.
    fn complains(&mut self, now: BootTime) -> bool {
        let due = self.complained.is_none_or(|last| now.since(last) >= SAID_AGAIN);
        if due {
            self.complained = Some(now);
        }
        due
    }
}

impl Keyring {
    /// Keeps the rows of all tenants sealed until `stop` is cancelled. Returns at once if there is
    /// no secret.
    pub async fn keep_sealing(self: Arc<Self>, stop: CancellationToken) {
        let Some(macs) = self.rows.macs() else { return };
        let mut courses: HashMap<TenantUid, Course> = HashMap::new();
        let mut pause = Duration::ZERO;
        while timeout(pause, stop.cancelled()).await.is_err() {
            pause = QUIET;
            for tenant in self.log.tenants().await.unwrap_or_default() {
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

    /// Seals rows. Returns whether all rows are sealed for good.
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
        let held = hold_rows(&*self.log, tenant, unsealed).await;
        let now = self.boot();
        course.rests_until = now.plus(now.since(began).saturating_mul(REST));
        let held = held?;
        if held.all_were_sealed {
            // The lookup did not find the entry that says so, although it exists: whoever hid it
            // removed the MACs.
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
            // Refused rows delay nothing. Otherwise, anybody could postpone the end by writing such
            // a row now and then.
            self.end(tenant, course).await;
        }
        Ok(false)
    }

    /// Writes to the log that all rows are sealed, once no unsealed row has come for the required
    /// time.
    async fn end(&self, tenant: &Tenant, course: &mut Course) {
        let now = self.boot();
        let since = *course.quiet_since.get_or_insert(now);
        if now.since(since) >= self.rows.settle {
            self.tell_all_sealed(tenant).await;
        }
    }

    /// Returns rows without MACs after this one, except those that the log is known to contradict,
    /// and where to continue.
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

    /// Seals rows in the state in which they were read. Returns how many were still the same.
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

    /// Goes through all rows, and re-seals under the current secret those that the previous one has
    /// sealed. Returns whether none is left.
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
        let last = last_sealed(&*self.log, tenant.uid).await?;
        // If only the configuration says that all rows are sealed, the log does not get an entry
        // that is not true.
        let is_due = last.map_or(is_so, |last| self.clock.now().since(last) >= TOLD_AGAIN);
        if is_due {
            self.tell_all_sealed(tenant).await;
        }
        Ok(())
    }
}
