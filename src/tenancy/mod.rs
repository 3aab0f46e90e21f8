//! The tenants that are served, and the runtime of each: its stage, its keys, and the settings of
//! its calls. A request gets its tenant from the claim that `auth` has verified, never from an
//! argument; jobs ask here for all tenants. This module decides nothing about what a caller may do.
//! It also has the turns that the tenants' work beside requests takes.

mod caller;
mod claimed;
mod fixed;
mod key_set;
mod not_served;
mod runtime;
mod settings;
mod tenants;
mod turns;

pub use caller::Caller;
pub use claimed::OpenKey;
pub use key_set::{Key, KeySet};
pub use not_served::NotServed;
pub use runtime::TenantRuntime;
pub use settings::TenantSettings;
pub use tenants::Tenants;
pub use turns::{Turn, Turns};
