//! The settings of a tenant's calls.

use std::sync::Arc;

use crate::auth::Policy;
use crate::config::Rates;
use crate::webhook::Webhook;

/// The settings of a tenant's calls, and the webhook for its incidents. Every tenant has
/// the settings of the deployment. A value never changes: a call keeps the one that it began with,
/// and a new one replaces it in the tenant's runtime.
#[derive(Clone)]
pub struct TenantSettings {
    /// The policy, which decides what each caller may do.
    pub policy: Arc<Policy>,
    /// The calls and items per minute.
    pub rates: Rates,
    /// The webhook that incidents are announced to, if any.
    pub webhook: Option<Arc<Webhook>>,
}

#[cfg(test)]
mod defaults {
    use crate::config::{Env, Reader};

    use super::*;

    impl TenantSettings {
        /// Returns the settings of an environment with only these variables, without a webhook.
        pub(crate) fn of_variables<const N: usize>(variables: [(&str, &str); N]) -> Self {
            let rates = Rates::read(&mut Reader::new(&Env::from_pairs(variables)));
            Self { policy: Arc::default(), rates, webhook: None }
        }
    }
}
