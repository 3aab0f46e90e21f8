//! The tenants that a server serves.

use std::sync::Arc;

use crate::auth::TenantClaim;
use crate::model::{Tenant, TenantUid};
use crate::store::{ReadError, TenancyReads};

use super::claimed::{Claimed, OpenKey};
use super::fixed::Fixed;
use super::{KeySet, NotServed, TenantRuntime, TenantSettings};

/// The tenants that a server serves. Clones share their state.
#[derive(Clone)]
pub struct Tenants(Form);

#[derive(Clone)]
enum Form {
    Fixed(Arc<Fixed>),
    Claimed(Arc<Claimed>),
}

impl Tenants {
    /// Serves one tenant with these keys, whatever a caller claims. The tenant is not known until
    /// [`Self::open`].
    pub fn fixed(keys: KeySet, settings: TenantSettings) -> Self {
        Self(Form::Fixed(Arc::new(Fixed::new(keys, settings))))
    }

    /// Serves the tenants of these rows, each with its own keys, which `open_key` opens.
    pub fn claimed(rows: Arc<dyn TenancyReads>, open_key: Box<OpenKey>, settings: TenantSettings) -> Self {
        Self(Form::Claimed(Arc::new(Claimed::new(rows, open_key, settings))))
    }

    /// Begins to serve the fixed tenant, once the database has been found to be in the required
    /// state.
    pub fn open(&self, tenant: Tenant) {
        if let Form::Fixed(fixed) = &self.0 {
            fixed.open(tenant);
        }
    }

    /// Returns whether calls can be served: the fixed tenant has been opened, or tenants are named
    /// by claims.
    pub fn is_open(&self) -> bool {
        match &self.0 {
            Form::Fixed(fixed) => fixed.primary().is_some(),
            Form::Claimed(_) => true,
        }
    }

    /// Returns the runtime of the fixed tenant.
    ///
    /// # Errors
    /// The database has not been reached yet, or tenants are named by claims.
    pub fn primary(&self) -> Result<Arc<TenantRuntime>, ReadError> {
        match &self.0 {
            Form::Fixed(fixed) => fixed.primary().ok_or(ReadError::Unavailable),
            Form::Claimed(_) => Err(ReadError::Unavailable),
        }
    }

