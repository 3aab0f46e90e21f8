//! The digest that a leaf of the log covers: everything in an entry that never changes. Personal
//! values are covered only by their salted HMACs, so that an erasure changes no leaf.
//!
//! ```text
//! fields(a, b, …) = for each: its length as u32, big-endian, and its bytes; an absent value has no
//!                   bytes
//! items root      = the RFC 6962 root over the items, each of them a leaf's data
//! leaf            = the RFC 6962 hash of the leaf: the entry's time (at) in microseconds since
//!                   1970 as i64, big-endian ‖ digest
//!
//! form 2, which is written:
//! item            = fields(DEK id [16], key id [16], key, key version, source, KMS request id,
//!                   refusal code, HMAC of the record id [32], SHA-256 of the wrapped DEK [32],
//!                   form, wrapping key id [16])
//! digest          = SHA-256(fields("byok-audit-entry/2", tenant uid [16], entry id [16],
//!                   operation, outcome, means, role, HMAC of the user [32],
//!                   HMAC of our request id [32], detail, items root [32], reason code,
//!                   SHA-256 of the ledger's row [32], issuer, and of each extension: name, value))
//!
//! form 1, which earlier releases wrote:
//! item            = fields(DEK id [16], key, key version, source, KMS request id, refusal code,
//!                   HMAC of the record id [32])
//! digest          = SHA-256(fields("byok-audit-entry/1", tenant uid [16], entry id [16],
//!                   operation, outcome, means, role, HMAC of the user [32],
//!                   HMAC of our request id [32], detail, items root [32]))
//! ```
//!
//! `source` is `cache` or `kms`. Extensions are in the order of their names. `docs/audit-log.md`
//! describes the same with test vectors.

use crate::crypto::sha256;
use crate::merkle::{Hash, root_of};
use crate::model::{Source, TenantUid};
use crate::store::EntryRow;

use super::form::EntryForm;
use super::packed::{Packed, PackedItem};

/// An entry as its digest covers it. An absent text is empty, an absent hash has no bytes. The last
/// four fields exist only in form 2.
pub(crate) struct EntryFields<'e> {
    pub(crate) form: EntryForm,
    pub(crate) id: &'e [u8; 16],
    pub(crate) operation: &'e str,
    pub(crate) outcome: &'e str,
    pub(crate) means: &'e str,
    pub(crate) role: &'e str,
    pub(crate) user_hmac: &'e [u8],
    pub(crate) request_hmac: &'e [u8; 32],
    pub(crate) detail: &'e str,
    pub(crate) reason: &'e str,
    pub(crate) ledger_hash: &'e [u8],
    pub(crate) issuer: &'e str,
    pub(crate) extensions: &'e [(&'e str, &'e str)],
}

/// An item as its leaf covers it. The last four fields exist only in form 2.
pub(crate) struct ItemFields<'e> {
    pub(crate) dek_id: &'e [u8],
    pub(crate) key: &'e str,
    pub(crate) version: &'e str,
    pub(crate) source: &'e str,
    pub(crate) kms_request_id: &'e str,
    pub(crate) refused: &'e str,
    pub(crate) record_hmac: &'e [u8],
    pub(crate) key_id: &'e [u8],
    pub(crate) wrapped_hash: &'e [u8],
    pub(crate) form: &'e str,
    pub(crate) wrapping_key_id: &'e [u8],
}

impl EntryFields<'_> {
    /// Returns the digest of a tenant's entry with these leaves of its items.
    pub(crate) fn digest(&self, tenant: TenantUid, items: impl IntoIterator<Item = Hash>) -> [u8; 32] {
        let mut fields = Vec::with_capacity(384);
        let version: &[u8] = match self.form {
            EntryForm::One => b"byok-audit-entry/1",
            EntryForm::Two => b"byok-audit-entry/2",
        };
        for field in [
            version,
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
        if self.form == EntryForm::Two {
            put(&mut fields, self.reason.as_bytes());
            put(&mut fields, self.ledger_hash);
            put(&mut fields, self.issuer.as_bytes());
            for (name, value) in self.extensions {
                put(&mut fields, name.as_bytes());
                put(&mut fields, value.as_bytes());
            }
        }
        sha256(&fields)
    }
}

impl ItemFields<'_> {
    /// Returns its leaf in the tree over the items of an entry of that form.
    pub(crate) fn leaf(&self, form: EntryForm) -> Hash {
        let mut fields = Vec::with_capacity(256);
        let put = |fields: &mut Vec<u8>, all: &[&[u8]]| all.iter().for_each(|field| put(fields, field));
        put(&mut fields, &[self.dek_id]);
        if form == EntryForm::Two {
            put(&mut fields, &[self.key_id]);
        }
        let [key, version, source] = [self.key, self.version, self.source].map(str::as_bytes);
        let [request, refused] = [self.kms_request_id, self.refused].map(str::as_bytes);
        put(&mut fields, &[key, version, source, request, refused, self.record_hmac]);
        if form == EntryForm::Two {
            put(&mut fields, &[self.wrapped_hash, self.form.as_bytes(), self.wrapping_key_id]);
        }
        Hash::of_leaf(&fields)
    }
}

