//! The MACs that bind the rows of DEKs to a secret that the database does not hold. A row has two
//! MACs: one of the DEK's wrapped bytes, and one of its record. Both name the DEK, so no two rows
//! can exchange either. When the record's id is erased, its MAC can be removed with it, and the DEK
//! stays bound. The secret is used for MACs, never for encryption: with access to the KMS and the
//! table, DEKs can be unwrapped without it.

use crate::config::RowMacKeys;
use crate::crypto::RowMacKey;
use crate::model::{DekId, KeyId, KeyVersion, Operation, Outcome, TenantUid, Timestamp, Wrapped};
use crate::store::{DekRow, EntryFilter, EntrySearch, ReadError};

/// The secrets that make and check the MACs of DEKs' rows.
pub struct RowMacs(RowMacKeys);

/// The state of a row's MACs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSeal {
    /// Its MACs are under the current secret.
    Current,
    /// At least one of its MACs is under the previous secret.
    Previous,
    /// It has no MACs: a release without MACs wrote it, or somebody removed its MACs.
    None,
    /// Its MACs belong to another row, or to no known secret: it was edited.
    Wrong,
}

impl RowMacs {
    /// Uses these keys.
    pub fn new(keys: RowMacKeys) -> Self {
        Self(keys)
    }

    /// Returns whether there is a previous secret, from which rows are moved to the current one.
    pub fn has_previous(&self) -> bool {
        self.0.previous.is_some()
    }

    /// Gives a row its MACs under the current secret.
    pub fn seal(&self, tenant: TenantUid, row: &mut DekRow) {
        row.mac = Some(self.of_wrapped(tenant, row.id, &row.wrapped));
        let record = row.record_id.as_deref();
        row.record_mac = record.map(|record| of_record(&self.0.current, tenant, row.id, record));
    }

    /// Returns the MAC of a DEK's wrapped bytes under the current secret.
    pub fn of_wrapped(&self, tenant: TenantUid, id: DekId, wrapped: &Wrapped) -> [u8; 32] {
        of_wrapped(&self.0.current, tenant, id, wrapped)
    }

    /// Returns how a row is bound. While there are two secrets, each of its MACs may be under
    /// either: a rotation of the key renews one and leaves the other.
    pub fn check(&self, tenant: TenantUid, row: &DekRow) -> RowSeal {
        let Some(mac) = &row.mac else { return RowSeal::None };
        let scheme = row.wrapped.scheme.to_be_bytes();
        let wrapped = self.secret_of(&wrapped_fields(&tenant, &row.id, &row.wrapped, &scheme), mac);
        let record = match (row.record_id.as_deref(), &row.record_mac) {
            (None, _) => Some(RowSeal::Current),
            (Some(record), Some(mac)) => self.secret_of(&record_fields(&tenant, &row.id, record), mac),
            (Some(_), None) => None,
        };
        match (wrapped, record) {
            (Some(RowSeal::Current), Some(RowSeal::Current)) => RowSeal::Current,
            (Some(_), Some(_)) => RowSeal::Previous,
            _ => RowSeal::Wrong,
        }
    }

    /// Returns the secret under which this is the MAC of these fields.
    fn secret_of(&self, fields: &[&[u8]], mac: &[u8; 32]) -> Option<RowSeal> {
        if self.0.current.verifies(fields, mac) {
            return Some(RowSeal::Current);
        }
        let previous = self.0.previous.as_ref()?;
        previous.verifies(fields, mac).then_some(RowSeal::Previous)
    }
}

fn of_wrapped(key: &RowMacKey, tenant: TenantUid, id: DekId, wrapped: &Wrapped) -> [u8; 32] {
    key.mac(&wrapped_fields(&tenant, &id, wrapped, &wrapped.scheme.to_be_bytes()))
}

fn of_record(key: &RowMacKey, tenant: TenantUid, id: DekId, record: &str) -> [u8; 32] {
    key.mac(&record_fields(&tenant, &id, record))
}

/// Returns the fields of the first MAC. The id of the tenant's first key is left out: rows of that
/// key had MACs before keys had ids.
fn wrapped_fields<'a>(
    tenant: &'a TenantUid,
    id: &'a DekId,
    wrapped: &'a Wrapped,
    scheme: &'a [u8; 2],
) -> Vec<&'a [u8]> {
    let KeyVersion { key_id, key, version } = &wrapped.key_version;
    let mut fields: Vec<&[u8]> = vec![b"wrapped", &tenant.0, id.as_bytes()];
    fields.extend([wrapped.bytes.as_slice(), key.as_bytes(), version.as_bytes(), scheme]);
    if *key_id != KeyId::FIRST {
        fields.push(&key_id.0);
    }
    fields
}

fn record_fields<'a>(tenant: &'a TenantUid, id: &'a DekId, record: &'a str) -> [&'a [u8]; 4] {
    [b"record", &tenant.0, id.as_bytes(), record.as_bytes()]
}

