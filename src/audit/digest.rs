//! What a leaf of the log covers, version 1. Everything of an entry that never changes: personal values only as their
//! salted HMACs, so that an erasure changes no leaf.
//!
//! ```text
//! fields(a, b, …) = for each: its length as u32, big-endian, and its bytes; an absent value has no bytes
//! item            = fields(DEK id [16], key, key version, source, KMS request id, refusal code, HMAC of the record id [32])
//! items root      = the RFC 6962 root over the items, each of them a leaf's data
//! digest          = SHA-256(fields("byok-audit-entry/1", tenant uid [16], entry id [16], operation, outcome, means, role,
//!                   HMAC of the user [32], HMAC of our request id [32], detail, items root [32]))
//! leaf            = the RFC 6962 hash of the leaf: at in microseconds since 1970 as i64, big-endian ‖ digest
//! ```
//!
//! `source` is `cache` or `kms`. `docs/audit-log.md` shows the same with vectors.

use crate::crypto::sha256;
use crate::merkle::{Hash, root_of};
use crate::model::{Source, TenantUid};
use crate::store::EntryRow;

use super::pack::{PackedItem, PackedItems};

const VERSION: &[u8] = b"byok-audit-entry/1";

/// An entry as its digest covers it; an absent text is empty, an absent hash has no bytes.
pub(super) struct EntryFields<'e> {
    pub(super) id: &'e [u8; 16],
    pub(super) operation: &'e str,
    pub(super) outcome: &'e str,
    pub(super) means: &'e str,
    pub(super) role: &'e str,
    pub(super) user_hmac: &'e [u8],
    pub(super) request_hmac: &'e [u8; 32],
    pub(super) detail: &'e str,
}

/// An item as its leaf covers it.
pub(super) struct ItemFields<'e> {
    pub(super) dek_id: &'e [u8],
    pub(super) key: &'e str,
    pub(super) version: &'e str,
    pub(super) source: &'e str,
    pub(super) kms_request_id: &'e str,
    pub(super) refused: &'e str,
    pub(super) record_hmac: &'e [u8],
}

impl EntryFields<'_> {
    /// The digest of a tenant's entry with these leaves of its items.
    pub(super) fn digest(&self, tenant: TenantUid, items: impl IntoIterator<Item = Hash>) -> [u8; 32] {
        let mut fields = Vec::with_capacity(320);
        for field in [
            VERSION,
            &tenant.0,
            self.id,
            self.operation.as_bytes(),
            self.outcome.as_bytes(),
            self.means.as_bytes(),
            self.role.as_bytes(),
            self.user_hmac,
            self.request_hmac,
            self.detail.as_bytes(),
            &root_of(items).0,
        ] {
            put(&mut fields, field);
        }
        sha256(&fields)
    }
}

impl ItemFields<'_> {
    /// Its leaf in the tree over the entry's items.
    pub(super) fn leaf(&self) -> Hash {
        let mut fields = Vec::with_capacity(192);
        for field in [
            self.dek_id,
            self.key.as_bytes(),
            self.version.as_bytes(),
            self.source.as_bytes(),
            self.kms_request_id.as_bytes(),
            self.refused.as_bytes(),
            self.record_hmac,
        ] {
            put(&mut fields, field);
        }
        Hash::of_leaf(&fields)
    }
}

/// The digest that a row should have; `None` when its items are not of a form that we write.
pub fn digest_of(tenant: TenantUid, row: &EntryRow) -> Option<[u8; 32]> {
    let items = PackedItems::read(&row.items, row.item_count)?;
    let fields = EntryFields {
        id: row.id.as_bytes(),
        operation: row.operation.as_str(),
        outcome: row.outcome.as_str(),
        means: row.means.as_str(),
        role: &row.role,
        user_hmac: row.user.as_ref().map_or(&[], |user| &user.hmac),
        request_hmac: &row.request.hmac,
        detail: row.detail.as_deref().unwrap_or_default(),
    };
    Some(fields.digest(tenant, items.items.iter().map(|item| leaf_of(&items, item))))
}

/// The leaf of each item in the tree over a row's items; `None` when they are not of a form that we write.
pub fn item_leaves(row: &EntryRow) -> Option<Vec<Hash>> {
    let items = PackedItems::read(&row.items, row.item_count)?;
    Some(items.items.iter().map(|item| leaf_of(&items, item)).collect())
}

