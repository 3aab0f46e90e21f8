//! The KMS of one tenant, with faults: it hangs, refuses, or names current versions under which it
//! never wraps.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use byok::crypto::Dek;
use byok::kms::{DekBinding, Generated, ItemResult, Kms, KmsError, KmsErrorClass, KmsProfile, LocalKey};
use byok::model::{KeyVersion, Wrapped};

/// The duration of a call to a KMS that hangs.
const HANGS: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Works,
    Hangs,
    Refuses,
}

pub(crate) struct TenantKms {
    key: LocalKey,
    mode: Mutex<Mode>,
    /// The number of invented versions so far; 0 while the KMS names its real version.
    versions: AtomicU64,
}

impl TenantKms {
    /// A KMS without faults, with its key in this file.
    pub(crate) fn create(path: PathBuf) -> Self {
        let key = LocalKey::create(path).map_err(|error| error.to_string()).expect("a key");
        Self { key, mode: Mutex::new(Mode::Works), versions: AtomicU64::new(0) }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// Names a new version each time it is asked for the current one, and never wraps under it, so
    /// that no rotation ends.
    pub(crate) fn rotate_for_ever(&self) {
        self.versions.store(1, Ordering::Relaxed);
    }

    async fn answer<T>(
        &self,
        items: usize,
        work: impl Future<Output = Vec<ItemResult<T>>>,
    ) -> Vec<ItemResult<T>> {
        let mode = *self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |class| (0..items).map(|_| Err(KmsError::local(class))).collect();
        match mode {
            Mode::Works => work.await,
            Mode::Hangs => {
                tokio::time::sleep(HANGS).await;
                refused(KmsErrorClass::Timeout)
            }
            Mode::Refuses => refused(KmsErrorClass::AccessDenied),
        }
    }
}

#[async_trait]
impl Kms for TenantKms {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        self.answer(bindings.len(), self.key.generate(bindings)).await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.answer(deks.len(), self.key.wrap(deks)).await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.answer(wrapped.len(), self.key.unwrap(wrapped)).await
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.answer(wrapped.len(), self.key.rewrap(wrapped, to)).await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let current = self.key.current_version().await?;
        Ok(match self.versions.load(Ordering::Relaxed) {
            0 => current,
            _ => KeyVersion::new(
                current.key,
                format!("next-{}", self.versions.fetch_add(1, Ordering::Relaxed)),
            ),
        })
    }

    fn profile(&self) -> KmsProfile {
        self.key.profile()
    }
}
