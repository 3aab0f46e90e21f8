//! An entry as the store holds it. Personal values (user, record ids, request id) stand beside random salts in columns
//! that an erasure can set to null; everything that stays for ever covers only their HMACs.
//!
//! The packed items, version 1, all numbers big-endian:
//!
//! ```text
//! u8                 version = 1
//! u16 × (str, str)   key versions: key, version          str = u16 length, UTF-8
//! u16 × str          KMS request ids
//! u16 × str          refusal codes
//! then for each item:
//!   u8               flags: 1 a DEK id follows, 2 a record's HMAC follows, 4 from the cache, 8 from the KMS
//!   u16              key version: index + 1, 0 for none
//!   u16              KMS request id: index + 1, 0 for none
//!   u16              refusal: index + 1, 0 for done
//!   [16]             DEK id, if flagged
//!   [32]             HMAC-SHA256(salt, record id), if flagged
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use crate::crypto::{fill_random, hmac_sha256};
use crate::model::{DekId, Entry, ErrorCode, Item, KeyVersion, Salted, Source, TenantUid};
use crate::store::EntryRow;

use super::digest::digest_of;

const VERSION: u8 = 1;
const HAS_DEK: u8 = 1;
const HAS_RECORD: u8 = 2;
const FROM_CACHE: u8 = 4;
const FROM_KMS: u8 = 8;

/// Packs a tenant's entry, with a fresh salt for each personal value.
pub fn pack(tenant: TenantUid, entry: &Entry) -> EntryRow {
    let mut salts = vec![0_u8; 16 * (entry.items.len() + 2)];
    fill_random(&mut salts);
    let (own, of_items) = salts.split_at(32);
    let (user_salt, request_salt) = own.split_at(16);
    let (records, items) = pack_items(&entry.items, of_items);
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

/// Reads a packed entry; `None` when it is not of a form that [`pack`] writes.
pub fn unpack(row: &EntryRow) -> Option<Entry> {
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
        items: unpack_items(&row.items, &row.records, row.item_count)?,
    })
}

fn salted(value: &str, salt: &[u8]) -> Salted {
    let mut own = [0; 16];
    own.copy_from_slice(salt);
    Salted { value: Some(value.to_owned()), salt: Some(own), hmac: hmac_sha256(salt, value.as_bytes()) }
}

/// The distinct values of one column of a call's items. Almost always there is one; a KMS without batches has as many
/// request ids as items, so a scan would not do.
struct Column<'a, T> {
    values: Vec<&'a T>,
    places: HashMap<&'a T, u16>,
}

impl<'a, T: Eq + Hash> Column<'a, T> {
    fn of(values: impl Iterator<Item = &'a T>) -> Self {
        let mut column = Self { values: Vec::new(), places: HashMap::new() };
        for value in values {
            if column.values.last() != Some(&value) && !column.places.contains_key(value) {
                column.values.push(value);
                // A call has at most 65,000 items (`BYOK_MAX_ITEMS_PER_REQUEST`).
                column.places.insert(value, u16::try_from(column.values.len()).unwrap_or(0));
            }
        }
        column
    }

    /// Index + 1, or 0 for none.
    fn index(&self, value: Option<&T>) -> [u8; 2] {
        let place = match value {
            None => 0,
            Some(value) if self.values.first() == Some(&value) => 1,
            Some(value) => self.places.get(value).copied().unwrap_or(0),
        };
        place.to_be_bytes()
    }
}

fn pack_items(items: &[Item], salts: &[u8]) -> (String, Vec<u8>) {
    let versions = Column::of(items.iter().filter_map(|item| item.key_version.as_ref()));
    let requests = Column::of(items.iter().filter_map(|item| item.kms_request_id.as_ref()));
    let refusals = Column::of(items.iter().filter_map(|item| item.refused.as_ref()));
    let mut packed = Vec::with_capacity(64 + 56 * items.len());
    packed.push(VERSION);
    put_count(&mut packed, versions.values.len());
    for version in &versions.values {
        put_text(&mut packed, &version.key);
        put_text(&mut packed, &version.version);
    }
    put_count(&mut packed, requests.values.len());
    requests.values.iter().for_each(|request| put_text(&mut packed, request));
    put_count(&mut packed, refusals.values.len());
    refusals.values.iter().for_each(|code| put_text(&mut packed, code.as_str()));

    let mut records = String::with_capacity(2 + 64 * items.len());
    records.push('[');
    for (place, (item, salt)) in items.iter().zip(salts.chunks_exact(16)).enumerate() {
        let flags = match item.source {
            None => 0,
            Some(Source::Cache) => FROM_CACHE,
            Some(Source::Kms) => FROM_KMS,
        };
        let has_dek = if item.dek_id.is_some() { HAS_DEK } else { 0 };
        let has_record = if item.record_id.is_some() { HAS_RECORD } else { 0 };
        packed.push(flags | has_dek | has_record);
        packed.extend(versions.index(item.key_version.as_ref()));
        packed.extend(requests.index(item.kms_request_id.as_ref()));
        packed.extend(refusals.index(item.refused.as_ref()));
        if let Some(dek_id) = item.dek_id {
            packed.extend(dek_id.as_bytes());
        }
        if place > 0 {
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
    }
    records.push(']');
    (records, packed)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    put_count(out, text.len());
    out.extend(text.as_bytes());
}

fn unpack_items(packed: &[u8], records: &str, count: u32) -> Option<Vec<Item>> {
    let packed = PackedItems::read(packed, count)?;
    let records: Vec<Option<(Arc<str>, String)>> = serde_json::from_str(records).ok()?;
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
    };
    Some(packed.items.iter().zip(records).map(item).collect())
}

