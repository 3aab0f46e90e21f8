//! What an auditor is given: a part of a log as JSON Lines, `byok-audit-bundle/1`, that verifies with public keys alone.
//! `docs/audit-log.md` draws the format. The lines are a walk along the tree, from its beginning or from a frontier that
//! is known to the last checkpoint: whatever stands between is there as an entry, or as the roots of the largest complete
//! subtrees over it. Only the form is here, and how it is written; `verify` says what it proves.

mod export;
mod walked;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use uuid::Uuid;

use crate::crypto::hmac_sha256;
use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};
use crate::store::{EntryRow, leaf_of};

use super::digest::{EntryFields, ItemFields, source_name};
use super::pack::PackedItems;

pub use export::{ExportError, Exported, Wanted, export};
pub use walked::verify_bundle;

/// What the first line says the file is.
pub const BUNDLE_FORMAT: &str = "byok-audit-bundle/1";

/// Bytes in base64 with padding (RFC 4648, section 4), of which there is one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| de::Error::custom(format!("not {N} bytes in base64")))
    }
}

pub(super) type Root = Bytes<32>;

pub(super) fn roots_of(roots: &[Hash]) -> Vec<Root> {
    roots.iter().map(|root| Bytes(root.0)).collect()
}

pub(super) fn hashes_of(roots: &[Root]) -> Vec<Hash> {
    roots.iter().map(|root| Hash(root.0)).collect()
}

/// A UUID in its canonical form (RFC 9562, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) Uuid);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = Uuid::parse_str(&text).ok().filter(|id| id.to_string() == text);
        id.map(Self).ok_or_else(|| de::Error::custom("not a UUID in its canonical form"))
    }
}

/// One line. Each is a JSON object with one member, of this name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Header(Header),
    /// A public key that signed, as c2sp.org/signed-note writes it. Counts for nothing unless the auditor knows it.
    Key(String),
    /// Where the walk begins: the tree as it was at that size.
    Start(Start),
    /// Leaves outside the range: only the roots over them.
    Skip(Subtrees),
    /// Leaves of entries that were pruned.
    Pruned(Subtrees),
    Entry(Box<BundleEntry>),
    /// A row that cannot be read as an entry.
    Unreadable(Unreadable),
    /// A signed note of the size that the walk has reached.
    Checkpoint(String),
    End(End),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) format: String,
    /// What the checkpoints begin with.
    pub(super) origin: String,
    /// The tenant's uid, 32 hexadecimal digits.
    pub(super) tenant: String,
    pub(super) log: u32,
    /// The place of the log's first leaf.
    pub(super) first: u64,
    /// The range: from this place …
    pub(super) from: u64,
    /// … to before this one.
    pub(super) to: u64,
    /// How many leaves the closing checkpoint speaks of.
    pub(super) size: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    pub(super) size: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subtrees {
    pub(super) count: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unreadable {
    pub(super) place: u64,
    pub(super) leaf: Root,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// How many entries stand in the bundle.
    pub(super) entries: u64,
}

/// A personal value: with its salt, or erased and without both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Personal {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) salt: Option<Bytes<16>>,
    pub(super) hmac: Bytes<32>,
}

impl Personal {
    /// Whether the value is the one that was hashed; `None` where it was erased.
    pub(super) fn matches(&self) -> Option<bool> {
        match (&self.value, &self.salt) {
            (None, _) => None,
            (Some(value), Some(salt)) => Some(hmac_sha256(&salt.0, value.as_bytes()) == self.hmac.0),
            // Nobody can check it.
            (Some(_), None) => Some(false),
        }
    }
}

/// An entry with all that its leaf covers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BundleEntry {
    pub(super) place: u64,
    /// Microseconds since 1970.
    pub(super) at: i64,
    pub(super) id: Id,
    pub(super) operation: String,
    pub(super) outcome: String,
    pub(super) means: String,
    pub(super) role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<Personal>,
    pub(super) request: Personal,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    pub(super) items: Vec<BundleItem>,
    /// As the row has it.
    pub(super) digest: Bytes<32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BundleItem {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dek_id: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kms_request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<Personal>,
}

