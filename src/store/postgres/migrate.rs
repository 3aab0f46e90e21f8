//! Migrations run in one transaction under a transaction-level lock (a session-level lock would not
//! survive PgBouncer). Several replicas may start at once, and a migration that fails leaves
//! nothing behind.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Error, Row};
use tokio::time::timeout;

use super::super::failure::{Failure, cause};
use super::super::migration::{Applied, Migration, Rollout, applied, missing};
use super::super::{MigrateError, MigrationReport};
use super::primary::of_primary;
use super::{ACQUIRE, reads, statements};

/// The migrations, in order. A step that the previous release cannot serve raises `oldest_reader`.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "tables",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0001_tables.sql"),
    },
    Migration {
        version: 2,
        name: "proofs",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0002_proofs.sql"),
    },
    Migration {
        version: 3,
        name: "announcements",
        oldest_reader: 1,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0003_announcements.sql"),
    },
    Migration {
        version: 4,
        name: "merkle",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0004_merkle.sql"),
    },
    Migration {
        version: 5,
        name: "tiles",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0005_tiles.sql"),
    },
    Migration {
        version: 6,
        name: "keeping",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0006_keeping.sql"),
    },
    Migration {
        version: 7,
        name: "streams",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0007_streams.sql"),
    },
    Migration {
        version: 8,
        name: "publications",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0008_publications.sql"),
    },
    Migration {
        version: 9,
        name: "hardening",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0009_hardening.sql"),
    },
    Migration {
        version: 10,
        name: "row_macs",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0010_row_macs.sql"),
    },
    Migration {
        version: 11,
        name: "rotation_states",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0011_rotation_states.sql"),
    },
    Migration {
        version: 12,
        name: "tenants",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0012_tenants.sql"),
    },
    Migration {
        version: 13,
        name: "key_ids",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0013_key_ids.sql"),
    },
    Migration {
        version: 14,
        name: "filters",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0014_filters.sql"),
    },
    Migration {
        version: 15,
        name: "append",
        oldest_reader: 4,
        after_rollout: false,
        sql: include_str!("../../../migrations/postgres/0015_append.sql"),
    },
    Migration {
        version: 16,
        name: "narrowed",
        oldest_reader: 15,
        after_rollout: true,
        sql: include_str!("../../../migrations/postgres/0016_narrowed.sql"),
    },
];

const CLOSE: &str = include_str!("../../../migrations/postgres/close.sql");
const TABLE: &str = include_str!("../../../migrations/postgres/migrations.sql");
const GRANTS: &str = include_str!("../../../migrations/postgres/grants.sql");

statements! {
    LOCK = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('np_byok_migrations', 0))";
    /// A longer wait for another replica's migration fails, and is retried. In migrations a
    /// backslash is no escape, whatever the role or the database has set.
    SESSION_SETTINGS = "
        SELECT pg_catalog.set_config('lock_timeout', '60s', true),
            pg_catalog.set_config('standard_conforming_strings', 'on', true)";
    /// The schema of byok's tables: the one that they are in, or else the one that they are to be
    /// created in.
    SCHEMA = "
        SELECT pg_catalog.set_config('byok.schema', COALESCE(
            (SELECT n.nspname FROM pg_catalog.pg_class c
                JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('np_byok_migrations')::pg_catalog.oid),
            pg_catalog.current_schema())::text, true)";
    /// For statements that call functions: until the schema is closed, others may have created
    /// functions in it.
    PINNED = "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)";
    /// For statements that create tables. Temporary tables come last, so that those of other roles
    /// cannot replace byok's.
    PATH = "
        SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(pg_catalog.current_setting('byok.schema'))
            OPERATOR(pg_catalog.||) ', pg_temp', true)";
    SERVING_ROLE = "SELECT pg_catalog.set_config('byok.serving_role', $1, true)";
    RECORD = "INSERT INTO np_byok_migrations (version, name, checksum, oldest_reader) VALUES ($1, $2, $3, $4)";
}

reads! {
    HAS_TABLE = "SELECT pg_catalog.to_regclass('np_byok_migrations') IS NOT NULL";
    PARTITIONS = "SELECT np_byok_make_partitions()";
    /// Requires that the table exists.
    APPLIED = "SELECT version::int8, checksum, oldest_reader::int8 FROM np_byok_migrations";
}

