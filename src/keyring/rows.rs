//! Decides whether a DEK's row may be used. Every row that is read to unwrap it, to encrypt under
//! it or to re-wrap it is checked before the KMS is called. A row whose MACs are wrong is never
//! used. A row without MACs is used until all rows of the tenant have been sealed, according to an
//! entry of the log or the configuration. From then on it is refused, so that an attacker gains
//! nothing by removing MACs. Once this process has seen that all rows are sealed, a database that
//! has changed since cannot take it back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::error;

use crate::audit::{RowMacs, RowSeal, Unit, last_sealed, pack};
use crate::config::RowMac;
use crate::kms::KmsProfile;
use crate::model::{
    BootTime, DekId, Entry, ErrorCode, Incident, IncidentId, Item, KeyVersion, Operation, Outcome, Posture,
    Tenant, TenantUid, Wrapped,
};
use crate::store::{Change, DekRow, ReadError};

use super::{Keyring, KeyringError};

/// How long this process relies on the answer that a tenant's rows are not all sealed.
const BELIEVED: Duration = Duration::from_secs(5);
/// How many contradicted rows of a tenant are remembered.
const CONTRADICTED: usize = 10_000;
/// The time between two incidents about refused rows, for each tenant and replica.
const BETWEEN_INCIDENTS: Duration = Duration::from_secs(60);

/// What a row is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To open what was encrypted under it. Somebody else's DEK opens nothing, because each token
    /// commits to its own.
    Open,
    /// To encrypt under it.
    Encrypt,
    /// To wrap it under another version of the key. From then on, the log's entry about that
    /// vouches for it.
    Rewrap,
}

/// The MACs that a row would have if it were sealed. While they are equal, the row is unchanged.
type Would = (Option<[u8; 32]>, Option<[u8; 32]>);

/// How the rows of DEKs are bound.
pub(super) struct Rows {
    macs: Option<RowMacs>,
    /// How long no unsealed row must have appeared before unsealed rows are refused.
    pub(super) settle: Duration,
    /// Whether wrapping takes no secret. A wrapped DEK may then have been made by anybody.
    anybody_wraps: bool,
    /// Whether every row must have its MACs, whatever the log says.
    required: bool,
    /// One lock for each tenant, held while a caller looks up whether its rows are all sealed.
    /// Callers that arrive meanwhile wait for the one answer.
    looking: Mutex<HashMap<TenantUid, Arc<tokio::sync::Mutex<()>>>>,
    /// The tenants whose rows are all sealed (`Ok`), or when it was last seen that they are not
    /// (`Err`).
    sealed: Mutex<HashMap<TenantUid, Result<(), BootTime>>>,
    /// The tenants whose log was damaged when rows were last compared with it.
    damaged: Mutex<HashSet<TenantUid>>,
    /// Unsealed rows that the log contradicts, in the state in which they were compared.
    contradicted: Mutex<HashMap<TenantUid, HashMap<DekId, Would>>>,
    /// When the last incident about a tenant's rows was written.
    told: Mutex<HashMap<TenantUid, BootTime>>,
}

impl Rows {
    pub(super) fn new(settings: RowMac, kms: KmsProfile) -> Self {
        Self {
            macs: settings.keys.map(RowMacs::new),
            settle: settings.settle,
            anybody_wraps: kms.anybody_wraps,
            required: settings.required,
            looking: Mutex::default(),
            sealed: Mutex::default(),
            damaged: Mutex::default(),
            contradicted: Mutex::default(),
            told: Mutex::default(),
        }
    }

    pub(super) fn macs(&self) -> Option<&RowMacs> {
        self.macs.as_ref()
    }

    /// Returns whether only a DEK whose row is bound may encrypt. If anybody can wrap, an unbound
    /// row may be anybody's. If the log is damaged, a planted row cannot be distinguished from one
    /// that the log would have vouched for.
    pub(super) fn must_be_bound(&self, tenant: TenantUid) -> bool {
        let is_damaged = || self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(&tenant);
        self.macs.is_some() && (self.anybody_wraps || is_damaged())
    }

