//! The caller of a request.

use std::sync::Arc;

use crate::model::{Identity, RequestId, Tenant};

use super::TenantRuntime;

/// An authenticated caller of one request, for one tenant. A parameter of every use case.
#[derive(Clone)]
pub struct Caller {
    /// The runtime of the call's tenant. A call keeps the one that it began with.
    pub runtime: Arc<TenantRuntime>,
    /// The identity.
    pub identity: Identity,
    /// The id of the request.
    pub request_id: RequestId,
}

impl Caller {
    /// Returns the tenant, from configuration or verified claims, never from an argument.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.runtime.tenant
    }
}
