//! The job that seals rows: those that a release without MACs has written, and those that are
//! sealed under the previous secret. A row is sealed only after it was compared with the log.
//! Sealed rows stay sealed, so a job that was killed continues with the rest. Several replicas may
//! work at once, because a row is sealed only in the state in which it was read. When no unsealed
//! row has appeared for a while, an entry says that all rows are sealed. From then on an unsealed
//! row is refused, and only `byok audit reseal` seals it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::audit::{RowMacs, RowSeal, Unit, last_sealed, pack};
use crate::model::{BootTime, DekId, Entry, Operation, Tenant, TenantUid};
use crate::store::{Batch, Change, DekRow, ReadError};
use crate::tenancy::{Turn, Turns};
use crate::verify::hold_rows;

use super::RowChecks;

/// How often unsealed rows are looked for: while some may come, and when none should.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_INTERVAL: Duration = Duration::from_secs(30);
/// The number of rows for which one walk along the log is made.
const ROWS_PER_WALK: usize = 100_000;
/// How many rows are read, or sealed, by one statement.
const PAGE_ROWS: u32 = 1_000;
/// The pause between two pages of a pass over all rows.
const PAGE_PAUSE: Duration = Duration::from_millis(10);
/// The pause after a walk along the log that achieved nothing, as a multiple of its duration. Rows
/// that somebody plants there to be checked then take up a tenth of a reader at most.
const WALK_PAUSE_FACTOR: u32 = 9;
/// The time between two identical lines in the server's log.
const LOG_INTERVAL: Duration = Duration::from_secs(3_600);
/// How often the entry that all rows are sealed is written again, because a retention drops old
/// entries.
const ENTRY_INTERVAL: Duration = Duration::from_secs(24 * 3_600);

/// The progress of the sealing of one tenant's rows.
#[derive(Default)]
struct SealingProgress {
    /// When the tenant's rows were last found to be all sealed for good.
    all_sealed_at: Option<BootTime>,
    /// The time since which no row has appeared that had to be sealed.
    quiet_since: Option<BootTime>,
    /// Whether no row is left that is sealed under the previous secret.
    moved_to_current_key: bool,
    /// When the log's last entry that all rows are sealed was looked up.
    entry_looked_up: Option<BootTime>,
    /// The row after which the next range begins; `None` for the first range.
    after: Option<DekId>,
    /// The log is not walked again before this time.
    no_walk_before: BootTime,
    /// When the server's log last said that nothing can be sealed.
    last_logged: Option<BootTime>,
}

impl SealingProgress {
    /// Returns whether rows of the tenant are to be looked for now.
    fn is_due(&self, now: BootTime) -> bool {
        self.all_sealed_at.is_none_or(|at| now.since(at) >= IDLE_INTERVAL)
    }

    /// Returns whether to log now that nothing can be sealed.
    fn should_log(&mut self, now: BootTime) -> bool {
        let due = self.last_logged.is_none_or(|last| now.since(last) >= LOG_INTERVAL);
        if due {
            self.last_logged = Some(now);
        }
        due
    }
}