/// Migrates as `owner`. Grants `serving` what it needs if that is another role.
pub(super) async fn migrate(
    owner: &PgConnectOptions,
    serving: Option<&str>,
    rollout: Rollout,
) -> Result<MigrationReport, MigrateError> {
    let connected = timeout(ACQUIRE, owner.connect()).await.map_err(|_| MigrateError::Unavailable)?;
    let mut connection = connected.map_err(|error| failed(0, &error))?;

    let already = read_applied(&mut connection).await.map_err(|error| failed(0, &error))?;
    let nothing_to_do = missing(MIGRATIONS, &already, rollout)?.is_empty() && serving.is_none();
    if nothing_to_do {
        return Ok(MigrationReport::of(MIGRATIONS, &already));
    }

    let mut transaction = connection.begin().await.map_err(|error| failed(0, &error))?;
    let ran = in_transaction(&mut transaction, serving, rollout).await?;
    let now = read_applied_here(&mut transaction).await.map_err(|error| failed(0, &error))?;
    transaction.commit().await.map_err(|error| failed(0, &error))?;
    Ok(MigrationReport { ran, ..MigrationReport::of(MIGRATIONS, &now) })
}

async fn in_transaction(
    connection: &mut PgConnection,
    serving: Option<&str>,
    rollout: Rollout,
) -> Result<u32, MigrateError> {
    let around = |error: Error| failed(0, &error);
    for sql in [SESSION_SETTINGS, LOCK, SCHEMA, PINNED] {
        run(connection, sql).await.map_err(around)?;
    }
    sqlx::raw_sql(CLOSE).execute(&mut *connection).await.map_err(around)?;
    run(connection, PATH).await.map_err(around)?;
    if !has_table(connection).await.map_err(around)? {
        sqlx::raw_sql(TABLE).execute(&mut *connection).await.map_err(around)?;
    }
    // Another replica may have been faster.
    let already = read_applied_here(connection).await.map_err(around)?;
    let mut ran = 0;
    for migration in missing(MIGRATIONS, &already, rollout)? {
        let refused = |error: Error| failed(migration.version, &error);
        run(connection, PATH).await.map_err(refused)?;
        sqlx::raw_sql(migration.sql).execute(&mut *connection).await.map_err(refused)?;
        let record = sqlx::query(RECORD)
            .bind(i32::try_from(migration.version).unwrap_or(i32::MAX))
            .bind(migration.name)
            .bind(migration.checksum())
            .bind(i32::try_from(migration.oldest_reader).unwrap_or(i32::MAX));
        run(connection, PATH).await.map_err(refused)?;
        record.persistent(false).execute(&mut *connection).await.map_err(refused)?;
        ran += 1;
    }
    if let Some(serving) = serving {
        sqlx::query(SERVING_ROLE)
            .bind(serving)
            .persistent(false)
            .execute(&mut *connection)
            .await
            .map_err(around)?;
        run(connection, PINNED).await.map_err(around)?;
        sqlx::raw_sql(GRANTS).execute(&mut *connection).await.map_err(around)?;
    }
    for sql in [PATH, PARTITIONS] {
        run(connection, sql).await.map_err(around)?;
    }
    Ok(ran)
}

/// Runs a statement that has no parameters, and ignores its rows.
async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), Error> {
    sqlx::query(sql).persistent(false).execute(connection).await.map(drop)
}

async fn read_applied(connection: &mut PgConnection) -> Result<Vec<Applied>, Error> {
    let mut transaction = connection.begin().await?;
    let there = has_table(&mut transaction).await?;
    let rows = if there { read_applied_here(&mut transaction).await? } else { Vec::new() };
    transaction.commit().await?;
    Ok(rows)
}

async fn read_applied_here(connection: &mut PgConnection) -> Result<Vec<Applied>, Error> {
    let rows = sqlx::query(APPLIED).persistent(false).fetch_all(connection).await?;
    of_primary(rows)?.iter().map(applied).collect()
}

async fn has_table(connection: &mut PgConnection) -> Result<bool, Error> {
    let rows = sqlx::query(HAS_TABLE).persistent(false).fetch_all(connection).await?;
    of_primary(rows)?.first().map_or(Ok(false), |row| row.try_get(0))
}

/// Returns what an error of the database means for its schema. `version` is 0 outside of a
/// migration.
pub(super) fn failed(version: u32, error: &Error) -> MigrateError {
    let denied = matches!(error, Error::Database(error) if error.code().as_deref() == Some("42501"));
    match Failure::of(error) {
        _ if denied => MigrateError::Denied,
        Failure::Temporary | Failure::TimedOut | Failure::Standby | Failure::Busy | Failure::Lost => {
            MigrateError::Unavailable
        }
        Failure::Refused | Failure::Malformed => MigrateError::Failed { version, code: cause(error) },
    }
}
