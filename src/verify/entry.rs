//! An entry as a bundle shows it: everything that its leaf covers, and the personal values with
//! their salts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::encoding::{Bytes, Id, read_from_objects, tenant_of};
use crate::audit::{EntryFields, EntryForm, ItemFields, Packed, optional_bytes, source_name};
use crate::crypto::hmac_sha256;
use crate::merkle::Hash;
use crate::model::{TenantUid, Timestamp};
use crate::store::{EntryRow, leaf_of};

read_from_objects!(Personal, BundleEntry, BundleItem);

/// A personal value: with its salt, or erased together with its salt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Personal {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) salt: Option<Bytes<16>>,
    pub(super) hmac: Bytes<32>,
}

impl Personal {
    /// Returns whether the value is the one that was hashed; `None` if it was erased.
    pub(super) fn matches(&self) -> Option<bool> {
        match (&self.value, &self.salt) {
            (None, _) => None,
            (Some(value), Some(salt)) => Some(hmac_sha256(&salt.0, value.as_bytes()) == self.hmac.0),
            // Without the salt, nobody can check it.
            (Some(_), None) => Some(false),
        }
    }
}

/// An entry with everything that its leaf covers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct BundleEntry {
    #[serde(rename = "place")]
    pub(super) position: u64,
    /// The tenant that the entry belongs to, if that is not the tenant of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
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
    /// The form, which determines the fields that the digest covers: 2, or 1 if it is absent. The
    /// next four fields exist only in form 2.
    #[serde(default, skip_serializing_if = "EntryForm::is_one")]
    pub(super) form: EntryForm,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ledger_hash: Option<Bytes<32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) issuer: Option<String>,
    /// Names and values, in the byte order of the names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) extensions: Vec<(String, String)>,
    pub(super) items: Vec<BundleItem>,
    /// The digest in the row.
    pub(super) digest: Bytes<32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
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
    /// This field and the following ones exist only in form 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_id: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wrapped_hash: Option<Bytes<32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) form: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wrapping_key_id: Option<Id>,
}

impl BundleEntry {
    /// Builds the entry of a row; `None` if the row's items or records do not have a format that
    /// byok writes.
    pub(super) fn of(position: u64, row: &EntryRow) -> Option<Self> {
        let packed = Packed::read(&row.items, row.item_count)?;
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
            // The row has a value although none was hashed.
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
                key_id: packed.key_id(item).map(id_of),
                wrapped_hash: item.wrapped_hash.map(Bytes),
                form: packed.form(item).map(|form| form.to_string()),
                wrapping_key_id: packed.wrapping_key_id(item).map(id_of),
            });
        }
        let personal = |salted: &crate::model::Salted| Personal {
            value: salted.value.clone(),
            salt: salted.salt.map(Bytes),
            hmac: Bytes(salted.hmac),
        };
        Some(Self {
            position,
            tenant: None,
            at: row.at.0,
            id: Id(row.id.0),
            operation: row.operation.as_str().to_owned(),
            outcome: row.outcome.as_str().to_owned(),
            means: row.means.as_str().to_owned(),
            role: row.role.to_string(),
            user: row.user.as_ref().map(personal),
            request: personal(&row.request),
            detail: row.detail.as_deref().map(str::to_owned),
            form: packed.form,
            reason: packed.reason.as_deref().map(str::to_owned),
            ledger_hash: packed.ledger_hash.map(Bytes),
            issuer: packed.issuer.as_deref().map(str::to_owned),
            extensions: packed.extensions.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            items,
            digest: Bytes(row.digest),
        })
    }

    /// Computes the digest of what the entry says.
    pub(super) fn computed(&self, tenant: TenantUid) -> [u8; 32] {
        let extensions: Vec<_> = self.extensions.iter().map(|(name, value)| (&**name, &**value)).collect();
        let fields = EntryFields {
            form: self.form,
            id: self.id.0.as_bytes(),
            operation: &self.operation,
            outcome: &self.outcome,
            means: &self.means,
            role: &self.role,
            user_hmac: self.user.as_ref().map_or(&[], |user| &user.hmac.0),
            request_hmac: &self.request.hmac.0,
            detail: self.detail.as_deref().unwrap_or_default(),
            reason: self.reason.as_deref().unwrap_or_default(),
            ledger_hash: optional_bytes(self.ledger_hash.as_ref().map(|hash| &hash.0)),
            issuer: self.issuer.as_deref().unwrap_or_default(),
            extensions: &extensions,
        };
        fields.digest(tenant, self.items.iter().map(|item| item.leaf(self.form)))
    }

    /// Returns whether the digest covers everything that the entry says. An entry of the first form
    /// must not have the later fields.
    pub(super) fn is_of_its_form(&self) -> bool {
        let sorted = self.extensions.is_sorted_by(|(one, _), (next, _)| one < next);
        let beyond = self.reason.is_some()
            || self.ledger_hash.is_some()
            || self.issuer.is_some()
            || !self.extensions.is_empty()
            || self.items.iter().any(BundleItem::has_later_fields);
        match self.form {
            EntryForm::One => !beyond,
            EntryForm::Two => sorted,
        }
    }

    /// Returns the other tenant that the entry claims to belong to, if the digest matches for that
    /// tenant.
    pub(super) fn others(&self) -> Option<TenantUid> {
        let tenant = self.tenant.as_deref().and_then(tenant_of)?;
        (self.computed(tenant) == self.digest.0).then_some(tenant)
    }

    /// Returns the leaf, from the digest in the row.
    pub(super) fn leaf(&self) -> Hash {
        self.leaf_with(&self.digest.0)
    }

    /// Returns the leaf that the entry would have with this digest.
    pub(super) fn leaf_with(&self, digest: &[u8; 32]) -> Hash {
        leaf_of(Timestamp(self.at), digest)
    }
}

impl BundleItem {
    fn has_later_fields(&self) -> bool {
        self.key_id.is_some()
            || self.wrapped_hash.is_some()
            || self.form.is_some()
            || self.wrapping_key_id.is_some()
    }

    fn leaf(&self, form: EntryForm) -> Hash {
        let fields = ItemFields {
            dek_id: self.dek_id.as_ref().map_or(&[], |id| id.0.as_bytes()),
            key: self.key.as_deref().unwrap_or_default(),
            version: self.version.as_deref().unwrap_or_default(),
            source: self.source.as_deref().unwrap_or_default(),
            kms_request_id: self.kms_request_id.as_deref().unwrap_or_default(),
            refused: self.refused.as_deref().unwrap_or_default(),
            record_hmac: self.record.as_ref().map_or(&[], |record| &record.hmac.0),
            key_id: optional_bytes(self.key_id.as_ref().map(|id| id.0.as_bytes())),
            wrapped_hash: optional_bytes(self.wrapped_hash.as_ref().map(|hash| &hash.0)),
            form: self.form.as_deref().unwrap_or_default(),
            wrapping_key_id: optional_bytes(self.wrapping_key_id.as_ref().map(|id| id.0.as_bytes())),
        };
        fields.leaf(form)
    }
}

fn id_of(bytes: &[u8; 16]) -> Id {
    Id(Uuid::from_bytes(*bytes))
}

/// Parses a salt as `records` holds it: base64, with or without padding.
fn salt_of(text: &str) -> Option<Bytes<16>> {
    let text = text.trim_end_matches('=');
    let salt = STANDARD_NO_PAD.decode(text).ok()?;
    salt.try_into().ok().map(Bytes)
}
