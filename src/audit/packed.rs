//! Reads packed items: of version 2, which [`super::pack()`] writes, and of version 1, which
//! earlier releases wrote and which stays readable for ever:
//!
//! ```text
//! u8                 version = 1
//! u16 × (str, str)   key versions: key, version          str = u16 length, UTF-8
//! u16 × str          KMS request ids
//! u16 × str          refusal codes
//! then for each item:
//!   u8               1 a DEK id follows, 2 a record's HMAC, 4 from the cache, 8 from the KMS
//!   u16              key version: index + 1, 0 for none
//!   u16              KMS request id: index + 1, 0 for none
//!   u16              refusal: index + 1, 0 for done
//!   [16]             DEK id, if flagged
//!   [32]             HMAC-SHA256(salt, record id), if flagged
//! ```

use std::sync::Arc;

use crate::model::{DekId, ErrorCode, Extensions, KeyVersion, Source};

use super::form::EntryForm;

/// Flags for the fields of the entry itself that follow, in version 2.
pub(super) mod entry_flag {
    pub(in super::super) const REASON: u8 = 1;
    pub(in super::super) const LEDGER: u8 = 2;
    pub(in super::super) const ISSUER: u8 = 4;
    pub(in super::super) const EXTENSIONS: u8 = 8;
    pub(super) const ALL: u8 = REASON | LEDGER | ISSUER | EXTENSIONS;
}

/// Flags for the fields of an item that follow. `WRAPPED` and `FORMED` exist only in version 2.
pub(super) mod item_flag {
    pub(in super::super) const DEK: u8 = 1;
    pub(in super::super) const RECORD: u8 = 2;
    pub(in super::super) const CACHE: u8 = 4;
    pub(in super::super) const KMS: u8 = 8;
    pub(in super::super) const WRAPPED: u8 = 16;
    pub(in super::super) const FORMED: u8 = 32;
    pub(super) const ALL_1: u8 = DEK | RECORD | CACHE | KMS;
    pub(super) const ALL_2: u8 = ALL_1 | WRAPPED | FORMED;
}

/// The contents of the packed items of an entry's row. All of them are kept after an erasure.
pub(crate) struct Packed {
    pub(crate) form: EntryForm,
    pub(crate) reason: Option<Arc<str>>,
    pub(crate) ledger_hash: Option<[u8; 32]>,
    pub(crate) issuer: Option<Arc<str>>,
    pub(crate) extensions: Extensions,
    versions: Vec<KeyVersion>,
    requests: Vec<Arc<str>>,
    refusals: Vec<ErrorCode>,
    forms: Vec<Arc<str>>,
    keys: Vec<[u8; 16]>,
    pub(crate) items: Vec<PackedItem>,
}

/// One item. Key version, KMS request id, refusal, form and ids of keys are indexes into the
/// columns, counted from 1; 0 means none.
pub(crate) struct PackedItem {
    pub(crate) dek_id: Option<DekId>,
    pub(crate) source: Option<Source>,
    pub(crate) record_hmac: Option<[u8; 32]>,
    pub(crate) wrapped_hash: Option<[u8; 32]>,
    version: usize,
    request: usize,
    refusal: usize,
    form: usize,
    key: usize,
    wrapping_key: usize,
}

impl Packed {
    /// Reads packed items. Returns `None` if they do not have a form that this or an earlier
    /// version of byok writes.
    pub(crate) fn read(packed: &[u8], count: u32) -> Option<Self> {
        let mut input = Input(packed);
        let form = match input.byte()? {
            1 => EntryForm::One,
            2 => EntryForm::Two,
            _ => return None,
        };
        let mut read = Self {
            form,
            reason: None,
            ledger_hash: None,
            issuer: None,
            extensions: Extensions::default(),
            versions: Vec::new(),
            requests: Vec::new(),
            refusals: Vec::new(),
            forms: Vec::new(),
            keys: Vec::new(),
            items: Vec::new(),
        };
        if form == EntryForm::Two {
            read.read_own(&mut input)?;
        }
        read.versions = input.list(|input| Some(KeyVersion::new(input.text()?, input.text()?)))?;
        read.requests = input.list(|input| Some(Arc::<str>::from(input.text()?)))?;
        read.refusals = input.list(|input| ErrorCode::parse(input.text()?))?;
        if form == EntryForm::Two {
            read.forms = input.list(|input| Some(Arc::<str>::from(input.text()?)))?;
            read.keys = input.list(Input::array)?;
        }
        // An item has at least 7 bytes, so a count that was altered does not cause a large
        // allocation.
        let count = usize::try_from(count).ok().filter(|count| *count <= input.0.len() / 7)?;
        read.items.reserve_exact(count);
        for _ in 0..count {
            let item = read.item(&mut input)?;
            read.items.push(item);
        }
        input.0.is_empty().then_some(read)
    }

