//! The reasons why a tenant is not served.

use std::sync::Arc;

use crate::store::ReadError;

use super::TenantRuntime;

/// The reason why a call is not served for the tenant that it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// The claim is missing, or there is no such tenant.
    Unknown,
    /// The tenant is locked: none of its calls may be answered now.
    Locked,
    /// The tenant has no key that may be used now, or more than one that wraps.
    NoKey,
    /// The database could not be read.
    Store(ReadError),
}

/// The runtime of a tenant, or the reason why it is not served.
pub(super) type Served = Result<Arc<TenantRuntime>, NotServed>;

impl From<ReadError> for NotServed {
    fn from(error: ReadError) -> Self {
        Self::Store(error)
    }
}
