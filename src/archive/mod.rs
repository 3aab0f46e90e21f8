//! Where the customer keeps checkpoints: a directory, or a bucket whose objects are locked. Writes notes, and reads the last
//! one back; knows nothing of what they say, and trusts nothing that it reads.

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

/// How long a read or a write may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// No note of ours is longer.
const MAX_NOTE_BYTES: usize = 16 << 10;
/// File systems take names of 255 bytes; a digest takes the place of what is past this.
const MAX_FOLDER_BYTES: usize = 180;
/// The name of the copy of the last note.
const LATEST: &str = "latest";

/// A place that takes notes and gives the last one back.
pub enum Archive {
    /// A directory.
    Directory(Directory),
    /// An S3-compatible bucket.
    Bucket(Box<Bucket>),
}

/// Why a place did not take or give a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// Another status of HTTP than one that says that it was done.
    Status(u16),
    /// There are no credentials to sign with.
    NoCredentials,
    /// The directory.
    File(std::io::ErrorKind),
    /// What lies there is longer than a note, or no text.
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
            Self::NoNote => f.write_str("what lies there is no note"),
        }
    }
}

impl std::error::Error for ArchiveError {}

impl ArchiveError {
    /// Whether it is not ours to do: a place may take notes and not give them back.
    pub fn is_denial(self) -> bool {
        self == Self::Status(403) || self == Self::File(std::io::ErrorKind::PermissionDenied)
    }
}

impl Archive {
    /// A directory; it is made where it is not there.
    pub fn directory(path: std::path::PathBuf) -> Self {
        Self::Directory(Directory::new(path))
    }

    /// A bucket. Sends nothing. `None` if TLS cannot be set up with the system's certificates.
    pub fn bucket(settings: CheckpointBucket) -> Option<Self> {
        Bucket::new(settings).map(|bucket| Self::Bucket(Box::new(bucket)))
    }

    /// Its kind, and a digest of its address.
    pub fn name(&self) -> String {
        let (kind, address) = match self {
            Self::Directory(directory) => ("directory", directory.address()),
            Self::Bucket(bucket) => ("bucket", bucket.address()),
        };
        let digest = sha256_of(&[address.as_bytes()]);
        format!("{kind}:{}", hexadecimal(&digest[..4]))
    }

    /// Keeps a note as `<origin>/<size, 20 digits>.note`, which is never replaced, and a copy of it as `<origin>/latest`.
    ///
    /// # Errors
    /// See [`ArchiveError`]; it may be there nevertheless, and may be put again.
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

    /// The note that was put last; `None` where none was.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn latest(&self, origin: &str, now: Timestamp) -> Result<Option<String>, ArchiveError> {
        self.note(&folder_of(origin), LATEST, now).await
    }

    /// The note of the largest size above this one; `None` where there is none. Whoever may write there may put an older
    /// copy back as `latest`; what is locked says more.
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

/// As many digits as the largest number has: names sort as sizes do.
fn name_of(size: u64) -> String {
    format!("{size:020}.note")
}

fn is_note(name: &str) -> bool {
    let digits = name.strip_suffix(".note");
    digits.is_some_and(|digits| digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An origin as one name: it holds a slash, so that it is never `.` or `..`, and no two have the same one.
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

/// Percent-encoded but for RFC 3986's unreserved characters: one name, in a file system as in a bucket.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A note, if that is one by its size and encoding.
fn note_of(bytes: Vec<u8>) -> Result<String, ArchiveError> {
    match bytes.len() {
        ..=MAX_NOTE_BYTES => String::from_utf8(bytes).map_err(|_| ArchiveError::NoNote),
        _ => Err(ArchiveError::NoNote),
    }
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
