//! Checks what the server writes and posts to: whether the stream's file can be written, and
//! whether the hosts of webhooks can be reached. Writes and posts nothing.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{Access, OFlags, access};

use super::Findings;
use crate::config::{AuditStreams, Webhook};
use crate::webhook::reach;

/// Checks the file that entries are appended to.
pub(super) fn stream_file(findings: &mut Findings, streams: &AuditStreams) {
    let Some(path) = &streams.file else { return };
    match may_append(path) {
        Ok(()) => findings.ok("audit stream file: it can be written"),
        Err(kind) => findings.fail(
            &format!("audit stream file: it cannot be written: {kind}"),
            "make the folder of BYOK_AUDIT_STREAM_FILE, and let the user that serves write there",
        ),
    }
}

/// Checks whether the file can be appended to, or created if it does not exist.
fn may_append(path: &Path) -> Result<(), ErrorKind> {
    // Opening a pipe without a reader would block.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    match OpenOptions::new().append(true).custom_flags(flags).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or_else(|| Path::new("."));
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|error| std::io::Error::from(error).kind())
        }
        Err(error) => Err(error.kind()),
    }
}

/// Checks whether the host of a webhook can be reached. The address may hold a secret, so it is not
/// shown.
pub(super) async fn webhook(findings: &mut Findings, of: &str, webhook: Option<&Webhook>) {
    let Some(webhook) = webhook else { return };
    match reach(&webhook.url).await {
        Ok(()) => findings.ok(&format!("webhook of {of}: its host can be reached; nothing was posted")),
        Err(error) => findings.fail(
            &format!("webhook of {of}: {error}"),
            "check its address, and that this machine may connect to it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_writable_where_it_or_its_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        assert_eq!(may_append(&path), Ok(()));
        assert!(!path.exists(), "nothing is left behind");
        std::fs::write(&path, "").unwrap();
        assert_eq!(may_append(&path), Ok(()));
        assert_eq!(may_append(&folder.path().join("none/audit.jsonl")), Err(ErrorKind::NotFound));
        assert_eq!(may_append(&path.join("audit.jsonl")), Err(ErrorKind::NotADirectory));
    }
}
