//! The tenant of the single-tenant form. Its name is known from the start, but its uid is in the
//! database. Until the database has been reached, the server can do nothing for any caller.

use std::sync::{Arc, OnceLock};

use crate::model::{Tenant, TenantUid};
use crate::store::ReadError;

/// The tenant, as far as it is known. All clones share what is known.
#[derive(Clone)]
pub struct Primary(Arc<Known>);

struct Known {
    name: Arc<str>,
    tenant: OnceLock<Arc<Tenant>>,
}

impl Primary {
    /// Creates the tenant with only its name known.
    pub fn named(name: &str) -> Self {
        Self(Arc::new(Known { name: name.into(), tenant: OnceLock::new() }))
    }

    /// Returns the name of the tenant.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Sets the tenant. Only the first call has an effect.
    pub fn is(&self, tenant: Tenant) {
        let _ = self.0.tenant.set(Arc::new(tenant));
    }

    /// Returns the tenant.
    ///
    /// # Errors
    /// The database has not been reached yet.
    pub fn get(&self) -> Result<&Arc<Tenant>, ReadError> {
        self.0.tenant.get().ok_or(ReadError::Unavailable)
    }

    /// Returns the uid of the tenant.
    ///
    /// # Errors
    /// The errors of [`Self::get`].
    pub fn uid(&self) -> Result<TenantUid, ReadError> {
        self.get().map(|tenant| tenant.uid)
    }
}

impl From<Tenant> for Primary {
    fn from(tenant: Tenant) -> Self {
        let primary = Self::named(&tenant.name);
        primary.is(tenant);
        primary
    }
}
