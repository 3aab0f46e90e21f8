//! Knows which tenants are served, and what a tenant is served with. A request gets its tenant from
//! the claim that `auth` has verified, never from an argument; jobs ask here for all tenants. This
//! module decides nothing about what a caller may do.

mod caller;
mod primary;
mod runtime;
mod tenants;

pub use caller::Caller;
pub use primary::Primary;
pub use runtime::TenantRuntime;
pub use tenants::Tenants;
