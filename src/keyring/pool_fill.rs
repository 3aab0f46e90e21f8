//! The job that fills the DEK pool. It does not call the KMS while the key is not shown to work,
//! nor for a tenant that has not made a record lately.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::kms::{KmsErrorClass, Purpose};
use crate::model::{KeyVersion, Posture, Tenant, TenantUid};
use crate::telemetry::PoolCounts;

use super::Keyring;
use super::dek::KeyringError;
use super::pool::{Fill, PooledDek};

/// How often the pools are checked when nothing is taken from them.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Ends a fill when it is dropped. A fill that panics counts as failed.
struct EndOnDrop<'a> {
    keyring: &'a Keyring,
    tenant: TenantUid,
    outcome: Result<(), Option<Duration>>,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.keyring.memory.pool.end_fill(self.tenant, self.keyring.clock.boot(), self.outcome);
    }
}

impl Keyring {
    /// Keeps the pools filled until `stop` is cancelled. Returns at once if there are none.
    pub async fn run_pool(self: Arc<Self>, stop: CancellationToken) {
        let pool = &self.memory.pool;
        while !pool.is_off() {
            let now = self.clock.boot();
            for tenant in pool.due_fills(now) {
                if let Some(runtime) = self.tenants.known(tenant.uid)
                    && self.rows.can_make(tenant.uid)
                    && self.current_version_works(tenant.uid)
                    && let Some(fill) = pool.begin_fill(tenant.uid, runtime.keys.profile().batch_limit, now)
                {
                    tokio::spawn(self.clone().fill(tenant, fill));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = pool.fill_due() => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }

    /// Returns how many DEKs were made ahead of need, and what happened to them.
    pub fn pool_counts(&self) -> PoolCounts {
        self.memory.pool.counts()
    }

    /// Returns whether the version under which DEKs are made is active and was shown to work in
    /// time. Otherwise, the DEKs would be thrown away.
    fn current_version_works(&self, tenant: TenantUid) -> bool {
        let current = self.states.current.get(tenant);
        let state = current.and_then(|current| self.states.get(tenant, &current));
        state.is_some_and(|state| {
            state.posture == Posture::Active && state.proof_age(self.clock.boot()) <= self.guard().bound()
        })
    }

    async fn fill(self: Arc<Self>, tenant: Tenant, fill: Fill) {
        let mut end = EndOnDrop { keyring: &self, tenant: tenant.uid, outcome: Err(None) };
        let requested = self.clock.boot();
        let made = self.make_deks(&tenant, fill.count, Purpose::RecordAhead).await;
        let mut brought = Vec::with_capacity(made.len());
        let mut versions: Vec<KeyVersion> = Vec::new();
        let mut failed = None;
        for (id, made) in made {
            match made {
                Ok((dek, wrapped)) => {
                    if !versions.contains(&dek.key_version) {
                        versions.push(dek.key_version.clone());
                    }
                    let (under, request_id) = ((dek.key_version, dek.epoch), dek.kms_request_id);
                    let cached = self.memory.cache.seal(tenant.uid, id, &dek.plain, under, request_id, true);
                    brought.push(PooledDek { id, cached, wrapped, requested });
                }
                Err(error) => failed = Some(error),
            }
        }
        if self.memory.pool.add(tenant.uid, &fill, brought) {
            versions.iter().for_each(|version| self.memory.note_in_memory(tenant.uid, version));
        }
        end.outcome = match failed {
            None if !versions.is_empty() => Ok(()),
            None => Err(None),
            Some(error) => {
                warn!(tenant = tenant.name, ?error, "DEKs could not be made ahead of need");
                Err(retry_after(&error))
            }
        };
    }
}

/// Returns how long the KMS asked to wait. A login that pauses continues at once with another
/// credential, so only a spent budget counts.
fn retry_after(error: &KeyringError) -> Option<Duration> {
    match error {
        KeyringError::Kms(error) => error.retry_after.filter(|_| error.class == KmsErrorClass::BudgetSpent),
        KeyringError::Missing
        | KeyringError::Altered
        | KeyringError::Unsealed
        | KeyringError::RowMacKeyMissing
        | KeyringError::KeyUnusable(_)
        | KeyringError::Store(_)
        | KeyringError::NotServed(_) => None,
    }
}
