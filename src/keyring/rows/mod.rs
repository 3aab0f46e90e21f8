//! Decides whether a DEK's row may be used. Every row that is read to unwrap it, to encrypt under
//! it or to re-wrap it is checked before the KMS is called. A row whose MACs are wrong is never
//! used. A row without MACs is used until all rows of the tenant have been sealed, according to an
//! entry of the log or the configuration. From then on it is refused, so that an attacker gains
//! nothing by removing MACs. Once this process has seen that all rows are sealed, a database that
//! has changed since cannot take it back.

mod incident;
mod known;
mod sealing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::audit::{Committer, RowMacs, RowSeal, last_sealed};
use crate::config::RowMac;
use crate::model::{BootTime, Clock, Tenant, TenantUid, Wrapped};
use crate::store::{DekRow, KeyringStore, LogReads, ReadError};
use crate::tenancy::Tenants;

use super::dek::KeyringError;
use super::key_state::KeyStates;

use known::{ExpectedMacs, KnownRows};

/// What a row is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowUse {
    /// To open what was encrypted under it. Somebody else's DEK opens nothing, because each token
    /// commits to its own DEK.
    Open,
    /// To encrypt under it.
    Encrypt,
    /// To wrap it under another version of the key. From then on, the log's entry about that
    /// vouches for it.
    Rewrap,
}

/// The checks of DEK rows.
pub(super) struct RowChecks {
    store: Arc<dyn KeyringStore>,
    log: Arc<dyn LogReads>,
    committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    states: Arc<KeyStates>,
    macs: Option<RowMacs>,
    /// How long no unsealed row must have appeared before unsealed rows are refused.
    settle: Duration,
    tenants: Tenants,
    /// Whether every row must have its MACs, whatever the log says.
    required: bool,
    /// One lock for each tenant, held while a caller looks up whether its rows are all sealed.
    /// Callers that arrive meanwhile wait for the one answer.
    lookups: Mutex<HashMap<TenantUid, Arc<tokio::sync::Mutex<()>>>>,
    known: KnownRows,
    /// When the last incident about a tenant's rows was written.
    last_incident: Mutex<HashMap<TenantUid, BootTime>>,
}

impl RowChecks {
    pub(super) fn new(
        settings: RowMac,
        tenants: Tenants,
        store: Arc<dyn KeyringStore>,
        log: Arc<dyn LogReads>,
        committer: Arc<Committer>,
        clock: Arc<dyn Clock>,
        states: Arc<KeyStates>,
    ) -> Self {
        Self {
            store,
            log,
            committer,
            clock,
            states,
            macs: settings.keys.map(RowMacs::new),
            settle: settings.settle,
            tenants,
            required: settings.required,
            lookups: Mutex::default(),
            known: KnownRows::default(),
            last_incident: Mutex::default(),
        }
    }

    /// Returns whether only a DEK whose row is sealed may encrypt. If anybody can wrap, an unsealed
    /// row may be anybody's. If the log is damaged, a planted row cannot be distinguished from one
    /// that the log would have vouched for.
    pub(super) fn requires_sealed_row(&self, tenant: TenantUid) -> bool {
        self.macs.is_some() && (self.anybody_wraps(tenant) || self.known.is_damaged(tenant))
    }

    /// Returns whether the row of a DEK that is made now can be sealed, if it must be.
    pub(super) fn can_make(&self, tenant: TenantUid) -> bool {
        self.macs.is_some() || !self.anybody_wraps(tenant)
    }

    /// Returns whether wrapping under a key of the tenant takes no secret. A wrapped DEK may then
    /// have been made by anybody, and so may one of a tenant whose keys are not known.
    fn anybody_wraps(&self, tenant: TenantUid) -> bool {
        let runtime = self.tenants.known(tenant);
        runtime.is_none_or(|runtime| runtime.keys.all().any(|key| key.kms.profile().anybody_wraps))
    }

    /// Returns an error if no DEKs may be made for records of this tenant.
    pub(super) async fn check_can_make(&self, tenant: TenantUid) -> Result<(), KeyringError> {
        match &self.macs {
            Some(_) => Ok(()),
            None if self.anybody_wraps(tenant) => Err(KeyringError::RowMacKeyMissing),
            // Without the secret, a replica that has the secret would not accept the row.
            None if self.all_sealed(tenant).await.map_err(KeyringError::Store)? => {
                Err(KeyringError::RowMacKeyMissing)
            }
            None => Ok(()),
        }
    }

