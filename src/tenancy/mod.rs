//! Knows which tenants are served, and what each is served with: its stage and its keys. A request
//! gets its tenant from the claim that `auth` has verified, never from an argument; jobs ask here
//! for all tenants. This module decides nothing about what a caller may do.

mod caller;
mod key_set;
mod runtime;
mod tenants;

pub use caller::Caller;
pub use key_set::{Key, KeySet};
pub use runtime::TenantRuntime;
pub use tenants::{NotServed, OpenKey, Tenants};
