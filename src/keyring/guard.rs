//! Whether what is in memory may be used: before a DEK is taken, what its key version's posture is; before an answer, what
//! the commit must find; after the commit, until when the answer may be given. Nothing here decides what is true of a key:
//! that the database says, and the prober.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Durable;
use crate::kms::{DekBinding, KmsError, KmsErrorClass, Purpose, Verdict};
use crate::model::{BootTime, Canary, DekId, KeyVersion, Posture, Proof, Tenant, TenantUid};
use crate::store::{Batch, Change, DekRow, Fence, Must, ReadError};

use super::database_clock::Reading;
use super::rows::Wanted;
use super::view::{Learned, View};
use super::{Held, Keyring, KeyringError};

/// What a replica allows for its own clock's reading and a thread's turn.
const SLACK: Duration = Duration::from_millis(100);
/// How long a statement that a version is needed holds; longer than it takes to be said again, so that a replica that is
/// slow is not forgotten.
const NEEDED: Duration = Duration::from_secs(10);

/// The key versions that one answer stands on.
#[derive(Default)]
pub struct Footing {
    uses: Vec<Use>,
}

struct Use {
    key_version: KeyVersion,
    epoch: u64,
    /// Since when this work has the KMS open what was wrapped under it, where it does.
    opened: Option<BootTime>,
}

impl Footing {
    /// Whether the answer stands on no key.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// Adds what a DEK stands on.
    pub fn add(&mut self, held: &Held) {
        match self.uses.iter_mut().find(|used| used.key_version == held.key_version) {
            // The older epoch decides: where they differ, none of it may be answered.
            Some(used) => used.epoch = used.epoch.min(held.epoch),
            // That a DEK could be made does not show that it can be unwrapped.
            None => {
                self.uses.push(Use { key_version: held.key_version.clone(), epoch: held.epoch, opened: None })
            }
        }
    }
}

/// The permission to give an answer whose entry is durable: the key versions that it stands on, and until when their proofs
/// are young enough.
pub struct Permit {
    uses: Vec<Use>,
    until: BootTime,
}

impl Permit {
    /// The moment after which the answer may not be given: the first of its proofs is then too old.
    pub fn until(&self) -> BootTime {
        self.until
    }

    /// Makes this the permit of an answer that holds both: the stricter terms of the two apply.
    pub fn merge(&mut self, other: Self) {
        self.until = self.until.min(other.until);
        for used in other.uses {
            match self.uses.iter_mut().find(|own| own.key_version == used.key_version) {
                Some(own) => own.epoch = own.epoch.min(used.epoch),
                None => self.uses.push(used),
            }
        }
    }
}

/// Why an answer may not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallen {
    /// A key version is not active, or was not shown to work in time.
    Dark(Posture),
    /// Its posture moved and it is active again: begin anew, with DEKs that are unwrapped now.
    Anew,
}

impl Keyring {
    /// What the commit of an answer must find. Where a proof is too old for that to be likely, the key is probed first.
    ///
    /// # Errors
    /// What stands against the answer, as far as is known before the commit.
    pub async fn fence(self: &Arc<Self>, tenant: &Tenant, footing: &Footing) -> Result<Vec<Fence>, Fallen> {
        let mut fence = Vec::with_capacity(footing.uses.len());
        for used in &footing.uses {
            let version = &used.key_version;
            let mut view = self.views.get(tenant.uid, version).ok_or(Fallen::Anew)?;
            if view.posture == Posture::Active && self.age(&view, used.opened) > self.guard.bound() {
                view = self.probed(tenant, version).await?;
            }
            if view.posture != Posture::Active {
                return Err(Fallen::Dark(view.posture));
            }
            if view.epoch != used.epoch {
                return Err(Fallen::Anew);
            }
            let epoch = used.epoch;
            // A proof of this replica's own stands in for the row's while it leaves time for the commit, and where the row
            // has none: how old it may be in the end is asked after the commit.
            let (now, bound) = (self.boot(), self.guard.bound());
            let own = view.unwrapped.max(used.opened).map(|own| now.since(own));
            let own_suffices = own.is_some_and(|own| own <= bound / 2 || view.row_age(now) > bound);
            let must = match own_suffices {
                true => Must::BeActive { epoch },
                false => Must::BeProven { epoch, within: self.guard.bound() },
            };
            fence.push(Fence { key_version: version.clone(), must });
        }
        Ok(fence)
    }

