//! The rows of DEKs against the log. An entry of `encrypt` that was not refused makes the row of a DEK that it names first; one
//! of `rotate` gives it another key version, and other wrapped bytes. Nothing else does. Entries of form 2 hold the SHA-256 of the
//! wrapped bytes. Looks at a range of DEK ids at a time, since there may be more of them than memory has room for: about 150 MB
//! for a million.

use std::collections::{BTreeMap, HashMap};

use super::super::bundle::{BundleEntry, BundleItem};
use super::finding::Finding;
use super::report::Report;
use crate::crypto::sha256;
use crate::model::{DekId, KeyVersion, Operation, TenantUid};
use crate::store::{DekRow, ReadError, Store};

/// How many rows one pass over the log looks at.
const RANGE: usize = 1_000_000;
const PAGE: u32 = 1_000;
/// How many DEKs without a row a pass remembers.
const GONE: usize = 10_000;

/// Key versions by number: there are few, and a DEK holds two.
#[derive(Default)]
struct Versions {
    all: Vec<KeyVersion>,
    numbers: HashMap<KeyVersion, u32>,
}

impl Versions {
    fn number(&mut self, version: KeyVersion) -> u32 {
        if let Some(number) = self.numbers.get(&version) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(version.clone());
        self.numbers.insert(version, number);
        number
    }
}

#[derive(Clone, Copy, Default)]
struct Dek {
    row: Option<u32>,
    /// SHA-256 of the wrapped bytes in the row.
    holds: [u8; 32],
    /// What the entry that made or re-wrapped it last says of these, where it is of form 2.
    given: Option<[u8; 32]>,
    /// By the last rotation.
    rotated: Option<u32>,
    /// By the entry that made it.
    made: Option<u32>,
}

/// A range of DEKs, and what the log said of them so far.
pub(super) struct Deks {
    known: HashMap<DekId, Dek>,
    versions: Versions,
    after: Option<DekId>,
    /// The last id of the range; `None` when it is open.
    until: Option<DekId>,
    /// Whether all that was ever logged was seen.
    whole: bool,
    gone: usize,
    /// Whether ids that have no row are looked for.
    closed: bool,
}

impl Deks {
    /// None, and none that is looked for.
    pub(super) fn none() -> Self {
        Self {
            known: HashMap::new(),
            versions: Versions::default(),
            after: None,
            until: None,
            whole: false,
            gone: 0,
            closed: true,
        }
    }

    /// The rows of the next range, as they are now.
    pub(super) async fn read(
        store: &dyn Store,
        tenant: TenantUid,
        after: Option<DekId>,
        whole: bool,
    ) -> Result<Self, ReadError> {
        let mut deks = Self { after, whole, closed: false, ..Self::none() };
        let mut last = after;
        while deks.known.len() < RANGE {
            let rows = store.deks_after(tenant, last, PAGE).await?;
            let more = rows.len() == PAGE as usize;
            last = rows.last().map(|row| row.id).or(last);
            rows.iter().for_each(|row| deks.row(row));
            if !more {
                return Ok(deks);
            }
        }
        deks.until = last;
        Ok(deks)
    }

    /// These rows and no others, of which nothing is known yet. `whole` where the log begins with the tenant's first entry.
    pub(super) fn of(rows: &[DekRow], whole: bool) -> Self {
        let mut deks = Self { whole, ..Self::none() };
        rows.iter().for_each(|row| deks.row(row));
        deks
    }

    /// What the log has against a row.
    pub(super) fn finding_of(&self, id: DekId) -> Option<Finding> {
        self.finding(id, *self.known.get(&id)?)
    }

    /// Where the next range begins; `None` when this is the last.
    pub(super) fn next(&self) -> Option<DekId> {
        self.until
    }

