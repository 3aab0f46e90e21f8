//! The runtime of one tenant: what its calls need.

use std::sync::Arc;

use crate::model::Tenant;
use crate::store::{Gate, Stage};

use super::{KeySet, TenantSettings};

/// The keys and settings that one tenant's calls are served with, as of one revision of its row.
#[derive(Clone)]
pub struct TenantRuntime {
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// The stage of the tenant's own key.
    pub stage: Stage,
    /// The revision of the row; `None` if the tenant is configured and has no revision.
    pub revision: Option<u64>,
    /// The keys.
    pub keys: KeySet,
    /// The settings of the tenant's calls.
    pub settings: Arc<TenantSettings>,
}

impl TenantRuntime {
    /// Returns the condition for commits of calls with this runtime; `None` if the tenant is
    /// configured.
    pub fn gate(&self) -> Option<Gate> {
        self.revision.map(|revision| Gate { revision })
    }
}

#[cfg(test)]
mod without_keys {
    use async_trait::async_trait;

    use crate::crypto::Dek;
    use crate::kms::{DekBinding, Generated, ItemResult, Kms, KmsError, KmsProfile, RewrapCost};
    use crate::model::{KeyId, KeyVersion, Wrapped};
    use crate::tenancy::Key;

    use super::*;

    /// A KMS that no test calls.
    struct Uncalled;

    #[async_trait]
    impl Kms for Uncalled {
        async fn generate(&self, _: &[DekBinding]) -> Vec<ItemResult<Generated>> {
            Vec::new()
        }
        async fn wrap(&self, _: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
            Vec::new()
        }
        async fn unwrap(&self, _: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
            Vec::new()
        }
        async fn rewrap(&self, _: &[(DekBinding, Wrapped)], _: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
            Vec::new()
        }
        async fn current_version(&self) -> Result<KeyVersion, KmsError> {
            Ok(KeyVersion::new("none", "1"))
        }
        fn profile(&self) -> KmsProfile {
            KmsProfile {
                batch_limit: 1,
                rewrap_cost: RewrapCost::PerDek(1),
                logs_context: false,
                anybody_wraps: false,
                unnamed_version: None,
            }
        }
    }

    impl TenantRuntime {
        /// Returns a runtime for tests that call no KMS, with the default settings.
        pub(crate) fn without_keys(tenant: Arc<Tenant>) -> Arc<Self> {
            Self::without_keys_under(tenant, TenantSettings::of_variables([]))
        }

        /// Returns such a runtime with these settings.
        pub(crate) fn without_keys_under(tenant: Arc<Tenant>, settings: TenantSettings) -> Arc<Self> {
            let (stage, keys) = (Stage::Active, KeySet::new(Key::uncalled(KeyId::FIRST), []));
            Arc::new(Self { tenant, stage, revision: None, keys, settings: Arc::new(settings) })
        }
    }

    impl Key {
        /// Returns a key for tests that call no KMS.
        pub(crate) fn uncalled(id: KeyId) -> Self {
            Self { id, kms: Arc::new(Uncalled), connections: None }
        }
    }
}