    /// The permit of an answer that stands on keys and whose entry is durable: it ends when the first of its proofs is too old
    /// by this machine's own clock. `None` when that is so already, or when it is not known what the commit found.
    pub fn permit(&self, tenant: &Tenant, footing: Footing, durable: &Durable) -> Option<Permit> {
        let passage = durable.passage.as_ref()?;
        let reading = Reading { sent: passage.sent, heard: passage.heard, now: passage.passed.now };
        let now = self.boot();
        let mut until = None;
        for used in &footing.uses {
            let version = &used.key_version;
            let proven_at = passage.proven_at(version)?;
            let found = self.views.age_found(tenant.uid, version, proven_at, reading);
            let own = self.views.get(tenant.uid, version).and_then(|view| view.unwrapped);
            let by_row = found.saturating_add(now.since(passage.sent));
            let age = own.max(used.opened).map_or(by_row, |own| by_row.min(now.since(own)));
            until = earliest(until, self.expiry(now, age)?);
        }
        Some(Permit { uses: footing.uses, until: until? })
    }

    /// The new end of a permit that has ended, by what this replica has learned of its key versions since. They stay watched
    /// for a while, so that the permit can be renewed again.
    ///
    /// # Errors
    /// The posture because of which it cannot be renewed; `Active` if a version was not shown to work in time.
    pub fn renewed(&self, tenant: &Tenant, permit: &Permit) -> Result<BootTime, Posture> {
        let now = self.boot();
        let mut until = None;
        for used in &permit.uses {
            let version = &used.key_version;
            let view = self.views.get(tenant.uid, version).ok_or(Posture::Active)?;
            let expiry = self.renewal(used, &view, now)?;
            until = earliest(until, expiry);
            self.note_in_memory_for(tenant.uid, version, NEEDED);
        }
        until.ok_or(Posture::Active)
    }

    /// The same after a probe of each version that was not shown to work in time.
    ///
    /// # Errors
    /// As of [`Self::renewed`].
    pub async fn prove_again(
        self: &Arc<Self>,
        tenant: &Tenant,
        permit: &Permit,
    ) -> Result<BootTime, Posture> {
        for used in &permit.uses {
            let version = &used.key_version;
            let view = self.views.get(tenant.uid, version).ok_or(Posture::Active)?;
            if view.posture == Posture::Active && view.proof_age(self.boot()) > self.guard.bound() {
                self.probe_now(tenant, version).await.ok_or(Posture::Active)?;
            }
        }
        self.renewed(tenant, permit)
    }

    /// Keeps the key versions of a permit watched for a while. Without a cache nothing else does, and the permit of an answer
    /// that takes long to leave could not be renewed.
    pub fn watch_on(&self, tenant: &Tenant, permit: &Permit) {
        permit.uses.iter().for_each(|used| self.note_in_memory_for(tenant.uid, &used.key_version, NEEDED));
    }

    fn renewal(&self, used: &Use, view: &View, now: BootTime) -> Result<BootTime, Posture> {
        match view.posture {
            Posture::Active if view.epoch == used.epoch => {
                self.expiry(now, view.proof_age(now)).ok_or(Posture::Active)
            }
            // It was turned off and on in between.
            Posture::Active => Err(Posture::Degraded),
            dark => Err(dark),
        }
    }

    /// When a proof of this age becomes too old; `None` where it is.
    fn expiry(&self, now: BootTime, age: Duration) -> Option<BootTime> {
        (self.guard.bound() + SLACK).checked_sub(age).map(|left| now.plus(left))
    }

