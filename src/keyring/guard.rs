//! Decides whether DEKs in memory may be used. Before a DEK is taken, this module checks the
//! posture of its key version. Before an answer, it says what the commit must find. After the
//! commit, it says until when the answer may be given. It does not decide whether a key works: the
//! database and the prober do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Durable;
use crate::kms::{DekBinding, KmsError, KmsErrorClass, Purpose, Verdict};
use crate::model::{BootTime, Canary, DekId, KeyVersion, Posture, Proof, Tenant, TenantUid};
use crate::store::{Batch, Change, DekRow, Fence, ReadError, Requirement};

use super::database_clock::Reading;
use super::rows::Wanted;
use super::view::{Learned, View};
use super::{Held, Keyring, KeyringError};

/// The allowance that a replica makes for reading its own clock and for a thread to be scheduled.
const SLACK: Duration = Duration::from_millis(100);
/// How long a statement that a version is needed remains valid. It is longer than the interval at
/// which the statement is repeated, so that a slow replica is not forgotten.
const NEEDED: Duration = Duration::from_secs(10);

/// The key versions that one answer depends on.
#[derive(Default)]
pub struct Footing {
    uses: Vec<Use>,
}

struct Use {
    key_version: KeyVersion,
    epoch: u64,
    /// The time from which this operation has the KMS unwrap DEKs under this version; `None` if it
    /// does not.
    opened: Option<BootTime>,
}

impl Footing {
    /// Returns whether the answer depends on no key.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// Adds the key version that a DEK depends on.
    pub fn add(&mut self, held: &Held) {
        match self.uses.iter_mut().find(|used| used.key_version == held.key_version) {
            // The older epoch decides: if they differ, nothing of the answer may be given.
            Some(used) => used.epoch = used.epoch.min(held.epoch),
            // A successful generation of a DEK does not show that it can be unwrapped.
            None => {
                self.uses.push(Use { key_version: held.key_version.clone(), epoch: held.epoch, opened: None })
            }
        }
    }
}

/// The permission to give an answer whose entry is durable: the key versions that the answer
/// depends on, and until when their proofs are recent enough.
pub struct Permit {
    uses: Vec<Use>,
    until: BootTime,
}

impl Permit {
    /// Returns the time after which the answer may not be given, because the first of its proofs is
    /// then too old.
    pub fn until(&self) -> BootTime {
        self.until
    }

    /// Makes this the permit of an answer that holds both answers: the stricter terms of the two
    /// apply.
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
    /// The posture changed and is active again: start over, with DEKs that are unwrapped now.
    Anew,
}

