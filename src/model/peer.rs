//! Who is at the other end of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The other end of a connection: a stranger until a request on it has authenticated, and known from then on. The
/// listener puts it into the extensions of every request of the connection, the fronts set it, and whatever bounds
/// strangers reads it. Clones are the same peer.
#[derive(Clone, Debug, Default)]
pub struct Peer(Arc<AtomicBool>);

impl Peer {
    /// Notes that a request has authenticated.
    pub fn set_authenticated(&self) {
        // Read first, so that the cache line stays shared: this is once a request.
        if !self.has_authenticated() {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether any request on the connection has authenticated.
    pub fn has_authenticated(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_has_authenticated_once_stays_known_in_every_clone() {
        let peer = Peer::default();
        let clone = peer.clone();
        assert!(!clone.has_authenticated());
        peer.set_authenticated();
        assert!(clone.has_authenticated());
        assert!(!Peer::default().has_authenticated());
    }
}