    /// The key versions that re-wrapping these rows stands on, and for each row whether it may be used. What the KMS does from
    /// here on shows that they work.
    pub async fn footing(
        self: &Arc<Self>,
        tenant: &Tenant,
        rows: &[DekRow],
    ) -> (Footing, Vec<Result<(), KeyringError>>) {
        let mut opened: HashMap<KeyVersion, Result<u64, KeyringError>> = HashMap::new();
        let mut may = Vec::with_capacity(rows.len());
        let admitted = self.admit_rows(tenant, rows, Wanted::Rewrap).await;
        for (row, admitted) in rows.iter().zip(admitted) {
            if admitted.is_err() {
                may.push(admitted);
                continue;
            }
            let version = &row.wrapped.key_version;
            if !opened.contains_key(version) {
                let epoch = self.open(tenant, row).await;
                opened.insert(version.clone(), epoch);
            }
            may.push(opened[version].clone().map(drop));
        }
        let since = Some(self.boot());
        let used = |(key_version, epoch): (KeyVersion, Result<u64, _>)| {
            epoch.ok().map(|epoch| Use { key_version, epoch, opened: since })
        };
        (Footing { uses: opened.into_iter().filter_map(used).collect() }, may)
    }

    /// What became of a call that the fence kept out: reads the rows anew, probes what was not shown to work in time.
    pub async fn after_fenced(self: &Arc<Self>, tenant: &Tenant, footing: &Footing) -> Fallen {
        if self.read(tenant.uid).await.is_none() {
            return Fallen::Dark(Posture::Active);
        }
        let mut fallen = Fallen::Anew;
        for used in &footing.uses {
            let known = self.views.get(tenant.uid, &used.key_version);
            let stale =
                |view: &View| self.age(view, None) > self.guard.bound() || view.posture != Posture::Active;
            let view = match known {
                Some(view) if stale(&view) => self.probed(tenant, &used.key_version).await,
                known => known.ok_or(Fallen::Anew),
            };
            match view {
                Ok(view) if view.posture == Posture::Active => {}
                Ok(view) => fallen = Fallen::Dark(view.posture),
                Err(Fallen::Anew) => {}
                Err(dark) => fallen = dark,
            }
        }
        fallen
    }

    /// What is known of a version once it was probed. One that is not watched any more, as all DEKs are under another, is no
    /// reason to refuse.
    async fn probed(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion) -> Result<View, Fallen> {
        match self.probe_now(tenant, version).await {
            Some(view) => Ok(view),
            None if self.views.get(tenant.uid, version).is_none() => Err(Fallen::Anew),
            None => Err(Fallen::Dark(Posture::Active)),
        }
    }

    /// The epoch under which a version may be used now. A version that nobody has met is tried and watched from here on; one
    /// that is not active is refused, and probed soon.
    pub(super) async fn open(self: &Arc<Self>, tenant: &Tenant, row: &DekRow) -> Result<u64, KeyringError> {
        let version = &row.wrapped.key_version;
        let mut known = self.views.get(tenant.uid, version);
        if known.is_none() {
            // One at a time: whoever comes meanwhile finds it known, or shares the failure of a try that began later.
            let asked = self.boot();
            let turn = self.turn(tenant.uid, version);
            let mut turn = turn.lock().await;
            known = self.views.get(tenant.uid, version);
            if known.is_none() {
                match &turn.failed {
                    Some((began, error)) if *began > asked => return Err(error.clone()),
                    Some(_) | None => {}
                }
                let began = self.boot();
                known = match self.meet(tenant, row).await {
                    Ok(view) => view,
                    Err(error) => {
                        turn.failed = Some((began, error.clone()));
                        return Err(error);
                    }
                };
            }
        }
        match known {
            Some(view) if view.posture == Posture::Active => Ok(view.epoch),
            Some(view) => {
                self.probe_soon(tenant, version);
                Err(KeyringError::Dark(view.posture))
            }
            None => Err(KeyringError::Dark(Posture::Degraded)),
        }
    }

