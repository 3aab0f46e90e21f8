//! Tenants that are served with a test's keys.

use std::sync::Arc;

use byok::auth::Policy;
use byok::config::{Env, Rates, Reader};
use byok::kms::Kms;
use byok::model::{KeyId, Tenant};
use byok::tenancy::{Key, KeySet, TenantSettings, Tenants};

/// A key of this KMS, as the first key of a tenant.
pub(crate) fn first_key(kms: Arc<dyn Kms>) -> Key {
    Key { id: KeyId::FIRST, kms, connections: None }
}

/// The default policy, no webhook, and rates that no test reaches.
pub(crate) fn ample_settings() -> TenantSettings {
    let rates = [("BYOK_ENCRYPT_RATE_RPM", "100000000"), ("BYOK_DECRYPT_RATE_RPM", "100000000")];
    let rates = Rates::read(&mut Reader::new(&Env::from_pairs(rates)));
    TenantSettings { policy: Arc::new(Policy::default()), rates, webhook: None }
}

/// The tenant of the single-tenant form, with a key of this KMS.
pub(crate) fn one_tenant(tenant: &Tenant, kms: Arc<dyn Kms>) -> Tenants {
    let tenants = Tenants::fixed(KeySet::new(first_key(kms), []), ample_settings());
    tenants.open(tenant.clone());
    tenants
}