    /// Notes whether the log was damaged when rows were compared with it.
    pub(super) fn note_damaged(&self, tenant: TenantUid, is_damaged: bool) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        match is_damaged {
            true => damaged.insert(tenant),
            false => damaged.remove(&tenant),
        };
    }

    /// Returns whether a DEK that is made now can be bound, if it must be.
    pub(super) fn can_make(&self) -> bool {
        self.macs.is_some() || !self.anybody_wraps
    }

    /// Gives a new row its MACs, if there is a secret.
    pub(super) fn seal(&self, tenant: TenantUid, row: &mut DekRow) {
        if let Some(macs) = &self.macs {
            macs.seal(tenant, row);
        }
    }

    /// Returns whether all of a tenant's rows are sealed, if that was looked up recently.
    fn known_of(&self, tenant: TenantUid, now: BootTime) -> Option<bool> {
        let known = self.sealed.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant).copied();
        match known? {
            Ok(()) => Some(true),
            Err(looked) if now.since(looked) < BELIEVED => Some(false),
            Err(_) => None,
        }
    }

    /// Notes that the log contradicts a row in its present state. Returns whether there was room
    /// for that.
    pub(super) fn note_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        let mut contradicted = self.contradicted.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = contradicted.entry(tenant).or_default();
        let is_room = of_tenant.len() < CONTRADICTED || of_tenant.contains_key(&row.id);
        if is_room {
            of_tenant.insert(row.id, self.would(tenant, row));
        }
        is_room
    }

    /// Returns whether the log was found to contradict a row in its present state.
    pub(super) fn is_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        let contradicted = self.contradicted.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = contradicted.get(&tenant).and_then(|of_tenant| of_tenant.get(&row.id));
        noted.is_some_and(|noted| *noted == self.would(tenant, row))
    }

    /// Returns whether the log may contradict a row without a MAC: it does, or there are more such
    /// rows than are remembered.
    fn may_be_contradicted(&self, tenant: TenantUid, row: &DekRow) -> bool {
        let contradicted = self.contradicted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = contradicted.get(&tenant).is_some_and(|of_tenant| of_tenant.len() >= CONTRADICTED);
        drop(contradicted);
        is_full || self.is_contradicted(tenant, row)
    }

    fn would(&self, tenant: TenantUid, row: &DekRow) -> Would {
        let mut would = DekRow { mac: None, record_mac: None, ..row.clone() };
        self.seal(tenant, &mut would);
        (would.mac, would.record_mac)
    }

    /// Returns the lock under which one caller looks up whether a tenant's rows are all sealed.
    fn looking(&self, tenant: TenantUid) -> Arc<tokio::sync::Mutex<()>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant).or_default().clone()
    }

    pub(super) fn note_all_sealed(&self, tenant: TenantUid) {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant, Ok(()));
    }
}

impl Keyring {
    /// Returns whether rows can be re-wrapped and are then as bound as these are. They cannot
    /// without the secret if they have MACs, or must have them.
    pub fn can_reseal(&self, rows: &[DekRow]) -> bool {
        self.rows.macs.is_some() || (!self.rows.anybody_wraps && rows.iter().all(|row| row.mac.is_none()))
    }

    /// Returns the MAC of a sealed row that holds these wrapped bytes from now on. A row that was
    /// not sealed is sealed only after it was compared with the log.
    pub fn reseal(&self, tenant: TenantUid, row: &DekRow, to: &Wrapped) -> Option<[u8; 32]> {
        let macs = self.rows.macs.as_ref().filter(|_| row.mac.is_some())?;
        Some(macs.of_wrapped(tenant, row.id, to))
    }

    /// Returns an error if no DEKs may be made for records of this tenant.
    pub(super) async fn may_make(&self, tenant: TenantUid) -> Result<(), KeyringError> {
        match &self.rows.macs {
            Some(_) => Ok(()),
            None if self.rows.anybody_wraps => Err(KeyringError::Unbound),
            // Without the secret, a replica that has the secret would not accept the row.
            None if self.all_sealed(tenant).await.map_err(KeyringError::Store)? => Err(KeyringError::Unbound),
            None => Ok(()),
        }
    }

    /// Returns for each row whether it may be used.
    pub(super) async fn admit_rows(
        self: &Arc<Self>,
        tenant: &Tenant,
        rows: &[DekRow],
        wanted: Wanted,
    ) -> Vec<Result<(), KeyringError>> {
        let mut admitted = Vec::with_capacity(rows.len());
        for row in rows {
            admitted.push(self.admit_row(tenant, row, wanted).await);
        }
        admitted
    }

