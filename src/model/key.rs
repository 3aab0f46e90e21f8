//! Keys, their versions, and wrapped DEKs. A version and a wrapped DEK are named and returned by
//! the KMS; the id of a key is byok's own, since a KMS may use one name in several regions.

use std::fmt;
use std::sync::Arc;

/// byok's own id of one key of a tenant; unique within the tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// The tenant's first key: the only one of a tenant that has one.
    pub const FIRST: Self = Self([0; 16]);

    /// Returns the id as entries hold it: none for the first key.
    pub fn recorded(self) -> Option<[u8; 16]> {
        (self != Self::FIRST).then_some(self.0)
    }
}

/// The KMS's own name for the version of the KEK that wrapped a DEK, and the key that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyVersion {
    /// byok's own id of the key.
    pub key_id: KeyId,
    /// The key, without its version: `byok` (Vault), `mrk-…` (AWS).
    pub key: Arc<str>,
    /// The version: `3` (Vault).
    pub version: Arc<str>,
}

impl KeyVersion {
    /// A version of the tenant's first key, with these names of key and version.
    pub fn new(key: impl Into<Arc<str>>, version: impl Into<Arc<str>>) -> Self {
        Self { key_id: KeyId::FIRST, key: key.into(), version: version.into() }
    }

    /// The same version, of the key with this id.
    pub fn of(self, key_id: KeyId) -> Self {
        Self { key_id, ..self }
    }

    /// Parses the form that [`fmt::Display`] writes; the version follows the last `/`.
    pub fn parse(text: &str) -> Option<Self> {
        let (key, version) = text.rsplit_once('/')?;
        (!key.is_empty() && !version.is_empty()).then(|| Self::new(key, version))
    }
}

/// `<key>/<version>`.
impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.key, self.version)
    }
}

/// A DEK as the KMS returned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The KMS's own bytes, never interpreted by byok.
    pub bytes: Vec<u8>,
    /// The version of the KEK that wrapped the DEK.
    pub key_version: KeyVersion,
    /// The version of the provider's scheme for binding tenant and DEK id (see `kms`).
    pub scheme: i16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_version_survives_a_round_trip() {
        let version = KeyVersion::new("arn:aws:kms:eu-west-1:1:key/mrk-1", "7");
        assert_eq!(version.to_string(), "arn:aws:kms:eu-west-1:1:key/mrk-1/7");
        assert_eq!(KeyVersion::parse(&version.to_string()), Some(version));
        assert_eq!(KeyVersion::parse("key"), None);
        assert_eq!(KeyVersion::parse("/1"), None);
    }
}
