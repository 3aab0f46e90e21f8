//! The proof rows: what the other replicas found is read into the key states, and what this replica
//! needs is announced to them.

use std::time::Duration;

use crate::model::{BootTime, KeyVersion, Proof, TenantUid};
use crate::store::{Batch, Change, Snapshot, Watched};

use super::super::database_clock::ClockReading;
use super::super::key_state::{KeyState, KeyStateChange};
use super::Prober;

/// How long the announcement that a version is needed remains valid. It is longer than the interval
/// at which the announcement is repeated, so that a slow replica is not forgotten.
pub(in crate::keyring) const NEED_LASTS: Duration = Duration::from_secs(10);

impl Prober {
    /// Reads all proofs of a tenant. If a version is no longer watched, the DEKs under it that are
    /// in memory are not used from then on, because they were re-wrapped. The sealing key stays,
    /// because the fetches under other versions need it. Returns `None` if the database does not
    /// answer.
    pub(in crate::keyring) async fn read_proofs(&self, tenant: TenantUid) -> Option<()> {
        let sent = self.boot();
        let seen = self.store.proofs(tenant).await.ok()?;
        let reading = ClockReading { sent, received: self.boot(), now: seen.now };
        seen.rows.iter().for_each(|proof| self.apply_row(tenant, proof, reading));
        if self.states.forget_absent(tenant, &seen.rows, reading) {
            self.deks.drop_pooled_deks(tenant);
        }
        Some(())
    }

    /// Returns the rows to be probed, and when they were requested.
    pub(super) async fn read_watched(&self) -> Option<(Snapshot<Watched>, BootTime)> {
        let sent = self.boot();
        let seen = self.store.watched().await.ok()?;
        let reading = ClockReading { sent, received: self.boot(), now: seen.now };
        seen.rows.iter().for_each(|row| self.apply_row(row.tenant.uid, &row.proof, reading));
        Some((seen, sent))
    }

    /// Takes over the contents of a row. If the epoch has changed, drops what is in memory. If the
    /// version is new, drops the DEKs that were made ahead of need.
    fn apply_row(&self, tenant: TenantUid, proof: &Proof, reading: ClockReading) {
        match self.states.apply_row(tenant, proof, reading) {
            KeyStateChange::EpochChanged => self.drop_tenant_deks(tenant),
            KeyStateChange::New => self.deks.drop_pooled_deks(tenant),
            KeyStateChange::Unchanged => {}
        }
    }

    /// Announces to all replicas that versions are needed, for a while from now.
    pub(super) async fn announce_need(&self, tenant: TenantUid, versions: &[KeyVersion]) {
        let need =
            |version: &KeyVersion| Change::ExtendWatch { key_version: version.clone(), lasting: NEED_LASTS };
        let changes: Vec<Change> = versions.iter().map(need).collect();
        if self.commit(tenant, changes).await.is_some() {
            let now = self.boot();
            versions.iter().for_each(|version| self.states.note_announced(tenant, version, now));
        }
    }

    /// Returns the versions that are in memory and must be announced again.
    pub(super) fn due_announcements(&self) -> Vec<(TenantUid, KeyVersion)> {
        let now = self.boot();
        let is_due = |state: &KeyState| {
            state.is_in_memory(now)
                && state.announced_at.is_none_or(|announced| now.since(announced) > NEED_LASTS / 3)
        };
        let all = self.states.all().into_iter();
        all.filter(|(.., state)| is_due(state)).map(|(tenant, version, _)| (tenant, version)).collect()
    }

    /// Commits changes of proof rows, outside the log. Returns `None` if it is not known whether
    /// they were made.
    pub(super) async fn commit(&self, tenant: TenantUid, changes: Vec<Change>) -> Option<Vec<u64>> {
        let batch = Batch::of_changes(tenant, changes);
        self.store.commit(&batch).await.ok().map(|committed| committed.applied)
    }
}
