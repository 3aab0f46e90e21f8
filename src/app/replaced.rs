//! What may take the place of what the server began with, while it runs: who calls, what they may do, what is signed with.
//! A call goes on with what it has begun with.

use std::sync::{Arc, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::auth::{Authenticator, Policy};
use crate::config::{SigningKeys, Webhook};
use crate::model::TenantUid;
use crate::telemetry::Rereads;

use super::{App, Place, Stream};

/// The webhooks as they are to be; none where nothing is posted, or nothing has changed.
#[derive(Default)]
pub struct Webhooks {
    /// That of incidents.
    pub incidents: Option<Webhook>,
    /// That of checkpoints.
    pub checkpoints: Option<Webhook>,
    /// That of the stream.
    pub stream: Option<Webhook>,
}

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

    /// Signs checkpoints with these from now on. Whether they were taken: see [`super::Checkpoints::take_keys`].
    pub fn take_signing_keys(&self, keys: SigningKeys) -> bool {
        self.checkpoints.take_keys(keys)
    }

    /// Posts to these from now on. Whether all were taken: the one of checkpoints is a place of theirs by its address, so that
    /// one stays where it is.
    pub fn take_webhooks(&self, webhooks: Webhooks) -> bool {
        let Webhooks { incidents, checkpoints, stream } = webhooks;
        let place = self.checkpoints.places().iter().find_map(Place::webhook);
        if place.zip(checkpoints.as_ref()).is_some_and(|(ours, new)| !ours.posts_to(new)) {
            return false;
        }
        let of_stream = self.streams.iter().find_map(Stream::webhook);
        for (ours, new) in [(self.webhook.as_ref(), incidents), (place, checkpoints), (of_stream, stream)] {
            if let (Some(ours), Some(new)) = (ours, new) {
                ours.replace(new);
            }
        }
        true
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