/// Returns when the log last said that a tenant's rows are all sealed.
///
/// # Errors
/// The log cannot be read.
pub async fn last_sealed(
    log: &(impl EntrySearch + ?Sized),
    tenant: TenantUid,
) -> Result<Option<Timestamp>, ReadError> {
    let filter = EntryFilter {
        operation: Some(Operation::Seal),
        outcome: Some(Outcome::Ok),
        ..EntryFilter::default()
    };
    let latest = log.latest_entries(tenant, &filter, 1).await?;
    Ok(latest.first().map(|placed| placed.row.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const TENANT: TenantUid = TenantUid([7; 16]);

    fn key() -> RowMacKey {
        RowMacKey::from_base64(&RowMacKey::generate()).unwrap()
    }

    fn row() -> DekRow {
        let wrapped = Wrapped { bytes: vec![1; 61], key_version: KeyVersion::new("byok", "1"), scheme: 1 };
        DekRow {
            id: DekId::new(),
            record_id: Some("record-1".into()),
            wrapped,
            created_at: Timestamp(0),
            mac: None,
            record_mac: None,
        }
    }

    #[test]
    fn a_row_is_bound_by_what_seals_it() {
        let macs = RowMacs::new(RowMacKeys { current: key(), previous: None });
        let mut row = row();
        assert_eq!(macs.check(TENANT, &row), RowSeal::None);
        macs.seal(TENANT, &mut row);
        assert_eq!(macs.check(TENANT, &row), RowSeal::Current);
    }

    #[test]
    fn each_edit_of_a_row_shows() {
        let macs = RowMacs::new(RowMacKeys { current: key(), previous: None });
        let mut sealed = row();
        macs.seal(TENANT, &mut sealed);
        let mut other = row();
        macs.seal(TENANT, &mut other);
        let edits: [&dyn Fn(&mut DekRow); 10] = [
            &|row| row.wrapped.bytes[60] ^= 1,
            &|row| row.wrapped.key_version = KeyVersion::new("byok", "2"),
            &|row| row.wrapped.key_version = KeyVersion::new("byo", "k1"),
            &|row| row.wrapped.key_version.key_id = KeyId([1; 16]),
            &|row| row.wrapped.scheme = 2,
            &|row| row.record_id = Some("record-2".into()),
            &|row| row.record_mac = None,
            &|row| row.id = other.id,
            &|row| row.mac = other.mac,
            &|row| row.record_mac = other.record_mac,
        ];
        for (number, edit) in edits.into_iter().enumerate() {
            let mut edited = sealed.clone();
            edit(&mut edited);
            assert_eq!(macs.check(TENANT, &edited), RowSeal::Wrong, "edit {number}");
        }
        assert_eq!(macs.check(TenantUid([8; 16]), &sealed), RowSeal::Wrong);
        sealed.mac = None;
        assert_eq!(macs.check(TENANT, &sealed), RowSeal::None);
    }

    #[test]
    fn an_erased_record_leaves_the_dek_bound() {
        let macs = RowMacs::new(RowMacKeys { current: key(), previous: None });
        let mut row = row();
        macs.seal(TENANT, &mut row);
        (row.record_id, row.record_mac) = (None, None);
        assert_eq!(macs.check(TENANT, &row), RowSeal::Current);
    }

    #[test]
    fn what_the_previous_secret_bound_counts_while_that_is_known() {
        let (secret, next) = (RowMacKey::generate(), RowMacKey::generate());
        let key = |text| RowMacKey::from_base64(text).unwrap();
        let before = RowMacs::new(RowMacKeys { current: key(&secret), previous: None });
        let between = RowMacs::new(RowMacKeys { current: key(&next), previous: Some(key(&secret)) });
        let after = RowMacs::new(RowMacKeys { current: key(&next), previous: None });
        let mut row = row();
        before.seal(TENANT, &mut row);
        assert_eq!(between.check(TENANT, &row), RowSeal::Previous);
        assert_eq!(after.check(TENANT, &row), RowSeal::Wrong);
        // A rotation of the key, under either secret, while the record's MAC is under the other.
        let mut rewrapped = row.clone();
        rewrapped.mac = Some(between.of_wrapped(TENANT, row.id, &row.wrapped));
        assert_eq!(between.check(TENANT, &rewrapped), RowSeal::Previous);
        assert_eq!(before.check(TENANT, &rewrapped), RowSeal::Wrong);
        between.seal(TENANT, &mut rewrapped);
        rewrapped.mac = Some(before.of_wrapped(TENANT, row.id, &row.wrapped));
        assert_eq!(between.check(TENANT, &rewrapped), RowSeal::Previous);
        between.seal(TENANT, &mut row);
        assert_eq!(after.check(TENANT, &row), RowSeal::Current);
    }
}
