//! What this process has seen of each tenant's rows. It only remembers; nothing here is read from
//! the database.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{BootTime, DekId, TenantUid};

/// How long this process relies on the answer that a tenant's rows are not all sealed.
const NOT_SEALED_LASTS: Duration = Duration::from_secs(5);
/// How many contradicted rows of a tenant are remembered.
const MAX_CONTRADICTED: usize = 10_000;

/// The MACs that a row would have if it were sealed. While they are equal, the row is unchanged.
pub(super) type ExpectedMacs = (Option<[u8; 32]>, Option<[u8; 32]>);

#[derive(Default)]
pub(super) struct KnownRows {
    /// The tenants whose rows are all sealed (`Ok`), or when it was last seen that they are not
    /// (`Err`).
    sealed: Mutex<HashMap<TenantUid, Result<(), BootTime>>>,
    /// The tenants whose log was damaged when rows were last compared with it.
    damaged: Mutex<HashSet<TenantUid>>,
    /// Unsealed rows that the log contradicts, in the state in which they were compared.
    contradicted: Mutex<HashMap<TenantUid, HashMap<DekId, ExpectedMacs>>>,
}

impl KnownRows {
    /// Returns whether all of a tenant's rows are sealed, if that was looked up recently.
    pub(super) fn all_sealed(&self, tenant: TenantUid, now: BootTime) -> Option<bool> {
        match lock(&self.sealed).get(&tenant).copied()? {
            Ok(()) => Some(true),
            Err(looked_up) if now.since(looked_up) < NOT_SEALED_LASTS => Some(false),
            Err(_) => None,
        }
    }

    /// Notes whether all of a tenant's rows are sealed, as it was looked up at this time. Returns
    /// what counts: once they were seen to be sealed, they are.
    pub(super) fn note_lookup(&self, tenant: TenantUid, is_sealed: bool, looked_up: BootTime) -> bool {
        let found = if is_sealed { Ok(()) } else { Err(looked_up) };
        let mut sealed = lock(&self.sealed);
        let known = sealed.entry(tenant).and_modify(|before| *before = before.or(found)).or_insert(found);
        known.is_ok()
    }

    pub(super) fn note_all_sealed(&self, tenant: TenantUid) {
        lock(&self.sealed).insert(tenant, Ok(()));
    }

    pub(super) fn is_damaged(&self, tenant: TenantUid) -> bool {
        lock(&self.damaged).contains(&tenant)
    }

    /// Notes whether the log was damaged when rows were compared with it.
    pub(super) fn note_damaged(&self, tenant: TenantUid, is_damaged: bool) {
        let mut damaged = lock(&self.damaged);
        if is_damaged {
            damaged.insert(tenant);
        } else {
            damaged.remove(&tenant);
        }
    }

    /// Notes that the log contradicts a row with these MACs. Returns whether there was room for
    /// that.
    pub(super) fn note_contradicted(
        &self,
        tenant: TenantUid,
        id: DekId,
        macs: impl FnOnce() -> ExpectedMacs,
    ) -> bool {
        let mut contradicted = lock(&self.contradicted);
        let of_tenant = contradicted.entry(tenant).or_default();
        let is_room = of_tenant.len() < MAX_CONTRADICTED || of_tenant.contains_key(&id);
        if is_room {
            of_tenant.insert(id, macs());
        }
        is_room
    }

    /// Returns whether the log was found to contradict a row with these MACs.
    pub(super) fn is_contradicted(
        &self,
        tenant: TenantUid,
        id: DekId,
        macs: impl FnOnce() -> ExpectedMacs,
    ) -> bool {
        let contradicted = lock(&self.contradicted);
        let noted = contradicted.get(&tenant).and_then(|of_tenant| of_tenant.get(&id));
        noted.is_some_and(|noted| *noted == macs())
    }

    /// Returns whether the log contradicts more rows of a tenant than are remembered.
    pub(super) fn is_full(&self, tenant: TenantUid) -> bool {
        lock(&self.contradicted).get(&tenant).is_some_and(|of_tenant| of_tenant.len() >= MAX_CONTRADICTED)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