    /// Whether nothing of the log was missing so far.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    fn row(&mut self, row: &DekRow) {
        let version = self.versions.number(row.wrapped.key_version.clone());
        let dek = self.known.entry(row.id).or_default();
        (dek.row, dek.holds) = (Some(version), sha256(&row.wrapped.bytes));
    }

    /// What an entry says; those that were altered say nothing.
    pub(super) fn observe(&mut self, entry: &BundleEntry) {
        let rotates = entry.operation == Operation::Rotate.as_str();
        if !rotates && entry.operation != Operation::Encrypt.as_str() {
            return;
        }
        for item in &entry.items {
            self.observe_item(item, rotates);
        }
    }

    fn observe_item(&mut self, item: &BundleItem, rotates: bool) {
        let (Some(id), Some(key), Some(version), None) =
            (item.dek_id, &item.key, &item.version, &item.refused)
        else {
            return;
        };
        let id = DekId(id.0);
        if self.after.is_some_and(|after| id <= after) || self.until.is_some_and(|until| id > until) {
            return;
        }
        if !self.known.contains_key(&id) {
            if self.closed || self.gone == GONE {
                return;
            }
            self.gone += 1;
        }
        let number = self.versions.number(KeyVersion::new(key.as_str(), version.as_str()));
        let dek = self.known.entry(id).or_default();
        let given = item.wrapped_hash.as_ref().map(|hash| hash.0);
        match rotates {
            true => (dek.rotated, dek.given) = (Some(number), given),
            // A later encrypt may have taken it from a cache, under the version that it had before. Only the one that made it
            // says what was wrapped.
            false if dek.rotated.is_none() => {
                (dek.made, dek.given) = (dek.made.or(Some(number)), dek.given.or(given));
            }
            false => dek.made = dek.made.or(Some(number)),
        }
    }

    /// Part of the log is not there: what was said before may have been overtaken there.
    pub(super) fn gap(&mut self) {
        self.whole = false;
        for dek in self.known.values_mut() {
            (dek.rotated, dek.made, dek.given) = (None, None, None);
        }
    }

    fn finding(&self, id: DekId, dek: Dek) -> Option<Finding> {
        let said = match (dek.rotated, self.whole) {
            (Some(rotated), _) => Some(rotated),
            (None, true) => dek.made,
            (None, false) => None,
        };
        let version = |number: u32| self.versions.all.get(number as usize).cloned();
        match (dek.row, said) {
            (None, Some(_)) => Some(Finding::DekGone { dek: id }),
            (None, None) => dek.made.map(|_| Finding::DekGone { dek: id }),
            (Some(_), _) if self.whole && dek.made.is_none() => Some(Finding::DekUnnamed { dek: id }),
            (Some(row), Some(log)) if row != log => {
                Some(Finding::DekVersion { dek: id, row: version(row)?, log: version(log)? })
            }
            (Some(_), _) if dek.given.is_some_and(|given| given != dek.holds) => {
                Some(Finding::DekWrapped { dek: id })
            }
            (Some(_), _) => None,
        }
    }

    /// Keeps only those that are not as the log says; whether there are any.
    pub(super) fn doubt(&mut self) -> bool {
        let doubted: Vec<DekId> = self
            .known
            .iter()
            .filter(|(id, dek)| self.finding(**id, **dek).is_some())
            .map(|(id, _)| *id)
            .collect();
        let mut kept = HashMap::with_capacity(doubted.len());
        for id in doubted {
            if let Some(dek) = self.known.get(&id) {
                kept.insert(id, *dek);
            }
        }
        self.known = kept;
        self.closed = true;
        !self.known.is_empty()
    }

    /// Reads the rows again of those that are left: the server may have been at work meanwhile.
    pub(super) async fn read_again(&mut self, store: &dyn Store, tenant: TenantUid) -> Result<(), ReadError> {
        let ids: Vec<DekId> = self.known.keys().copied().collect();
        for dek in self.known.values_mut() {
            dek.row = None;
        }
        for ids in ids.chunks(PAGE as usize) {
            store.deks(tenant, ids).await?.iter().for_each(|row| self.row(row));
        }
        Ok(())
    }

    /// Says what is left, in the order of ids.
    pub(super) fn settle(self, report: &mut Report) {
        let found: BTreeMap<DekId, Finding> =
            self.known.iter().filter_map(|(id, dek)| Some((*id, self.finding(*id, *dek)?))).collect();
        found.into_values().for_each(|finding| report.find(finding));
    }
}
