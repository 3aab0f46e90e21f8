//! The options that several commands of `byok audit` take: the auditor's keys and checkpoint, and
//! the number of a log.

use std::path::Path;

use crate::audit::{CheckpointKey, SignedCheckpoint};
use crate::cli::{Failure, assemble};
use crate::model::Tenant;
use crate::store::{Database, LogHead, ReadError};

/// Reads public keys. Each text is a key, or the name of a file with one key a line, as `byok audit
/// key` prints them.
pub(super) fn keys(texts: &[String]) -> Result<Vec<CheckpointKey>, Failure> {
    let mut keys = Vec::new();
    for text in texts {
        let read = match CheckpointKey::parse(text.trim()) {
            Ok(key) => Ok(vec![key]),
            Err(error) => std::fs::read_to_string(text).map_err(|_| error).and_then(|read| {
                let lines = read.lines().map(str::trim).filter(|line| !line.is_empty());
                let read: Vec<_> = lines.map(CheckpointKey::parse).collect::<Result<_, _>>()?;
                if read.is_empty() { Err(error) } else { Ok(read) }
            }),
        };
        keys.extend(
            read.map_err(|error| Failure::Running(format!("--key {text}: {error}, nor a file with one")))?,
        );
    }
    Ok(keys)
}

/// Reads a checkpoint that the auditor has kept.
pub(super) fn checkpoint(path: Option<&Path>) -> Result<Option<SignedCheckpoint>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let failed = |why: String| Failure::Running(format!("--checkpoint {}: {why}", path.display()));
    let note = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    SignedCheckpoint::parse(&note).map(Some).map_err(|error| failed(error.to_string()))
}

/// Returns the head of the log of this number as it ended; `None` if it is the current log, or if
/// no number is given.
pub(super) async fn ended(
    database: &dyn Database,
    tenant: &Tenant,
    log: Option<u32>,
) -> Result<Option<LogHead>, Failure> {
    let Some(log) = log else { return Ok(None) };
    let unread = |error| match error {
        ReadError::Unavailable | ReadError::Busy | ReadError::Rejected => assemble::read_failure(error),
        ReadError::Malformed => {
            Failure::Running("the records of logs that have ended were altered".to_owned())
        }
    };
    let ended = database.ended_logs(tenant.uid).await.map_err(unread)?;
    if let Some(head) = ended.into_iter().find(|head| head.log == log) {
        return Ok(Some(head));
    }
    match database.log_head(tenant.uid).await.map_err(assemble::read_failure)? {
        Some(head) if head.log == log => Ok(None),
        _ => Err(Failure::Running(format!("there is no log {log}"))),
    }
}
