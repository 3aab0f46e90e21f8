//! The tenants that a server serves.

use std::sync::Arc;

use crate::model::Tenant;
use crate::store::ReadError;

use super::{Primary, TenantRuntime};

/// The tenants that a server serves: a fixed one, the primary. Clones share what is known.
#[derive(Clone, Default)]
pub struct Tenants {
    primary: Primary,
}

impl Tenants {
    /// Serves one tenant, for every caller. It is not known until [`Self::open`].
    pub fn fixed() -> Self {
        Self::default()
    }

    /// Begins to serve, once the database has been found to be in the required state.
    pub fn open(&self, primary: Tenant) {
        self.primary.is(primary);
    }

    /// Returns the tenant of the single-tenant form.
    ///
    /// # Errors
    /// The database has not been reached yet.
    pub fn primary(&self) -> Result<&Arc<TenantRuntime>, ReadError> {
        self.primary.get()
    }

    /// Returns the tenants that this process works for. Empty until the database has been reached.
    pub fn served(&self) -> Vec<Arc<TenantRuntime>> {
        self.primary.get().ok().cloned().into_iter().collect()
    }
}

impl From<Tenant> for Tenants {
    fn from(tenant: Tenant) -> Self {
        let tenants = Self::fixed();
        tenants.open(tenant);
        tenants
    }
}
