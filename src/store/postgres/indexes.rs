//! Indexes that a release adds to tables that may be large. They are built outside of any
//! transaction while others work, so no migration makes them: code that needs one works without it,
//! but more slowly.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Error, Row};
use tokio::time::timeout;

use super::super::ReadError;
use super::super::failure::Failure;
use super::{ACQUIRE, Postgres, statements};

/// The name of each index, and its definition: table, columns and condition.
const INDEXES: &[(&str, &str)] =
    &[("np_byok_wrapped_deks_unsealed", "np_byok_wrapped_deks (tenant, id) WHERE mac IS NULL")];

statements! {
    /// Lets one process at a time build, because two would wait for each other. The lock is held
    /// until the connection is closed.
    ALONE = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('np_byok_indexes', 0))";
    /// The schema of the tables, quoted, and whether the index exists, is valid, and is being built
    /// by some process.
    STATE = "
        SELECT pg_catalog.quote_ident(n.nspname)::text, i.indexrelid IS NOT NULL, COALESCE(i.indisvalid, false),
            EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
        FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
        LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = $1
        LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
        WHERE t.oid = pg_catalog.to_regclass('np_byok_migrations')::pg_catalog.oid";
}

impl Postgres {
    /// Builds the missing indexes, and rebuilds those that an interrupted build left behind.
    /// Returns how many it built.
    pub(super) async fn build_missing_indexes(&self) -> Result<u32, ReadError> {
        let access = self.access();
        let owner = access.as_owner();
        let connected = timeout(ACQUIRE, owner.connect()).await.map_err(|_| ReadError::Unavailable)?;
        let mut connection = connected.map_err(|error| Failure::of(&error))?;
        // Behind PgBouncer, a lock and a setting would stay on another client's connection. There,
        // the role's own time limit applies.
        if !self.pgbouncer {
            let alone = sqlx::query(ALONE).persistent(false).fetch_one(&mut connection).await;
            let alone: bool = alone.and_then(|row| row.try_get(0)).map_err(|error| Failure::of(&error))?;
            if !alone {
                return Ok(0);
            }
            let unlimited = run(&mut connection, "SET statement_timeout = 0".to_owned()).await;
            unlimited.map_err(|error| Failure::of(&error))?;
        }
        let mut built = 0;
        for (index, on) in INDEXES {
            let made = build(&mut connection, index, on).await.map_err(|error| Failure::of(&error))?;
            built += u32::from(made);
        }
        Ok(built)
    }
}

async fn build(connection: &mut PgConnection, index: &str, on: &str) -> Result<bool, Error> {
    let query = sqlx::query(STATE).persistent(false).bind(index.to_owned());
    let Some(row) = query.fetch_optional(&mut *connection).await? else { return Ok(false) };
    let (schema, is_there, is_valid, is_building): (String, bool, bool, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    if is_valid || is_building {
        return Ok(false);
    }
    if is_there {
        run(connection, format!("DROP INDEX CONCURRENTLY IF EXISTS {schema}.{index}")).await?;
    }
    run(connection, format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {schema}.{on}")).await?;
    Ok(true)
}

/// Runs SQL that is made only of byok's own names, from the catalogue, and of no one else's input.
async fn run(connection: &mut PgConnection, sql: String) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}
