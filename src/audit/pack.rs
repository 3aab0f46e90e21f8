//! Packs an entry into a row for the store. Personal values (user, record ids, request id) are
//! stored with random salts in columns that an erasure can set to null. Everything that is kept for
//! ever covers only their HMACs.
//!
//! The packed items in version 2. All numbers are big-endian. `packed` has version 1, and reads
//! both:
//!
//! ```text
//! u8                 version = 2
//! u8                 1 a reason follows, 2 a ledger hash, 4 an issuer, 8 extensions
//! str                reason code, if flagged             str = u16 length, UTF-8
//! [32]               SHA-256 of the ledger's row, if flagged
//! str                issuer, if flagged
//! u16 × (str, str)   extensions, if flagged: name, value; names in strictly ascending order of
//!                    their bytes
//! u16 × (str, str)   key versions: key, version
//! u16 × str          KMS request ids
//! u16 × str          refusal codes
//! u16 × str          forms
//! u16 × [16]         our own ids of keys
//! then for each item:
//!   u8               1 a DEK id follows, 2 a record's HMAC, 4 from the cache, 8 from the KMS,
//!                    16 the hash of the wrapped DEK, 32 a form and ids of keys
//!   u16              key version: index + 1, 0 for none
//!   u16              KMS request id: index + 1, 0 for none
//!   u16              refusal: index + 1, 0 for done
//!   u16 × 3          form, key id, wrapping key id, if flagged: index + 1, 0 for none
//!   [16]             DEK id, if flagged
//!   [32]             HMAC-SHA256(salt, record id), if flagged
//!   [32]             SHA-256 of the wrapped DEK, if flagged
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use crate::crypto::{fill_random, hmac_sha256};
use crate::model::{Entry, Item, Salted, Source, TenantUid};
use crate::store::EntryRow;

use super::digest::digest_of;
use super::packed::{Packed, PackedItem, entry_flag, item_flag};

const VERSION: u8 = 2;

/// Packs a tenant's entry, with a fresh salt for each personal value.
pub fn pack(tenant: TenantUid, entry: &Entry) -> EntryRow {
    let mut salts = vec![0_u8; 16 * (entry.items.len() + 2)];
    fill_random(&mut salts);
    let (own, of_items) = salts.split_at(32);
    let (user_salt, request_salt) = own.split_at(16);
    let (records, items) = pack_items(entry, of_items);
    let mut row = EntryRow {
        id: entry.id,
        at: entry.at,
        operation: entry.operation,
        outcome: entry.outcome,
        means: entry.means,
        role: entry.role.clone(),
        user: entry.user.as_ref().map(|user| salted(user, user_salt)),
        request: salted(entry.request_id.as_deref().unwrap_or_default(), request_salt),
        item_count: u32::try_from(entry.items.len()).unwrap_or(u32::MAX),
        detail: entry.detail.clone(),
        records,
        items,
        digest: [0; 32],
    };
    row.digest = digest_of(tenant, &row).expect("what was packed can be read");
    row
}

/// Reads a packed entry. Returns `None` if it does not have a form that this or an earlier version
/// of byok writes.
pub fn unpack(row: &EntryRow) -> Option<Entry> {
    let packed = Packed::read(&row.items, row.item_count)?;
    let records: Vec<Option<(Arc<str>, String)>> = serde_json::from_str(&row.records).ok()?;
    if records.len() != packed.items.len() {
        return None;
    }
    let item = |(item, record): (&PackedItem, Option<(Arc<str>, String)>)| Item {
        record_id: record.map(|(record_id, _salt)| record_id),
        dek_id: item.dek_id,
        key_version: packed.key_version(item).cloned(),
        source: item.source,
        kms_request_id: packed.kms_request_id(item).cloned(),
        refused: packed.refusal(item).copied(),
        wrapped_hash: item.wrapped_hash,
        key_id: packed.key_id(item).copied(),
        wrapping_key_id: packed.wrapping_key_id(item).copied(),
        form: packed.form(item).cloned(),
    };
    let items = packed.items.iter().zip(records).map(item).collect();
    Some(Entry {
        id: row.id,
        at: row.at,
        operation: row.operation,
        outcome: row.outcome,
        role: row.role.clone(),
        user: row.user.as_ref().and_then(|user| user.value.clone()),
        means: row.means,
        request_id: row.request.value.clone(),
        detail: row.detail.clone(),
        items,
        reason: packed.reason,
        ledger_hash: packed.ledger_hash,
        issuer: packed.issuer,
        extensions: packed.extensions,
    })
}

fn salted(value: &str, salt: &[u8]) -> Salted {
    let mut own = [0; 16];
    own.copy_from_slice(salt);
    Salted { value: Some(value.to_owned()), salt: Some(own), hmac: hmac_sha256(salt, value.as_bytes()) }
}

