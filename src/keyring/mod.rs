//! Which DEKs are in memory, and how they come there: from the cache, or from the store and the KMS in one flight for
//! all who wait. A hot record costs no KMS call and no read. Decides nothing about who may use a DEK.

mod cache;
mod hot;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::config::DekCache;
use crate::crypto::Dek;
use crate::kms::{DekBinding, Generated, ItemResult, Kms, KmsError, KmsErrorClass};
use crate::model::{DekId, KeyVersion, Source, Tenant, TenantUid, Timestamp};
use crate::store::{DekRow, ReadError, Store};

use cache::{Cache, Sealed};

/// A DEK that may be used for the call at hand.
pub struct Held {
    /// Plain; gone when dropped.
    pub dek: Dek,
    /// The version of the KEK that wrapped it when it was read.
    pub key_version: KeyVersion,
    /// Where it came from.
    pub source: Source,
    /// The KMS's id of the request that unwrapped it.
    pub kms_request_id: Option<Arc<str>>,
}

/// A record's DEK.
pub struct RecordDek {
    /// Which.
    pub id: DekId,
    /// The DEK; shared by the items of one call that name the same record.
    pub held: Arc<Held>,
    /// The row to commit with the first use of a DEK that was made just now.
    pub fresh: Option<DekRow>,
}

/// Why a DEK cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// There is no such DEK for this tenant.
    Missing,
    /// The KMS refused or failed.
    Kms(KmsError),
    /// The store refused or failed.
    Store(ReadError),
}

/// What a fetch brought.
type Flight = Result<Arc<Sealed>, KeyringError>;
/// Where those wait who want what a flight brings; `None` until it lands.
type Arrival = watch::Receiver<Option<Flight>>;

/// The DEKs of all tenants.
pub struct Keyring {
    store: Arc<dyn Store>,
    kms: Arc<dyn Kms>,
    cache: Cache,
    flights: Mutex<HashMap<(TenantUid, DekId), Arrival>>,
}

impl Keyring {
    /// Over this store and KMS.
    pub fn new(store: Arc<dyn Store>, kms: Arc<dyn Kms>, settings: DekCache) -> Arc<Self> {
        Arc::new(Self { store, kms, cache: Cache::new(settings), flights: Mutex::default() })
    }

