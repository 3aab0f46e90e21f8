//! Checks the rows of DEKs against the log. An entry of `encrypt` that was not refused creates the
//! row of a DEK that it is the first to name; an entry of `rotate` gives the row another key
//! version, and other wrapped bytes. Nothing else changes these. Entries of form 2 hold the SHA-256
//! of the wrapped bytes. Each entry of `encrypt` names the record of the DEK that it used. The
//! check looks at a range of DEK ids at a time, since all of them may not fit into memory: a
//! million take about 220 MB.

use std::collections::{BTreeMap, HashMap};

use super::entry::{BundleEntry, BundleItem, Personal};
use super::finding::Finding;
use super::report::Report;
use crate::audit::recorded_id;
use crate::crypto::sha256;
use crate::model::{DekId, KeyId, KeyVersion, Operation, TenantUid};
use crate::store::{DekRow, LogReads, ReadError};

/// The number of rows that one pass over the log checks.
const RANGE: usize = 1_000_000;
const PAGE: u32 = 1_000;
/// The number of DEKs without a row that a pass remembers.
const GONE: usize = 10_000;
/// How much later than the first existing entry a DEK must have been made to need an entry of its
/// own, in milliseconds. The clocks of replicas differ.
const CERTAINLY_LATER: u64 = 24 * 3_600_000;

/// Key versions by number. There are few of them, and a DEK refers to two.
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

/// What the entries say about a DEK's record.
#[derive(Clone, Copy, Default)]
enum Named {
    /// No existing entry used the DEK, or the value is not the one that was hashed.
    #[default]
    Unknown,
    /// The DEK has no record, or its id was erased: an erasure removes the id from the row before
    /// it gets to the entries.
    Nothing,
    /// The SHA-256 of the record's name in the log.
    Record([u8; 32]),
}

#[derive(Clone, Copy, Default)]
struct Dek {
    row: Option<u32>,
    /// The SHA-256 of the wrapped bytes in the row.
    holds: [u8; 32],
    /// The SHA-256 of the name that the log uses for the row's record.
    record: Option<[u8; 32]>,
    named: Named,
    /// The SHA-256 of the wrapped bytes according to the entry that last made or re-wrapped the
    /// DEK, if that entry is of form 2.
    given: Option<[u8; 32]>,
    /// The key version that the last rotation gave it.
    rotated: Option<u32>,
    /// The key version in the entry that made it.
    made: Option<u32>,
}

impl Dek {
    /// Returns the version that the log last gave it, if known.
    fn version(&self) -> Option<u32> {
        self.rotated.or(self.made)
    }

    fn has_its_record(&self) -> bool {
        match (self.record, self.named) {
            (None, _) | (_, Named::Unknown) => true,
            (Some(_), Named::Nothing) => false,
            (Some(row), Named::Record(log)) => row == log,
        }
    }
}

/// A range of DEKs, and what the walk has read about them so far.
pub(super) struct Deks {
    known: HashMap<DekId, Dek>,
    versions: Versions,
    after: Option<DekId>,
    /// The last id of the range; `None` if the range is open.
    until: Option<DekId>,
    /// Whether everything that was ever logged has been seen.
    whole: bool,
    /// The time of the first entry after the last gap in the log, in microseconds since 1970.
    since: Option<i64>,
    gone: usize,
    /// Whether the set of DEKs is closed: entries of DEKs that have no row are ignored.
    closed: bool,
}

impl Deks {
    /// Returns a set of no DEKs, to which none are added.
    pub(super) fn none() -> Self {
        Self {
            known: HashMap::new(),
            versions: Versions::default(),
            after: None,
            until: None,
            whole: false,
            since: None,
            gone: 0,
            closed: true,
        }
    }

    /// Reads the rows of the next range, as they are now.
    pub(super) async fn read(
        store: &dyn LogReads,
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

    /// Returns a set of exactly these rows, about which the log has not been read yet. `whole` says
    /// whether the log begins with the tenant's first entry.
    pub(super) fn of(rows: &[DekRow], whole: bool) -> Self {
        let mut deks = Self { whole, ..Self::none() };
        rows.iter().for_each(|row| deks.row(row));
        deks
    }

    /// Returns the finding about a row, if the log contradicts it.
    pub(super) fn finding_of(&self, id: DekId) -> Option<Finding> {
        self.finding(id, *self.known.get(&id)?)
    }

    /// Returns where the next range begins; `None` if this is the last one.
    pub(super) fn next(&self) -> Option<DekId> {
        self.until
    }

    /// Returns whether nothing of the log has been missing so far.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    fn row(&mut self, row: &DekRow) {
        let version = self.versions.number(row.wrapped.key_version.clone());
        let dek = self.known.entry(row.id).or_default();
        (dek.row, dek.holds) = (Some(version), sha256(&row.wrapped.bytes));
        dek.record = row.record_id.as_deref().map(record_hash);
    }

