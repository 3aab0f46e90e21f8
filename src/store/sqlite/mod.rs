//! SQLite: the embedded database of one machine. WAL with `synchronous=FULL`, so that what is committed survives a power
//! cut; one connection writes, a few read. Other processes on the same file are waited for, within a limit.

mod announcements;
mod audit;
mod checkpoints;
mod commit;
mod deks;
mod derived;
mod file;
mod jobs;
mod keep;
mod keeping;
mod proofs;
mod publications;
mod streams;
mod tenants;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Error, Row};
use uuid::Uuid;

use crate::model::Timestamp;

use super::failure::{Failure, cause};
use super::row::Columns;
use super::statements::statements;
use super::{Batch, CommitError, Committed, OpenError, ReadError, Store};

/// For another process, or another commit, to end.
const PATIENCE: Duration = Duration::from_secs(5);
const READERS: u32 = 4;

statements! {
    PING = "SELECT 1";
}

/// Every statement that is prepared, for the test that prepares them.
pub fn statements() -> impl Iterator<Item = &'static str> {
    [
        ALL,
        announcements::ALL,
        audit::ALL,
        checkpoints::ALL,
        commit::ALL,
        deks::ALL,
        derived::ALL,
        jobs::ALL,
        keep::ALL,
        keeping::ALL,
        proofs::ALL,
        publications::ALL,
        streams::ALL,
        tenants::ALL,
    ]
    .into_iter()
    .flatten()
    .copied()
}

type SqliteQuery<'q> = Query<'q, sqlx::Sqlite, SqliteArguments>;

/// An SQLite database.
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    /// Opens the file; makes it (readable by this user alone), and its folder, when it is not there.
    ///
    /// # Errors
    /// [`OpenError::File`].
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let problem = |problem: String| OpenError::File { path: path.display().to_string(), problem };
        file::make(path).map_err(|error| problem(error.kind().to_string()))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE)
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let pool = |connections, options| {
            let limits = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(PATIENCE);
            limits.idle_timeout(None).max_lifetime(None).test_before_acquire(false).connect_with(options)
        };
        let failed =
            |error: Error| problem(format!("is not a database that can be opened ({})", cause(&error)));
        let writer = pool(1, options.clone()).await.map_err(failed)?;
        let readers = pool(READERS, options.pragma("query_only", "ON")).await.map_err(failed)?;
        Ok(Self { writer, readers })
    }

    /// The rows that a statement returns, each made into a value.
    async fn all<T>(
        &self,
        query: SqliteQuery<'_>,
        decode: impl Fn(&SqliteRow) -> Result<T, Error>,
    ) -> Result<Vec<T>, ReadError> {
        let rows = query.fetch_all(&self.readers).await.and_then(|rows| rows.iter().map(decode).collect());
        rows.map_err(|error| Failure::of(&error).into())
    }

    /// The first row, made into a value.
    async fn first<T>(
        &self,
        query: SqliteQuery<'_>,
        decode: impl Fn(&SqliteRow) -> Result<T, Error>,
    ) -> Result<Option<T>, ReadError> {
        Ok(self.all(query, decode).await?.into_iter().next())
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn commit(&self, batch: &Batch) -> Result<Committed, CommitError> {
        self.commit_batch(batch).await
    }

    async fn ping(&self) -> Result<(), ReadError> {
        self.all(sqlx::query(PING), |_| Ok(())).await.map(drop)
    }
}

impl Columns for SqliteRow {
    fn uuid(&self, at: usize) -> Result<Option<Uuid>, Error> {
        self.try_get(at)
    }

    fn text(&self, at: usize) -> Result<Option<String>, Error> {
        self.try_get(at)
    }

    fn bytes(&self, at: usize) -> Result<Option<Vec<u8>>, Error> {
        self.try_get(at)
    }

    fn number(&self, at: usize) -> Result<Option<i64>, Error> {
        self.try_get(at)
    }

    fn moment(&self, at: usize) -> Result<Option<Timestamp>, Error> {
        Ok(self.try_get::<Option<i64>, _>(at)?.map(Timestamp))
    }
}
