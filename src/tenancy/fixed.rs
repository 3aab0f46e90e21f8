//! One tenant, whatever a caller claims: the single-tenant form.

use std::sync::{Arc, PoisonError, RwLock};

use crate::model::Tenant;
use crate::store::Stage;

use super::{KeySet, TenantRuntime, TenantSettings};

/// One tenant, whatever a caller claims.
pub(super) struct Fixed {
    keys: KeySet,
    state: RwLock<State>,
}

struct State {
    settings: Arc<TenantSettings>,
    /// The tenant's runtime; `None` until it is opened.
    primary: Option<Arc<TenantRuntime>>,
}

impl Fixed {
    pub(super) fn new(keys: KeySet, settings: TenantSettings) -> Self {
        let state = State { settings: Arc::new(settings), primary: None };
        Self { keys, state: RwLock::new(state) }
    }

    /// Begins to serve this tenant, if none is served yet.
    pub(super) fn open(&self, tenant: Tenant) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.primary.is_none() {
            state.primary = Some(Arc::new(TenantRuntime {
                tenant: Arc::new(tenant),
                stage: Stage::Active,
                revision: None,
                keys: self.keys.clone(),
                settings: state.settings.clone(),
            }));
        }
    }

    /// Returns the tenant's runtime.
    pub(super) fn primary(&self) -> Option<Arc<TenantRuntime>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).primary.clone()
    }

    /// Returns the settings of the deployment.
    pub(super) fn settings(&self) -> Arc<TenantSettings> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).settings.clone()
    }

    /// Changes the settings of the deployment.
    pub(super) fn update_settings(&self, update: impl FnOnce(&mut TenantSettings)) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { settings, primary } = &mut *state;
        update(Arc::make_mut(settings));
        if let Some(runtime) = primary {
            *runtime = Arc::new(TenantRuntime { settings: settings.clone(), ..(**runtime).clone() });
        }
    }
}