    /// Takes in what an entry says. Not to be called with entries that were altered.
    pub(super) fn observe(&mut self, entry: &BundleEntry) {
        self.since.get_or_insert(entry.at);
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
        let key_id = item.key_id.as_ref().map_or(KeyId::FIRST, |id| KeyId(*id.0.as_bytes()));
        let number = self.versions.number(KeyVersion::new(key.as_str(), version.as_str()).of(key_id));
        let dek = self.known.entry(id).or_default();
        let given = item.wrapped_hash.as_ref().map(|hash| hash.0);
        if rotates {
            // An entry of form 1 says about the wrapped bytes only that they changed, if the key
            // version changed.
            if given.is_some() || dek.version() != Some(number) {
                dek.given = given;
            }
            dek.rotated = Some(number);
            return;
        }
        if matches!(dek.named, Named::Unknown) {
            dek.named = named(item.record.as_ref());
        }
        // A later encrypt may have taken the DEK from a cache, under the version that it had
        // before. Only the entry that made the DEK says what was wrapped.
        if dek.rotated.is_none() {
            dek.given = dek.given.or(given);
        }
        dek.made = dek.made.or(Some(number));
    }

    /// Notes that part of the log is missing. Anything read before may have been superseded there.
    pub(super) fn gap(&mut self) {
        (self.whole, self.since) = (false, None);
        for dek in self.known.values_mut() {
            (dek.rotated, dek.made, dek.given, dek.named) = (None, None, None, Named::Unknown);
        }
    }

    fn finding(&self, id: DekId, dek: Dek) -> Option<Finding> {
        let logged = match (dek.rotated, self.whole) {
            (Some(rotated), _) => Some(rotated),
            (None, true) => dek.made,
            (None, false) => None,
        };
        let version = |number: u32| self.versions.all.get(number as usize).cloned();
        match (dek.row, logged) {
            (None, Some(_)) => Some(Finding::DekGone { dek: id }),
            (None, None) => dek.made.map(|_| Finding::DekGone { dek: id }),
            (Some(_), _) if dek.made.is_none() && self.must_be_named(id, dek) => {
                Some(Finding::DekUnnamed { dek: id })
            }
            (Some(row), Some(log)) if row != log => {
                Some(Finding::DekVersion { dek: id, row: version(row)?, log: version(log)? })
            }
            (Some(_), _) if dek.given.is_some_and(|given| given != dek.holds) => {
                Some(Finding::DekWrapped { dek: id })
            }
            (Some(_), _) if !dek.has_its_record() => Some(Finding::DekRecord { dek: id }),
            (Some(_), _) => None,
        }
    }

    /// Returns whether the entry that made a DEK must be among the existing ones: either all
    /// entries exist, or the DEK was made later than the first of them.
    fn must_be_named(&self, id: DekId, dek: Dek) -> bool {
        self.whole || (dek.rotated.is_none() && self.since.is_some_and(|since| is_later(id, since)))
    }

