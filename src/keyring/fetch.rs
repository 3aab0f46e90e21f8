//! DEKs by id: from the cache, or fetched from the store and the KMS. One fetch serves all callers
//! that wait for the same DEK.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::kms::{DekBinding, KmsError, Purpose, Verdict};
use crate::model::{DekId, KeyVersion, Posture, Source, Tenant, TenantUid};
use crate::store::DekRow;

use super::Keyring;
use super::cache::CachedDek;
use super::dek::{KeyringError, PlainDek};
use super::dek_memory::CurrentEpochs;
use super::prober::BatchEpochs;
use super::rows::RowUse;

/// The result of a fetch.
type Fetched = Result<Arc<CachedDek>, KeyringError>;
/// Where the callers wait for the result of a fetch; `None` until it is there.
type PendingFetch = watch::Receiver<Option<Fetched>>;

/// The fetches that are under way.
#[derive(Default)]
pub(super) struct Fetches(Mutex<HashMap<(TenantUid, DekId), PendingFetch>>);

impl Fetches {
    fn lock(&self) -> MutexGuard<'_, HashMap<(TenantUid, DekId), PendingFetch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes fetches when they end, also by a panic, so that no caller waits for a fetch that is
/// gone.
struct RemoveOnDrop<'a>(&'a Fetches, TenantUid, Vec<DekId>);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let mut fetches = self.0.lock();
        self.2.iter().for_each(|id| drop(fetches.remove(&(self.1, *id))));
    }
}

impl Keyring {
    /// Returns the DEKs with these ids, one result for each, in order. Ids that are not in memory
    /// are read and unwrapped together. If a caller hangs up, the work continues for the others
    /// that wait.
    pub async fn by_id(
        self: &Arc<Self>,
        tenant: &Tenant,
        ids: &[DekId],
    ) -> Vec<Result<PlainDek, KeyringError>> {
        let mut results: Vec<Option<Result<PlainDek, KeyringError>>> = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        // What is known of key versions does not change during one pass over the cache.
        let mut current = CurrentEpochs::default();
        for id in ids {
            let cache = &self.memory.cache;
            let hit = cache
                .get(tenant.uid, *id)
                .filter(|cached| self.memory.is_current_among(tenant.uid, cached, &mut current))
                .and_then(|cached| cache.open(tenant.uid, *id, &cached, Source::Cache));
            if hit.is_none() {
                missing.push(*id);
            }
            results.push(hit.map(Ok));
        }
        if missing.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let mut fetched: HashMap<DekId, Fetched> = HashMap::with_capacity(missing.len());
        for (id, mut pending) in self.join_fetches(tenant, &missing) {
            let result = match pending.wait_for(Option::is_some).await {
                Ok(result) => result.clone(),
                Err(_) => None,
            };
            fetched.insert(id, result.unwrap_or_else(|| Err(KeyringError::internal())));
        }
        let open = |id: &DekId| self.open_fetched(tenant.uid, *id, &fetched[id]);
        ids.iter().zip(results).map(|(id, hit)| hit.unwrap_or_else(|| open(id))).collect()
    }

    fn open_fetched(
        &self,
        tenant: TenantUid,
        id: DekId,
        fetched: &Fetched,
    ) -> Result<PlainDek, KeyringError> {
        let cached = fetched.as_ref().map_err(Clone::clone)?;
        // If it does not open, the posture changed while the fetch was under way.
        self.memory.cache.open(tenant, id, cached, Source::Kms).ok_or_else(|| {
            let state = self.states.get(tenant, &cached.key_version);
            KeyringError::KeyUnusable(state.map_or(Posture::Degraded, |state| state.posture))
        })
    }

