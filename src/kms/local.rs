//! A key in a file, for `byok dev` and for tests. It protects nothing from somebody who can read
//! the file, so the configuration of `byok serve` refuses it.
//!
//! The file is JSON, readable by its owner only, and is read at each call: a change by another
//! process (rotate, disable, remove) takes effect at once, so that the kill switch and rotation can
//! be tried without a KMS.
//!
//! ```json
//! { "format": "byok-local-key/1",
//!   "enabled": true,
//!   "versions": [ { "version": 1, "key": "<32 bytes in base64>" } ] }
//! ```
//!
//! The version with the highest number wraps. A DEK is wrapped as a token protects a value (see
//! `crypto`): bound to tenant, DEK id, and key version.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Answer, DekBinding, Exposure, Generated, ItemResult, Kms, KmsDiagnosis, KmsError, KmsErrorClass,
    KmsProfile, RewrapCost,
};
use crate::config::ConfigError;
use crate::crypto::{Binding, Dek, Token, open, seal, sha256};
use crate::model::{KeyVersion, Wrapped};

/// The wrap scheme of this provider: the text of a token bound to tenant, DEK id and key version.
const SCHEME: i16 = 1;
/// The name of the key in [`KeyVersion`].
const NAME: &str = "local";
/// The DEKs of one batch.
const BATCH: usize = 1_000;
const FORMAT: &str = "byok-local-key/1";

/// The key in a file.
#[derive(Debug)]
pub struct LocalKey {
    path: PathBuf,
}

impl LocalKey {
    /// The key in this file.
    ///
    /// # Errors
    ///
    /// A file that is missing, that others can read, or that is not a key file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let local = Self { path: path.into() };
        Stored::read(&local.path).map_err(|error| local.error("cannot be used", &error))?;
        Ok(local)
    }

    /// Makes a new key in a new file that only its owner can read.
    ///
    /// # Errors
    ///
    /// A file that already exists, which stays as it is, or that cannot be written.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let local = Self { path: path.into() };
        let first =
            Stored { format: FORMAT.to_owned(), enabled: true, versions: vec![StoredVersion::generate(1)] };
        first.write_new(&local.path).map_err(|error| local.error("cannot be made", &error))?;
        Ok(local)
    }

    /// Adds a version, which wraps from now on; the older ones still unwrap.
    ///
    /// # Errors
    ///
    /// The file system's error, or [`io::ErrorKind::InvalidData`].
    pub fn rotate(&self) -> io::Result<KeyVersion> {
        let mut number = 0;
        self.change(|stored| {
            number = stored.versions.iter().map(|version| version.version).max().unwrap_or(0) + 1;
            stored.versions.push(StoredVersion::generate(number));
        })?;
        Ok(key_version(number))
    }

    /// Turns the key off: every call is refused until [`Self::enable`].
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn disable(&self) -> io::Result<()> {
        self.change(|stored| stored.enabled = false)
    }

    /// Turns the key on again.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn enable(&self) -> io::Result<()> {
        self.change(|stored| stored.enabled = true)
    }

    fn error(&self, what: &str, error: &io::Error) -> ConfigError {
        let problem = format!("names the file {}, which {what}: {error}", self.path.display());
        ConfigError { variable: "BYOK_LOCAL_KEY_FILE".to_owned(), problem }
    }

    fn change(&self, change: impl FnOnce(&mut Stored)) -> io::Result<()> {
        let mut stored = Stored::read(&self.path)?;
        change(&mut stored);
        // A rename is atomic: a concurrent reader sees the complete old file or the complete new
        // one.
        let mut new = self.path.clone().into_os_string();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        stored.write_new(&new)?;
        std::fs::rename(&new, &self.path)
    }

    /// The versions, if the key may be used.
    fn versions(&self) -> Result<Vec<(u64, Dek)>, KmsError> {
        let stored = Stored::read(&self.path).map_err(|error| {
            KmsError::local(match error.kind() {
                io::ErrorKind::NotFound => KmsErrorClass::KeyNotFound,
                _ => KmsErrorClass::Misconfigured,
            })
        })?;
        if !stored.enabled {
            return Err(KmsError::local(KmsErrorClass::KeyDisabled));
        }
        let mut versions = Vec::with_capacity(stored.versions.len());
        for version in &stored.versions {
            let bytes = STANDARD.decode(&*version.key).map(Zeroizing::new).ok();
            let key = bytes.and_then(|bytes| Dek::from_slice(&bytes));
            versions.push((version.version, key.ok_or(KmsError::local(KmsErrorClass::Misconfigured))?));
        }
        versions.sort_by_key(|(number, _)| *number);
        if versions.is_empty() { Err(KmsError::local(KmsErrorClass::KeyNotFound)) } else { Ok(versions) }
    }

    fn each<I, T>(
        &self,
        items: &[I],
        one: impl Fn(&[(u64, Dek)], &I) -> Result<T, KmsErrorClass>,
    ) -> Vec<ItemResult<T>> {
        match self.versions() {
            Ok(versions) => items
                .iter()
                .map(|item| match one(&versions, item) {
                    Ok(value) => Ok(Answer { value, request_id: None }),
                    Err(class) => Err(KmsError::local(class)),
                })
                .collect(),
            Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}

#[async_trait]
impl Kms for LocalKey {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        self.each(bindings, |versions, binding| {
            let dek = Dek::generate();
            let wrapped = wrap(latest(versions)?, binding, &dek);
            Ok(Generated { dek, wrapped })
        })
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.each(deks, |versions, (binding, dek)| Ok(wrap(latest(versions)?, binding, dek)))
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.each(wrapped, |versions, (binding, wrapped)| unwrap(versions, binding, wrapped))
    }

    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.each(wrapped, |versions, (binding, old)| {
            let to = find(versions, to)?;
            Ok(wrap(to, binding, &unwrap(versions, binding, old)?))
        })
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let versions = self.versions()?;
        latest(&versions).map(|(number, _)| key_version(*number)).map_err(KmsError::local)
    }

    fn profile(&self) -> KmsProfile {
        KmsProfile {
            batch_limit: BATCH,
            rewrap_cost: RewrapCost::PerBatch(BATCH),
            logs_context: false,
            anybody_wraps: false,
            unnamed_version: None,
        }
    }
}

