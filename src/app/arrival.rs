//! The facts about a request that are known before its body is read. The server determines them and
//! puts them into the request's extensions for the front end.

use std::sync::Arc;

use http::Extensions;

use crate::model::{ErrorCode, Refusal};
use crate::tenancy::Caller;

/// The memory that a request may use.
pub trait Room: Send + Sync {
    /// Sets the request's reservation to this many bytes in total. Returns `false` if the server
    /// cannot spare them.
    fn hold(&self, bytes: usize) -> bool;
    /// Raises the reservation to this many bytes if it is smaller. Meant for an answer that grows
    /// while the data that it is built from is still in memory.
    fn hold_at_least(&self, bytes: usize) -> bool;
    /// Returns the largest size of an answer, in bytes.
    fn largest_answer(&self) -> usize;
}

/// A request whose head has been received.
#[derive(Clone)]
pub struct Arrival {
    /// The caller, or the reason why the caller was not authenticated.
    pub caller: Result<Caller, Refusal>,
    /// The memory reservation for the body and everything that is built from it.
    pub room: Arc<dyn Room>,
}

impl Arrival {
    /// Takes the arrival that the server put into the extensions. If there is none, the result has
    /// no authenticated caller.
    pub fn take(extensions: &mut Extensions) -> Self {
        extensions
            .remove()
            .unwrap_or_else(|| Self { caller: Err(ErrorCode::Internal.into()), room: Arc::new(Unbounded) })
    }
}

/// The room of a request that no server accounts for: it has no limit.
pub struct Unbounded;

impl Room for Unbounded {
    fn hold(&self, _: usize) -> bool {
        true
    }

    fn hold_at_least(&self, _: usize) -> bool {
        true
    }

    fn largest_answer(&self) -> usize {
        usize::MAX
    }
}
