//! Tenants that are served with keys of a test.

use std::sync::Arc;

use byok::kms::Kms;
use byok::model::{KeyId, Tenant};
use byok::tenancy::{Key, KeySet, Tenants};

/// A key of this KMS, as a tenant's first.
pub(crate) fn first_key(kms: Arc<dyn Kms>) -> Key {
    Key { id: KeyId::FIRST, kms, connections: None }
}

/// The one tenant of the single-tenant form, with a key of this KMS.
pub(crate) fn one_tenant(tenant: &Tenant, kms: Arc<dyn Kms>) -> Tenants {
    let tenants = Tenants::fixed(KeySet::new(first_key(kms), []));
    tenants.open(tenant.clone());
    tenants
}
