//! The customer's archives of checkpoints: a directory, or a bucket with locked objects. Writes
//! notes and reads them back; does not interpret them, and does not trust what it reads.

mod bucket;
mod directory;

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use crate::config::CheckpointBucket;
use crate::crypto::sha256_of;
use crate::model::Timestamp;

pub use bucket::Bucket;
pub use directory::Directory;

/// The longest time for a read or a write.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest note.
const MAX_NOTE_BYTES: usize = 16 << 10;
/// The longest prefix of a folder's name; a digest replaces the rest, since file systems allow 255
/// bytes.
const MAX_FOLDER_BYTES: usize = 180;
/// The name of the copy of the newest note.
const LATEST: &str = "latest";

/// A destination that stores notes.
pub enum Archive {
    /// A directory.
    Directory(Directory),
    /// An S3-compatible bucket.
    Bucket(Box<Bucket>),
}

/// Why a note could not be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// An HTTP status other than success.
    Status(u16),
    /// No credentials were found to sign with.
    NoCredentials,
    /// An error of the directory.
    File(std::io::ErrorKind),
    /// The content is longer than a note, or not text.
    NoNote,
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("unreachable"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::NoCredentials => f.write_str("no credentials"),
            Self::File(kind) => write!(f, "{kind}"),
            Self::NoNote => f.write_str("the content is not a note"),
        }
    }
}

impl std::error::Error for ArchiveError {}

impl ArchiveError {
    /// Whether access is denied: a destination may allow writing and not reading.
    pub fn is_denial(self) -> bool {
        self == Self::Status(403) || self == Self::File(std::io::ErrorKind::PermissionDenied)
    }
}

impl Archive {
    /// A directory, which is created if it does not exist.
    pub fn directory(path: std::path::PathBuf) -> Self {
        Self::Directory(Directory::new(path))
    }

    /// A bucket. Sends nothing. `None` if TLS cannot be set up with the system's certificates.
    pub fn bucket(settings: CheckpointBucket) -> Option<Self> {
        Bucket::new(settings).map(|bucket| Self::Bucket(Box::new(bucket)))
    }

    /// The kind, and a digest of the address.
    pub fn name(&self) -> String {
        let (kind, address) = match self {
            Self::Directory(directory) => ("directory", directory.address()),
            Self::Bucket(bucket) => ("bucket", bucket.address()),
        };
        let digest = sha256_of(&[address.as_bytes()]);
        format!("{kind}:{}", hexadecimal(&digest[..4]))
    }

    /// Stores a note as `<origin>/<size, 20 digits>.note`, which is never replaced, and a copy of
    /// it as `<origin>/latest`.
    ///
    /// # Errors
    /// See [`ArchiveError`]; the note may be stored nevertheless, and may be put again.
    pub async fn put(&self, origin: &str, size: u64, note: &str, now: Timestamp) -> Result<(), ArchiveError> {
        let (folder, name) = (folder_of(origin), name_of(size));
        let put = async {
            match self {
                Self::Directory(directory) => directory.put(&folder, &name, note).await,
                Self::Bucket(bucket) => bucket.put(&folder, &name, note, now).await,
            }
        };
        timeout(DEADLINE, put).await.unwrap_or(Err(ArchiveError::Timeout))
    }

    /// The note that was put last; `None` if there is none.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn latest(&self, origin: &str, now: Timestamp) -> Result<Option<String>, ArchiveError> {
        self.note(&folder_of(origin), LATEST, now).await
    }

    /// The note of the largest size above this one; `None` if there is none. Better evidence than
    /// `latest`, which anybody with write access can replace by an older copy; the other notes are
    /// locked.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn above(
        &self,
        origin: &str,
        size: u64,
        now: Timestamp,
    ) -> Result<Option<String>, ArchiveError> {
        let folder = folder_of(origin);
        let mut after = name_of(size);
        let mut largest = None;
        loop {
            let names = async {
                match self {
                    Self::Directory(directory) => directory.names(&folder).await.map(|names| (names, false)),
                    Self::Bucket(bucket) => bucket.names(&folder, &after, now).await,
                }
            };
            let (names, more) = timeout(DEADLINE, names).await.unwrap_or(Err(ArchiveError::Timeout))?;
            match names.into_iter().filter(|name| is_note(name) && *name > after).max() {
                Some(name) => {
                    after.clone_from(&name);
                    largest = Some(name);
                }
                None => break,
            }
            if !more {
                break;
            }
        }
        match largest {
            Some(name) => self.note(&folder, &name, now).await,
            None => Ok(None),
        }
    }

    async fn note(&self, folder: &str, name: &str, now: Timestamp) -> Result<Option<String>, ArchiveError> {
        let read = async {
            match self {
                Self::Directory(directory) => directory.note(folder, name).await,
                Self::Bucket(bucket) => bucket.note(folder, name, now).await,
            }
        };
        timeout(DEADLINE, read).await.unwrap_or(Err(ArchiveError::Timeout))
    }
}

/// The name of a note, with as many digits as the largest size, so that names sort like sizes.
fn name_of(size: u64) -> String {
    format!("{size:020}.note")
}

fn is_note(name: &str) -> bool {
    let digits = name.strip_suffix(".note");
    digits.is_some_and(|digits| digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The folder of an origin, as a single name. An origin contains a slash, so the name is never `.`
/// or `..`; different origins have different names.
fn folder_of(origin: &str) -> String {
    let name = encoded(origin);
    match name.get(..MAX_FOLDER_BYTES) {
        None => name,
        Some(beginning) => format!("{beginning}~{}", hexadecimal(&sha256_of(&[origin.as_bytes()]))),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Percent-encodes all but the unreserved characters of RFC 3986: a single name in a file system as
/// in a bucket.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The bytes as a note, if their size and encoding allow it.
fn note_of(bytes: Vec<u8>) -> Result<String, ArchiveError> {
    if bytes.len() > MAX_NOTE_BYTES {
        return Err(ArchiveError::NoNote);
    }
    String::from_utf8(bytes).map_err(|_| ArchiveError::NoNote)
}

#[cfg(test)]
mod tests {
    use super::folder_of;

    #[test]
    fn an_origin_is_one_name() {
        assert_eq!(folder_of("byok.example/a%20b/1"), "byok.example%2Fa%2520b%2F1");
    }

    #[test]
    fn no_origin_leaves_its_folder_or_exceeds_a_file_name() {
        for origin in ["../../etc/1", "byok/../1", "/", "a/\0/1", &"é/".repeat(300)] {
            let folder = folder_of(origin);
            assert!(
                !folder.contains(['/', '\\', '\0']) && ![".", "..", "latest"].contains(&&*folder),
                "{folder}"
            );
            assert!(folder.len() <= 255, "{}", folder.len());
        }
        let (one, other) = (format!("{}/1", "x".repeat(300)), format!("{}/2", "x".repeat(300)));
        assert_ne!(folder_of(&one), folder_of(&other));
    }
}
