//! New DEKs: the KMS makes them, under a key version that is shown to unwrap.

use std::sync::Arc;

use crate::kms::{Answer, DekBinding, Generated, Purpose};
use crate::model::{DekId, KeyVersion, Posture, Source, Tenant, TenantUid, Timestamp, Wrapped};
use crate::store::DekRow;

use super::Keyring;
use super::dek::{KeyringError, PlainDek};
use super::prober::BatchEpochs;

/// A DEK, plain and wrapped, that belongs to no record yet.
pub(super) type NewDek = Result<(PlainDek, Wrapped), KeyringError>;

impl Keyring {
    /// Makes `count` DEKs in one batch. Makes no call if `count` is 0.
    pub(super) async fn make_deks(
        self: &Arc<Self>,
        tenant: &Tenant,
        count: usize,
        purpose: Purpose,
    ) -> Vec<(DekId, NewDek)> {
        if count == 0 {
            return Vec::new();
        }
        let ids = (0..count).map(|_| DekId::new());
        let bindings: Vec<DekBinding> =
            ids.map(|dek_id| DekBinding { tenant: tenant.uid, dek_id, purpose }).collect();
        let refuse_all = |error: KeyringError| {
            bindings.iter().map(|binding| (binding.dek_id, Err(error.clone()))).collect()
        };
        if let Err(error) = self.rows.check_can_make(tenant.uid).await {
            return refuse_all(error);
        }
        let current = self.states.current.get(tenant.uid);
        if let Some(current) = &current
            && let Err(error) = self.check_current_version(tenant, current)
        {
            return refuse_all(error);
        }
        let runtime = match self.tenants.with(tenant.uid).await {
            Ok(runtime) => runtime,
            Err(not_served) => return refuse_all(not_served.into()),
        };
        // Runs to its end even if the caller is dropped: it may be the call that logs in for all
        // others.
        let asked = bindings.clone();
        let made = tokio::spawn(async move { runtime.keys.generate(&asked).await }).await.unwrap_or_default();
        let mut epochs = BatchEpochs::default();
        let mut deks = Vec::with_capacity(count);
        for (binding, made) in bindings.iter().zip(made) {
            let dek = match made {
                Ok(made) => self.usable_dek(tenant, binding.dek_id, made, &mut epochs).await,
                Err(error) => {
                    if let Some(current) = &current {
                        self.prober.probe_if_refused(tenant, current, &error);
                    }
                    Err(KeyringError::Kms(error))
                }
            };
            deks.push((binding.dek_id, dek));
        }
        deks
    }

    /// Notes under which version the KMS wraps now. DEKs that were made ahead under another version
    /// are no longer used.
    pub fn note_current_version(&self, tenant: TenantUid, version: &KeyVersion) {
        if !self.states.current.is(tenant, version) {
            self.states.current.set(tenant, version);
            self.memory.pool.clear_tenant(tenant);
        }
    }

    /// Returns an error if the version under which the last DEK was made is not active. The KMS is
    /// still called once in a while: it may wrap under another version by now.
    fn check_current_version(&self, tenant: &Tenant, current: &KeyVersion) -> Result<(), KeyringError> {
        let Some(state) = self.states.get(tenant.uid, current) else { return Ok(()) };
        if state.posture == Posture::Active {
            return Ok(());
        }
        self.prober.probe_soon(tenant, current);
        let interval = self.prober.settings().probe_every;
        if self.states.current.may_retry(tenant.uid, self.clock.boot(), interval) {
            Ok(())
        } else {
            Err(KeyringError::KeyUnusable(state.posture))
        }
    }

    /// Returns a DEK that the KMS has made, if its key version may be used.
    async fn usable_dek(
        self: &Arc<Self>,
        tenant: &Tenant,
        id: DekId,
        made: Answer<Generated>,
        epochs: &mut BatchEpochs,
    ) -> NewDek {
        let Generated { dek: plain, wrapped } = made.value;
        let key_version = wrapped.key_version.clone();
        let epoch = match epochs.get(&key_version) {
            Some(epoch) => epoch,
            None => {
                let row = DekRow {
                    id,
                    record_id: None,
                    wrapped: wrapped.clone(),
                    created_at: Timestamp(0),
                    mac: None,
                    record_mac: None,
                };
                let epoch = epochs.of_row(&self.prober, tenant, &row).await;
                self.states.current.set(tenant.uid, &key_version);
                epoch
            }
        };
        let (source, kms_request_id) = (Source::Kms, made.request_id);
        let dek = PlainDek { plain, key_version, epoch: epoch?, source, kms_request_id, row_is_sealed: true };
        Ok((dek, wrapped))
    }
}