impl Keyring {
    /// Returns the conditions that the commit of an answer must find. If a proof is too old for the
    /// commit to succeed, the key is probed first.
    ///
    /// # Errors
    /// The reason why the answer may not be given, as far as it is known before the commit.
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
            // A proof of this replica's own replaces the one in the row if it leaves enough time
            // for the commit, or if the row's proof is too old. How old it may be in the end is
            // checked after the commit.
            let (now, bound) = (self.boot(), self.guard.bound());
            let own = view.unwrapped.max(used.opened).map(|own| now.since(own));
            let own_suffices = own.is_some_and(|own| own <= bound / 2 || view.row_age(now) > bound);
            let requirement = match own_suffices {
                true => Requirement::Active { epoch },
                false => Requirement::Proven { epoch, within: self.guard.bound() },
            };
            fence.push(Fence { key_version: version.clone(), requirement });
        }
        Ok(fence)
    }

    /// Returns the permit of an answer that depends on keys and whose entry is durable. It ends
    /// when the first of its proofs is too old by this machine's own clock. Returns `None` if one
    /// is too old already, or if it is not known what the commit found.
    pub fn permit(&self, tenant: &Tenant, footing: Footing, durable: &Durable) -> Option<Permit> {
        let passage = durable.passage.as_ref()?;
        let reading = Reading { sent: passage.sent, heard: passage.heard, now: passage.reading.now };
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

    /// Returns the new end of a permit that has ended, from what this replica has learned since
    /// about its key versions. They stay watched for a while, so that the permit can be renewed
    /// again.
    ///
    /// # Errors
    /// The posture that prevents the renewal; `Active` if a version was not shown to work in time.
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

    /// Does the same as [`Self::renewed`], after it has probed each version that was not shown to
    /// work in time.
    ///
    /// # Errors
    /// As for [`Self::renewed`].
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

    /// Keeps the key versions of a permit watched for a while. Without a cache nothing else does,
    /// and the permit of an answer that takes long to send could not be renewed.
    pub fn watch_on(&self, tenant: &Tenant, permit: &Permit) {
        permit.uses.iter().for_each(|used| self.note_in_memory_for(tenant.uid, &used.key_version, NEEDED));
    }

    fn renewal(&self, used: &Use, view: &View, now: BootTime) -> Result<BootTime, Posture> {
        match view.posture {
            Posture::Active if view.epoch == used.epoch => {
                self.expiry(now, view.proof_age(now)).ok_or(Posture::Active)
            }
            // The key was turned off and on again in between.
            Posture::Active => Err(Posture::Degraded),
            dark => Err(dark),
        }
    }

    /// Returns when a proof of this age becomes too old; `None` if it already is.
    fn expiry(&self, now: BootTime, age: Duration) -> Option<BootTime> {
        (self.guard.bound() + SLACK).checked_sub(age).map(|left| now.plus(left))
    }

    /// Returns the key versions that a re-wrap of these rows depends on, and for each row whether
    /// it may be used. The KMS calls made from here on prove that these versions work.
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

    /// Finds out what happened to a call that the fence refused: reads the rows again, and probes
    /// the versions that were not shown to work in time.
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

    /// Probes a version and returns what is known of it afterwards. A version that is no longer
    /// watched, because all DEKs are under another one, is no reason to refuse.
    async fn probed(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion) -> Result<View, Fallen> {
        match self.probe_now(tenant, version).await {
            Some(view) => Ok(view),
            None if self.views.get(tenant.uid, version).is_none() => Err(Fallen::Anew),
            None => Err(Fallen::Dark(Posture::Active)),
        }
    }

    /// Returns the epoch under which a version may be used now. A version that no replica has met
    /// yet is tried, and watched from then on. A version that is not active is refused, and probed
    /// soon.
    pub(super) async fn open(self: &Arc<Self>, tenant: &Tenant, row: &DekRow) -> Result<u64, KeyringError> {
        let version = &row.wrapped.key_version;
        let mut known = self.views.get(tenant.uid, version);
        if known.is_none() {
            // One caller at a time. The callers that wait then find the version known, or share the
            // failure of an attempt that began after their own call.
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

    /// Reads all proofs of a tenant. If a version is no longer watched, the DEKs under it that are
    /// in memory are not used from then on, because they were re-wrapped. The sealing key stays,
    /// because the flights under other versions need it. Returns `None` if the database does not
    /// answer.
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

    /// Takes over the contents of a row. If the posture has changed, drops what is in memory. If
    /// the version is new, drops the DEKs that were made ahead of need.
    pub(super) fn learn(&self, tenant: TenantUid, proof: &Proof, reading: Reading) {
        match self.views.learn(tenant, proof, reading) {
            Learned::Moved => self.darken(tenant),
            Learned::Met => self.pool.empty(tenant),
            Learned::Same => {}
        }
    }

    /// Drops what is in memory of a tenant. Its sealing key is wiped. The connections to the KMS
    /// are closed as well, because their buffers hold the last data that came over them.
    /// `in_memory_until` is reset first: a DEK that arrives before the sealing key is wiped is
    /// dropped too, and at worst its version is watched needlessly.
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

    /// Notes that DEKs of a version are in memory from now on. Wakes the prober if there were none.
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

    /// Notes that the KMS has unwrapped something in a request that was sent at `sent`.
    pub(super) fn note_unwrapped(&self, tenant: TenantUid, version: &KeyVersion, sent: BootTime) {
        self.views.change(tenant, version, |view| view.unwrapped = view.unwrapped.max(Some(sent)));
    }

    /// Notes the error with which the KMS answered a real call. After a refusal, the key is probed
    /// at once.
    pub(super) fn note_failed(self: &Arc<Self>, tenant: &Tenant, version: &KeyVersion, error: &KmsError) {
        if error.class.verdict() == Verdict::Revoked {
            self.probe_soon(tenant, version);
        }
    }

    /// Tells all replicas that versions are needed, for a while from now. Returns whether that was
    /// stored.
    pub(super) async fn say_needed(&self, tenant: TenantUid, versions: &[KeyVersion]) -> bool {
        let need =
            |version: &KeyVersion| Change::ExtendWatch { key_version: version.clone(), lasting: NEEDED };
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

    /// Returns the versions that are in memory and about which the other replicas must be told
    /// again.
    pub(super) fn to_be_told(&self) -> Vec<(TenantUid, KeyVersion)> {
        let now = self.boot();
        let due = |view: &View| {
            view.in_memory_until > now && view.told.is_none_or(|told| now.since(told) > NEEDED / 3)
        };
        let all = self.views.all().into_iter();
        all.filter(|(.., view)| due(view)).map(|(tenant, version, _)| (tenant, version)).collect()
    }

    /// Commits changes of proof rows, outside the log. Returns `None` if it is not known whether
    /// they were made.
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

    /// Returns what the database knows of a version, or tries the version if the database does not
    /// know it.
    async fn meet(&self, tenant: &Tenant, row: &DekRow) -> Result<Option<View>, KeyringError> {
        self.read(tenant.uid).await.ok_or(KeyringError::Store(ReadError::Unavailable))?;
        match self.views.get(tenant.uid, &row.wrapped.key_version) {
            None => self.watch(tenant, row).await,
            known => Ok(known),
        }
    }

    /// Shows that a version without a proof row works, and has it watched from now on. If the KMS
    /// wraps under this version now, a canary is made for this purpose. Otherwise the canary is the
    /// wrapped DEK at hand.
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

/// Returns what a canary is bound to.
pub(super) fn binding_of(tenant: TenantUid, canary: &Canary) -> DekBinding {
    let purpose = match canary.made_for_probes {
        true => Purpose::Probe,
        false => Purpose::RecordProbed,
    };
    DekBinding { tenant, dek_id: canary.dek_id, purpose }
}
