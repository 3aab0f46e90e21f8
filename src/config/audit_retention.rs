//! How long entries are kept.

use std::time::Duration;

use super::Reader;

/// How long entries are kept, and what must have been done with them before they are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRetention {
    /// `BYOK_AUDIT_RETENTION_DAYS`: the age from which on an entry may be dropped. `None` (0) keeps
    /// all entries for ever.
    pub age: Option<Duration>,
    /// `BYOK_AUDIT_PRUNE_AFTER_EXPORT`: whether only exported entries are dropped.
    pub exported_only: bool,
}

impl AuditRetention {
    /// Reads the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let days: u64 = reader.number("BYOK_AUDIT_RETENTION_DAYS", 365, 0..=36_500);
        Self {
            age: (days > 0).then(|| Duration::from_secs(days * 24 * 3_600)),
            exported_only: reader.flag("BYOK_AUDIT_PRUNE_AFTER_EXPORT", false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn read(pairs: &[(&str, &str)]) -> Result<AuditRetention, String> {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let retention = AuditRetention::read(&mut reader);
        reader.into_errors().pop().map_or(Ok(retention), |error| Err(error.variable))
    }

    #[test]
    fn entries_are_kept_for_a_year_unless_it_is_said_otherwise() {
        let days = |retention: AuditRetention| retention.age.map(|age| age.as_secs() / 86_400);
        assert_eq!(read(&[]).map(days), Ok(Some(365)));
        assert_eq!(read(&[("BYOK_AUDIT_RETENTION_DAYS", "90")]).map(days), Ok(Some(90)));
        assert_eq!(read(&[("BYOK_AUDIT_RETENTION_DAYS", "0")]).map(days), Ok(None));
        let error = Err("BYOK_AUDIT_RETENTION_DAYS".to_owned());
        assert_eq!(read(&[("BYOK_AUDIT_RETENTION_DAYS", "a year")]), error);
    }
}
