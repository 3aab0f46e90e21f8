//! Replaces webhook settings while the server runs.

use std::sync::Arc;

use crate::config::Webhook;

use super::{Destination, Jobs, Stream};

/// The new webhook settings; `None` for one that is not used, or has not changed.
#[derive(Default)]
pub struct Webhooks {
    /// The webhook for incidents.
    pub incidents: Option<Webhook>,
    /// The webhook for checkpoints.
    pub checkpoints: Option<Webhook>,
    /// The webhook for the stream.
    pub stream: Option<Webhook>,
}

impl Jobs {
    /// Uses these webhooks from now on. Returns whether all were accepted. The checkpoint webhook
    /// is identified by its address, so its address cannot change here.
    pub fn take_webhooks(&self, webhooks: Webhooks) -> bool {
        let Webhooks { incidents, checkpoints, stream } = webhooks;
        let of_checkpoints = self.checkpoints.signing.destinations.iter().find_map(Destination::webhook);
        if of_checkpoints.zip(checkpoints.as_ref()).is_some_and(|(ours, new)| !ours.posts_to(new)) {
            return false;
        }
        let of_stream = self.streams.iter().find_map(Stream::webhook);
        for (ours, new) in [(of_checkpoints, checkpoints), (of_stream, stream)] {
            if let (Some(ours), Some(new)) = (ours, new) {
                ours.replace(new);
            }
        }
        if let Some(new) = incidents {
            self.tenants.update_settings(|settings| {
                settings.webhook = settings.webhook.take().map(|ours| Arc::new(ours.moved_to(new)));
            });
        }
        true
    }
}
