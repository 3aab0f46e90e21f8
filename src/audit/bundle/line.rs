//! The lines of a bundle as `docs/audit-log.md` draws them, read and written. What an entry says is next door.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use super::entry::BundleEntry;
use crate::merkle::Hash;
use crate::model::TenantUid;

/// Bytes in base64 with padding (RFC 4648, section 4), of which there is one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) struct Bytes<const N: usize>(pub(in crate::audit) [u8; N]);

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
pub(in crate::audit) struct Id(pub(in crate::audit) Uuid);

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

/// Reads these types from a JSON object and from nothing else: Serde's own reading takes a list of a struct's values as well,
/// which is no form of a bundle. They derive with `#[serde(remote = "Self")]`.
macro_rules! read_from_objects {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                <$type>::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;

                impl<'de> serde::de::Visitor<'de> for Object {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                        <$type>::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_map(Object)
            }
        }
    )+};
}

pub(super) use read_from_objects;

read_from_objects!(Header, Start, Subtrees, Unreadable, End);

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
#[serde(remote = "Self", deny_unknown_fields)]
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
    /// Whether the range reaches the end of what that checkpoint speaks of, and behind it entries say that values were erased.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) erasures_behind: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Start {
    pub(super) size: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Subtrees {
    pub(super) count: u64,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct Unreadable {
    pub(super) place: u64,
    pub(super) leaf: Root,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct End {
    /// How many entries stand in the bundle.
    pub(super) entries: u64,
}

/// A tenant's uid from its 32 hexadecimal digits.
pub(super) fn tenant_of(text: &str) -> Option<TenantUid> {
    let bytes: Option<Vec<u8>> =
        (0..16).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect();
    let tenant = TenantUid(bytes?.try_into().ok()?);
    (tenant.to_string() == text).then_some(tenant)
}
