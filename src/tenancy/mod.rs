//! The tenants that are served, and the runtime of each: its stage, its keys, and the settings of
//! its calls. A request gets its tenant from the claim that `auth` has verified, never from an
//! argument; jobs ask here for all tenants. This module decides nothing about what a caller may do.

mod caller;
mod claimed;
mod fixed;
mod key_set;
mod not_served;
mod runtime;
mod settings;
mod tenants;

pub use caller::Caller;
pub use claimed::OpenKey;
pub use key_set::{Key, KeySet};
pub use not_served::NotServed;
pub use runtime::TenantRuntime;
pub use settings::TenantSettings;
pub use tenants::Tenants;