    /// Reads all proofs of a tenant. What is in memory of a version that is not watched any more is not used from then on: it
    /// was re-wrapped, and the sealing key stays, as the flights under other versions need it. `None` when the database does
    /// not say.
    pub(super) async fn read(&self, tenant: TenantUid) -> Option<()> {
        let sent = self.boot();
        let seen = self.store.proofs(tenant).await.ok()?;
        let reading = Reading { sent, heard: self.boot(), now: seen.now };
        seen.rows.iter().for_each(|proof| self.learn(tenant, proof, reading));
        if self.views.forget_absent(tenant, &seen.rows, reading) {
            self.pool.empty(tenant);
        }
        Some(())
    }

    /// Takes over what a row says; what is in memory goes when it says that the posture has moved, and what was made ahead
    /// of need when there is another version.
    pub(super) fn learn(&self, tenant: TenantUid, proof: &Proof, reading: Reading) {
        match self.views.learn(tenant, proof, reading) {
            Learned::Moved => self.darken(tenant),
            Learned::Met => self.pool.empty(tenant),
            Learned::Same => {}
        }
    }

    /// Drops what is in memory of a tenant: its sealing key goes, and is wiped; and so do the connections to the KMS, whose
    /// buffers hold what came over them last. Noted first: what comes in between is gone as well, and is at worst watched in
    /// vain.
    pub(super) fn darken(&self, tenant: TenantUid) {
        for (whose, version, _) in self.views.all() {
            if whose == tenant {
                self.views.change(tenant, &version, |view| view.in_memory_until = BootTime::default());
            }
        }
        self.cache.clear_tenant(tenant);
        self.pool.empty(tenant);
        if let Some(connections) = &self.connections {
            connections.hang_up();
        }
    }

    /// Notes that DEKs of a version are in memory from now on; the prober is woken for a version that had none.
    pub(super) fn note_in_memory(&self, tenant: TenantUid, version: &KeyVersion) {
        self.note_in_memory_for(tenant, version, self.cache.time_to_live());
    }

    fn note_in_memory_for(&self, tenant: TenantUid, version: &KeyVersion, lasting: Duration) {
        let now = self.boot();
        let mut wake = false;
        self.views.change(tenant, version, |view| {
            wake = view.in_memory_until <= now;
            view.in_memory_until = view.in_memory_until.max(now.plus(lasting));
        });
        if wake {
            self.wake.notify_one();
        }
    }

    /// Notes that the KMS has unwrapped something that was sent then.
    pub(super) fn note_unwrapped(&self, tenant: TenantUid, version: &KeyVersion, sent: BootTime) {
        self.views.change(tenant, version, |view| view.unwrapped = view.unwrapped.max(Some(sent)));
    }

    /// Notes what the KMS answered to a real call that failed: a refusal is looked into at once.
    pub(super) fn note_failed(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion, error: &KmsError) {
        if error.class.verdict() == Verdict::Revoked {
            self.probe_soon(tenant, version);
        }
    }

    /// Says to all replicas that versions are needed, for a while from now.
    pub(super) async fn say_needed(&self, tenant: TenantUid, versions: &[KeyVersion]) -> bool {
        let need = |version: &KeyVersion| Change::Need { key_version: version.clone(), lasting: NEEDED };
        let changes: Vec<Change> = versions.iter().map(need).collect();
        let said = self.commit(tenant, changes).await.is_some();
        if said {
            let now = self.boot();
            versions.iter().for_each(|version| {
                self.views.change(tenant, version, |view| view.told = Some(now));
            });
        }
        said
    }

