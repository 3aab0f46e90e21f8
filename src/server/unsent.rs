//! Answers whose bytes may be buffered between this server and the kernel, by hyper or by TLS. Such bytes cannot be taken
//! back one by one: once one of the answers may not leave any more, nothing that is buffered is written, and the connection
//! ends.

use std::sync::{Arc, Mutex, PoisonError};

use crate::app::Release;

/// The answers of one connection that stand on keys and may be buffered. Clones are the same connection's.
#[derive(Clone, Default)]
pub(super) struct Unsent(Arc<Mutex<Vec<Arc<Release>>>>);

impl Unsent {
    /// Notes that bytes of this answer are buffered from now on.
    pub(super) fn add(&self, release: &Arc<Release>) {
        let mut releases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !releases.iter().any(|known| Arc::ptr_eq(known, release)) {
            releases.push(release.clone());
        }
    }

    /// Notes that the kernel has everything that was buffered.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether everything that is buffered may be written now.
    pub(super) fn may_be_written(&self) -> bool {
        let releases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = releases.iter().find(|release| !release.may_leave());
        late.inspect(|release| release.break_off()).is_none()
    }
}
