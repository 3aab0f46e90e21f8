//! Holds the DEKs that are in memory, and decides whether they may be used. A DEK comes from the
//! cache, or from the store and the KMS in one flight for all callers that wait for it. It is used
//! under a fence that the commit checks, for as long as the prober shows that the key works. A hot
//! record needs no KMS call and no read. This module does not decide who may use a DEK.

mod cache;
mod database_clock;
mod guard;
mod hot;
mod lookups;
mod pool;
mod posture;
mod prober;
mod rows;
mod sealing;
#[cfg(test)]
mod simulation;
mod tally;
mod view;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::audit::Committer;
use crate::config::{DekCache, DekPool, KeyGuard, RowMac};
use crate::crypto::Dek;
use crate::kms::{Connections, DekBinding, Generated, Kms, KmsError, KmsErrorClass, Purpose, Verdict};
use crate::model::{
    BootTime, Clock, DekId, KeyVersion, Posture, Source, Tenant, TenantUid, Timestamp, Wrapped,
};
use crate::store::{DekRow, KeyringStore, LogReads, ReadError};

use cache::{Cache, Sealed};
use lookups::Lookups;
use pool::Pool;
use rows::{Rows, Wanted};
use tally::Tally;
use view::Views;

pub use guard::{Fallen, Footing, Permit};
pub use tally::Standing;

/// How long the statement that writes a proof may take in the database, until the database or byok
/// gives it up.
const WRITING: Duration = Duration::from_secs(6);

/// A DEK that may be used for the call at hand.
pub struct Held {
    /// The plain DEK, wiped when dropped.
    pub dek: Dek,
    /// The version of the KEK that wrapped it when it was read.
    pub key_version: KeyVersion,
    /// The epoch of that version under which it was taken.
    pub epoch: u64,
    /// Where it came from.
    pub source: Source,
    /// The KMS's id of the request that unwrapped it.
    pub kms_request_id: Option<Arc<str>>,
    /// Whether a MAC bound the row that it was unwrapped from. Also true for a DEK that was made
    /// here.
    is_bound: bool,
}

/// A record's DEK.
pub struct RecordDek {
    /// The id of the DEK.
    pub id: DekId,
    /// The DEK, shared by the items of one call that name the same record.
    pub held: Arc<Held>,
    /// The row to commit with the first use of a DEK that has just been made.
    pub fresh: Option<DekRow>,
}

/// Why a DEK is not available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// The tenant has no such DEK.
    Missing,
    /// Its row was changed by somebody who does not hold the secret that binds it.
    Altered,
    /// Its row is not sealed yet, and under this key anybody could have made it.
    Unsealed,
    /// There is no secret to bind it, and one is required.
    Unbound,
    /// The KMS refused or failed.
    Kms(KmsError),
    /// The key version is not active, and the KMS was not called.
    Dark(Posture),
    /// The store refused or failed.
    Store(ReadError),
}

/// A DEK, plain and wrapped, that belongs to no record yet.
type Made = Result<(Held, Wrapped), KeyringError>;
/// The result of a fetch.
type Flight = Result<Arc<Sealed>, KeyringError>;
/// Where the callers wait for the result of a flight; `None` until it is there.
type Arrival = watch::Receiver<Option<Flight>>;

/// What a turn at a key version leaves for the callers that waited for it.
#[derive(Default)]
struct Turn {
    /// When the last failed first attempt began, and its error.
    failed: Option<(BootTime, KeyringError)>,
}

type Turns = HashMap<(TenantUid, KeyVersion), Arc<tokio::sync::Mutex<Turn>>>;

/// The DEKs of all tenants.
pub struct Keyring {
    store: Arc<dyn KeyringStore>,
    log: Arc<dyn LogReads>,
    kms: Arc<dyn Kms>,
    connections: Option<Arc<dyn Connections>>,
    committer: Arc<Committer>,
    clock: Arc<dyn Clock>,
    guard: KeyGuard,
    rows: Rows,
    cache: Cache,
    pool: Pool,
    flights: Mutex<HashMap<(TenantUid, DekId), Arrival>>,
    lookups: Lookups,
    views: Views,
    /// The version under which the last DEK was made, and when the KMS was last asked for another
    /// although that version was dark.
    current: DashMap<TenantUid, (KeyVersion, Option<BootTime>)>,
    /// The name of this process in proof rows, for as long as it lives.
    replica: Uuid,
    /// The lock for each key version under which this process probes it.
    turns: Mutex<Turns>,
    /// How often the database went back in time, as far as this process noticed.
    rewinds: AtomicU64,
    /// Wakes the prober.
    wake: Notify,
    tally: Tally,
}