    async fn admit_row(
        self: &Arc<Self>,
        tenant: &Tenant,
        row: &DekRow,
        wanted: Wanted,
    ) -> Result<(), KeyringError> {
        let Some(macs) = &self.rows.macs else {
            let is_open = wanted == Wanted::Open || !self.rows.anybody_wraps;
            return if is_open { Ok(()) } else { Err(KeyringError::Unbound) };
        };
        let must_be_bound = wanted != Wanted::Open && self.rows.must_be_bound(tenant.uid);
        let seal = macs.check(tenant.uid, row);
        match seal {
            RowSeal::Current | RowSeal::Previous => return Ok(()),
            RowSeal::None
                if !self.rows.may_be_contradicted(tenant.uid, row)
                    && !self.all_sealed(tenant.uid).await.map_err(KeyringError::Store)? =>
            {
                return if must_be_bound { Err(KeyringError::Unsealed) } else { Ok(()) };
            }
            RowSeal::None | RowSeal::Wrong => {}
        }
        self.tell_of_row(tenant, row, seal);
        Err(KeyringError::Altered)
    }

    /// Returns whether the configuration or an entry of the log says that all of a tenant's rows
    /// are sealed. Once this process has seen the entry, the database cannot take it back.
    pub(super) async fn all_sealed(&self, tenant: TenantUid) -> Result<bool, ReadError> {
        if self.rows.required {
            return Ok(true);
        }
        if let Some(known) = self.rows.known_of(tenant, self.boot()) {
            return Ok(known);
        }
        let turn = self.rows.looking(tenant);
        let _turn = turn.lock().await;
        let now = self.boot();
        if let Some(known) = self.rows.known_of(tenant, now) {
            return Ok(known);
        }
        let is_sealed = last_sealed(&*self.log, tenant).await?.is_some();
        let known = if is_sealed { Ok(()) } else { Err(now) };
        let mut sealed = self.rows.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sealed.entry(tenant).and_modify(|before| *before = before.or(known)).or_insert(known);
        Ok(known.is_ok())
    }

    /// Writes an incident about a row that was refused, unless there was one recently: whoever
    /// edits one row may edit them all.
    pub(super) fn tell_of_row(self: &Arc<Self>, tenant: &Tenant, row: &DekRow, seal: RowSeal) {
        let now = self.boot();
        let mut told = self.rows.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&tenant.uid).is_some_and(|last| now.since(*last) < BETWEEN_INCIDENTS) {
            return;
        }
        told.insert(tenant.uid, now);
        drop(told);
        let class = if seal == RowSeal::None { "RowUnsealed" } else { "RowAltered" };
        let (id, version) = (row.id, row.wrapped.key_version.clone());
        error!(
            tenant = tenant.name,
            dek_id = %id,
            class,
            "a DEK's row was changed by somebody who does not hold BYOK_ROW_MAC_KEY, and is refused: run `byok audit verify`"
        );
        let (keyring, tenant) = (self.clone(), tenant.clone());
        tokio::spawn(async move { keyring.write_row_incident(&tenant, id, version, class).await });
    }

    async fn write_row_incident(&self, tenant: &Tenant, dek_id: DekId, key_version: KeyVersion, class: &str) {
        let posture = self.views.get(tenant.uid, &key_version).map_or(Posture::Active, |view| view.posture);
        let incident = Incident {
            id: IncidentId::new(),
            at: self.clock.now(),
            key_version: key_version.clone(),
            was: posture,
            posture,
            class: Some(class.into()),
            http_status: None,
            kms_request_id: None,
        };
        let refused = ErrorCode::DecryptFailed;
        let item = Item {
            dek_id: Some(dek_id),
            key_version: Some(key_version),
            refused: Some(refused),
            ..Item::default()
        };
        let entry = Entry {
            outcome: Outcome::Refused(refused),
            role: "keyring".into(),
            request_id: Some(incident.id.to_string()),
            items: vec![item],
            ..Entry::of_operator(self.clock.now(), Operation::Incident, None, Some(class.into()))
        };
        let unit = Unit {
            tenant: tenant.uid,
            entry: Some(pack(tenant.uid, &entry)),
            changes: vec![Change::RecordIncident(incident)],
            fence: Vec::new(),
        };
        if self.committer.commit(unit).await.is_err() {
            error!(tenant = tenant.name, %dek_id, class, "the incident could not be written down");
        }
    }
}
