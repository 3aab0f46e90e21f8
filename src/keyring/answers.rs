//! What an answer asks of the keyring: the fence of its commit, the permit after it, and the
//! renewal of that permit. A key whose proof is too old is probed here before the fence decides.

use std::sync::Arc;

use crate::audit::Durable;
use crate::model::{BootTime, KeyVersion, Posture, Tenant, TenantUid};
use crate::store::{DekRow, Fence};

use super::Keyring;
use super::dek::KeyringError;
use super::fence::{FenceFailure, KeyUse, KeysUsed, Permit, earliest};
use super::key_state::KeyState;
use super::prober::{BatchEpochs, NEED_LASTS};
use super::rows::RowUse;

impl Keyring {
    /// Returns the conditions that the commit of an answer must find. If a proof is too old for the
    /// commit to succeed, the key is probed first.
    ///
    /// # Errors
    /// The reason why the answer may not be given, as far as it is known before the commit.
    pub async fn fence(
        self: &Arc<Self>,
        tenant: &Tenant,
        keys_used: &KeysUsed,
    ) -> Result<Vec<Fence>, FenceFailure> {
        let bound = self.guard().bound();
        let mut fence = Vec::with_capacity(keys_used.uses.len());
        for used in &keys_used.uses {
            let known = self.states.get(tenant.uid, &used.key_version);
            let mut state = known.ok_or(FenceFailure::Retry)?;
            if used.needs_probe(&state, self.clock.boot(), bound) {
                state = self.probed(tenant, &used.key_version).await?;
            }
            fence.push(used.condition(&state, self.clock.boot(), bound)?);
        }
        Ok(fence)
    }

    /// Returns the permit of an answer that relies on keys and whose entry is durable. It ends when
    /// the first of its proofs is too old by this machine's own clock. Returns `None` if one is too
    /// old already, or if it is not known what the commit found.
    pub fn permit(&self, tenant: &Tenant, keys_used: KeysUsed, durable: &Durable) -> Option<Permit> {
        let receipt = durable.receipt.as_ref()?;
        let (now, bound) = (self.clock.boot(), self.guard().bound());
        Permit::after_commit(&self.states, tenant.uid, keys_used, receipt, now, bound)
    }

    /// Returns the new end of a permit that has ended, from what this replica has learned since
    /// about its key versions. They stay watched for a while, so that the permit can be renewed
    /// again.
    ///
    /// # Errors
    /// The posture that prevents the renewal; `Active` if a version was not shown to work in time.
    pub fn renew_permit(&self, tenant: &Tenant, permit: &Permit) -> Result<BootTime, Posture> {
        let now = self.clock.boot();
        let mut until = None;
        for used in &permit.uses {
            let state = self.states.get(tenant.uid, &used.key_version).ok_or(Posture::Active)?;
            let end = used.permitted_until(&state, now, self.guard().bound())?;
            until = Some(earliest(until, end));
            self.note_needed(tenant.uid, &used.key_version);
        }
        until.ok_or(Posture::Active)
    }

    /// Does the same as [`Self::renew_permit`], after it has probed each version that was not shown
    /// to work in time.
    ///
    /// # Errors
    /// As for [`Self::renew_permit`].
    pub async fn probe_and_renew_permit(
        self: &Arc<Self>,
        tenant: &Tenant,
        permit: &Permit,
    ) -> Result<BootTime, Posture> {
        for used in &permit.uses {
            let version = &used.key_version;
            let state = self.states.get(tenant.uid, version).ok_or(Posture::Active)?;
            let is_proven = state.proof_age(self.clock.boot()) <= self.guard().bound();
            if state.posture == Posture::Active && !is_proven {
                self.prober.probe_now(tenant, version).await.ok_or(Posture::Active)?;
            }
        }
        self.renew_permit(tenant, permit)
    }

    /// Keeps the key versions of a permit watched for a while. Without a cache nothing else does,
    /// and the permit of an answer that takes long to send could not be renewed.
    pub fn keep_probing(&self, tenant: &Tenant, permit: &Permit) {
        permit.uses.iter().for_each(|used| self.note_needed(tenant.uid, &used.key_version));
    }

    /// Returns the key versions that a re-wrap of these rows relies on, and for each row whether it
    /// may be used. The KMS calls made from here on prove that these versions work.
    pub async fn keys_used_by_rewrap(
        self: &Arc<Self>,
        tenant: &Tenant,
        rows: &[DekRow],
    ) -> (KeysUsed, Vec<Result<(), KeyringError>>) {
        let mut epochs = BatchEpochs::default();
        let mut may_use = Vec::with_capacity(rows.len());
        let checked = self.rows.check_all(tenant, rows, RowUse::Rewrap).await;
        for (row, checked) in rows.iter().zip(checked) {
            may_use.push(match checked {
                Ok(()) => epochs.of_row(&self.prober, tenant, row).await.map(drop),
                Err(error) => Err(error),
            });
        }
        let unwrapped_since = Some(self.clock.boot());
        let used = |(key_version, epoch)| KeyUse { key_version, epoch, unwrapped_since };
        (KeysUsed { uses: epochs.into_usable().map(used).collect() }, may_use)
    }

    /// Finds out what happened to a call that the fence refused: reads the rows again, and probes
    /// the versions that were not shown to work in time.
    pub async fn diagnose_fence_failure(
        self: &Arc<Self>,
        tenant: &Tenant,
        keys_used: &KeysUsed,
    ) -> FenceFailure {
        if self.prober.read_proofs(tenant.uid).await.is_none() {
            return FenceFailure::Unusable(Posture::Active);
        }
        let mut failure = FenceFailure::Retry;
        for used in &keys_used.uses {
            let Some(known) = self.states.get(tenant.uid, &used.key_version) else { continue };
            let is_proven = known.proof_age(self.clock.boot()) <= self.guard().bound();
            if known.posture == Posture::Active && is_proven {
                continue;
            }
            match self.probed(tenant, &used.key_version).await {
                Ok(state) if state.posture == Posture::Active => {}
                Ok(state) => failure = FenceFailure::Unusable(state.posture),
                Err(FenceFailure::Retry) => {}
                Err(unusable) => failure = unusable,
            }
        }
        failure
    }

    /// Probes a version and returns what is known of it afterwards. A version that is no longer
    /// watched, because all DEKs are under another one, is no reason to refuse.
    async fn probed(
        self: &Arc<Self>,
        tenant: &Tenant,
        version: &KeyVersion,
    ) -> Result<KeyState, FenceFailure> {
        match self.prober.probe_now(tenant, version).await {
            Some(state) => Ok(state),
            None if self.states.get(tenant.uid, version).is_none() => Err(FenceFailure::Retry),
            None => Err(FenceFailure::Unusable(Posture::Active)),
        }
    }

    fn note_needed(&self, tenant: TenantUid, version: &KeyVersion) {
        self.states.note_in_memory(tenant, version, self.clock.boot(), NEED_LASTS);
    }
}
