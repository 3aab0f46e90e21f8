//! What one tenant is served with.

use std::sync::Arc;

use crate::model::Tenant;

/// What one tenant is served with, as of one revision of its row.
pub struct TenantRuntime {
    /// The tenant.
    pub tenant: Arc<Tenant>,
}
