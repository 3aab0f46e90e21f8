//! Files that variables name. They are read within limits, and checked again later for changed
//! content. How their content is used is decided elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::crypto::sha256;

/// The largest size of such a file, in bytes. Certificate chains and permissions are far smaller.
const LARGEST: u64 = 1 << 20;

/// Why a file that a variable names cannot be used. It does not hold the path: if somebody confuses
/// a variable with its `_FILE` variant, the path is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileProblem {
    /// The system cannot read it.
    Unreadable(ErrorKind),
    /// It is a folder, a pipe or a device: reading it may never end.
    NotRegular,
    /// It is larger than a megabyte.
    TooLarge,
    /// It is not UTF-8 text.
    NotUtf8,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(kind) => write!(f, "names a file that cannot be read: {kind}"),
            Self::NotRegular => f.write_str("names something that is not a regular file"),
            Self::TooLarge => write!(f, "names a file of more than {LARGEST} bytes"),
            Self::NotUtf8 => f.write_str("names a file that is not UTF-8"),
        }
    }
}

impl From<std::io::Error> for FileProblem {
    fn from(error: std::io::Error) -> Self {
        Self::Unreadable(error.kind())
    }
}

/// Returns the content of a regular file of at most a megabyte. Waits for nothing but the file
/// system.
///
/// # Errors
/// See [`FileProblem`].
pub fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileProblem> {
    // With this flag, a pipe that nobody writes to opens at once and is then recognised as a pipe.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileProblem::NotRegular);
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= LARGEST => Ok(bytes),
        _ => Err(FileProblem::TooLarge),
    }
}

/// Returns the text of such a file.
///
/// # Errors
/// See [`FileProblem`].
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, FileProblem> {
    let mut bytes = read_file(path)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(FileProblem::NotUtf8)
        }
    }
}

/// The SHA-256 of a file's content, or why the file cannot be read.
type Content = Result<[u8; 32], FileProblem>;

/// The files that were read once, keyed by the variables that name them.
#[derive(Default)]
pub struct Files(BTreeMap<String, Watched>);

struct Watched {
    path: PathBuf,
    /// The content when the file was first read or last reported as changed.
    taken: Content,
    /// The content at the last check.
    seen: Content,
}

impl Files {
    /// Records what a variable's file held.
    pub(super) fn note(&mut self, variable: &str, path: &Path, bytes: &[u8]) {
        let content = Ok(sha256(bytes));
        self.0.insert(variable.to_owned(), Watched { path: path.to_owned(), taken: content, seen: content });
    }

    /// Removes a file that is read again at each use.
    pub(super) fn forget(&mut self, variable: &str) {
        self.0.remove(variable);
    }

    /// Returns whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the variables.
    pub fn variables(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Checks the content of all files: times and sizes do not distinguish a swapped link from a
    /// file that was written in its place. Returns the variables of those files whose content
    /// differs from what was last reported and was the same at the check before. A file that is
    /// still being written is left for the next check.
    pub fn changed(&mut self) -> Vec<String> {
        self.look(true)
    }

    /// Returns the same for all changed files, even if they are still being written.
    pub fn changed_at_once(&mut self) -> Vec<String> {
        self.look(false)
    }

    fn look(&mut self, at_rest: bool) -> Vec<String> {
        let mut changed = Vec::new();
        for (variable, file) in &mut self.0 {
            let now = read_file(&file.path).map(|bytes| sha256(&bytes));
            let is_at_rest = std::mem::replace(&mut file.seen, now) == now;
            if now != file.taken && (is_at_rest || !at_rest) {
                file.taken = now;
                changed.push(variable.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn files(path: &Path) -> Files {
        let mut files = Files::default();
        files.note("A_FILE", path, &read_file(path).unwrap());
        files
    }

    #[test]
    fn a_changed_file_is_named_once_it_is_stable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut files = files(&path);
        assert!(files.changed().is_empty());
        fs::write(&path, "tw").unwrap();
        assert!(files.changed().is_empty(), "it may be half written");
        fs::write(&path, "two").unwrap();
        assert!(files.changed().is_empty());
        assert_eq!(files.changed(), ["A_FILE"]);
        assert!(files.changed().is_empty(), "it is named once");
        fs::write(&path, "six").unwrap();
        assert_eq!(files.changed_at_once(), ["A_FILE"]);
    }

    #[test]
    fn a_swapped_link_and_a_removed_file_are_changes() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, link, other] = ["one", "two", "link", "other"].map(|name| folder.path().join(name));
        fs::write(&one, "same size 1").unwrap();
        fs::write(&two, "same size 2").unwrap();
        symlink(&one, &link).unwrap();
        let mut files = files(&link);
        symlink(&two, &other).unwrap();
        fs::rename(&other, &link).unwrap();
        assert_eq!(files.changed_at_once(), ["A_FILE"]);
        fs::remove_file(&two).unwrap();
        assert_eq!(files.changed_at_once(), ["A_FILE"]);
        fs::create_dir(&two).unwrap();
        assert_eq!(files.changed_at_once(), ["A_FILE"], "it cannot be read for another reason");
    }

    #[test]
    fn an_irregular_or_huge_file_is_refused_and_delays_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            assert_eq!(read_file(path).err(), Some(FileProblem::NotRegular), "{}", path.display());
        }
        let large = folder.path().join("large");
        fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_file(&large).err(), Some(FileProblem::TooLarge));
        fs::write(&large, b"s3cret\xff").unwrap();
        assert_eq!(read_text(&large).err(), Some(FileProblem::NotUtf8));
    }
}