/// The parts of a [`Keyring`].
pub struct Parts {
    /// Where wrapped DEKs and proofs are stored.
    pub store: Arc<dyn KeyringStore>,
    /// The log, which rows of DEKs are checked against before they are sealed.
    pub log: Arc<dyn LogReads>,
    /// The tenant's KMS.
    pub kms: Arc<dyn Kms>,
    /// The connections to the KMS, if it has any.
    pub connections: Option<Arc<dyn Connections>>,
    /// The committer, which makes an incident's entry durable.
    pub committer: Arc<Committer>,
    /// The source of the time.
    pub clock: Arc<dyn Clock>,
    /// How much is kept in memory.
    pub cache: DekCache,
    /// How many DEKs are made ahead of need. If there are any, [`Keyring::keep_pool`] must run.
    pub pool: DekPool,
    /// How closely the key is watched.
    pub guard: KeyGuard,
    /// What binds the rows. If it holds a secret, [`Keyring::keep_sealing`] must run.
    pub row_mac: RowMac,
}

impl Keyring {
    /// Makes a keyring of these parts. [`Self::keep_watch`] must run beside it.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, log, kms, connections, committer, clock, cache, pool, guard, row_mac } = parts;
        Arc::new(Self {
            rows: Rows::new(row_mac, kms.profile()),
            store,
            log,
            kms,
            connections,
            committer,
            clock,
            guard,
            pool: Pool::new(pool, cache.time_to_live),
            cache: Cache::new(cache),
            flights: Mutex::default(),
            lookups: Lookups::default(),
            views: Views::new(guard.bound() + WRITING),
            current: DashMap::new(),
            replica: Uuid::now_v7(),
            turns: Mutex::default(),
            rewinds: AtomicU64::new(0),
            wake: Notify::new(),
            tally: Tally::default(),
        })
    }

    /// Returns how closely the key is watched.
    pub fn guard(&self) -> &KeyGuard {
        &self.guard
    }

    /// Returns the DEKs with these ids, one result for each, in order. Ids that are not in memory
    /// are read and unwrapped together. If a caller hangs up, the work continues for the others
    /// that wait.
    pub async fn by_id(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> Vec<Result<Held, KeyringError>> {
        let mut results: Vec<Option<Result<Held, KeyringError>>> = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        // What is known of key versions does not change during one pass over the cache. Most calls
        // have one version.
        let mut current = Vec::new();
        for id in ids {
            let hit = self
                .cache
                .get(tenant.uid, *id)
                .filter(|sealed| self.is_among(tenant.uid, sealed, &mut current))
                .and_then(|sealed| self.cache.open(tenant.uid, *id, &sealed, Source::Cache));
            if hit.is_none() {
                missing.push(*id);
            }
            results.push(hit.map(Ok));
        }
        if missing.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let flights = self.board(tenant, &missing);
        let mut landed: HashMap<DekId, Flight> = HashMap::with_capacity(flights.len());
        for (id, mut flight) in flights {
            let outcome = match flight.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            landed.insert(
                id,
                outcome.unwrap_or_else(|| Err(KeyringError::Kms(KmsError::local(KmsErrorClass::Internal)))),
            );
        }
        let land = |id: &DekId| match &landed[id] {
            // The posture changed while the flight was under way.
            Ok(sealed) => self.cache.open(tenant.uid, *id, sealed, Source::Kms).ok_or_else(|| {
                let view = self.views.get(tenant.uid, &sealed.key_version);
                KeyringError::Dark(view.map_or(Posture::Degraded, |view| view.posture))
            }),
            Err(error) => Err(error.clone()),
        };
        ids.iter().zip(results).map(|(id, hit)| hit.unwrap_or_else(|| land(id))).collect()
    }

    /// Returns the newest DEK of each record, one result for each, in order. Makes a fresh one for
    /// each record that has none, and for each `None`. A record that is named twice gets one DEK.
    pub async fn by_record(
        self: &Arc<Self>,
        tenant: &Tenant,
        records: &[Option<Arc<str>>],
        now: Timestamp,
    ) -> Vec<Result<RecordDek, KeyringError>> {
        let known = match self.known_deks(tenant, records).await {
            Ok(known) => known,
            Err(error) => return records.iter().map(|_| Err(KeyringError::Store(error))).collect(),
        };
        // One index for each distinct record, so that each is unwrapped or made once.
        let mut places: HashMap<&Arc<str>, usize> = HashMap::new();
        let mut wanted: Vec<Option<&Arc<str>>> = Vec::new();
        let place_of: Vec<usize> = records
            .iter()
            .map(|record| {
                let next = wanted.len();
                let place = record.as_ref().map_or(next, |record| *places.entry(record).or_insert(next));
                if place == next {
                    wanted.push(record.as_ref());
                }
                place
            })
            .collect();
        let ids: Vec<Option<Result<DekId, KeyringError>>> =
            wanted.iter().map(|record| record.and_then(|record| known.get(record).cloned())).collect();
        let existing: Vec<DekId> = ids.iter().flatten().filter_map(|id| id.as_ref().ok().copied()).collect();
        let mut opened = self.by_id(tenant, &existing).await.into_iter();
        let found: Vec<Option<Result<RecordDek, KeyringError>>> = wanted
            .iter()
            .zip(&ids)
            .map(|(record, id)| {
                let id = match id.as_ref()? {
                    Ok(id) => *id,
                    Err(error) => return Some(Err(error.clone())),
                };
                match opened.next()? {
                    // It may have been unwrapped for a decrypt, from a row that has changed since.
                    Ok(held) if !held.is_bound && self.rows.must_be_bound(tenant.uid) => {
                        Some(Err(KeyringError::Unsealed))
                    }
                    Ok(held) => Some(Ok(RecordDek { id, held: Arc::new(held), fresh: None })),
                    Err(KeyringError::Missing) => {
                        // Its row is gone, so the record counts as new.
                        record.iter().for_each(|record| self.cache.remove_record(tenant.uid, record));
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            })
            .collect();
        let fresh = found.iter().filter(|found| found.is_none()).count();
        let mut made = self.take_ready(tenant, fresh);
        made.extend(self.make(tenant, fresh - made.len(), Purpose::Record).await);
        let mut made = made.into_iter();
        let mut deks: Vec<Result<RecordDek, KeyringError>> = wanted
            .iter()
            .zip(found)
            .map(|(record, found)| {
                found.unwrap_or_else(|| {
                    let internal = || KeyringError::Kms(KmsError::local(KmsErrorClass::Internal));
                    let (id, made) = made.next().ok_or_else(internal)?;
                    let (held, wrapped) = made?;
                    let record_id = record.cloned();
                    let mut row =
                        DekRow { id, record_id, wrapped, created_at: now, mac: None, record_mac: None };
                    self.rows.seal(tenant.uid, &mut row);
                    Ok(RecordDek { id, held: Arc::new(held), fresh: Some(row) })
                })
            })
            .collect();
        expand(&place_of, &mut deks)
    }

    /// Makes `count` DEKs in one batch. Makes no call if `count` is 0. If the version under which
    /// the last DEK was made is not active, the KMS is still called once in a while: it may wrap
    /// under another version by now.
    async fn make(self: &Arc<Self>, tenant: &Tenant, count: usize, purpose: Purpose) -> Vec<(DekId, Made)> {
        if count == 0 {
            return Vec::new();
        }
        let ids = (0..count).map(|_| DekId::new());
        let bindings: Vec<DekBinding> =
            ids.map(|dek_id| DekBinding { tenant: tenant.uid, dek_id, purpose }).collect();
        let refused =
            |error: KeyringError| bindings.iter().map(|asked| (asked.dek_id, Err(error.clone()))).collect();
        if let Err(error) = self.may_make(tenant.uid).await {
            return refused(error);
        }
        let current = self.current.get(&tenant.uid).map(|current| current.0.clone());
        if let Some(current) = &current
            && let Some(view) = self.views.get(tenant.uid, current)
            && view.posture != Posture::Active
        {
            self.probe_soon(tenant, current);
            if !self.looks_for_another(tenant.uid) {
                return refused(KeyringError::Dark(view.posture));
            }
        }
        // Runs to its end even if the caller is dropped: it may be the call that logs in for all
        // others.
        let (kms, asked) = (self.kms.clone(), bindings.clone());
        let made = tokio::spawn(async move { kms.generate(&asked).await }).await.unwrap_or_default();
        let mut epochs: HashMap<KeyVersion, Result<u64, KeyringError>> = HashMap::new();
        let mut results = Vec::with_capacity(count);
        for (binding, made) in bindings.iter().zip(made) {
            let held = match made {
                Ok(made) => {
                    let Generated { dek, wrapped } = made.value;
                    let version = wrapped.key_version.clone();
                    if !epochs.contains_key(&version) {
                        let row = DekRow {
                            id: binding.dek_id,
                            record_id: None,
                            wrapped: wrapped.clone(),
                            created_at: Timestamp(0),
                            mac: None,
                            record_mac: None,
                        };
                        epochs.insert(version.clone(), self.open(tenant, &row).await);
                        let tried = self.current.get(&tenant.uid).and_then(|current| current.1);
                        self.current.insert(tenant.uid, (version.clone(), tried));
                    }
                    epochs[&version].clone().map(|epoch| {
                        let held = Held {
                            dek,
                            key_version: version,
                            epoch,
                            source: Source::Kms,
                            kms_request_id: made.request_id,
                            is_bound: true,
                        };
                        (held, wrapped)
                    })
                }
                Err(error) => {
                    if let Some(current) = &current {
                        self.note_failed(tenant, current, &error);
                    }
                    Err(KeyringError::Kms(error))
                }
            };
            results.push((binding.dek_id, held));
        }
        results
    }

    /// Returns whether it is time to find out under which version the KMS wraps now: at most once
    /// in the interval between two probes.
    fn looks_for_another(&self, tenant: TenantUid) -> bool {
        let now = self.boot();
        self.current.get_mut(&tenant).is_some_and(|mut current| {
            let rested = current.1.is_none_or(|tried| now.since(tried) >= self.guard.probe_every);
            if rested {
                current.1 = Some(now);
            }
            rested
        })
    }

    /// Puts a DEK whose row is now durable into the cache.
    pub fn admit(&self, tenant: &Tenant, row: &DekRow, held: &Held) {
        let under = (held.key_version.clone(), held.epoch);
        let request_id = held.kms_request_id.clone();
        let sealed = self.cache.seal(tenant.uid, row.id, &held.dek, under, request_id, held.is_bound);
        self.keep(tenant.uid, row.id, Arc::new(sealed));
        if let Some(record) = &row.record_id {
            self.cache.put_record(tenant.uid, record.clone(), row.id);
        }
    }

    /// Keeps a sealed DEK in memory, unless the posture of its key version has changed since the
    /// DEK was requested.
    fn keep(&self, tenant: TenantUid, id: DekId, sealed: Arc<Sealed>) {
        let version = sealed.key_version.clone();
        if self.cache.is_on() && self.is_current(tenant, &sealed) {
            self.cache.put(tenant, id, sealed.clone());
            self.note_in_memory(tenant, &version);
        }
        // A DEK whose posture changed between the check and the put would otherwise stay.
        if !self.is_current(tenant, &sealed) {
            self.cache.remove(tenant, id);
        }
    }

    /// Does the same as `is_current` for many DEKs of few versions: each version and epoch is
    /// looked up once.
    fn is_among(&self, tenant: TenantUid, sealed: &Sealed, known: &mut Vec<(KeyVersion, u64, bool)>) -> bool {
        let under = |(version, epoch, _): &&(KeyVersion, u64, bool)| {
            *epoch == sealed.epoch && *version == sealed.key_version
        };
        match known.iter().find(under) {
            Some((.., current)) => *current && sealed.opens(),
            None => {
                let current = self.is_current(tenant, sealed);
                known.push((sealed.key_version.clone(), sealed.epoch, current));
                current
            }
        }
    }

    fn is_current(&self, tenant: TenantUid, sealed: &Sealed) -> bool {
        let view = self.views.get(tenant, &sealed.key_version).filter(|_| sealed.opens());
        view.is_some_and(|view| view.posture == Posture::Active && view.epoch == sealed.epoch)
    }

    /// Drops DEKs from the cache, such as those that were re-wrapped under another key version.
    pub fn forget(&self, tenant: TenantUid, ids: impl IntoIterator<Item = DekId>) {
        ids.into_iter().for_each(|id| self.cache.remove(tenant, id));
    }

    /// Empties the cache and the pool; the sealing keys are zeroized. What was known of key
    /// versions is read again, because a database that went back in time may hold earlier epochs,
    /// or none. What was seen of the rows is kept. Otherwise, anybody who can write to the database
    /// would only have to roll its log back for a moment.
    pub fn clear(&self) {
        self.cache.clear();
        self.pool.empty_all();
        self.views.clear();
        self.current.clear();
    }

    /// Returns the approximate number of DEKs in the cache.
    pub fn cached(&self) -> u64 {
        self.cache.len()
    }

    /// Returns the newest DEK of each record that has one, or why it may not be used.
    async fn known_deks(
        self: &Arc<Self>,
        tenant: &Tenant,
        records: &[Option<Arc<str>>],
    ) -> Result<HashMap<Arc<str>, Result<DekId, KeyringError>>, ReadError> {
        let mut known = HashMap::new();
        let mut unknown: Vec<Arc<str>> = Vec::new();
        for record in records.iter().flatten() {
            match self.cache.get_record(tenant.uid, record) {
                Some(id) => drop(known.insert(record.clone(), Ok(id))),
                None => unknown.push(record.clone()),
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            let store = self.store.clone();
            let read = move |tenant, records: Vec<Arc<str>>| {
                let store = store.clone();
                async move { store.deks_of_records(tenant, &records).await }
            };
            let rows = self.lookups.newest(tenant.uid, unknown, read).await?;
            let admitted = self.admit_rows(tenant, &rows, Wanted::Encrypt).await;
            for (row, admitted) in rows.into_iter().zip(admitted) {
                let Some(record) = row.record_id else { continue };
                if admitted.is_ok() {
                    self.cache.put_record(tenant.uid, record.clone(), row.id);
                }
                known.insert(record, admitted.map(|()| row.id));
            }
        }
        Ok(known)
    }

    /// Joins the flights of these ids, and starts one for the ids that nobody is fetching.
    fn board(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> Vec<(DekId, Arrival)> {
        let mut lead = Vec::new();
        let mut joined = Vec::with_capacity(ids.len());
        {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ids {
                let flight = flights.entry((tenant.uid, *id)).or_insert_with(|| {
                    let (sender, receiver) = watch::channel(None);
                    lead.push((*id, sender));
                    receiver
                });
                joined.push((*id, flight.clone()));
            }
        }
        if !lead.is_empty() {
            tokio::spawn(self.clone().fly(tenant.clone(), lead));
        }
        joined
    }

    async fn fly(self: Arc<Self>, tenant: Tenant, lead: Vec<(DekId, watch::Sender<Option<Flight>>)>) {
        // The flights are removed on every way out, including a panic, so that no caller waits for
        // a flight that is gone.
        struct TakeDown<'a>(&'a Keyring, TenantUid, Vec<DekId>);
        impl Drop for TakeDown<'_> {
            fn drop(&mut self) {
                let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
                self.2.iter().for_each(|id| drop(flights.remove(&(self.1, *id))));
            }
        }
        let ids: Vec<DekId> = lead.iter().map(|(id, _)| *id).collect();
        let take_down = TakeDown(&self, tenant.uid, ids.clone());
        let mut fetched = self.fetch(&tenant, &ids).await;
        for (id, _) in &lead {
            // A DEK that may not encrypt is read again each time, so that it may encrypt as soon as
            // its row is bound.
            if let Some(Ok(sealed)) = fetched.get(id)
                && (sealed.is_bound || !self.rows.must_be_bound(tenant.uid))
            {
                self.keep(tenant.uid, *id, sealed.clone());
            }
        }
        drop(take_down);
        for (id, sender) in lead {
            let outcome = fetched.remove(&id).unwrap_or(Err(KeyringError::Missing));
            let _ = sender.send(Some(outcome));
        }
    }

    /// Reads and unwraps DEKs. If the KMS refused the key version, the DEKs that a rotation has
    /// re-wrapped since they were read are read and unwrapped once more: the previous version may
    /// be turned off as soon as the rotation is done.
    async fn fetch(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> HashMap<DekId, Flight> {
        let rows = match self.store.deks(tenant.uid, ids).await {
            Ok(rows) => rows,
            Err(error) => return ids.iter().map(|id| (*id, Err(KeyringError::Store(error)))).collect(),
        };
        let versions: HashMap<DekId, KeyVersion> =
            rows.iter().map(|row| (row.id, row.wrapped.key_version.clone())).collect();
        let mut fetched = self.unwrap_rows(tenant, rows).await;
        let is_refused = |flight: &Flight| matches!(flight, Err(KeyringError::Kms(error)) if error.class.verdict() == Verdict::Revoked);
        let refused = fetched.iter().filter(|(_, flight)| is_refused(flight)).map(|(id, _)| *id);
        let refused: Vec<DekId> = refused.collect();
        if !refused.is_empty()
            && let Ok(mut rows) = self.store.deks(tenant.uid, &refused).await
        {
            rows.retain(|row| versions.get(&row.id) != Some(&row.wrapped.key_version));
            fetched.extend(self.unwrap_rows(tenant, rows).await);
        }
        fetched
    }

    async fn unwrap_rows(self: &Arc<Self>, tenant: &Tenant, rows: Vec<DekRow>) -> HashMap<DekId, Flight> {
        let mut fetched: HashMap<DekId, Flight> = HashMap::with_capacity(rows.len());
        // The epoch of each key version before anything is unwrapped under it.
        let mut epochs: HashMap<KeyVersion, Result<u64, KeyringError>> = HashMap::new();
        let mut asked = Vec::with_capacity(rows.len());
        let mut bound = Vec::with_capacity(rows.len());
        let admitted = self.admit_rows(tenant, &rows, Wanted::Open).await;
        for (row, admitted) in rows.into_iter().zip(admitted) {
            if let Err(error) = admitted {
                fetched.insert(row.id, Err(error));
                continue;
            }
            let version = &row.wrapped.key_version;
            if !epochs.contains_key(version) {
                let epoch = self.open(tenant, &row).await;
                epochs.insert(version.clone(), epoch);
            }
            match &epochs[version] {
                Ok(_) => {
                    let (tenant, dek_id, purpose) = (tenant.uid, row.id, Purpose::Record);
                    bound.push(row.mac.is_some());
                    asked.push((DekBinding { tenant, dek_id, purpose }, row.wrapped));
                }
                Err(error) => drop(fetched.insert(row.id, Err(error.clone()))),
            }
        }
        if asked.is_empty() {
            return fetched;
        }
        let sent = self.boot();
        let answers = self.kms.unwrap(&asked).await;
        let mut refused: HashMap<KeyVersion, KmsError> = HashMap::new();
        for (((binding, wrapped), is_bound), answer) in asked.into_iter().zip(bound).zip(answers) {
            let version = wrapped.key_version;
            let outcome = match answer {
                Ok(answer) => {
                    self.note_unwrapped(tenant.uid, &version, sent);
                    let epoch = epochs[&version].clone().unwrap_or_default();
                    let under = (version, epoch);
                    let (id, dek, request_id) = (binding.dek_id, &answer.value, answer.request_id);
                    let sealed = self.cache.seal(tenant.uid, id, dek, under, request_id, is_bound);
                    Ok(Arc::new(sealed))
                }
                Err(error) => {
                    if error.class.verdict() == Verdict::Revoked {
                        refused.insert(version, error.clone());
                    }
                    Err(KeyringError::Kms(error))
                }
            };
            fetched.insert(binding.dek_id, outcome);
        }
        refused.iter().for_each(|(version, error)| self.note_failed(tenant, version, error));
        fetched
    }
}

/// Gives each of the caller's records its DEK. Only the first record that uses a fresh DEK gets the
/// row to commit.
fn expand(
    place_of: &[usize],
    deks: &mut [Result<RecordDek, KeyringError>],
) -> Vec<Result<RecordDek, KeyringError>> {
    place_of
        .iter()
        .map(|place| match &mut deks[*place] {
            Ok(dek) => Ok(RecordDek { id: dek.id, held: dek.held.clone(), fresh: dek.fresh.take() }),
            Err(error) => Err(error.clone()),
        })
        .collect()
}
