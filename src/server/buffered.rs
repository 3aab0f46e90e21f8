//! Answers whose bytes may be buffered above the socket, by hyper or by TLS. Such bytes cannot be
//! removed one by one: once one of the answers may no longer be sent, nothing that is buffered is
//! written, and the connection ends.

use std::sync::{Arc, Mutex, PoisonError};

use crate::app::Release;

/// The answers of one connection that depend on keys and may be buffered. Clones share the list.
#[derive(Clone, Default)]
pub(super) struct Buffered(Arc<Mutex<Vec<Arc<Release>>>>);

impl Buffered {
    /// Adds an answer of which bytes are buffered from now on.
    pub(super) fn add(&self, release: &Arc<Release>) {
        let mut releases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !releases.iter().any(|known| Arc::ptr_eq(known, release)) {
            releases.push(release.clone());
        }
    }

    /// Removes all answers, since everything that was buffered is written.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether everything that is buffered may be written now. Breaks off the first answer that may
    /// not.
    pub(super) fn may_be_written(&self) -> bool {
        let releases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = releases.iter().find(|release| !release.may_leave());
        late.inspect(|release| release.break_off()).is_none()
    }
}
