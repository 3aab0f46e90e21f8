//! What may take the place of what the server began with, while it runs: who calls, what they may do, what is signed with.
//! A call goes on with what it has begun with.

use std::sync::{Arc, PoisonError};

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

    pub(super) fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Recognises callers by this one from now on. Keys that the one before has fetched are taken over.
    pub fn take_authenticator(&self, authenticator: Authenticator) {
        authenticator.inherit(&self.authenticator());
        self.authenticator.send_replace(Arc::new(authenticator));
    }

    /// Asks this one from now on what callers may do.
    pub fn take_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Signs checkpoints with these from now on. Whether they were taken: see [`crate::jobs::Checkpoints::take_keys`].
    pub fn take_signing_keys(&self, keys: SigningKeys) -> bool {
        self.checkpoints.take_keys(keys)
    }

    /// The tenant that is served; `None` until the database was reached.
    pub fn serves(&self) -> Option<TenantUid> {
        self.tenant.uid().ok()
    }

    /// What became of files that were read again.
    pub fn rereads(&self) -> &Rereads {
        &self.rereads
    }

    /// Keeps the keys of the identity providers fresh until `stop`, whoever recognises callers meanwhile.
    pub async fn keep_identity_keys_fresh(&self, stop: &CancellationToken) {
        let mut replaced = self.authenticator.subscribe();
        loop {
            let authenticator = replaced.borrow_and_update().clone();
            let fresh = async {
                authenticator.keep_keys_fresh(stop).await;
                // Nothing to fetch until another one comes.
                stop.cancelled().await;
            };
            tokio::select! {
                () = fresh => return,
                _ = replaced.changed() => {}
            }
        }
    }
}