    /// Versions that lie in memory and of which the others are to be told again.
    pub(super) fn to_be_told(&self) -> Vec<(TenantUid, KeyVersion)> {
        let now = self.boot();
        let due = |view: &View| {
            view.in_memory_until > now && view.told.is_none_or(|told| now.since(told) > NEEDED / 3)
        };
        let all = self.views.all().into_iter();
        all.filter(|(.., view)| due(view)).map(|(tenant, version, _)| (tenant, version)).collect()
    }

    /// Changes of proof rows, apart from the log. `None` when it is not known that they were made.
    pub(super) async fn commit(&self, tenant: TenantUid, changes: Vec<Change>) -> Option<Vec<u64>> {
        let batch = Batch::of_changes(tenant, changes);
        self.store.commit(&batch).await.ok().map(|committed| committed.applied)
    }

    pub(super) fn boot(&self) -> BootTime {
        self.clock.boot()
    }

    fn age(&self, view: &View, opened: Option<BootTime>) -> Duration {
        let now = self.boot();
        opened.map_or(view.proof_age(now), |opened| view.proof_age(now).min(now.since(opened)))
    }

    /// What the database knows of a version, or what is found when it is tried.
    async fn meet(&self, tenant: &Tenant, row: &DekRow) -> Result<Option<View>, KeyringError> {
        self.read(tenant.uid).await.ok_or(KeyringError::Store(ReadError::Unavailable))?;
        match self.views.get(tenant.uid, &row.wrapped.key_version) {
            None => self.watch(tenant, row).await,
            known => Ok(known),
        }
    }

    /// Shows that a version works that has no proof row yet, and has it watched from now on. The canary is made for that
    /// where the KMS wraps under this version now; else it is the wrapped DEK at hand.
    async fn watch(&self, tenant: &Tenant, row: &DekRow) -> Result<Option<View>, KeyringError> {
        let version = &row.wrapped.key_version;
        let now = self.store.proofs(tenant.uid).await.map_err(KeyringError::Store)?.now;
        let kms = KeyringError::Kms;
        let internal = || KmsError::local(KmsErrorClass::Internal);
        let binding = DekBinding { tenant: tenant.uid, dek_id: DekId::new(), purpose: Purpose::Probe };
        let made = self.kms.generate(&[binding]).await.pop().unwrap_or_else(|| Err(internal()));
        let canary = match made {
            Ok(made) if made.value.wrapped.key_version == *version => {
                Canary { dek_id: binding.dek_id, wrapped: made.value.wrapped, made_for_probes: true }
            }
            Ok(_) | Err(_) => Canary { dek_id: row.id, wrapped: row.wrapped.clone(), made_for_probes: false },
        };
        let binding = binding_of(tenant.uid, &canary);
        let opened = self.kms.unwrap(&[(binding, canary.wrapped.clone())]).await.pop();
        opened.unwrap_or_else(|| Err(internal())).map_err(kms)?;
        let proof = Proof {
            key_version: version.clone(),
            posture: Posture::Active,
            epoch: 0,
            revision: 0,
            proven_at: now,
            since: now,
            steady_since: Some(now),
            failures: 0,
            falls: 0,
            doubted_by: None,
            next_probe_at: now.plus(self.guard.probe_every),
        };
        let watch = vec![Change::Watch { proof, canary }];
        let unavailable = KeyringError::Store(ReadError::Unavailable);
        self.commit(tenant.uid, watch).await.ok_or(unavailable.clone())?;
        // Another replica may have been first.
        self.read(tenant.uid).await.ok_or(unavailable)?;
        Ok(self.views.get(tenant.uid, version))
    }
}

fn earliest(so_far: Option<BootTime>, next: BootTime) -> Option<BootTime> {
    Some(so_far.map_or(next, |so_far| so_far.min(next)))
}

/// What a canary is bound to.
pub(super) fn binding_of(tenant: TenantUid, canary: &Canary) -> DekBinding {
    let purpose = match canary.made_for_probes {
        true => Purpose::Probe,
        false => Purpose::RecordProbed,
    };
    DekBinding { tenant, dek_id: canary.dek_id, purpose }
}