/// The distinct values of one column of a call's items. Almost always there is one. A KMS without
/// batches has as many request ids as items, so a linear search would be too slow.
struct Column<'a, T> {
    values: Vec<&'a T>,
    indexes: HashMap<&'a T, u16>,
}

impl<'a, T: Eq + Hash> Column<'a, T> {
    fn of(values: impl Iterator<Item = &'a T>) -> Self {
        let mut column = Self { values: Vec::new(), indexes: HashMap::new() };
        for value in values {
            if column.values.last() != Some(&value) && !column.indexes.contains_key(value) {
                column.values.push(value);
                // A call has at most 65,000 items (`BYOK_MAX_ITEMS_PER_REQUEST`).
                column.indexes.insert(value, u16::try_from(column.values.len()).unwrap_or(0));
            }
        }
        column
    }

    /// Returns index + 1, or 0 for none.
    fn index(&self, value: Option<&T>) -> [u8; 2] {
        let index = match value {
            None => 0,
            Some(value) if self.values.first() == Some(&value) => 1,
            Some(value) => self.indexes.get(value).copied().unwrap_or(0),
        };
        index.to_be_bytes()
    }
}

fn pack_items(entry: &Entry, salts: &[u8]) -> (String, Vec<u8>) {
    let items = &entry.items;
    let versions = Column::of(items.iter().filter_map(|item| item.key_version.as_ref()));
    let requests = Column::of(items.iter().filter_map(|item| item.kms_request_id.as_ref()));
    let refusals = Column::of(items.iter().filter_map(|item| item.refused.as_ref()));
    let forms = Column::of(items.iter().filter_map(|item| item.form.as_ref()));
    let keys = Column::of(items.iter().flat_map(|item| item.key_id.iter().chain(&item.wrapping_key_id)));
    let mut packed = Vec::with_capacity(64 + 88 * items.len());
    packed.push(VERSION);
    put_own(&mut packed, entry);
    put_count(&mut packed, versions.values.len());
    for version in &versions.values {
        put_text(&mut packed, &version.key);
        put_text(&mut packed, &version.version);
    }
    put_count(&mut packed, requests.values.len());
    requests.values.iter().for_each(|request| put_text(&mut packed, request));
    put_count(&mut packed, refusals.values.len());
    refusals.values.iter().for_each(|code| put_text(&mut packed, code.as_str()));
    put_count(&mut packed, forms.values.len());
    forms.values.iter().for_each(|form| put_text(&mut packed, form));
    put_count(&mut packed, keys.values.len());
    keys.values.iter().for_each(|key| packed.extend(*key));

    let mut records = String::with_capacity(2 + 64 * items.len());
    records.push('[');
    for (index, (item, salt)) in items.iter().zip(salts.chunks_exact(16)).enumerate() {
        let formed = item.form.is_some() || item.key_id.is_some() || item.wrapping_key_id.is_some();
        let flag = |present: bool, flag: u8| if present { flag } else { 0 };
        packed.push(
            flag(item.dek_id.is_some(), item_flag::DEK)
                | flag(item.record_id.is_some(), item_flag::RECORD)
                | flag(item.source == Some(Source::Cache), item_flag::CACHE)
                | flag(item.source == Some(Source::Kms), item_flag::KMS)
                | flag(item.wrapped_hash.is_some(), item_flag::WRAPPED)
                | flag(formed, item_flag::FORMED),
        );
        packed.extend(versions.index(item.key_version.as_ref()));
        packed.extend(requests.index(item.kms_request_id.as_ref()));
        packed.extend(refusals.index(item.refused.as_ref()));
        if formed {
            packed.extend(forms.index(item.form.as_ref()));
            packed.extend(keys.index(item.key_id.as_ref()));
            packed.extend(keys.index(item.wrapping_key_id.as_ref()));
        }
        if let Some(dek_id) = item.dek_id {
            packed.extend(dek_id.as_bytes());
        }
        if index > 0 {
            records.push(',');
        }
        match &item.record_id {
            None => records.push_str("null"),
            Some(record) => {
                packed.extend(hmac_sha256(salt, record.as_bytes()));
                records.push('[');
                records.push_str(&Value::from(record.as_ref()).to_string());
                records.push_str(",\"");
                STANDARD_NO_PAD.encode_string(salt, &mut records);
                records.push_str("\"]");
            }
        }
        packed.extend(item.wrapped_hash.iter().flatten());
    }
    records.push(']');
    (records, packed)
}

