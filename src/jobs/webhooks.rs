//! Webhooks that take the place of those that the server began with, while it runs.

use crate::config::Webhook;

use super::{Jobs, Place, Stream};

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

impl Jobs {
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
}
