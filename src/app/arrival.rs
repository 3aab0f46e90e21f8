//! What is known of a request before its body is read. The server finds it out, and leaves it in the request's extensions
//! for the front.

use std::sync::Arc;

use http::Extensions;

use crate::model::{Caller, ErrorCode, Refusal};

/// Memory that a request may take.
pub trait Room: Send + Sync {
    /// Takes so many bytes in all from now on; false where the server cannot spare them.
    fn hold(&self, bytes: usize) -> bool;
    /// The same, where it holds less than that: for an answer that grows beside what it is made of.
    fn hold_at_least(&self, bytes: usize) -> bool;
    /// How many bytes an answer may have.
    fn largest_answer(&self) -> usize;
}

/// A request whose head has come.
#[derive(Clone)]
pub struct Arrival {
    /// Who calls, or why nobody was recognised.
    pub caller: Result<Caller, Refusal>,
    /// What its body and all that is made of it are held in.
    pub room: Arc<dyn Room>,
}

impl Arrival {
    /// The arrival that the server left here; nobody is recognised where it left none.
    pub fn take(extensions: &mut Extensions) -> Self {
        extensions
            .remove()
            .unwrap_or_else(|| Self { caller: Err(ErrorCode::Internal.into()), room: Arc::new(Unbounded) })
    }
}

/// The room of a request that no server stands around.
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