    /// Joins the fetches of these ids, and starts one for the ids that nobody is fetching.
    fn join_fetches(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> Vec<(DekId, PendingFetch)> {
        let mut to_fetch = Vec::new();
        let mut joined = Vec::with_capacity(ids.len());
        {
            let mut fetches = self.fetches.lock();
            for id in ids {
                let fetch = fetches.entry((tenant.uid, *id)).or_insert_with(|| {
                    let (sender, receiver) = watch::channel(None);
                    to_fetch.push((*id, sender));
                    receiver
                });
                joined.push((*id, fetch.clone()));
            }
        }
        if !to_fetch.is_empty() {
            tokio::spawn(self.clone().run_fetch(tenant.clone(), to_fetch));
        }
        joined
    }

    async fn run_fetch(
        self: Arc<Self>,
        tenant: Tenant,
        to_fetch: Vec<(DekId, watch::Sender<Option<Fetched>>)>,
    ) {
        let ids: Vec<DekId> = to_fetch.iter().map(|(id, _)| *id).collect();
        let remove = RemoveOnDrop(&self.fetches, tenant.uid, ids.clone());
        let mut fetched = self.fetch(&tenant, &ids).await;
        for id in &ids {
            // A DEK that may not encrypt is read again each time, so that it may encrypt as soon as
            // its row is sealed.
            if let Some(Ok(cached)) = fetched.get(id)
                && (cached.row_is_sealed || !self.rows.requires_sealed_row(tenant.uid))
            {
                self.memory.cache_if_current(tenant.uid, *id, cached.clone());
            }
        }
        drop(remove);
        for (id, sender) in to_fetch {
            let result = fetched.remove(&id).unwrap_or(Err(KeyringError::Missing));
            let _ = sender.send(Some(result));
        }
    }

    /// Reads and unwraps DEKs. If the KMS refused the key version, the DEKs that a rotation has
    /// re-wrapped since they were read are read and unwrapped once more: the previous version may
    /// be turned off as soon as the rotation is done.
    async fn fetch(self: &Arc<Self>, tenant: &Tenant, ids: &[DekId]) -> HashMap<DekId, Fetched> {
        let rows = match self.store.deks(tenant.uid, ids).await {
            Ok(rows) => rows,
            Err(error) => return ids.iter().map(|id| (*id, Err(KeyringError::Store(error)))).collect(),
        };
        let versions: HashMap<DekId, KeyVersion> =
            rows.iter().map(|row| (row.id, row.wrapped.key_version.clone())).collect();
        let mut fetched = self.unwrap_rows(tenant, rows).await;
        let is_refused = |result: &Fetched| matches!(result, Err(KeyringError::Kms(error)) if error.class.verdict() == Verdict::Revoked);
        let refused: Vec<DekId> =
            fetched.iter().filter(|(_, result)| is_refused(result)).map(|(id, _)| *id).collect();
        if !refused.is_empty()
            && let Ok(mut rows) = self.store.deks(tenant.uid, &refused).await
        {
            rows.retain(|row| versions.get(&row.id) != Some(&row.wrapped.key_version));
            fetched.extend(self.unwrap_rows(tenant, rows).await);
        }
        fetched
    }

    async fn unwrap_rows(self: &Arc<Self>, tenant: &Tenant, rows: Vec<DekRow>) -> HashMap<DekId, Fetched> {
        let mut fetched: HashMap<DekId, Fetched> = HashMap::with_capacity(rows.len());
        // The epoch of each row's key version before anything is unwrapped under it.
        let mut epochs = BatchEpochs::default();
        let mut batch = Vec::with_capacity(rows.len());
        let mut of_rows = Vec::with_capacity(rows.len());
        let checked = self.rows.check_all(tenant, &rows, RowUse::Open).await;
        for (row, checked) in rows.into_iter().zip(checked) {
            let epoch = match checked {
                Ok(()) => epochs.of_row(&self.prober, tenant, &row).await,
                Err(error) => Err(error),
            };
            match epoch {
                Ok(epoch) => {
                    let (tenant, dek_id, purpose) = (tenant.uid, row.id, Purpose::Record);
                    of_rows.push((epoch, row.mac.is_some()));
                    batch.push((DekBinding { tenant, dek_id, purpose }, row.wrapped));
                }
                Err(error) => drop(fetched.insert(row.id, Err(error))),
            }
        }
        if batch.is_empty() {
            return fetched;
        }
        let sent = self.clock.boot();
        let answers = match self.tenants.with(tenant.uid).await {
            Ok(runtime) => runtime.keys.unwrap(&batch).await,
            Err(not_served) => {
                let error = KeyringError::from(not_served);
                fetched.extend(batch.iter().map(|(binding, _)| (binding.dek_id, Err(error.clone()))));
                return fetched;
            }
        };
        let mut refused: HashMap<KeyVersion, KmsError> = HashMap::new();
        for (((binding, wrapped), (epoch, row_is_sealed)), answer) in
            batch.into_iter().zip(of_rows).zip(answers)
        {
            let version = wrapped.key_version;
            let result = match answer {
                Ok(answer) => {
                    self.states.note_unwrap(tenant.uid, &version, sent);
                    let under = (version, epoch);
                    let (id, dek, request_id) = (binding.dek_id, &answer.value, answer.request_id);
                    let cached =
                        self.memory.cache.seal(tenant.uid, id, dek, under, request_id, row_is_sealed);
                    Ok(Arc::new(cached))
                }
                Err(error) => {
                    if error.class.verdict() == Verdict::Revoked {
                        refused.insert(version, error.clone());
                    }
                    Err(KeyringError::Kms(error))
                }
            };
            fetched.insert(binding.dek_id, result);
        }
        for (version, error) in &refused {
            self.prober.probe_if_refused(tenant, version, error);
        }
        fetched
    }
}
