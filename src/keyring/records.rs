//! DEKs by record: the newest one of each record, or a new one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::kms::Purpose;
use crate::model::{DekId, KeyId, Source, Tenant, TenantUid, Timestamp};
use crate::store::{DekRow, ReadError};

use super::Keyring;
use super::dek::{KeyringError, PlainDek, RecordDek};
use super::dek_memory::CurrentEpochs;
use super::generate::NewDek;
use super::pool::PooledDek;
use super::rows::RowUse;

type FoundDek = Result<RecordDek, KeyringError>;

impl Keyring {
    /// Returns the newest DEK of each record, one result for each, in order. Makes a new one for
    /// each record that has none, and for each `None`. A record that is named twice gets one DEK.
    pub async fn by_record(
        self: &Arc<Self>,
        tenant: &Tenant,
        records: &[Option<Arc<str>>],
        now: Timestamp,
    ) -> Vec<FoundDek> {
        let known = match self.known_ids(tenant, records).await {
            Ok(known) => known,
            Err(error) => return records.iter().map(|_| Err(KeyringError::Store(error))).collect(),
        };
        let (distinct, index_of) = distinct(records);
        let existing = self.existing_deks(tenant, &distinct, &known).await;
        let mut deks = self.with_new_deks(tenant, &distinct, existing, now).await;
        expand(&index_of, &mut deks)
    }

    /// Puts a DEK whose row is now durable into the cache.
    pub fn cache_committed(&self, tenant: &Tenant, row: &DekRow, dek: &PlainDek) {
        let cache = &self.memory.cache;
        let under = (dek.key_version.clone(), dek.epoch);
        let request_id = dek.kms_request_id.clone();
        let cached = cache.seal(tenant.uid, row.id, &dek.plain, under, request_id, dek.row_is_sealed);
        self.memory.cache_if_current(tenant.uid, row.id, Arc::new(cached));
        if let Some(record) = &row.record_id {
            cache.put_record(tenant.uid, record.clone(), row.id);
        }
    }