fn leaf_of(items: &PackedItems, item: &PackedItem) -> Hash {
    let version = items.key_version(item);
    let fields = ItemFields {
        dek_id: item.dek_id.as_ref().map_or(&[], |id| id.as_bytes()),
        key: version.map_or("", |version| &version.key),
        version: version.map_or("", |version| &version.version),
        source: item.source.map_or("", source_name),
        kms_request_id: items.kms_request_id(item).map_or("", |id| id),
        refused: items.refusal(item).map_or("", |code| code.as_str()),
        record_hmac: item.record_hmac.as_ref().map_or(&[], |hmac| hmac),
    };
    fields.leaf()
}

pub(super) fn source_name(source: Source) -> &'static str {
    match source {
        Source::Cache => "cache",
        Source::Kms => "kms",
    }
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    // No field is longer than a request may be.
    out.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(field);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::pack;
    use crate::model::{
        DekId, Entry, EntryId, ErrorCode, Item, KeyVersion, Means, Operation, Outcome, Timestamp,
    };

    const TENANT: TenantUid = TenantUid([7; 16]);

    fn row() -> EntryRow {
        let item = |record: Option<&str>, refused| Item {
            record_id: record.map(Arc::from),
            dek_id: Some(DekId(uuid::Uuid::from_bytes([2; 16]))),
            key_version: Some(KeyVersion::new("byok", "3")),
            source: Some(Source::Cache),
            kms_request_id: Some("req-1".into()),
            refused,
        };
        let entry = Entry {
            id: EntryId(uuid::Uuid::from_bytes([1; 16])),
            at: Timestamp(1_700_000_000_000_000),
            operation: Operation::Decrypt,
            outcome: Outcome::Partial,
            role: "user".into(),
            user: Some("u-1".to_owned()),
            means: Means::Jwt,
            request_id: Some("r-1".to_owned()),
            detail: None,
            items: vec![
                item(Some("a"), None),
                item(None, Some(ErrorCode::DecryptFailed)),
                item(Some("b"), None),
            ],
        };
        pack(TENANT, &entry)
    }

    #[test]
    fn an_erasure_changes_no_digest() {
        let whole = row();
        let mut erased = whole.clone();
        for salted in [erased.user.as_mut().unwrap(), &mut erased.request] {
            (salted.value, salted.salt) = (None, None);
        }
        erased.records = "[null,null,null]".to_owned();
        assert_eq!(digest_of(TENANT, &erased), Some(whole.digest));
    }

    #[test]
    fn whatever_else_is_changed_changes_the_digest() {
        let whole = row();
        assert_eq!(digest_of(TENANT, &whole), Some(whole.digest));
        assert_ne!(digest_of(TenantUid([8; 16]), &whole), Some(whole.digest));
        let changed: [fn(&mut EntryRow); 9] = [
            |row| row.id = EntryId(uuid::Uuid::from_bytes([9; 16])),
            |row| row.operation = Operation::Encrypt,
            |row| row.outcome = Outcome::Ok,
            |row| row.means = Means::Operator,
            |row| row.role = "admin".into(),
            |row| row.user = None,
            |row| row.request.hmac[0] ^= 1,
            |row| row.detail = Some("more".into()),
            |row| row.user.as_mut().unwrap().hmac[31] ^= 1,
        ];
        for change in changed {
            let mut row = whole.clone();
            change(&mut row);
            assert_ne!(digest_of(TENANT, &row), Some(whole.digest));
        }
        let leaf = whole.leaf();
        assert_ne!(EntryRow { at: Timestamp(whole.at.0 + 1), ..whole.clone() }.leaf(), leaf);
        // Each byte of the items counts, or makes them unreadable.
        for place in 0..whole.items.len() {
            let mut row = whole.clone();
            row.items[place] ^= 1;
            assert_ne!(digest_of(TENANT, &row), Some(whole.digest), "byte {place}");
        }
    }

    #[test]
    fn no_field_can_be_moved_into_its_neighbour() {
        let mut row = row();
        row.role = "user\0x".into();
        let one = digest_of(TENANT, &row);
        row.role = "user".into();
        row.detail = Some("\0x".into());
        assert_ne!(digest_of(TENANT, &row), one);
    }
}
