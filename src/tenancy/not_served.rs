//! Why a tenant is not served.

use std::sync::Arc;

use crate::store::ReadError;

use super::TenantRuntime;

/// Why a call is not served for the tenant that it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// There is no such claim, or no such tenant.
    Unknown,
    /// Nothing of the tenant may be answered now.
    Locked,
    /// The tenant has no key that may be used now, or more than one that wraps.
    NoKey,
    /// The database could not be read.
    Store(ReadError),
}

/// What a tenant is served with, if it is served.
pub(super) type Served = Result<Arc<TenantRuntime>, NotServed>;

impl From<ReadError> for NotServed {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}
