//! Probes on demand: for a call that needs a newer proof, or one that the KMS refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::kms::{KmsError, Verdict};
use crate::model::{KeyVersion, Posture, Tenant, TenantUid};

use super::super::key_state::KeyState;
use super::{ProbeTurn, Prober};

/// How often the row is read while another replica probes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Prober {
    /// Probes one version at once, but not sooner after a probe than the usual interval. A caller
    /// that arrives meanwhile waits for the same answer. Returns what is known afterwards,
    /// or `None` if that is not enough to decide.
    pub(in crate::keyring) async fn probe_now(
        self: &Arc<Self>,
        tenant: &Tenant,
        version: &KeyVersion,
    ) -> Option<KeyState> {
        let turn = self.turn(tenant.uid, version).lock_owned().await;
        if self.may_probe_again(tenant.uid, version) {
            // Runs to its end even if the caller is dropped: others wait for the result.
            let _ = self.spawn_probe(tenant, version, turn).await;
        }
        let state = self.states.get(tenant.uid, version)?;
        let is_proven = self.is_proven(&state);
        if !is_proven {
            self.drop_tenant_deks(tenant.uid);
        }
        (state.posture != Posture::Active || is_proven).then_some(state)
    }

    /// Starts the same probe without waiting for it. Does nothing if a probe is under way.
    pub(in crate::keyring) fn probe_soon(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion) {
        let turn = self.turn(tenant.uid, version).try_lock_owned();
        if let (Ok(turn), true) = (turn, self.may_probe_again(tenant.uid, version)) {
            drop(self.spawn_probe(tenant, version, turn));
        }
    }

    /// Probes a version at once if this error of the KMS for a real call is a refusal.
    pub(in crate::keyring) fn probe_if_refused(
        self: &Arc<Self>,
        tenant: &Tenant,
        version: &KeyVersion,
        error: &KmsError,
    ) {
        if error.class.verdict() == Verdict::Revoked {
            self.probe_soon(tenant, version);
        }
    }

    fn spawn_probe(
        self: &Arc<Self>,
        tenant: &Tenant,
        version: &KeyVersion,
        turn: OwnedMutexGuard<ProbeTurn>,
    ) -> JoinHandle<()> {
        let (prober, tenant, version) = (self.clone(), tenant.clone(), version.clone());
        tokio::spawn(async move {
            prober.probe_in_turn(&tenant, &version).await;
            drop(turn);
        })
    }

    async fn probe_in_turn(&self, tenant: &Tenant, version: &KeyVersion) {
        self.announce_need(tenant.uid, std::slice::from_ref(version)).await;
        if let Some((mut seen, requested)) = self.read_watched().await {
            seen.rows.retain(|row| row.tenant.uid == tenant.uid && row.proof.key_version == *version);
            if !self.probe(seen, requested).await {
                self.wait_for_other_replica(tenant, version).await;
            }
            // Another replica may have been first, and may know more by now.
            self.read_proofs(tenant.uid).await;
        }
        // Whatever the result: the callers that wait for this turn must not each try for as long.
        self.states.note_probe_end(tenant.uid, version, self.boot());
    }

    /// Waits for the answer of another replica, which probes at this moment, for as long as a probe
    /// may take.
    async fn wait_for_other_replica(&self, tenant: &Tenant, version: &KeyVersion) {
        let is_unproven = |state: KeyState| state.posture == Posture::Active && !self.is_proven(&state);
        let proven = async {
            while self.states.get(tenant.uid, version).is_some_and(is_unproven) {
                tokio::time::sleep(POLL_INTERVAL).await;
                self.read_proofs(tenant.uid).await;
            }
        };
        let _ = timeout(self.settings.probe_timeout, proven).await;
    }

    /// Returns whether the last probe by this replica is long enough ago.
    fn may_probe_again(&self, tenant: TenantUid, version: &KeyVersion) -> bool {
        let last = self.states.get(tenant, version).and_then(|state| state.last_probe_end);
        last.is_none_or(|last| self.boot().since(last) >= self.settings.probe_every)
    }
}