    /// Reads the fields of the entry itself.
    fn read_own(&mut self, input: &mut Input) -> Option<()> {
        let flags = input.byte().filter(|flags| flags & !entry_flag::ALL == 0)?;
        let has = |flag: u8| flags & flag != 0;
        if has(entry_flag::REASON) {
            self.reason = Some(input.text()?.into());
        }
        if has(entry_flag::LEDGER) {
            self.ledger_hash = Some(input.array()?);
        }
        if has(entry_flag::ISSUER) {
            self.issuer = Some(input.text()?.into());
        }
        if has(entry_flag::EXTENSIONS) {
            let pairs = input.list(|input| Some((input.text()?.into(), input.text()?.into())))?;
            self.extensions = Extensions::from_pairs(pairs).filter(|pairs| !pairs.is_empty())?;
        }
        Some(())
    }

    fn item(&self, input: &mut Input) -> Option<PackedItem> {
        let flags = input.byte()?;
        let known = match self.form {
            EntryForm::One => item_flag::ALL_1,
            EntryForm::Two => item_flag::ALL_2,
        };
        if flags & !known != 0 {
            return None;
        }
        let has = |flag: u8| flags & flag != 0;
        let version = input.index(self.versions.len())?;
        let request = input.index(self.requests.len())?;
        let refusal = input.index(self.refusals.len())?;
        let (form, key, wrapping_key) = if has(item_flag::FORMED) {
            let formed = (
                input.index(self.forms.len())?,
                input.index(self.keys.len())?,
                input.index(self.keys.len())?,
            );
            // An item that has none of them is written without the flag.
            if formed == (0, 0, 0) {
                return None;
            }
            formed
        } else {
            (0, 0, 0)
        };
        let source = match flags & (item_flag::CACHE | item_flag::KMS) {
            0 => None,
            item_flag::CACHE => Some(Source::Cache),
            item_flag::KMS => Some(Source::Kms),
            _ => return None,
        };
        let dek_id =
            if has(item_flag::DEK) { Some(DekId(uuid::Uuid::from_bytes(input.array()?))) } else { None };
        let record_hmac = if has(item_flag::RECORD) { Some(input.array()?) } else { None };
        let wrapped_hash = if has(item_flag::WRAPPED) { Some(input.array()?) } else { None };
        Some(PackedItem {
            dek_id,
            source,
            record_hmac,
            wrapped_hash,
            version,
            request,
            refusal,
            form,
            key,
            wrapping_key,
        })
    }

    pub(crate) fn key_version(&self, item: &PackedItem) -> Option<&KeyVersion> {
        item.version.checked_sub(1).map(|index| &self.versions[index])
    }

    pub(crate) fn kms_request_id(&self, item: &PackedItem) -> Option<&Arc<str>> {
        item.request.checked_sub(1).map(|index| &self.requests[index])
    }

    pub(crate) fn refusal(&self, item: &PackedItem) -> Option<&ErrorCode> {
        item.refusal.checked_sub(1).map(|index| &self.refusals[index])
    }

    pub(crate) fn form(&self, item: &PackedItem) -> Option<&Arc<str>> {
        item.form.checked_sub(1).map(|index| &self.forms[index])
    }

    pub(crate) fn key_id(&self, item: &PackedItem) -> Option<&[u8; 16]> {
        item.key.checked_sub(1).map(|index| &self.keys[index])
    }

    pub(crate) fn wrapping_key_id(&self, item: &PackedItem) -> Option<&[u8; 16]> {
        item.wrapping_key.checked_sub(1).map(|index| &self.keys[index])
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

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<usize> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn list<T>(&mut self, element: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.number()?).map(|_| element(self)).collect()
    }

    /// Reads an index into a column of that length, counted from 1; 0 means none.
    fn index(&mut self, length: usize) -> Option<usize> {
        self.number().filter(|index| *index <= length)
    }
}
