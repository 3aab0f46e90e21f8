//! Replaces parts of the server while it runs: the authenticator, the policy and the signing keys.
//! A call continues with the parts that it began with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::auth::{Authenticator, Policy};
use crate::config::SigningKeys;
use crate::model::TenantUid;
use crate::telemetry::Rereads;

use super::App;

impl App {
    pub(super) fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator.borrow().clone()
    }

    /// Authenticates callers with this authenticator from now on. It takes over the keys that the
    /// previous one has fetched.
    pub fn take_authenticator(&self, authenticator: Authenticator) {
        authenticator.inherit(&self.authenticator());
        self.authenticator.send_replace(Arc::new(authenticator));
    }

    /// Authorizes the callers of all tenants with this policy from now on.
    pub fn take_policy(&self, policy: Policy) {
        self.tenants.update_settings(|settings| settings.policy = Arc::new(policy));
    }

    /// Signs checkpoints with these keys from now on. Returns whether they were accepted: see
    /// [`crate::jobs::Checkpoints::take_keys`].
    pub fn take_signing_keys(&self, keys: SigningKeys) -> bool {
        self.checkpoints.take_keys(keys)
    }

    /// Returns the tenant that is served; `None` until the database has been reached.
    pub fn serves(&self) -> Option<TenantUid> {
        self.tenants.primary().ok().map(|runtime| runtime.tenant.uid)
    }

    /// Returns the counts of files that were read again, by the result.
    pub fn rereads(&self) -> &Rereads {
        &self.rereads
    }

    /// Keeps the keys of the identity providers fresh until `stop` is cancelled, even if the
    /// authenticator is replaced meanwhile.
    pub async fn keep_identity_keys_fresh(&self, stop: &CancellationToken) {
        let mut replaced = self.authenticator.subscribe();
        loop {
            let authenticator = replaced.borrow_and_update().clone();
            let fresh = async {
                authenticator.keep_keys_fresh(stop).await;
                // There is nothing to fetch until the authenticator is replaced.
                stop.cancelled().await;
            };
            tokio::select! {
                () = fresh => return,
                _ = replaced.changed() => {}
            }
        }
    }
}
