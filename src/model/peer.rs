//! The other end of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The other end of a connection: anonymous until a request on it has authenticated. The listener
/// adds it to the extensions of every request of the connection, authentication sets it, and the
/// limits on anonymous connections read it. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Peer(Arc<AtomicBool>);

impl Peer {
    /// Records that a request has authenticated.
    pub fn set_authenticated(&self) {
        // A plain read first, so that the cache line stays shared: this runs for every request.
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
    fn a_peer_stays_authenticated_in_every_clone() {
        let peer = Peer::default();
        let clone = peer.clone();
        assert!(!clone.has_authenticated());
        peer.set_authenticated();
        assert!(clone.has_authenticated());
        assert!(!Peer::default().has_authenticated());
    }
}