/// Returns the digest that a row should have, or `None` if its items do not have a form that byok
/// writes or wrote.
pub fn digest_of(tenant: TenantUid, row: &EntryRow) -> Option<[u8; 32]> {
    let packed = Packed::read(&row.items, row.item_count)?;
    let extensions: Vec<_> = packed.extensions.iter().collect();
    let fields = EntryFields {
        form: packed.form,
        id: row.id.as_bytes(),
        operation: row.operation.as_str(),
        outcome: row.outcome.as_str(),
        means: row.means.as_str(),
        role: &row.role,
        user_hmac: row.user.as_ref().map_or(&[], |user| &user.hmac),
        request_hmac: &row.request.hmac,
        detail: row.detail.as_deref().unwrap_or_default(),
        reason: packed.reason.as_deref().unwrap_or_default(),
        ledger_hash: optional_bytes(packed.ledger_hash.as_ref()),
        issuer: packed.issuer.as_deref().unwrap_or_default(),
        extensions: &extensions,
    };
    Some(fields.digest(tenant, packed.items.iter().map(|item| leaf_of(&packed, item))))
}

/// Returns the leaf of each item in the tree over a row's items, or `None` if they do not have a
/// form that byok writes or wrote.
pub fn item_leaves(row: &EntryRow) -> Option<Vec<Hash>> {
    let packed = Packed::read(&row.items, row.item_count)?;
    Some(packed.items.iter().map(|item| leaf_of(&packed, item)).collect())
}

fn leaf_of(packed: &Packed, item: &PackedItem) -> Hash {
    let version = packed.key_version(item);
    let fields = ItemFields {
        dek_id: item.dek_id.as_ref().map_or(&[], |id| id.as_bytes()),
        key: version.map_or("", |version| &version.key),
        version: version.map_or("", |version| &version.version),
        source: item.source.map_or("", source_name),
        kms_request_id: packed.kms_request_id(item).map_or("", |id| id),
        refused: packed.refusal(item).map_or("", |code| code.as_str()),
        record_hmac: optional_bytes(item.record_hmac.as_ref()),
        key_id: optional_bytes(packed.key_id(item)),
        wrapped_hash: optional_bytes(item.wrapped_hash.as_ref()),
        form: packed.form(item).map_or("", |form| form),
        wrapping_key_id: optional_bytes(packed.wrapping_key_id(item)),
    };
    fields.leaf(packed.form)
}

/// Returns the bytes of the value, or no bytes if there is none.
pub(crate) fn optional_bytes<const N: usize>(value: Option<&[u8; N]>) -> &[u8] {
    value.map_or(&[], |value| value)
}

pub(crate) fn source_name(source: Source) -> &'static str {
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
    use crate::audit::{pack, unpack};
    use crate::model::{
        DekId, Entry, EntryId, ErrorCode, Extensions, Item, KeyVersion, Means, Operation, Outcome, Timestamp,
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
            wrapped_hash: Some([3; 32]),
            key_id: Some([4; 16]),
            form: Some("mask".into()),
            wrapping_key_id: None,
        };
        let mut extensions = Extensions::default();
        extensions.set_voids(EntryId(uuid::Uuid::from_bytes([8; 16])));
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
            reason: Some("support-case".into()),
            ledger_hash: Some([5; 32]),
            issuer: None,
            extensions,
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
        // A change of any byte of the items changes the digest, or makes the items unreadable.
        for index in 0..whole.items.len() {
            let mut row = whole.clone();
            row.items[index] ^= 1;
            assert_ne!(digest_of(TENANT, &row), Some(whole.digest), "byte {index}");
        }
    }

    /// A row as the first release wrote it: one item done, one refused. Made by a script from the
    /// form's description.
    #[test]
    fn a_row_of_the_first_form_keeps_its_digest() {
        let items = "010001000462796f6b000133000100057265712d310001000e444543525950545f4641494c454407000100010000\
            010101010101010101010101010101012c5536df8353826d3ebfde20927b48911482176800765e9418ecef98e7b0fc7e\
            00000000000001";
        let request = "765e2710136abf62533106f6373ac62b5e7f85e13259ab1db9f7cb7e98ee1e2b";
        let mut row = row();
        row.id = EntryId(uuid::Uuid::from_bytes([1; 16]));
        row.items = hex(items);
        row.item_count = 2;
        row.records = "[[\"record-1\",\"CQkJCQkJCQkJCQkJCQkJCQ\"],null]".to_owned();
        row.user.as_mut().unwrap().hmac =
            hex("3a8a8a4cfab47524288ee9e27e5f0b1a484019d0468e82cea05d549e2e437ffa").try_into().unwrap();
        row.request.hmac = hex(request).try_into().unwrap();
        let digest = hex("b75c000127f5e2b4bb849196d18ad259ebfddd5b44294dd3e62e282b44b4c00d");
        assert_eq!(digest_of(TENANT, &row).unwrap().to_vec(), digest);
        let entry = unpack(&row).unwrap();
        assert_eq!(entry.items[0].record_id.as_deref(), Some("record-1"));
        assert_eq!(entry.items[0].key_version, Some(KeyVersion::new("byok", "3")));
        assert_eq!(entry.items[1].refused, Some(ErrorCode::DecryptFailed));
        // The same items, labelled as the second form, are another entry or none.
        row.items[0] = 2;
        assert_ne!(digest_of(TENANT, &row).map(Vec::from), Some(digest));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
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
