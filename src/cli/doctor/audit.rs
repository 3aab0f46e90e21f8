//! Checks the audit log: whether checkpoints of it are signed and published, whether the
//! destinations can be read, and whether the log holds what was published there.

use std::time::Duration;

use super::{Findings, Log};
use crate::cli::assemble;
use crate::config::{self, CheckpointDestinations};

/// The time limit for the destinations to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks the audit log. Returns whether an entry may be added, which is not so while the log is
/// behind a published checkpoint.
pub(super) async fn check(findings: &mut Findings, audit: config::Audit, log: Option<&Log>) -> bool {
    let CheckpointDestinations { directory, bucket, webhook, .. } = &audit.destinations;
    let published = directory.is_some() || bucket.is_some() || webhook.is_some();
    match (&audit.keys, published) {
        (None, _) => findings.warn(
            "audit log: no checkpoint is signed, so the owner of the database can rewrite the log, and nobody can prove it",
            "make a key with `byok audit key --generate FILE`, and set BYOK_AUDIT_SIGNING_KEY_FILE to it",
        ),
        (Some(_), false) => findings.warn(
            "audit log: checkpoints are signed, but kept only in this database, where whoever rewrites the log can replace them too",
            "set BYOK_AUDIT_CHECKPOINT_DIR, …_S3_BUCKET or …_WEBHOOK_URL to a destination that this server's operator does not own",
        ),
        (Some(_), true) => findings.ok("audit log: checkpoints are signed and published"),
    }
    let Some(Log { database, tenant }) = log else { return false };
    let Ok(checkpoints) = assemble::checkpoints(audit, database.clone(), None) else { return false };
    let of_tenant = checkpoints.of(tenant);
    match tokio::time::timeout(PATIENCE, of_tenant.check()).await {
        Ok(Ok(checked)) => {
            for kind in checked.unread {
                findings.warn(
                    &format!("audit log: the {kind} that checkpoints are published to cannot be read, so it cannot show whether the log was rewritten"),
                    "let this server read it too; for a bucket, s3:GetObject and s3:ListBucket",
                );
            }
            if checked.holds {
                findings.ok("audit log: it contains all that is known to be published");
            } else {
                findings.fail(
                    "audit log: it is shorter than what was published of it, or differs; nothing is served (AUDIT_LOG_BEHIND)",
                    "find out whether the database was restored or rewritten; after a restore, run `byok audit restored`",
                );
            }
            checked.holds
        }
        Ok(Err(_)) | Err(_) => {
            findings.fail("audit log: it cannot be read", "run `byok migrate` first");
            false
        }
    }
}
