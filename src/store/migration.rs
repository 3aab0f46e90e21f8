//! Migrations: the known ones, and what the applied ones mean for this binary. Each migration names
//! the oldest schema level that can still serve the schema after it; a binary's level is its own
//! last migration. So the previous release continues while the next one migrates, and a binary
//! refuses only a schema that has become too new for it.

use std::borrow::Cow;
use std::fmt;

use sqlx::SqlSafeStr;
use sqlx::migrate::MigrationType;

use super::row::{Columns, number, required};

/// One step of the schema. Its text never changes after its release.
pub(super) struct Migration {
    /// Its number: 1, 2, 3.
    pub(super) version: u32,
    /// Its name, as in the file name.
    pub(super) name: &'static str,
    /// The oldest level that can serve the schema after this step.
    pub(super) oldest_reader: u32,
    /// Whether the step takes away what servers of the previous release need, so that it waits
    /// until none of them runs. An empty database gets it at once.
    pub(super) after_rollout: bool,
    /// The SQL that it runs.
    pub(super) sql: &'static str,
}

/// Whether servers of the previous release may still use the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rollout {
    InProgress,
    Complete,
}

impl Migration {
    /// Returns the SHA-384 of the text.
    pub(super) fn checksum(&self) -> Vec<u8> {
        let (version, name) = (i64::from(self.version), Cow::Borrowed(self.name));
        let migration = sqlx::migrate::Migration::new(
            version,
            name,
            MigrationType::Simple,
            self.sql.into_sql_str(),
            false,
        );
        migration.checksum.into_owned()
    }
}

/// A row of `np_byok_migrations`.
pub(super) struct Applied {
    version: u32,
    checksum: Vec<u8>,
    oldest_reader: u32,
}

/// Decodes the columns `version, checksum, oldest_reader`.
pub(super) fn applied(row: &impl Columns) -> Result<Applied, sqlx::Error> {
    Ok(Applied {
        version: number(row, 0)?,
        checksum: required(row.bytes(1)?)?,
        oldest_reader: number(row, 2)?,
    })
}

/// The state of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// The number of this binary's migrations that the schema has.
    pub applied: u32,
    /// The number of migrations that this binary has, without those that wait.
    pub expected: u32,
    /// The number of migrations that wait until no server of the previous release runs.
    pub waiting: u32,
    /// The number of migrations that were applied by this run.
    pub ran: u32,
    /// The oldest level that can still serve the schema.
    pub oldest_reader: u32,
}

impl MigrationReport {
    /// Makes the report from the applied migrations. `known` is in order, from 1.
    pub(super) fn of(known: &[Migration], applied: &[Applied]) -> Self {
        let level = level(known);
        let is_applied = |migration: &&Migration| applied.iter().any(|row| row.version == migration.version);
        let count = |number: usize| u32::try_from(number).unwrap_or(level);
        let waiting = known.iter().filter(|migration| migration.after_rollout && !is_applied(migration));
        let waiting = if applied.is_empty() { 0 } else { count(waiting.count()) };
        Self {
            applied: count(known.iter().filter(is_applied).count()),
            expected: level - waiting,
            waiting,
            ran: 0,
            oldest_reader: applied.iter().map(|row| row.oldest_reader).max().unwrap_or(0),
        }
    }

    /// Returns the level of this binary.
    fn level(&self) -> u32 {
        self.expected + self.waiting
    }

    /// Returns `Ok` if this binary can serve the schema.
    ///
    /// # Errors
    /// [`MigrateError::SchemaTooNew`] if the schema is too new for it,
    /// [`MigrateError::SchemaTooOld`] if it is too old.
    pub fn usable(&self) -> Result<(), MigrateError> {
        if self.oldest_reader > self.level() {
            return Err(MigrateError::SchemaTooNew { binary: self.level(), needed: self.oldest_reader });
        }
        if self.applied < self.expected {
            return Err(MigrateError::SchemaTooOld { applied: self.applied, expected: self.expected });
        }
        Ok(())
    }
}

/// Returns the migrations that are still to be applied, in order.
pub(super) fn missing<'m>(
    known: &'m [Migration],
    applied: &[Applied],
    rollout: Rollout,
) -> Result<Vec<&'m Migration>, MigrateError> {
    let report = MigrationReport::of(known, applied);
    if report.oldest_reader > report.level() {
        return Err(MigrateError::SchemaTooNew { binary: report.level(), needed: report.oldest_reader });
    }
    let mut missing = Vec::new();
    for migration in known {
        match applied.iter().find(|row| row.version == migration.version) {
            // No server uses an empty database.
            None if migration.after_rollout && rollout == Rollout::InProgress && !applied.is_empty() => {}
            None => missing.push(migration),
            Some(row) if row.checksum == migration.checksum() => {}
            Some(_) => return Err(MigrateError::Changed { version: migration.version }),
        }
    }
    Ok(missing)
}

/// Returns the number of the last migration.
pub(super) fn level(known: &[Migration]) -> u32 {
    known.last().map_or(0, |migration| migration.version)
}

