//! A directory, in which each note is a file. Files are written atomically and durably.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use super::{ArchiveError, LATEST, MAX_NOTE_BYTES, note_of};

/// A directory of notes.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn address(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) async fn put(&self, folder: &str, name: &str, note: &str) -> Result<(), ArchiveError> {
        let (folder, name, note) = (self.path.join(folder), name.to_owned(), note.to_owned());
        blocking(move || {
            fs::create_dir_all(&folder)?;
            // A published note is never replaced: the first one of a size stays.
            write(&folder, &name, &note, |from, to| match fs::hard_link(from, to) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            })?;
            write(&folder, LATEST, &note, |from, to| fs::rename(from, to))?;
            if let Some(above) = folder.parent() {
                File::open(above)?.sync_all()?;
            }
            Ok(())
        })
        .await
    }

    /// The names of all files in the folder.
    pub(super) async fn names(&self, folder: &str) -> Result<Vec<String>, ArchiveError> {
        let folder = self.path.join(folder);
        blocking(move || match fs::read_dir(&folder) {
            Ok(files) => files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        })
        .await
    }

    pub(super) async fn note(&self, folder: &str, name: &str) -> Result<Option<String>, ArchiveError> {
        let path = self.path.join(folder).join(name);
        let read = blocking(move || match open_regular(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_NOTE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        read.await?.map(note_of).transpose()
    }
}

/// Opens a regular file for reading. Reading a pipe without a writer would block for ever, and with
/// it the end of the process.
fn open_regular(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() { File::open(path) } else { Err(ErrorKind::InvalidInput.into()) }
}

/// Writes a file under a temporary name, then moves it by `publish`, so that a reader sees the
/// whole file or none.
fn write(
    folder: &Path,
    name: &str,
    note: &str,
    publish: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = folder.join(format!(".{}", uuid::Uuid::now_v7().simple()));
    let written = File::create_new(&temporary).and_then(|mut file| {
        file.write_all(note.as_bytes())?;
        file.sync_all()?;
        publish(&temporary, &folder.join(name))
    });
    let _ = fs::remove_file(&temporary);
    written?;
    File::open(folder)?.sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ArchiveError> {
    match spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| ArchiveError::File(error.kind())),
        Err(_) => Err(ArchiveError::File(ErrorKind::Other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_note_reads_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path().join("checkpoints"));
        assert_eq!(directory.note("a%2Fb%2F1", LATEST).await, Ok(None));
        for (name, note) in [("03.note", "3\n"), ("07.note", "7\n"), ("07.note", "another\n")] {
            directory.put("a%2Fb%2F1", name, note).await.unwrap();
        }
        assert_eq!(directory.note("a%2Fb%2F1", LATEST).await, Ok(Some("another\n".to_owned())));
        let kept = folder.path().join("checkpoints/a%2Fb%2F1/07.note");
        assert_eq!(fs::read_to_string(kept).unwrap(), "7\n", "what was published is never replaced");
        let files = fs::read_dir(folder.path().join("checkpoints/a%2Fb%2F1")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["03.note", "07.note", "latest"]);
    }

    #[tokio::test]
    async fn anything_but_a_note_in_a_directory_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path().to_owned());
        directory.put("o", "1.note", &"x".repeat(MAX_NOTE_BYTES + 1)).await.unwrap();
        assert_eq!(directory.note("o", LATEST).await, Err(ArchiveError::NoNote));
        std::fs::create_dir(folder.path().join("p")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.path().join("p/latest")).status();
        assert!(made.unwrap().success());
        assert_eq!(directory.note("p", LATEST).await, Err(ArchiveError::File(ErrorKind::InvalidInput)));
        let file = tempfile::NamedTempFile::new().unwrap();
        let directory = Directory::new(file.path().to_owned());
        assert!(matches!(directory.put("o", "1.note", "x").await, Err(ArchiveError::File(_))));
    }
}
