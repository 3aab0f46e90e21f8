//! The tenant of the single-tenant form. Its name is known from the start and its uid stands in the database: until that was
//! reached, nothing can be done for anybody.

use std::sync::{Arc, OnceLock};

use crate::model::{Tenant, TenantUid};
use crate::store::ReadError;

/// The tenant, as far as it is known. Clones know it at the same time.
#[derive(Clone)]
pub struct Primary(Arc<Known>);

struct Known {
    name: Arc<str>,
    tenant: OnceLock<Arc<Tenant>>,
}

impl Primary {
    /// Known by its name alone.
    pub fn named(name: &str) -> Self {
        Self(Arc::new(Known { name: name.into(), tenant: OnceLock::new() }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Who it is; the first word stands.
    pub fn is(&self, tenant: Tenant) {
        let _ = self.0.tenant.set(Arc::new(tenant));
    }

    /// The tenant.
    ///
    /// # Errors
    /// The database was not reached yet.
    pub fn get(&self) -> Result<&Arc<Tenant>, ReadError> {
        self.0.tenant.get().ok_or(ReadError::Unavailable)
    }

    /// Its uid.
    ///
    /// # Errors
    /// As of [`Self::get`].
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