    /// Keeps only the DEKs that do not match the log, and returns whether there are any.
    pub(super) fn keep_mismatches(&mut self) -> bool {
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

    /// Reads the rows of the remaining DEKs again, because the server may have changed them
    /// meanwhile.
    pub(super) async fn read_again(
        &mut self,
        store: &dyn LogReads,
        tenant: TenantUid,
    ) -> Result<(), ReadError> {
        let ids: Vec<DekId> = self.known.keys().copied().collect();
        for dek in self.known.values_mut() {
            dek.row = None;
        }
        for ids in ids.chunks(PAGE as usize) {
            store.deks(tenant, ids).await?.iter().for_each(|row| self.row(row));
        }
        Ok(())
    }

    /// Reports the remaining mismatches, in the order of ids.
    pub(super) fn report_mismatches(self, report: &mut Report) {
        let found: BTreeMap<DekId, Finding> =
            self.known.iter().filter_map(|(id, dek)| Some((*id, self.finding(*id, *dek)?))).collect();
        found.into_values().for_each(|finding| report.find(finding));
    }
}

fn named(record: Option<&Personal>) -> Named {
    match record.map(|record| (record.matches(), &record.value)) {
        None | Some((None, _)) => Named::Nothing,
        Some((Some(true), Some(value))) => Named::Record(record_hash(value)),
        Some(_) => Named::Unknown,
    }
}

/// Returns the same hash for a record id and for the name that the log uses for it if it is long.
fn record_hash(record_id: &str) -> [u8; 32] {
    sha256(recorded_id(record_id).as_bytes())
}

/// Returns whether a DEK was certainly made after this moment, in microseconds since 1970,
/// according to the time in its id. An id that byok did not make counts as made now.
fn is_later(id: DekId, moment: i64) -> bool {
    let millis = id.0.as_u64_pair().0 >> 16;
    let moment = u64::try_from(moment / 1_000).unwrap_or(0);
    id.0.get_version_num() != 7 || millis > moment.saturating_add(CERTAINLY_LATER)
}

#[cfg(test)]
mod tests {
    use super::super::encoding::{Bytes, Id};
    use super::*;
    use crate::audit::EntryForm;
    use crate::model::{Timestamp, Wrapped};

    fn row(version: &str, bytes: u8) -> DekRow {
        let wrapped =
            Wrapped { bytes: vec![bytes], key_version: KeyVersion::new("byok", version), scheme: 1 };
        let (created_at, id) = (Timestamp(0), DekId::new());
        DekRow { id, record_id: None, wrapped, created_at, mac: None, record_mac: None }
    }

    fn entry(operation: Operation, row: &DekRow, hash: Option<[u8; 32]>) -> BundleEntry {
        let item = BundleItem {
            dek_id: Some(Id(row.id.0)),
            key: Some(row.wrapped.key_version.key.to_string()),
            version: Some(row.wrapped.key_version.version.to_string()),
            wrapped_hash: hash.map(Bytes),
            ..BundleItem::default()
        };
        BundleEntry {
            position: 0,
            tenant: None,
            at: 0,
            id: Id(row.id.0),
            operation: operation.as_str().into(),
            outcome: "OK".into(),
            means: "operator".into(),
            role: "r".into(),
            user: None,
            request: Personal { value: None, salt: None, hmac: Bytes([0; 32]) },
            detail: None,
            form: if hash.is_some() { EntryForm::Two } else { EntryForm::One },
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Vec::new(),
            items: vec![item],
            digest: Bytes([0; 32]),
        }
    }

    #[test]
    fn an_entry_names_the_key_of_a_deks_row() {
        let other = KeyId([9; 16]);
        let of_key = |id: KeyId| {
            let mut made = row("1", 1);
            made.wrapped.key_version.key_id = id;
            made
        };
        for (row_of, entry_of, holds) in
            [(other, other, true), (other, KeyId::FIRST, false), (KeyId::FIRST, other, false)]
        {
            let made = of_key(row_of);
            let mut deks = Deks::of(std::slice::from_ref(&made), true);
            let mut made_by = entry(Operation::Encrypt, &made, Some(sha256(&[1])));
            made_by.items[0].key_id = entry_of.recorded().map(|id| Id(uuid::Uuid::from_bytes(id)));
            deks.observe(&made_by);
            assert_eq!(deks.finding_of(made.id).is_none(), holds, "{row_of:?} {entry_of:?}");
        }
    }

    #[test]
    fn a_first_form_entry_does_not_excuse_a_second_form_finding() {
        let made = row("1", 1);
        let edited = DekRow { wrapped: Wrapped { bytes: vec![2], ..made.wrapped.clone() }, ..made.clone() };
        let mut deks = Deks::of(std::slice::from_ref(&edited), true);
        deks.observe(&entry(Operation::Encrypt, &made, Some(sha256(&[1]))));
        deks.observe(&entry(Operation::Rotate, &made, None));
        assert_eq!(deks.finding_of(edited.id), Some(Finding::DekWrapped { dek: edited.id }));

        // An earlier release re-wrapped it under another version, and recorded no hash.
        let rotated = DekRow { id: made.id, ..row("2", 3) };
        let mut deks = Deks::of(std::slice::from_ref(&rotated), true);
        deks.observe(&entry(Operation::Encrypt, &made, Some(sha256(&[1]))));
        deks.observe(&entry(Operation::Rotate, &rotated, None));
        assert_eq!(deks.finding_of(rotated.id), None);
    }
}