    /// Gives a new row its MACs, if there is a secret.
    pub(super) fn seal(&self, tenant: TenantUid, row: &mut DekRow) {
        if let Some(macs) = &self.macs {
            macs.seal(tenant, row);
        }
    }

    /// Returns whether rows can be re-wrapped and are then sealed as these are. They cannot without
    /// the secret if they have MACs, or must have them.
    pub(super) fn can_reseal(&self, tenant: TenantUid, rows: &[DekRow]) -> bool {
        self.macs.is_some() || (!self.anybody_wraps(tenant) && rows.iter().all(|row| row.mac.is_none()))
    }

    /// Returns the MAC of a sealed row that holds these wrapped bytes from now on. A row that was
    /// not sealed is sealed only after it was compared with the log.
    pub(super) fn reseal(&self, tenant: TenantUid, row: &DekRow, to: &Wrapped) -> Option<[u8; 32]> {
        let macs = self.macs.as_ref().filter(|_| row.mac.is_some())?;
        Some(macs.of_wrapped(tenant, row.id, to))
    }

    /// Returns for each row whether it may be used.
    pub(super) async fn check_all(
        self: &Arc<Self>,
        tenant: &Tenant,
        rows: &[DekRow],
        row_use: RowUse,
    ) -> Vec<Result<(), KeyringError>> {
        let mut checked = Vec::with_capacity(rows.len());
        for row in rows {
            checked.push(self.check(tenant, row, row_use).await);
        }
        checked
    }

    async fn check(
        self: &Arc<Self>,
        tenant: &Tenant,
        row: &DekRow,
        row_use: RowUse,
    ) -> Result<(), KeyringError> {
        let Some(macs) = &self.macs else {
            let may_use = row_use == RowUse::Open || !self.anybody_wraps(tenant.uid);
            return if may_use { Ok(()) } else { Err(KeyringError::RowMacKeyMissing) };
        };
        let must_be_sealed = row_use != RowUse::Open && self.requires_sealed_row(tenant.uid);
        let seal = macs.check(tenant.uid, row);
        match seal {
            RowSeal::Current | RowSeal::Previous => return Ok(()),
            RowSeal::None
                if !self.may_be_contradicted(tenant.uid, row)
                    && !self.all_sealed(tenant.uid).await.map_err(KeyringError::Store)? =>
            {
                return if must_be_sealed { Err(KeyringError::Unsealed) } else { Ok(()) };
            }
            RowSeal::None | RowSeal::Wrong => {}
        }
        self.report(tenant, row, seal);
        Err(KeyringError::Altered)
    }

    /// Returns whether the configuration or an entry of the log says that all of a tenant's rows
    /// are sealed. Once this process has seen the entry, the database cannot take it back.
    async fn all_sealed(&self, tenant: TenantUid) -> Result<bool, ReadError> {
        if self.required {
            return Ok(true);
        }
        if let Some(known) = self.known.all_sealed(tenant, self.clock.boot()) {
            return Ok(known);
        }
        let lock = self.lookup_lock(tenant);
        let _locked = lock.lock().await;
        let now = self.clock.boot();
        if let Some(known) = self.known.all_sealed(tenant, now) {
            return Ok(known);
        }
        let is_sealed = last_sealed(&*self.log, tenant).await?.is_some();
        Ok(self.known.note_lookup(tenant, is_sealed, now))
    }

    /// Notes that the log contradicts a row in its present state. Returns whether there was room
    /// for that.
    fn note_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        self.known.note_contradicted(tenant, row.id, || self.expected_macs(tenant, row))
    }

    /// Returns whether the log was found to contradict a row in its present state.
    fn is_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        self.known.is_contradicted(tenant, row.id, || self.expected_macs(tenant, row))
    }

    /// Returns whether the log may contradict a row without a MAC: it does, or there are more such
    /// rows than are remembered.
    fn may_be_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        self.known.is_full(tenant) || self.is_contradicted(tenant, row)
    }

    fn expected_macs(&self, tenant: TenantUid, row: &DekRow) -> ExpectedMacs {
        let mut sealed = DekRow { mac: None, record_mac: None, ..row.clone() };
        self.seal(tenant, &mut sealed);
        (sealed.mac, sealed.record_mac)
    }

    /// Returns the lock under which one caller looks up whether a tenant's rows are all sealed.
    fn lookup_lock(&self, tenant: TenantUid) -> Arc<tokio::sync::Mutex<()>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant).or_default().clone()
    }
}