    /// Returns the runtime of the tenant that a verified claim names.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn of(&self, claim: TenantClaim<'_>) -> Result<Arc<TenantRuntime>, NotServed> {
        match &self.0 {
            Form::Fixed(_) => Ok(self.primary()?),
            Form::Claimed(tenants) => tenants.named(claim.name().ok_or(NotServed::Unknown)?).await,
        }
    }

    /// Returns the runtime of the tenant with this uid.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn with(&self, uid: TenantUid) -> Result<Arc<TenantRuntime>, NotServed> {
        match &self.0 {
            Form::Fixed(_) => {
                Some(self.primary()?).filter(|it| it.tenant.uid == uid).ok_or(NotServed::Unknown)
            }
            Form::Claimed(tenants) => tenants.with(uid).await,
        }
    }

    /// Reads the rows of the tenant with this uid again, whatever is known of it, and returns its
    /// new runtime. The runtime of the fixed tenant stays the same.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn refreshed(&self, uid: TenantUid) -> Result<Arc<TenantRuntime>, NotServed> {
        match &self.0 {
            Form::Fixed(_) => self.with(uid).await,
            Form::Claimed(tenants) => tenants.refreshed(uid).await,
        }
    }

    /// Returns the runtime of the tenant with this uid without a read; `None` if it is not
    /// known.
    pub fn known(&self, uid: TenantUid) -> Option<Arc<TenantRuntime>> {
        match &self.0 {
            Form::Fixed(fixed) => fixed.primary().filter(|runtime| runtime.tenant.uid == uid),
            Form::Claimed(tenants) => tenants.known(uid),
        }
    }

    /// Returns the tenants that this process works for. Empty until the database has been reached.
    pub fn served(&self) -> Vec<Arc<TenantRuntime>> {
        match &self.0 {
            Form::Fixed(fixed) => fixed.primary().into_iter().collect(),
            Form::Claimed(tenants) => tenants.served(),
        }
    }

    /// Returns the settings of the deployment, which every tenant has.
    pub fn settings(&self) -> Arc<TenantSettings> {
        match &self.0 {
            Form::Fixed(fixed) => fixed.settings(),
            Form::Claimed(tenants) => tenants.settings(),
        }
    }

    /// Changes the settings of the deployment. New calls get the new settings,
    /// with the keys that are open; calls under way keep the ones that they began with.
    pub fn update_settings(&self, update: impl FnOnce(&mut TenantSettings)) {
        match &self.0 {
            Form::Fixed(fixed) => fixed.update_settings(update),
            Form::Claimed(tenants) => tenants.update_settings(update),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use crate::auth::Policy;
    use crate::model::{Identity, KeyId, Means, Operation, RequestId, Session};
    use crate::store::{KeyRow, KeyState, Stage, TenantRow};
    use crate::tenancy::{Caller, Key};

    use super::*;

    /// The rows of a tenant that never changes.
    struct Rows;

    fn tenant() -> Tenant {
        Tenant { uid: TenantUid([1; 16]), name: "acme".to_owned() }
    }

    #[async_trait]
    impl TenancyReads for Rows {
        async fn tenant_named(&self, _: &str) -> Result<Option<TenantRow>, ReadError> {
            self.tenant_with(tenant().uid).await
        }

        async fn tenant_with(&self, _: TenantUid) -> Result<Option<TenantRow>, ReadError> {
            Ok(Some(TenantRow { tenant: tenant(), stage: Stage::Active, revision: 1, locked: false }))
        }

        async fn keys(&self, _: TenantUid) -> Result<Vec<KeyRow>, ReadError> {
            let (provider, region, identifier, credential_ref) = (None, None, None, None);
            let (id, label, state, revision) = (KeyId::FIRST, String::new(), KeyState::Current, 1);
            Ok(vec![KeyRow { id, label, state, provider, region, identifier, credential_ref, revision }])
        }
    }

    async fn caller(tenants: &Tenants) -> Caller {
        let session = Session::from_pairs([("X-Hasura-Tenant-Id".to_owned(), "acme".to_owned())]);
        let identity = Identity { role: "user".into(), user: None, session, means: Means::Jwt };
        let runtime = tenants.of(TenantClaim::of(&identity)).await.ok().unwrap();
        Caller { runtime, identity, request_id: RequestId::fresh() }
    }

    fn may_encrypt(caller: &Caller) -> bool {
        caller.runtime.settings.policy.may_ever(&caller.identity, Operation::Encrypt)
    }

    #[tokio::test]
    async fn a_changed_policy_binds_the_next_call_not_the_current() {
        let settings = || TenantSettings::of_variables([]);
        let fixed = Tenants::fixed(KeySet::new(Key::uncalled(KeyId::FIRST), []), settings());
        fixed.open(tenant());
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open_key = move |_: &Tenant, row: &KeyRow| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(Key::uncalled(row.id))
        };
        let claimed = Tenants::claimed(Arc::new(Rows), Box::new(open_key), settings());
        for tenants in [fixed, claimed] {
            let under_way = caller(&tenants).await;
            let policy = Policy::parse("roles: { user: { encrypt: true } }", None).unwrap();
            tenants.update_settings(|settings| settings.policy = Arc::new(policy));
            assert!(!may_encrypt(&under_way));
            let next = caller(&tenants).await;
            assert!(may_encrypt(&next));
            let kms = |caller: &Caller| caller.runtime.keys.key(KeyId::FIRST).unwrap().kms.clone();
            assert!(Arc::ptr_eq(&kms(&under_way), &kms(&next)));
            assert!(Arc::ptr_eq(&tenants.settings(), &next.runtime.settings));
            for known in tenants.served().into_iter().chain(tenants.known(tenant().uid)) {
                assert!(Arc::ptr_eq(&known, &next.runtime));
            }
        }
        assert_eq!(opened.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn settings_that_change_before_the_tenant_opens_are_the_tenants() {
        let keys = KeySet::new(Key::uncalled(KeyId::FIRST), []);
        let tenants = Tenants::fixed(keys, TenantSettings::of_variables([]));
        tenants.update_settings(|settings| {
            settings.policy = Arc::new(Policy::parse("roles: {}", None).unwrap())
        });
        tenants.open(tenant());
        let runtime = tenants.refreshed(tenant().uid).await.ok().unwrap();
        assert!(Arc::ptr_eq(&runtime, &tenants.primary().ok().unwrap()));
        assert!(Arc::ptr_eq(&runtime.settings, &tenants.settings()));
    }
}