/// Writes the fields of the entry itself that are not columns of its row.
fn put_own(out: &mut Vec<u8>, entry: &Entry) {
    let flags = out.len();
    out.push(0);
    if let Some(reason) = &entry.reason {
        out[flags] |= entry_flag::REASON;
        put_text(out, reason);
    }
    if let Some(hash) = &entry.ledger_hash {
        out[flags] |= entry_flag::LEDGER;
        out.extend(hash);
    }
    if let Some(issuer) = &entry.issuer {
        out[flags] |= entry_flag::ISSUER;
        put_text(out, issuer);
    }
    if !entry.extensions.is_empty() {
        out[flags] |= entry_flag::EXTENSIONS;
        put_count(out, entry.extensions.len());
        for (name, value) in entry.extensions.iter() {
            put_text(out, name);
            put_text(out, value);
        }
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    put_count(out, text.len());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        DekId, EntryId, ErrorCode, Extensions, KeyVersion, Means, Operation, Outcome, Timestamp,
    };

    const TENANT: TenantUid = TenantUid([7; 16]);

    fn entry() -> Entry {
        let version = KeyVersion::new("byok", "3");
        let done = |record: &str| Item {
            record_id: Some(record.into()),
            dek_id: Some(DekId::new()),
            key_version: Some(version.clone()),
            source: Some(Source::Cache),
            kms_request_id: Some("req-1".into()),
            wrapped_hash: (record == "ü").then_some([5; 32]),
            ..Item::default()
        };
        let refused = Item { refused: Some(ErrorCode::DecryptFailed), ..Item::default() };
        Entry {
            id: EntryId::new(),
            at: Timestamp(1),
            operation: Operation::Decrypt,
            outcome: Outcome::Partial,
            role: "user".into(),
            user: Some("u-1".to_owned()),
            means: Means::Jwt,
            request_id: Some("r-1".to_owned()),
            detail: Some("so".into()),
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            items: vec![done("user-\"1\""), refused, done("ü")],
        }
    }

    /// Returns an entry with every field that exists.
    fn full() -> Entry {
        let mut entry = entry();
        entry.reason = Some("support-case".into());
        entry.ledger_hash = Some([6; 32]);
        entry.issuer = Some("https://id.example".into());
        entry.extensions.set_voids(EntryId::new());
        entry.items[0].key_id = Some([1; 16]);
        entry.items[0].wrapping_key_id = Some([2; 16]);
        entry.items[0].form = Some("mask".into());
        entry
    }

    #[test]
    fn an_entry_reads_back_as_it_was_packed() {
        let entry = entry();
        assert_eq!(unpack(&pack(TENANT, &entry)), Some(entry));
    }

    #[test]
    fn everything_that_an_entry_can_say_reads_back() {
        let mut entry = full();
        assert_eq!(unpack(&pack(TENANT, &entry)), Some(entry.clone()));
        // Each field is cleared in turn.
        let clear: [fn(&mut Entry); 7] = [
            |entry| entry.reason = None,
            |entry| entry.ledger_hash = None,
            |entry| entry.issuer = None,
            |entry| entry.extensions = Extensions::default(),
            |entry| entry.items[0].key_id = None,
            |entry| entry.items[0].form = None,
            |entry| entry.items[0].wrapping_key_id = None,
        ];
        for clear in clear {
            clear(&mut entry);
            assert_eq!(unpack(&pack(TENANT, &entry)), Some(entry.clone()));
        }
    }

    #[test]
    fn every_item_may_have_a_request_id_of_its_own() {
        let mut entry = entry();
        let item = entry.items[0].clone();
        let own = |n: usize| Item { kms_request_id: Some(format!("req-{n}").into()), ..item.clone() };
        entry.items = (0..20_000).map(own).collect();
        assert_eq!(unpack(&pack(TENANT, &entry)), Some(entry));
    }

    #[test]
    fn what_stays_after_an_erasure_holds_no_personal_value() {
        let row = pack(TENANT, &entry());
        let stays = String::from_utf8_lossy(&row.items).into_owned();
        assert!(!stays.contains("user-") && !stays.contains("u-1"));
        let erased = EntryRow { records: "[null,null,null]".to_owned(), ..row };
        let read = unpack(&erased).unwrap();
        assert!(read.items.iter().all(|item| item.record_id.is_none()));
        assert_eq!(read.items[1].refused, Some(ErrorCode::DecryptFailed));
    }

    #[test]
    fn the_hmac_uses_the_salt_beside_the_value() {
        let row = pack(TENANT, &entry());
        let user = row.user.unwrap();
        assert_eq!(user.hmac, hmac_sha256(&user.salt.unwrap(), b"u-1"));
    }

    #[test]
    fn damaged_items_are_refused_and_never_panic() {
        for entry in [entry(), full()] {
            let row = pack(TENANT, &entry);
            for length in 0..row.items.len() {
                let cut = EntryRow { items: row.items[..length].to_vec(), ..row.clone() };
                assert_eq!(unpack(&cut), None, "cut at {length}");
            }
            let longer = EntryRow { items: [row.items.clone(), vec![0]].concat(), ..row };
            assert_eq!(unpack(&longer), None);
        }
    }
}