    /// Returns the id of the newest DEK of each record that has one, or why it may not be used.
    async fn known_ids(
        self: &Arc<Self>,
        tenant: &Tenant,
        records: &[Option<Arc<str>>],
    ) -> Result<HashMap<Arc<str>, Result<DekId, KeyringError>>, ReadError> {
        let mut known = HashMap::new();
        let mut unknown: Vec<Arc<str>> = Vec::new();
        for record in records.iter().flatten() {
            match self.memory.cache.get_record(tenant.uid, record) {
                Some(id) => drop(known.insert(record.clone(), Ok(id))),
                None => unknown.push(record.clone()),
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(known);
        }
        let store = self.store.clone();
        let read = move |tenant, records: Vec<Arc<str>>| {
            let store = store.clone();
            async move { store.deks_of_records(tenant, &records).await }
        };
        let rows = self.lookups.newest(tenant.uid, unknown, read).await?;
        let checked = self.rows.check_all(tenant, &rows, RowUse::Encrypt).await;
        for (row, checked) in rows.into_iter().zip(checked) {
            let Some(record) = row.record_id else { continue };
            if checked.is_ok() {
                self.memory.cache.put_record(tenant.uid, record.clone(), row.id);
            }
            known.insert(record, checked.map(|()| row.id));
        }
        Ok(known)
    }

    /// Returns the DEK of each record that has one, `None` for the others.
    async fn existing_deks(
        self: &Arc<Self>,
        tenant: &Tenant,
        distinct: &[Option<&Arc<str>>],
        known: &HashMap<Arc<str>, Result<DekId, KeyringError>>,
    ) -> Vec<Option<FoundDek>> {
        let ids: Vec<Option<Result<DekId, KeyringError>>> =
            distinct.iter().map(|record| record.and_then(|record| known.get(record).cloned())).collect();
        let existing: Vec<DekId> = ids.iter().flatten().filter_map(|id| id.as_ref().ok().copied()).collect();
        let mut opened = self.by_id(tenant, &existing).await.into_iter();
        let mut find = |record: &Option<&Arc<str>>, id: Option<Result<DekId, KeyringError>>| {
            let id = match id? {
                Ok(id) => id,
                Err(error) => return Some(Err(error)),
            };
            match opened.next()? {
                // It may have been unwrapped for a decrypt, from a row that has changed since.
                Ok(dek) if !dek.row_is_sealed && self.rows.requires_sealed_row(tenant.uid) => {
                    Some(Err(KeyringError::Unsealed))
                }
                Ok(dek) => Some(Ok(RecordDek { id, dek: Arc::new(dek), new_row: None })),
                Err(KeyringError::Missing) => {
                    // Its row is gone, so the record counts as new.
                    record.iter().for_each(|record| self.memory.cache.remove_record(tenant.uid, record));
                    None
                }
                Err(error) => Some(Err(error)),
            }
        };
        distinct.iter().zip(ids).map(|(record, id)| find(record, id)).collect()
    }

    /// Gives a new DEK to each record that has none: from the pool, then from the KMS.
    async fn with_new_deks(
        self: &Arc<Self>,
        tenant: &Tenant,
        distinct: &[Option<&Arc<str>>],
        existing: Vec<Option<FoundDek>>,
        now: Timestamp,
    ) -> Vec<FoundDek> {
        let count = existing.iter().filter(|dek| dek.is_none()).count();
        let mut new = self.take_from_pool(tenant, count);
        new.extend(self.make_deks(tenant, count - new.len(), Purpose::Record).await);
        let mut new = new.into_iter();
        let mut next = |record: &Option<&Arc<str>>| {
            let (id, made) = new.next().ok_or_else(KeyringError::internal)?;
            let (dek, wrapped) = made?;
            let record_id = record.cloned();
            let mut row = DekRow { id, record_id, wrapped, created_at: now, mac: None, record_mac: None };
            self.rows.seal(tenant.uid, &mut row);
            Ok(RecordDek { id, dek: Arc::new(dek), new_row: Some(row) })
        };
        distinct.iter().zip(existing).map(|(record, dek)| dek.unwrap_or_else(|| next(record))).collect()
    }

    /// Returns up to `count` DEKs that were made ahead, each of which is given out only this once.
    fn take_from_pool(&self, tenant: &Tenant, count: usize) -> Vec<(DekId, NewDek)> {
        let pool = &self.memory.pool;
        let mut taken = Vec::new();
        if pool.is_off() || count == 0 {
            return taken;
        }
        let now = self.clock.boot();
        pool.note_demand(tenant, now);
        let (mut known, mut discarded) = (CurrentEpochs::default(), 0);
        let key_id = self.tenants.known(tenant.uid).map(|runtime| runtime.keys.current_id());
        while taken.len() < count
            && let Some(pooled) = pool.take(tenant.uid, now)
        {
            match self.open_pooled(tenant.uid, key_id, &pooled, &mut known) {
                Some(dek) => taken.push((pooled.id, Ok((dek, pooled.wrapped)))),
                None => discarded += 1,
            }
        }
        pool.count_taken(taken.len(), discarded);
        taken
    }

    /// Opens a DEK of the pool if it was made under this key, the tenant's current one, and the
    /// version that the KMS wraps under now. This is not a proof that the key works: the DEK may
    /// have been made long ago.
    fn open_pooled(
        &self,
        tenant: TenantUid,
        key_id: Option<KeyId>,
        pooled: &PooledDek,
        known: &mut CurrentEpochs,
    ) -> Option<PlainDek> {
        let PooledDek { id, cached, .. } = pooled;
        let may_use = key_id == Some(cached.key_version.key_id)
            && self.states.current.is(tenant, &cached.key_version)
            && self.memory.is_current_among(tenant, cached, known);
        may_use.then(|| self.memory.cache.open(tenant, *id, cached, Source::Cache)).flatten()
    }
}

/// Returns each record once, and each `None`, with the index in that list for each of the records.
fn distinct(records: &[Option<Arc<str>>]) -> (Vec<Option<&Arc<str>>>, Vec<usize>) {
    let mut indices: HashMap<&Arc<str>, usize> = HashMap::new();
    let mut distinct: Vec<Option<&Arc<str>>> = Vec::new();
    let index_of = records
        .iter()
        .map(|record| {
            let next = distinct.len();
            let index = record.as_ref().map_or(next, |record| *indices.entry(record).or_insert(next));
            if index == next {
                distinct.push(record.as_ref());
            }
            index
        })
        .collect();
    (distinct, index_of)
}

/// Gives each of the caller's records its DEK. Only the first record that uses a new DEK gets the
/// row to commit.
fn expand(index_of: &[usize], deks: &mut [FoundDek]) -> Vec<FoundDek> {
    index_of
        .iter()
        .map(|index| match &mut deks[*index] {
            Ok(found) => {
                Ok(RecordDek { id: found.id, dek: found.dek.clone(), new_row: found.new_row.take() })
            }
            Err(error) => Err(error.clone()),
        })
        .collect()
}