#[async_trait]
impl KmsDiagnosis for LocalKey {
    async fn exposure(&self) -> Vec<Exposure> {
        let remedy = "use it for development only";
        vec![Exposure {
            what: "key: it is in a file on this machine, and protects nothing from anyone who can read the file",
            remedy,
        }]
    }
}

fn key_version(number: u64) -> KeyVersion {
    KeyVersion::new(NAME, number.to_string())
}

fn latest(versions: &[(u64, Dek)]) -> Result<&(u64, Dek), KmsErrorClass> {
    versions.last().ok_or(KmsErrorClass::KeyNotFound)
}

fn find<'a>(versions: &'a [(u64, Dek)], named: &KeyVersion) -> Result<&'a (u64, Dek), KmsErrorClass> {
    if &*named.key != NAME {
        return Err(KmsErrorClass::WrappedByAnotherKey);
    }
    let found = versions.iter().find(|(number, _)| *named.version == *number.to_string());
    found.ok_or(KmsErrorClass::KeyVersionUnavailable)
}

fn binding_of(number: u64, binding: &DekBinding) -> Binding {
    let context = sha256(format!("{FORMAT}/{number}").as_bytes());
    Binding::new(&binding.tenant.0, binding.dek_id.as_bytes(), &context)
}

fn wrap((number, key): &(u64, Dek), binding: &DekBinding, dek: &Dek) -> Wrapped {
    let token = seal(key, &binding_of(*number, binding), binding.dek_id.as_bytes(), dek.expose());
    Wrapped { bytes: token.encode().into_bytes(), key_version: key_version(*number), scheme: SCHEME }
}

