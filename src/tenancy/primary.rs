//! The tenant of the single-tenant form. Its name is known from the start, but its uid is in the
//! database. Until the database has been reached, the server can do nothing for any caller.

use std::sync::{Arc, OnceLock};

use crate::model::Tenant;
use crate::store::ReadError;

use super::TenantRuntime;

/// The tenant, as far as it is known. All clones share what is known.
#[derive(Clone, Default)]
pub struct Primary(Arc<OnceLock<Arc<TenantRuntime>>>);

impl Primary {
    /// Sets the tenant. Only the first call has an effect.
    pub fn is(&self, tenant: Tenant) {
        let _ = self.0.set(Arc::new(TenantRuntime { tenant: Arc::new(tenant) }));
    }

    /// Returns what the tenant is served with.
    ///
    /// # Errors
    /// The database has not been reached yet.
    pub fn get(&self) -> Result<&Arc<TenantRuntime>, ReadError> {
        self.0.get().ok_or(ReadError::Unavailable)
    }
}