impl RowChecks {
    /// Keeps the rows of all tenants sealed until `stop` is cancelled, each tenant's at its own
    /// pace: a walk along one tenant's log may take long. Returns at once if there is no secret.
    pub(in crate::keyring) async fn run_sealing(self: Arc<Self>, stop: CancellationToken) {
        if self.macs.is_none() {
            return;
        }
        let mut turns = Turns::default();
        let mut all_progress: HashMap<TenantUid, Arc<Mutex<SealingProgress>>> = HashMap::new();
        let mut pause = Duration::ZERO;
        while timeout(pause, stop.cancelled()).await.is_err() {
            pause = IDLE_INTERVAL;
            let Ok(tenants) = self.log.tenants().await else { continue };
            let uids: HashSet<TenantUid> = tenants.iter().map(|tenant| tenant.uid).collect();
            all_progress.retain(|uid, _| uids.contains(uid));
            let mut due = Vec::new();
            for tenant in tenants {
                let progress = all_progress.entry(tenant.uid).or_default().clone();
                // It is locked while the tenant's turn lasts.
                if progress.try_lock().is_ok_and(|progress| !progress.is_due(self.clock.boot())) {
                    continue;
                }
                pause = BUSY_INTERVAL;
                let (rows, stop) = (self.clone(), stop.clone());
                due.push((tenant.uid, move |_: Turn| async move {
                    let mut progress = progress.lock().await;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = rows.seal_rows_of(&tenant, &mut progress) => {}
                    }
                }));
            }
            turns.start(due);
        }
        turns.end().await;
    }

    /// Seals rows of a tenant, and notes whether all are sealed.
    async fn seal_rows_of(self: &Arc<Self>, tenant: &Tenant, progress: &mut SealingProgress) {
        let Some(macs) = &self.macs else { return };
        let all_sealed = self.seal_rows(tenant, macs, progress).await;
        progress.all_sealed_at = matches!(all_sealed, Ok(true)).then(|| self.clock.boot());
        if let Err(error) = all_sealed
            && progress.should_log(self.clock.boot())
        {
            warn!(tenant = tenant.name, ?error, "rows of DEKs cannot be sealed now; this is retried");
        }
    }

    /// Seals rows. Returns whether all rows are sealed for good.
    async fn seal_rows(
        self: &Arc<Self>,
        tenant: &Tenant,
        macs: &RowMacs,
        progress: &mut SealingProgress,
    ) -> Result<bool, ReadError> {
        if macs.has_previous() && !progress.moved_to_current_key {
            progress.moved_to_current_key = self.move_to_current_key(tenant, macs).await?;
        }
        if self.all_sealed(tenant.uid).await? {
            let unsealed = self.log.unsealed_deks(tenant.uid, None, 1).await?;
            if let Some(row) = unsealed.first() {
                self.report(tenant, row, RowSeal::None);
            }
            self.rewrite_entry_if_due(tenant, progress, unsealed.is_empty()).await?;
            return Ok(true);
        }
        let began = self.clock.boot();
        if began < progress.no_walk_before {
            return Ok(false);
        }
        let (unsealed, next) = self.unsealed(tenant.uid, progress.after).await?;
        if unsealed.is_empty() && progress.after.is_none() {
            self.finish_if_settled(tenant, progress).await;
            return Ok(false);
        }
        let compared = hold_rows(&*self.log, tenant, unsealed).await;
        let now = self.clock.boot();
        progress.no_walk_before = now.plus(now.since(began).saturating_mul(WALK_PAUSE_FACTOR));
        let compared = compared?;
        if compared.all_were_sealed {
            // The lookup did not find the entry that says so, although it exists. An attacker who
            // hides it has removed the MACs.
            self.known.note_all_sealed(tenant.uid);
            return Ok(false);
        }
        self.known.note_damaged(tenant.uid, compared.damaged.is_some());
        if let Some(finding) = compared.damaged {
            if progress.should_log(now) {
                error!(
                    tenant = tenant.name, %finding, "the log does not hold: no row is sealed by it, and nothing is encrypted under a row without a MAC; run `byok audit verify`"
                );
            }
            return Ok(false);
        }
        for (row, finding) in &compared.contradicted {
            if self.note_contradicted(tenant.uid, row) {
                error!(tenant = tenant.name, %finding, "a DEK's row contradicts the log: it is refused and not sealed");
            }
            self.report(tenant, row, RowSeal::None);
        }
        progress.after = next;
        if !compared.agreed.is_empty() {
            (progress.quiet_since, progress.no_walk_before) = (None, now);
            let sealed = self.seal_all(tenant.uid, macs, compared.agreed).await?;
            info!(tenant = tenant.name, sealed, "rows of DEKs were compared with the log and sealed");
        } else if progress.after.is_none() {
            // Refused rows delay nothing. Otherwise, anybody could postpone the end by writing such
            // a row now and then.
            self.finish_if_settled(tenant, progress).await;
        }
        Ok(false)
    }

    /// Writes to the log that all rows are sealed, once no unsealed row has come for the required
    /// time.
    async fn finish_if_settled(&self, tenant: &Tenant, progress: &mut SealingProgress) {
        let now = self.clock.boot();
        let since = *progress.quiet_since.get_or_insert(now);
        if now.since(since) >= self.settle {
            self.write_all_sealed_entry(tenant).await;
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
        while unsealed.len() < ROWS_PER_WALK {
            let rows = self.log.unsealed_deks(tenant, after, PAGE_ROWS).await?;
            after = rows.last().map(|row| row.id);
            let more = rows.len() == PAGE_ROWS as usize;
            unsealed.extend(rows.into_iter().filter(|row| !self.is_contradicted(tenant, row)));
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
        for page in rows.chunks_mut(PAGE_ROWS as usize) {
            page.iter_mut().for_each(|row| macs.seal(tenant, row));
            let batch = Batch::of_changes(tenant, vec![Change::SealDeks(page.to_vec())]);
            let committed = self.store.commit(&batch).await.map_err(|_| ReadError::Unavailable)?;
            sealed += committed.applied.iter().sum::<u64>();
        }
        Ok(sealed)
    }

    /// Goes through all rows, and re-seals under the current secret those that the previous one has
    /// sealed. Returns whether none is left.
    async fn move_to_current_key(&self, tenant: &Tenant, macs: &RowMacs) -> Result<bool, ReadError> {
        let (mut after, mut moved, mut found) = (None, 0, 0);
        loop {
            let rows = self.log.deks_after(tenant.uid, after, PAGE_ROWS).await?;
            let more = rows.len() == PAGE_ROWS as usize;
            after = rows.last().map(|row| row.id);
            let old: Vec<DekRow> =
                rows.into_iter().filter(|row| macs.check(tenant.uid, row) == RowSeal::Previous).collect();
            found += old.len() as u64;
            moved += self.seal_all(tenant.uid, macs, old).await?;
            if !more {
                break;
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        if moved > 0 {
            info!(tenant = tenant.name, moved, "rows of DEKs were moved to BYOK_ROW_MAC_KEY");
        }
        Ok(moved == found)
    }

    /// Writes to the log that all rows are sealed, which refuses unsealed rows from then on.
    async fn write_all_sealed_entry(&self, tenant: &Tenant) {
        let detail = Some("rows sealed".into());
        let entry = Entry::of_operator(self.clock.now(), Operation::Seal, None, detail);
        let entry = Some(pack(tenant.uid, &entry));
        let unit = Unit::unconditional(tenant.uid, entry, Vec::new());
        match self.committer.commit(unit).await {
            Ok(_) => {
                self.known.note_all_sealed(tenant.uid);
                info!(
                    tenant = tenant.name,
                    "all rows of DEKs are sealed: a row without a MAC is refused from now on"
                );
            }
            Err(failed) => {
                warn!(
                    tenant = tenant.name,
                    ?failed,
                    "the entry that all rows are sealed could not be written"
                )
            }
        }
    }

    /// Writes to the log again that all rows are sealed, once the last such entry is old.
    async fn rewrite_entry_if_due(
        &self,
        tenant: &Tenant,
        progress: &mut SealingProgress,
        is_true: bool,
    ) -> Result<(), ReadError> {
        let now = self.clock.boot();
        if progress.entry_looked_up.is_some_and(|looked| now.since(looked) < ENTRY_INTERVAL / 24) {
            return Ok(());
        }
        progress.entry_looked_up = Some(now);
        let last = last_sealed(&*self.log, tenant.uid).await?;
        // If only the configuration says that all rows are sealed, the log does not get an entry
        // that is not true.
        let is_due = last.map_or(is_true, |last| self.clock.now().since(last) >= ENTRY_INTERVAL);
        if is_due {
            self.write_all_sealed_entry(tenant).await;
        }
        Ok(())
    }
}
