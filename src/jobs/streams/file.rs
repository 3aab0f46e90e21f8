//! Appends lines to a file, and flushes them to the disk.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

/// The time limit of a write and its flush.
const DEADLINE: Duration = Duration::from_secs(10);

/// A file that lines are appended to. Another process may rename or remove it between lines; then
/// it is created again.
pub(super) struct Lines {
    path: PathBuf,
    open: Arc<Mutex<Option<File>>>,
    /// Held by the log whose lines are appended. The others wait, each for [`DEADLINE`] at most.
    turn: tokio::sync::Mutex<()>,
}

impl Lines {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: Arc::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Appends whole lines, and returns only once they are on the disk.
    ///
    /// # Errors
    /// A short text for the log.
    pub(super) async fn append(&self, lines: String) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let (path, open) = (self.path.clone(), self.open.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut open = match open.try_lock() {
                Ok(open) => open,
                // A write that timed out is still running.
                Err(TryLockError::WouldBlock) => return Err("busy".to_owned()),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            let appended = append(&path, &mut open, lines.as_bytes());
            if appended.is_err() {
                *open = None;
            }
            appended.map_err(|error| error.kind().to_string())
        });
        match tokio::time::timeout(DEADLINE, written).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err("broken".to_owned()),
            Err(_) => Err("timeout".to_owned()),
        }
    }
}

fn append(path: &PathBuf, open: &mut Option<File>, lines: &[u8]) -> std::io::Result<()> {
    let file = match open.take() {
        Some(file) if is_at(&file, path) => file,
        Some(_) | None => opened(path)?,
    };
    let file = open.insert(file);
    file.write_all(lines)?;
    file.sync_data()?;
    // The file was removed while it was written. The lines are lost, and have to be sent again.
    match file.metadata()?.nlink() {
        0 => Err(ErrorKind::NotFound.into()),
        _ => Ok(()),
    }
}

fn is_at(file: &File, path: &PathBuf) -> bool {
    let same = |(one, other): (std::fs::Metadata, std::fs::Metadata)| {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    file.metadata().ok().zip(std::fs::metadata(path).ok()).is_some_and(same)
}

/// Opens the file. It holds personal values, so only its owner may read it.
fn opened(path: &PathBuf) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    // A line that a crash cut short remains as a line of its own. Its entry follows again,
    // complete.
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // Makes the file's name as durable as its lines.
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::{read_to_string, remove_file, rename, write};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn lines_are_appended_and_a_rotated_file_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let lines = Lines::new(path.clone());
        lines.append("a\n".to_owned()).await.unwrap();
        lines.append("b\nc\n".to_owned()).await.unwrap();
        rename(&path, &old).unwrap();
        lines.append("d\n".to_owned()).await.unwrap();
        assert_eq!(read_to_string(&old).unwrap(), "a\nb\nc\n");
        assert_eq!(read_to_string(&path).unwrap(), "d\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        remove_file(&path).unwrap();
        lines.append("e\n".to_owned()).await.unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "e\n");
    }

    #[tokio::test]
    async fn what_a_crash_has_torn_spoils_no_line_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        write(&path, "whole\nto").unwrap();
        Lines::new(path.clone()).append("torn\n".to_owned()).await.unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "whole\nto\ntorn\n");
    }

    #[tokio::test]
    async fn a_missing_folder_is_a_failure_until_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/audit");
        let lines = Lines::new(path.clone());
        assert!(lines.append("a\n".to_owned()).await.is_err());
        std::fs::create_dir(folder.path().join("later")).unwrap();
        lines.append("a\n".to_owned()).await.unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "a\n");
    }
}
