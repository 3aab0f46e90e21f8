//! The DEK cache: bounded, with a time to live. moka drops values late (measured: none within two
//! seconds of an invalidation without traffic). Cached DEKs are therefore sealed under a key of the
//! tenant that exists only in memory. Dropping that one key, which zeroizes it, is what empties the
//! cache.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use moka::sync::Cache as Moka;

use crate::config::DekCache;
use crate::crypto::{Dek, SealedDek, SealingKey};
use crate::model::{DekId, KeyVersion, Source, TenantUid};

use super::dek::PlainDek;

/// A DEK in the form in which the cache, the pool and the fetches hold it.
pub(super) struct CachedDek {
    dek: SealedDek,
    pub(super) key_version: KeyVersion,
    /// The epoch of its key version under which it was unwrapped or made.
    pub(super) epoch: u64,
    kms_request_id: Option<Arc<str>>,
    /// Whether the row that it was unwrapped from had its MACs. Also true for a DEK that was made
    /// here.
    pub(super) row_is_sealed: bool,
    /// The key that it is sealed under, for as long as that key exists.
    key: Weak<SealingKey>,
}

impl CachedDek {
    /// Returns whether it can still be opened.
    pub(super) fn opens(&self) -> bool {
        self.key.strong_count() > 0
    }
}

pub(super) struct Cache {
    deks: Moka<(TenantUid, DekId), Arc<CachedDek>>,
    /// The newest DEK of each record. This is not a secret, but it saves encrypt a read.
    records: Moka<(TenantUid, Arc<str>), (DekId, Weak<SealingKey>)>,
    sealing_keys: DashMap<TenantUid, Arc<SealingKey>>,
    settings: DekCache,
}

impl Cache {
    pub(super) fn new(settings: DekCache) -> Self {
        // moka takes a time to live of zero to mean that nothing expires. `is_on` turns the cache
        // off.
        let time_to_live = settings.time_to_live.max(Duration::from_secs(1));
        Self {
            deks: Moka::builder().max_capacity(settings.entries).time_to_live(time_to_live).build(),
            records: Moka::builder().max_capacity(settings.entries).time_to_live(time_to_live).build(),
            sealing_keys: DashMap::new(),
            settings,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.settings.time_to_live.is_zero()
    }

    /// Returns how long a DEK stays in the cache.
    pub(super) fn time_to_live(&self) -> Duration {
        self.settings.time_to_live
    }

    pub(super) fn get(&self, tenant: TenantUid, id: DekId) -> Option<Arc<CachedDek>> {
        if self.is_on() { self.deks.get(&(tenant, id)) } else { None }
    }

    pub(super) fn put(&self, tenant: TenantUid, id: DekId, sealed: Arc<CachedDek>) {
        if self.is_on() {
            self.deks.insert((tenant, id), sealed);
        }
    }

    pub(super) fn remove(&self, tenant: TenantUid, id: DekId) {
        self.deks.invalidate(&(tenant, id));
    }

    pub(super) fn get_record(&self, tenant: TenantUid, record: &Arc<str>) -> Option<DekId> {
        let known = if self.is_on() { self.records.get(&(tenant, record.clone())) } else { None };
        // What was known before the tenant's DEKs were dropped is read again.
        known.filter(|(_, key)| key.strong_count() > 0).map(|(id, _)| id)
    }

    pub(super) fn put_record(&self, tenant: TenantUid, record: Arc<str>, id: DekId) {
        if self.is_on() {
            let key = Arc::downgrade(&self.sealing_key(tenant));
            self.records.insert((tenant, record), (id, key));
        }
    }

    pub(super) fn remove_record(&self, tenant: TenantUid, record: &Arc<str>) {
        self.records.invalidate(&(tenant, record.clone()));
    }

    /// Empties the cache of one tenant. The sealed bytes stay until moka drops them, but nothing
    /// can open them.
    pub(super) fn clear_tenant(&self, tenant: TenantUid) {
        self.sealing_keys.remove(&tenant);
    }

    pub(super) fn len(&self) -> u64 {
        self.deks.entry_count()
    }

    pub(super) fn seal(
        &self,
        tenant: TenantUid,
        id: DekId,
        dek: &Dek,
        (key_version, epoch): (KeyVersion, u64),
        kms_request_id: Option<Arc<str>>,
        row_is_sealed: bool,
    ) -> CachedDek {
        let key = self.sealing_key(tenant);
        let dek = key.seal(dek, &bound_to(tenant, id));
        CachedDek { dek, key_version, epoch, kms_request_id, row_is_sealed, key: Arc::downgrade(&key) }
    }

    /// Opens a sealed DEK. Returns `None` if it was sealed under a key other than the tenant's
    /// current sealing key.
    pub(super) fn open(
        &self,
        tenant: TenantUid,
        id: DekId,
        cached: &CachedDek,
        source: Source,
    ) -> Option<PlainDek> {
        let plain = self.sealing_key(tenant).open(&cached.dek, &bound_to(tenant, id))?;
        let key_version = cached.key_version.clone();
        let kms_request_id = cached.kms_request_id.clone();
        Some(PlainDek {
            plain,
            key_version,
            epoch: cached.epoch,
            source,
            kms_request_id,
            row_is_sealed: cached.row_is_sealed,
        })
    }

    fn sealing_key(&self, tenant: TenantUid) -> Arc<SealingKey> {
        if let Some(key) = self.sealing_keys.get(&tenant) {
            return key.clone();
        }
        self.sealing_keys.entry(tenant).or_insert_with(|| Arc::new(SealingKey::generate())).clone()
    }
}

fn bound_to(tenant: TenantUid, id: DekId) -> [u8; 32] {
    let mut bound = [0; 32];
    bound[..16].copy_from_slice(&tenant.0);
    bound[16..].copy_from_slice(id.as_bytes());
    bound
}
