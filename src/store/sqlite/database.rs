//! The database as its operator sees it: its migrations. A file has no roles: whoever may write it
//! may do anything to it.

use async_trait::async_trait;
use sqlx::{Error, Row, SqliteConnection};

use crate::config;

use super::super::failure::{Failure, cause};
use super::super::migration::{Applied, Migration, Rollout, applied, level, missing};
use super::super::{Database, Exposure, MigrateError, MigrationReport, OpenError, ReadError};
use super::{Sqlite, statements};

/// The migrations, in order. A step that the previous release cannot serve raises `oldest_reader`.
const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "tables",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0001_tables.sql"),
    },
    Migration {
        version: 2,
        name: "proofs",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0002_proofs.sql"),
    },
    Migration {
        version: 3,
        name: "announcements",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0003_announcements.sql"),
    },
    Migration {
        version: 4,
        name: "merkle",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0004_merkle.sql"),
    },
    Migration {
        version: 5,
        name: "tiles",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0005_tiles.sql"),
    },
    Migration {
        version: 6,
        name: "keeping",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0006_keeping.sql"),
    },
    Migration {
        version: 7,
        name: "streams",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0007_streams.sql"),
    },
    Migration {
        version: 8,
        name: "publications",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0008_publications.sql"),
    },
    Migration {
        version: 9,
        name: "hardening",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0009_hardening.sql"),
    },
    Migration {
        version: 10,
        name: "row_macs",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0010_row_macs.sql"),
    },
    Migration {
        version: 11,
        name: "rotation_states",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0011_rotation_states.sql"),
    },
    Migration {
        version: 12,
        name: "tenants",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0012_tenants.sql"),
    },
    Migration {
        version: 13,
        name: "key_ids",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0013_key_ids.sql"),
    },
    Migration {
        version: 14,
        name: "filters",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0014_filters.sql"),
    },
    Migration {
        version: 15,
        name: "append",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0015_append.sql"),
    },
    Migration {
        version: 16,
        name: "narrowed",
        oldest_reader: 15,
        after_rollout: false,
        sql: include_str!("../../../migrations/sqlite/0016_narrowed.sql"),
    },
];

const TABLE: &str = include_str!("../../../migrations/sqlite/migrations.sql");

statements! {
    HAS_TABLE = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'np_byok_migrations')";
    APPLIED = "SELECT version, checksum, oldest_reader FROM np_byok_migrations";
    RECORD = "
        INSERT INTO np_byok_migrations (version, name, checksum, oldest_reader, applied_at)
        VALUES (?1, ?2, ?3, ?4, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000)";
    GUARDS = "
        SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'np_byok_audit'
            AND name IN ('np_byok_audit_no_update', 'np_byok_audit_no_delete', 'np_byok_audit_no_replace')";
}

#[async_trait]
impl Database for Sqlite {
    async fn migrate(&self) -> Result<MigrationReport, MigrateError> {
        let around = |error: Error| failed(0, &error);
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(around)?;
        let ran = in_transaction(&mut transaction).await?;
        let now = read_applied(&mut transaction).await.map_err(around)?;
        transaction.commit().await.map_err(around)?;
        Ok(MigrationReport { ran, ..MigrationReport::of(MIGRATIONS, &now) })
    }

    /// Does the same as [`Database::migrate`]: one process has the file, so no other server uses
    /// it.
    async fn finish_rollout(&self) -> Result<MigrationReport, MigrateError> {
        self.migrate().await
    }

    /// Changes nothing: a file has no URL that could be replaced.
    fn switch_urls(&self, _: &config::Store) -> Result<bool, OpenError> {
        Ok(false)
    }

    /// Builds nothing: migrations make SQLite's indexes, because there is one writer and the
    /// database is small.
    async fn build_indexes(&self) -> Result<u32, ReadError> {
        Ok(0)
    }

    fn level(&self) -> u32 {
        level(MIGRATIONS)
    }

    async fn schema(&self) -> Result<MigrationReport, ReadError> {
        let there = self.first(sqlx::query(HAS_TABLE), |row| row.try_get(0)).await?;
        let rows =
            if there == Some(true) { self.all(sqlx::query(APPLIED), applied).await? } else { Vec::new() };
        Ok(MigrationReport::of(MIGRATIONS, &rows))
    }

    async fn exposure(&self) -> Result<Exposure, ReadError> {
        let guards = self.first(sqlx::query(GUARDS), |row| row.try_get::<i64, _>(0)).await?;
        Ok(Exposure { owns_audit: true, unguarded: guards != Some(3), ..Exposure::default() })
    }

    async fn upkeep(&self) -> Result<(), ReadError> {
        Ok(())
    }
}

async fn in_transaction(connection: &mut SqliteConnection) -> Result<u32, MigrateError> {
    let around = |error: Error| failed(0, &error);
    let there =
        sqlx::query(HAS_TABLE).fetch_one(&mut *connection).await.and_then(|row| row.try_get::<bool, _>(0));
    if !there.map_err(around)? {
        sqlx::raw_sql(TABLE).execute(&mut *connection).await.map_err(around)?;
    }
    let already = read_applied(connection).await.map_err(around)?;
    let mut ran = 0;
    for migration in missing(MIGRATIONS, &already, Rollout::Complete)? {
        let refused = |error: Error| failed(migration.version, &error);
        sqlx::raw_sql(migration.sql).execute(&mut *connection).await.map_err(refused)?;
        let record = sqlx::query(RECORD)
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.checksum())
            .bind(migration.oldest_reader);
        record.execute(&mut *connection).await.map_err(refused)?;
        ran += 1;
    }
    Ok(ran)
}

async fn read_applied(connection: &mut SqliteConnection) -> Result<Vec<Applied>, Error> {
    let rows = sqlx::query(APPLIED).fetch_all(connection).await?;
    rows.iter().map(applied).collect()
}

fn failed(version: u32, error: &Error) -> MigrateError {
    match Failure::of(error) {
        Failure::Temporary | Failure::TimedOut | Failure::Standby | Failure::Busy | Failure::Lost => {
            MigrateError::Unavailable
        }
        Failure::Refused | Failure::Malformed => MigrateError::Failed { version, code: cause(error) },
    }
}
