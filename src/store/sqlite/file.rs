//! The database's file, which only this user can read. SQLite gives its WAL the same mode.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, access, statvfs};

/// Creates the file and its parent folders if they are missing, and leaves existing ones as they
/// are.
///
/// # Errors
/// What is wrong, and with which of the two.
pub(super) fn create_if_missing(path: &Path) -> Result<(), String> {
    let problem = |error: io::Error| error.kind().to_string();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| format!("its folder cannot be created: {}", problem(error)))?;
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let problem = problem(error.into());
        format!("its folder is not writable, but SQLite creates files of its own there: {problem}")
    })?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop).map_err(problem)
}

/// Returns how much of the file's disk is free, in bytes, or the largest number if that cannot be
/// determined.
pub(super) fn free_bytes(path: &Path) -> u64 {
    statvfs(path).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_file_and_its_folder_are_this_users_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("folder/byok.db");
        create_if_missing(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
    }
}
