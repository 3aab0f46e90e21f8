//! What the calls of a tenant are bound by.

use std::sync::Arc;

use crate::auth::Policy;
use crate::config::Rates;
use crate::webhook::Webhook;

/// What the calls of a tenant are bound by, and who hears of the tenant's incidents. Every tenant
/// has the settings of the deployment. They never change: a call goes on with those that it began
/// with, and others take their place in the tenant's runtime.
#[derive(Clone)]
pub struct TenantSettings {
    /// Decides what each caller may do.
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
        /// Returns what holds where the environment sets only these variables, without a webhook.
        pub(crate) fn of_variables<const N: usize>(variables: [(&str, &str); N]) -> Self {
            let rates = Rates::read(&mut Reader::new(&Env::from_pairs(variables)));
            Self { policy: Arc::default(), rates, webhook: None }
        }
    }
}