impl BundleEntry {
    /// `None` when the row's items or records are not of a form that we write.
    pub(super) fn of(place: u64, row: &EntryRow) -> Option<Self> {
        let packed = PackedItems::read(&row.items, row.item_count)?;
        let records: Vec<Value> = serde_json::from_str(&row.records).ok()?;
        if records.len() != packed.items.len() {
            return None;
        }
        let mut items = Vec::with_capacity(records.len());
        for (item, record) in packed.items.iter().zip(records) {
            let (value, salt) = match record {
                Value::Null => (None, None),
                record => {
                    let (value, salt): (String, String) = serde_json::from_value(record).ok()?;
                    (Some(value), Some(salt_of(&salt)?))
                }
            };
            // A value where none was hashed.
            if value.is_some() && item.record_hmac.is_none() {
                return None;
            }
            let version = packed.key_version(item);
            items.push(BundleItem {
                dek_id: item.dek_id.map(|id| Id(id.0)),
                key: version.map(|version| version.key.to_string()),
                version: version.map(|version| version.version.to_string()),
                source: item.source.map(|source| source_name(source).to_owned()),
                kms_request_id: packed.kms_request_id(item).map(|id| id.to_string()),
                refused: packed.refusal(item).map(|code| code.as_str().to_owned()),
                record: item.record_hmac.map(|hmac| Personal { value, salt, hmac: Bytes(hmac) }),
            });
        }
        let personal = |salted: &crate::model::Salted| Personal {
            value: salted.value.clone(),
            salt: salted.salt.map(Bytes),
            hmac: Bytes(salted.hmac),
        };
        Some(Self {
            place,
            at: row.at.0,
            id: Id(row.id.0),
            operation: row.operation.as_str().to_owned(),
            outcome: row.outcome.as_str().to_owned(),
            means: row.means.as_str().to_owned(),
            role: row.role.to_string(),
            user: row.user.as_ref().map(personal),
            request: personal(&row.request),
            detail: row.detail.as_deref().map(str::to_owned),
            items,
            digest: Bytes(row.digest),
        })
    }

    /// The digest of what it says.
    pub(super) fn computed(&self, tenant: TenantUid) -> [u8; 32] {
        let fields = EntryFields {
            id: self.id.0.as_bytes(),
            operation: &self.operation,
            outcome: &self.outcome,
            means: &self.means,
            role: &self.role,
            user_hmac: self.user.as_ref().map_or(&[], |user| &user.hmac.0),
            request_hmac: &self.request.hmac.0,
            detail: self.detail.as_deref().unwrap_or_default(),
        };
        fields.digest(tenant, self.items.iter().map(BundleItem::leaf))
    }

    /// Its leaf, by the digest that the row has.
    pub(super) fn leaf(&self) -> Hash {
        leaf_of(Timestamp(self.at), &self.digest.0)
    }
}

impl BundleItem {
    fn leaf(&self) -> Hash {
        let fields = ItemFields {
            dek_id: self.dek_id.as_ref().map_or(&[], |id| id.0.as_bytes()),
            key: self.key.as_deref().unwrap_or_default(),
            version: self.version.as_deref().unwrap_or_default(),
            source: self.source.as_deref().unwrap_or_default(),
            kms_request_id: self.kms_request_id.as_deref().unwrap_or_default(),
            refused: self.refused.as_deref().unwrap_or_default(),
            record_hmac: self.record.as_ref().map_or(&[], |record| &record.hmac.0),
        };
        fields.leaf()
    }
}

/// A salt as `records` holds it: base64, with or without padding.
fn salt_of(text: &str) -> Option<Bytes<16>> {
    let text = text.trim_end_matches('=');
    let salt = STANDARD_NO_PAD.decode(text).ok()?;
    salt.try_into().ok().map(Bytes)
}

/// A tenant's uid from its 32 hexadecimal digits.
pub(super) fn tenant_of(text: &str) -> Option<TenantUid> {
    let bytes: Option<Vec<u8>> =
        (0..16).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect();
    let tenant = TenantUid(bytes?.try_into().ok()?);
    (tenant.to_string() == text).then_some(tenant)
}