/// Why the schema is not as this binary needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrateError {
    /// The database is unreachable. A retry may help.
    Unavailable,
    /// The role may not create tables here.
    Denied,
    /// The schema is too new for this binary.
    SchemaTooNew {
        /// This binary's level.
        binary: u32,
        /// The oldest level that can serve the schema.
        needed: u32,
    },
    /// The schema lacks migrations that this binary needs.
    SchemaTooOld {
        /// The number of migrations that the schema has.
        applied: u32,
        /// The number of migrations that this binary needs.
        expected: u32,
    },
    /// The text of a migration differs from the one that was applied.
    Changed {
        /// The migration's number.
        version: u32,
    },
    /// The database stores text in an encoding other than UTF-8.
    Encoding {
        /// PostgreSQL's name for the encoding.
        found: String,
    },
    /// There is a pooler in front of the database, and the configuration does not say so.
    Pooler,
    /// The database refused a migration. The code is the database's own.
    Failed {
        /// The migration's number; 0 for a statement outside the migrations.
        version: u32,
        /// The code, such as SQLSTATE 42P07.
        code: String,
    },
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => f.write_str("the database is out of reach"),
            Self::Denied => f.write_str(
                "the role may not create tables; set BYOK_MIGRATION_DATABASE_URL, or run `byok migrate` with a role that may",
            ),
            Self::SchemaTooNew { binary, needed } => write!(
                f,
                "the schema is too new for this binary: it needs level {needed}, this binary has level {binary}; deploy a newer one"
            ),
            Self::SchemaTooOld { applied, expected } => {
                write!(f, "the schema has {applied} of {expected} migrations; run `byok migrate`")
            }
            Self::Changed { version } => write!(
                f,
                "migration {version} differs from the one in this binary; another build applied it"
            ),
            Self::Encoding { found } => write!(
                f,
                "the database's encoding is {found}; it must be UTF8 (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)"
            ),
            Self::Pooler => f.write_str(
                "a pooler such as PgBouncer is in front of the database; set BYOK_DATABASE_PGBOUNCER=true, or connect to the database itself",
            ),
            Self::Failed { version: 0, code } => {
                let meaning = match &**code {
                    "28P01" | "28000" => ": no role of that name and password may log in",
                    "3D000" => ": there is no database of that name",
                    _ => "",
                };
                write!(f, "the database refuses the connection or a statement ({code}{meaning})")
            }
            Self::Failed { version, code } => write!(f, "the database refused migration {version} ({code})"),
        }
    }
}

impl std::error::Error for MigrateError {}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Migration] = &[
        Migration { version: 1, name: "one", oldest_reader: 1, after_rollout: false, sql: "SELECT 1" },
        Migration { version: 2, name: "two", oldest_reader: 1, after_rollout: false, sql: "SELECT 2" },
    ];
    const WITH_WAITING: &[Migration] = &[
        Migration { version: 1, name: "one", oldest_reader: 1, after_rollout: false, sql: "SELECT 1" },
        Migration { version: 2, name: "two", oldest_reader: 2, after_rollout: true, sql: "SELECT 2" },
    ];

    fn row(version: u32, oldest_reader: u32) -> Applied {
        let checksum =
            KNOWN.iter().find(|known| known.version == version).map(Migration::checksum).unwrap_or_default();
        Applied { version, checksum, oldest_reader }
    }

    #[test]
    fn only_what_is_missing_is_to_be_applied() {
        let versions = |applied: &[Applied]| -> Vec<u32> {
            missing(KNOWN, applied, Rollout::InProgress)
                .unwrap()
                .iter()
                .map(|migration| migration.version)
                .collect()
        };
        assert_eq!(versions(&[]), [1, 2]);
        assert_eq!(versions(&[row(1, 1)]), [2]);
    }

    #[test]
    fn a_step_waits_for_the_rollout_except_on_an_empty_database() {
        let versions = |applied: &[Applied], rollout| -> Vec<u32> {
            let missing = missing(WITH_WAITING, applied, rollout).unwrap();
            missing.iter().map(|migration| migration.version).collect()
        };
        assert_eq!(versions(&[], Rollout::InProgress), [1, 2]);
        assert_eq!(versions(&[row(1, 1)], Rollout::InProgress), [0; 0]);
        assert_eq!(versions(&[row(1, 1)], Rollout::Complete), [2]);
        let report = MigrationReport::of(WITH_WAITING, &[row(1, 1)]);
        assert_eq!((report.applied, report.expected, report.waiting), (1, 1, 1));
        assert_eq!(report.usable(), Ok(()));
        assert_eq!(MigrationReport::of(WITH_WAITING, &[row(1, 1), row(2, 2)]).waiting, 0);
    }

    #[test]
    fn a_newer_schema_that_still_takes_this_binary_is_served() {
        let applied = [row(1, 1), row(2, 1), row(3, 2)];
        assert!(missing(KNOWN, &applied, Rollout::InProgress).unwrap().is_empty());
        assert_eq!(MigrationReport::of(KNOWN, &applied).usable(), Ok(()));
    }

    #[test]
    fn a_schema_that_has_left_this_binary_behind_is_refused() {
        let applied = [row(1, 1), row(2, 1), row(3, 3)];
        let left_behind = MigrateError::SchemaTooNew { binary: 2, needed: 3 };
        assert_eq!(missing(KNOWN, &applied, Rollout::InProgress).err(), Some(left_behind.clone()));
        assert_eq!(MigrationReport::of(KNOWN, &applied).usable(), Err(left_behind));
    }

    #[test]
    fn an_older_schema_is_not_served() {
        let report = MigrationReport::of(KNOWN, &[row(1, 1)]);
        assert_eq!(report.usable(), Err(MigrateError::SchemaTooOld { applied: 1, expected: 2 }));
    }

    #[test]
    fn a_migration_that_was_changed_after_it_was_applied_is_found() {
        let mut changed = row(1, 1);
        changed.checksum[0] ^= 1;
        assert_eq!(
            missing(KNOWN, &[changed], Rollout::InProgress).err(),
            Some(MigrateError::Changed { version: 1 })
        );
    }
}
