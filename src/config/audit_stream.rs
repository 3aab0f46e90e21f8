//! The destinations that the entries of the audit log are streamed to.

use std::path::PathBuf;

use super::Reader;
use super::webhook::Webhook;

const FILE: &str = "BYOK_AUDIT_STREAM_FILE";
const URL: &str = "BYOK_AUDIT_STREAM_WEBHOOK_URL";
const SECRET: &str = "BYOK_AUDIT_STREAM_WEBHOOK_SECRET";

/// The streams; each may be off.
#[derive(Default)]
pub struct AuditStreams {
    /// `BYOK_AUDIT_STREAM_FILE`: the file that entries are appended to. It is created if it is
    /// missing.
    pub file: Option<PathBuf>,
    /// `BYOK_AUDIT_STREAM_WEBHOOK_URL` and `_SECRET`.
    pub webhook: Option<Webhook>,
}

impl AuditStreams {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let file = reader.text(FILE).map(PathBuf::from);
        if file.as_ref().is_some_and(|path| path.file_name().is_none() || path.is_dir()) {
            reader.error(FILE, "names no file");
        }
        Self { file, webhook: Webhook::read_from(reader, URL, SECRET) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> (AuditStreams, Vec<String>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let streams = AuditStreams::read(&mut reader);
        (streams, reader.into_errors().into_iter().map(|error| error.variable).collect())
    }

    #[test]
    fn nothing_is_streamed_unless_it_is_said_where() {
        let (streams, errors) = read(&[]);
        assert!(streams.file.is_none() && streams.webhook.is_none() && errors.is_empty());
        let (streams, errors) = read(&[(FILE, "/var/log/byok/audit.jsonl")]);
        assert!(streams.file.is_some() && errors.is_empty());
    }

    #[test]
    fn a_folder_is_no_file_and_a_webhook_has_a_secret() {
        assert_eq!(read(&[(FILE, "/tmp")]).1, [FILE]);
        assert_eq!(read(&[(FILE, "/")]).1, [FILE]);
        assert_eq!(read(&[(URL, "https://example.com/in")]).1, [SECRET]);
    }
}
