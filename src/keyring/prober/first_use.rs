//! The first use of a key version: a version that no replica knows yet is tried, and watched from
//! then on.

use std::collections::HashMap;
use std::sync::Arc;

use crate::kms::{DekBinding, Purpose};
use crate::model::{Canary, DekId, KeyVersion, Posture, Proof, Tenant};
use crate::store::{Change, DekRow, ReadError};
use crate::tenancy::TenantRuntime;

use super::super::dek::KeyringError;
use super::super::key_state::KeyState;
use super::{Prober, binding_of};

impl Prober {
    /// Returns the epoch under which the version of a row may be used now. A version that no
    /// replica knows yet is tried, and watched from then on. A version that is not active is
    /// refused, and probed soon.
    async fn usable_epoch(self: &Arc<Self>, tenant: &Tenant, row: &DekRow) -> Result<u64, KeyringError> {
        let version = &row.wrapped.key_version;
        let mut known = self.states.get(tenant.uid, version);
        if known.is_none() {
            // One caller at a time. The callers that wait then find the version known, or share the
            // failure of an attempt that began after their own call.
            let called = self.boot();
            let turn = self.turn(tenant.uid, version);
            let mut turn = turn.lock().await;
            known = self.states.get(tenant.uid, version);
            if known.is_none() {
                match &turn.failed {
                    Some((began, error)) if *began > called => return Err(error.clone()),
                    Some(_) | None => {}
                }
                let began = self.boot();
                known = match self.read_or_watch(tenant, row).await {
                    Ok(state) => state,
                    Err(error) => {
                        turn.failed = Some((began, error.clone()));
                        return Err(error);
                    }
                };
            }
        }
        match known {
            Some(state) if state.posture == Posture::Active => Ok(state.epoch),
            Some(state) => {
                self.probe_soon(tenant, version);
                Err(KeyringError::KeyUnusable(state.posture))
            }
            None => Err(KeyringError::KeyUnusable(Posture::Degraded)),
        }
    }

    /// Returns what the database knows of a version, or tries the version if the database does not
    /// know it.
    async fn read_or_watch(&self, tenant: &Tenant, row: &DekRow) -> Result<Option<KeyState>, KeyringError> {
        self.read_proofs(tenant.uid).await.ok_or(KeyringError::Store(ReadError::Unavailable))?;
        match self.states.get(tenant.uid, &row.wrapped.key_version) {
            None => self.watch(tenant, row).await,
            known => Ok(known),
        }
    }

    /// Shows that a version without a proof row works, and has it watched from now on.
    async fn watch(&self, tenant: &Tenant, row: &DekRow) -> Result<Option<KeyState>, KeyringError> {
        let version = &row.wrapped.key_version;
        let now = self.store.proofs(tenant.uid).await.map_err(KeyringError::Store)?.now;
        let runtime = self.tenants.with(tenant.uid).await?;
        let canary = canary_for(&runtime, row).await;
        let binding = binding_of(tenant.uid, &canary);
        let opened = runtime.keys.unwrap(&[(binding, canary.wrapped.clone())]).await.pop();
        opened.ok_or_else(KeyringError::internal)?.map_err(KeyringError::Kms)?;
        let proof = Proof {
            key_version: version.clone(),
            posture: Posture::Active,
            epoch: 0,
            revision: 0,
            proven_at: now,
            since: now,
            steady_since: Some(now),
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: now.plus(self.settings.probe_every),
        };
        let watch = vec![Change::Watch { proof, canary }];
        let unavailable = KeyringError::Store(ReadError::Unavailable);
        self.commit(tenant.uid, watch).await.ok_or(unavailable.clone())?;
        // Another replica may have been first.
        self.read_proofs(tenant.uid).await.ok_or(unavailable)?;
        Ok(self.states.get(tenant.uid, version))
    }
}

/// Returns a canary for the version of a row. If the KMS wraps under this version now, the canary
/// is made for this purpose. Otherwise it is the wrapped DEK of the row.
async fn canary_for(runtime: &TenantRuntime, row: &DekRow) -> Canary {
    let binding = DekBinding { tenant: runtime.tenant.uid, dek_id: DekId::new(), purpose: Purpose::Probe };
    match runtime.keys.generate(&[binding]).await.pop() {
        Some(Ok(made)) if made.value.wrapped.key_version == row.wrapped.key_version => {
            Canary { dek_id: binding.dek_id, wrapped: made.value.wrapped, made_for_probes: true }
        }
        Some(_) | None => Canary { dek_id: row.id, wrapped: row.wrapped.clone(), made_for_probes: false },
    }
}

/// The epochs under which the key versions of one batch may be used: each is looked up once.
#[derive(Default)]
pub(in crate::keyring) struct BatchEpochs(HashMap<KeyVersion, Result<u64, KeyringError>>);

impl BatchEpochs {
    /// Returns the epoch for the version of a row, as [`Prober::usable_epoch`] does.
    pub(in crate::keyring) async fn of_row(
        &mut self,
        prober: &Arc<Prober>,
        tenant: &Tenant,
        row: &DekRow,
    ) -> Result<u64, KeyringError> {
        let version = &row.wrapped.key_version;
        if let Some(epoch) = self.get(version) {
            return epoch;
        }
        let epoch = prober.usable_epoch(tenant, row).await;
        self.0.insert(version.clone(), epoch.clone());
        epoch
    }

    /// Returns the epoch for a version if it was looked up.
    pub(in crate::keyring) fn get(&self, version: &KeyVersion) -> Option<Result<u64, KeyringError>> {
        self.0.get(version).cloned()
    }

    /// Returns the versions that may be used, each with its epoch.
    pub(in crate::keyring) fn into_usable(self) -> impl Iterator<Item = (KeyVersion, u64)> {
        self.0.into_iter().filter_map(|(version, epoch)| Some((version, epoch.ok()?)))
    }
}