fn unwrap(versions: &[(u64, Dek)], binding: &DekBinding, wrapped: &Wrapped) -> Result<Dek, KmsErrorClass> {
    let (number, key) = find(versions, &wrapped.key_version)?;
    let opened = || {
        let text = (wrapped.scheme == SCHEME).then(|| std::str::from_utf8(&wrapped.bytes).ok())??;
        let plain = open(key, &binding_of(*number, binding), &Token::parse(text).ok()?).ok()?;
        Dek::from_slice(plain.expose())
    };
    opened().ok_or(KmsErrorClass::InvalidWrappedDek)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    enabled: bool,
    versions: Vec<StoredVersion>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredVersion {
    version: u64,
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    key: Zeroizing<String>,
}

fn write_key<S: serde::Serializer>(key: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key)
}

fn read_key<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

impl StoredVersion {
    fn generate(version: u64) -> Self {
        Self { version, key: Zeroizing::new(STANDARD.encode(Dek::generate().expose())) }
    }
}

impl Stored {
    /// Reads the file. Refuses one that others can read, as `ssh` does with its keys.
    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "others than its owner can read the key file",
            ));
        }
        let text = Zeroizing::new(io::read_to_string(file)?);
        match serde_json::from_str::<Self>(&text) {
            Ok(stored) if stored.format == FORMAT => Ok(stored),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a byok-local-key/1 file")),
        }
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec_pretty(self)?);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Purpose;
    use crate::model::{DekId, TenantUid};

    fn key() -> (tempfile::TempDir, LocalKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = LocalKey::create(dir.path().join("key.json")).unwrap();
        (dir, key)
    }

    fn binding() -> DekBinding {
        DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }
    }

    async fn class(key: &LocalKey) -> Option<KmsErrorClass> {
        key.generate(&[binding()]).await.remove(0).err().map(|error| error.class)
    }

    #[test]
    fn only_its_owner_can_read_the_file() {
        let (_dir, key) = key();
        assert_eq!(std::fs::metadata(&key.path).unwrap().permissions().mode() & 0o777, 0o600);
        key.rotate().unwrap();
        assert_eq!(std::fs::metadata(&key.path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let (_dir, key) = key();
        let before = std::fs::read(&key.path).unwrap();
        assert!(LocalKey::create(&key.path).is_err());
        assert_eq!(std::fs::read(&key.path).unwrap(), before);
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_is_refused() {
        let (_dir, key) = key();
        std::fs::set_permissions(&key.path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(class(&key).await, Some(KmsErrorClass::Misconfigured));
        assert!(LocalKey::open(&key.path).is_err());
    }

    #[tokio::test]
    async fn a_file_that_is_gone_is_a_key_that_is_gone() {
        let (_dir, key) = key();
        std::fs::remove_file(&key.path).unwrap();
        assert_eq!(class(&key).await, Some(KmsErrorClass::KeyNotFound));
        assert!(!key.path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_something_else_is_refused() {
        let (_dir, key) = key();
        for text in ["{}", r#"{"format":"byok-local-key/2","enabled":true,"versions":[]}"#, "key"] {
            std::fs::write(&key.path, text).unwrap();
            assert_eq!(class(&key).await, Some(KmsErrorClass::Misconfigured));
        }
    }

    #[tokio::test]
    async fn what_another_process_does_holds_at_once() {
        let (_dir, key) = key();
        let other = LocalKey::open(&key.path).unwrap();
        other.disable().unwrap();
        assert_eq!(class(&key).await, Some(KmsErrorClass::KeyDisabled));
        other.enable().unwrap();
        assert_eq!(class(&key).await, None);
    }

    #[tokio::test]
    async fn a_version_that_was_removed_is_unavailable() {
        let (_dir, key) = key();
        let binding = binding();
        let old = key.generate(&[binding]).await.remove(0).unwrap().value.wrapped;
        key.rotate().unwrap();
        key.change(|stored| drop(stored.versions.remove(0))).unwrap();
        let error = key.unwrap(&[(binding, old)]).await.remove(0).err().unwrap();
        assert_eq!(error.class, KmsErrorClass::KeyVersionUnavailable);
    }
}