    /// The DEKs with these ids, one result for each, in order. Ids that are not in memory are read and unwrapped
    /// together; a caller that hangs up does not stop that for the others who wait.
    pub async fn by_id(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> Vec<Result<Held, KeyringError>> {
        let mut results: Vec<Option<Result<Held, KeyringError>>> = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            let hit = self
                .cache
                .get(tenant.uid, *id)
                .and_then(|sealed| self.cache.open(tenant.uid, *id, &sealed, Source::Cache));
            if hit.is_none() {
                missing.push(*id);
            }
            results.push(hit.map(Ok));
        }
        if missing.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let flights = self.board(tenant.uid, &missing);
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
            Ok(sealed) => self.cache.open(tenant.uid, *id, sealed, Source::Kms).ok_or(KeyringError::Missing),
            Err(error) => Err(error.clone()),
        };
        ids.iter().zip(results).map(|(id, hit)| hit.unwrap_or_else(|| land(id))).collect()
    }

    /// The newest DEK of each record, or a fresh one where there is none (and for each `None`), one result for each, in
    /// order. A record that is named twice gets one DEK.
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
        // One place for each distinct record, so that each is unwrapped or made once.
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
        let ids: Vec<Option<DekId>> =
            wanted.iter().map(|record| record.and_then(|record| known.get(record).copied())).collect();
        let existing: Vec<DekId> = ids.iter().flatten().copied().collect();
        let mut opened = self.by_id(tenant, &existing).await.into_iter();
        let found: Vec<Option<Result<RecordDek, KeyringError>>> = wanted
            .iter()
            .zip(&ids)
            .map(|(record, id)| {
                let id = (*id)?;
                match opened.next()? {
                    Ok(held) => Some(Ok(RecordDek { id, held: Arc::new(held), fresh: None })),
                    Err(KeyringError::Missing) => {
                        // Its row is gone: the record is as good as new.
                        record.iter().for_each(|record| self.cache.remove_record(tenant.uid, record));
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            })
            .collect();
        let fresh = found.iter().filter(|found| found.is_none()).count();
        let mut made = self.make(tenant, fresh).await.into_iter();
        let mut deks: Vec<Result<RecordDek, KeyringError>> = wanted
            .iter()
            .zip(found)
            .map(|(record, found)| {
                found.unwrap_or_else(|| {
                    let internal = || KeyringError::Kms(KmsError::local(KmsErrorClass::Internal));
                    let (id, answer) = made.next().ok_or_else(internal)?;
                    let answer = answer.map_err(KeyringError::Kms)?;
                    let Generated { dek, wrapped } = answer.value;
                    let row = DekRow { id, record_id: record.cloned(), wrapped, created_at: now };
                    let held = Held {
                        dek,
                        key_version: row.wrapped.key_version.clone(),
                        source: Source::Kms,
                        kms_request_id: answer.request_id,
                    };
                    Ok(RecordDek { id, held: Arc::new(held), fresh: Some(row) })
                })
            })
            .collect();
        expand(&place_of, &mut deks)
    }

    /// Makes so many DEKs, in one batch; asks nobody for none.
    async fn make(&self, tenant: &Tenant, count: usize) -> Vec<(DekId, ItemResult<Generated>)> {
        if count == 0 {
            return Vec::new();
        }
        let binding = |_| DekBinding { tenant: tenant.uid, dek_id: DekId::new() };
        let bindings: Vec<DekBinding> = (0..count).map(binding).collect();
        // Runs to its end whatever becomes of the caller: it may be the one that logs in for all others.
        let kms = self.kms.clone();
        let asked = bindings.clone();
        let made = tokio::spawn(async move { kms.generate(&asked).await }).await.unwrap_or_default();
        bindings.into_iter().map(|binding| binding.dek_id).zip(made).collect()
    }

    /// Takes a DEK into the cache whose row is durable now.
    pub fn admit(&self, tenant: &Tenant, row: &DekRow, held: &Held) {
        let sealed = self.cache.seal(
            tenant.uid,
            row.id,
            &held.dek,
            held.key_version.clone(),
            held.kms_request_id.clone(),
        );
        self.cache.put(tenant.uid, row.id, Arc::new(sealed));
        if let Some(record) = &row.record_id {
            self.cache.put_record(tenant.uid, record.clone(), row.id);
        }
    }

    /// Drops DEKs from the cache, such as those whose key version is another now.
    pub fn forget(&self, tenant: TenantUid, ids: impl IntoIterator<Item = DekId>) {
        ids.into_iter().for_each(|id| self.cache.remove(tenant, id));
    }

    /// Empties the cache: the sealing keys go, and are zeroized.
    pub fn clear(&self) {
        self.cache.clear();
    }

    /// How many DEKs the cache holds, about.
    pub fn cached(&self) -> u64 {
        self.cache.len()
    }

    async fn known_deks(
        &self,
        tenant: &Tenant,
        records: &[Option<Arc<str>>],
    ) -> Result<HashMap<Arc<str>, DekId>, ReadError> {
        let mut known = HashMap::new();
        let mut unknown: Vec<Arc<str>> = Vec::new();
        for record in records.iter().flatten() {
            match self.cache.get_record(tenant.uid, record) {
                Some(id) => drop(known.insert(record.clone(), id)),
                None => unknown.push(record.clone()),
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            for row in self.store.deks_of_records(tenant.uid, &unknown).await? {
                if let Some(record) = row.record_id {
                    self.cache.put_record(tenant.uid, record.clone(), row.id);
                    known.insert(record, row.id);
                }
            }
        }
        Ok(known)
    }

    /// Joins the flights of these ids, and starts one for those that nobody is fetching.
    fn board(self: &Arc<Self>, tenant: TenantUid, ids: &[DekId]) -> Vec<(DekId, Arrival)> {
        let mut lead = Vec::new();
        let mut joined = Vec::with_capacity(ids.len());
        {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ids {
                let flight = flights.entry((tenant, *id)).or_insert_with(|| {
                    let (sender, receiver) = watch::channel(None);
                    lead.push((*id, sender));
                    receiver
                });
                joined.push((*id, flight.clone()));
            }
        }
        if !lead.is_empty() {
            tokio::spawn(self.clone().fly(tenant, lead));
        }
        joined
    }

    async fn fly(self: Arc<Self>, tenant: TenantUid, lead: Vec<(DekId, watch::Sender<Option<Flight>>)>) {
        // The flights are taken down on every way out, a panic included: nobody must wait for one that is gone.
        struct TakeDown<'a>(&'a Keyring, TenantUid, Vec<DekId>);
        impl Drop for TakeDown<'_> {
            fn drop(&mut self) {
                let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
                self.2.iter().for_each(|id| drop(flights.remove(&(self.1, *id))));
            }
        }
        let ids: Vec<DekId> = lead.iter().map(|(id, _)| *id).collect();
        let take_down = TakeDown(&self, tenant, ids.clone());
        let mut fetched = self.fetch(tenant, &ids).await;
        for (id, _) in &lead {
            if let Some(Ok(sealed)) = fetched.get(id) {
                self.cache.put(tenant, *id, sealed.clone());
            }
        }
        drop(take_down);
        for (id, sender) in lead {
            let outcome = fetched.remove(&id).unwrap_or(Err(KeyringError::Missing));
            let _ = sender.send(Some(outcome));
        }
    }

    async fn fetch(&self, tenant: TenantUid, ids: &[DekId]) -> HashMap<DekId, Flight> {
        let rows = match self.store.deks(tenant, ids).await {
            Ok(rows) => rows,
            Err(error) => return ids.iter().map(|id| (*id, Err(KeyringError::Store(error)))).collect(),
        };
        if rows.is_empty() {
            return HashMap::new();
        }
        let wrapped: Vec<_> =
            rows.into_iter().map(|row| (DekBinding { tenant, dek_id: row.id }, row.wrapped)).collect();
        let answers = self.kms.unwrap(&wrapped).await;
        let seal = |(binding, wrapped): (DekBinding, crate::model::Wrapped), answer: ItemResult<Dek>| {
            let outcome = answer.map_err(KeyringError::Kms).map(|answer| {
                let version = wrapped.key_version;
                Arc::new(self.cache.seal(tenant, binding.dek_id, &answer.value, version, answer.request_id))
            });
            (binding.dek_id, outcome)
        };
        wrapped.into_iter().zip(answers).map(|(wrapped, answer)| seal(wrapped, answer)).collect()
    }
}

/// Gives each of the caller's places its DEK; only the first place of a fresh DEK carries the row to commit.
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