/// Packed items, read: what stays of them after an erasure.
pub(super) struct PackedItems {
    versions: Vec<KeyVersion>,
    requests: Vec<Arc<str>>,
    refusals: Vec<ErrorCode>,
    pub(super) items: Vec<PackedItem>,
}

/// One of them; key version, KMS request id and refusal are places in the columns, from 1, or 0 for none.
pub(super) struct PackedItem {
    pub(super) dek_id: Option<DekId>,
    pub(super) source: Option<Source>,
    pub(super) record_hmac: Option<[u8; 32]>,
    version: usize,
    request: usize,
    refusal: usize,
}

impl PackedItems {
    /// `None` when that is not of a form that [`pack`] writes.
    pub(super) fn read(packed: &[u8], count: u32) -> Option<Self> {
        let mut input = Input(packed);
        if input.byte()? != VERSION {
            return None;
        }
        let versions = input.list(|input| Some(KeyVersion::new(input.text()?, input.text()?)))?;
        let requests = input.list(|input| Some(Arc::<str>::from(input.text()?)))?;
        let refusals = input.list(|input| ErrorCode::parse(input.text()?))?;
        // An item has 7 bytes at least: a count that was altered makes nobody allocate for it.
        let count = usize::try_from(count).ok().filter(|count| *count <= input.0.len() / 7)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let flags = input.byte()?;
            if flags & !(HAS_DEK | HAS_RECORD | FROM_CACHE | FROM_KMS) != 0 {
                return None;
            }
            items.push(PackedItem {
                version: input.place(versions.len())?,
                request: input.place(requests.len())?,
                refusal: input.place(refusals.len())?,
                source: match flags & (FROM_CACHE | FROM_KMS) {
                    0 => None,
                    FROM_CACHE => Some(Source::Cache),
                    FROM_KMS => Some(Source::Kms),
                    _ => return None,
                },
                dek_id: match flags & HAS_DEK {
                    0 => None,
                    _ => Some(DekId(uuid::Uuid::from_slice(input.take(16)?).ok()?)),
                },
                record_hmac: match flags & HAS_RECORD {
                    0 => None,
                    _ => Some(input.take(32)?.try_into().ok()?),
                },
            });
        }
        input.0.is_empty().then_some(Self { versions, requests, refusals, items })
    }

    pub(super) fn key_version(&self, item: &PackedItem) -> Option<&KeyVersion> {
        item.version.checked_sub(1).map(|place| &self.versions[place])
    }

    pub(super) fn kms_request_id(&self, item: &PackedItem) -> Option<&Arc<str>> {
        item.request.checked_sub(1).map(|place| &self.requests[place])
    }

    pub(super) fn refusal(&self, item: &PackedItem) -> Option<&ErrorCode> {
        item.refusal.checked_sub(1).map(|place| &self.refusals[place])
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<usize> {
        self.take(2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn list<T>(&mut self, element: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.number()?).map(|_| element(self)).collect()
    }

    /// A place in a column of that length, from 1; 0 for none.
    fn place(&mut self, length: usize) -> Option<usize> {
        self.number().filter(|place| *place <= length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EntryId, Means, Operation, Outcome, Timestamp};

    const TENANT: TenantUid = TenantUid([7; 16]);

    fn entry() -> Entry {
        let version = KeyVersion::new("byok", "3");
        let done = |record: &str| Item {
            record_id: Some(record.into()),
            dek_id: Some(DekId::new()),
            key_version: Some(version.clone()),
            source: Some(Source::Cache),
            kms_request_id: Some("req-1".into()),
            refused: None,
        };
        let refused = Item {
            record_id: None,
            dek_id: None,
            key_version: None,
            source: None,
            kms_request_id: None,
            refused: Some(ErrorCode::DecryptFailed),
        };
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
            items: vec![done("user-\"1\""), refused, done("ü")],
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_packed() {
        let entry = entry();
        assert_eq!(unpack(&pack(TENANT, &entry)), Some(entry));
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
    fn the_hmac_is_made_with_the_salt_that_stands_beside_the_value() {
        let row = pack(TENANT, &entry());
        let user = row.user.unwrap();
        assert_eq!(user.hmac, hmac_sha256(&user.salt.unwrap(), b"u-1"));
    }

    #[test]
    fn damaged_items_are_refused_and_never_panic() {
        let row = pack(TENANT, &entry());
        for length in 0..row.items.len() {
            let cut = EntryRow { items: row.items[..length].to_vec(), ..row.clone() };
            assert_eq!(unpack(&cut), None, "cut at {length}");
        }
        let longer = EntryRow { items: [row.items.clone(), vec![0]].concat(), ..row };
        assert_eq!(unpack(&longer), None);
    }
}
