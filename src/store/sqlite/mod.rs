//! The SQLite store: the embedded database of one machine. It uses WAL with `synchronous=FULL`, so
//! that committed data survives a power cut. One connection writes, and a few read. byok waits for
//! other processes on the same file, within a limit.
//!
//! On some errors (a full disk, a failed write) SQLite rolls the transaction back by itself, and
//! the driver continues to treat it as open. So a connection that is returned with a transaction is
//! closed, and the next commit opens another (sqlite.org/lang_transaction.html, "Response To Errors
//! Within A Transaction").

mod announcements;
mod append;
mod audit;
mod changes;
mod checkpoints;
mod commit;
mod database;
mod dek_writes;
mod deks;
mod derived;
mod file;
mod jobs;
mod nul;
mod outgoing;
mod proofs;
mod publications;
mod retention;
mod streams;
mod tenancy;
mod tenants;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Error, Row};
use uuid::Uuid;

use crate::model::Timestamp;

use super::failure::{Failure, cause};
use super::row::Columns;
use super::statements::statements;
use super::{OpenError, ReadError, RequestReads};
use commit::BEGIN;

/// The time limit for waiting for another process or another commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// The free space on the disk, in bytes, from which on byok tries to write to it again: as much as
/// a large commit needs.
const MIN_FREE: u64 = 1 << 20;

statements! {
    PING = "SELECT 1";
    /// Changes a page, and changes it back: SQLite writes only pages that a statement has changed.
    CHANGE = "UPDATE np_byok_migrations SET name = name || '.'";
    CHANGE_BACK = "UPDATE np_byok_migrations SET name = substr(name, 1, length(name) - 1)";
}

/// Returns every statement that is prepared, for the test that prepares them.
pub fn statements() -> impl Iterator<Item = &'static str> {
    [
        ALL,
        announcements::ALL,
        append::ALL,
        audit::ALL,
        checkpoints::ALL,
        commit::ALL,
        dek_writes::ALL,
        deks::ALL,
        derived::ALL,
        jobs::ALL,
        database::ALL,
        retention::ALL,
        outgoing::ALL,
        proofs::ALL,
        publications::ALL,
        streams::ALL,
        tenancy::ALL,
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
    file: PathBuf,
    /// Whether the last commit failed for a reason that may pass, such as a full disk.
    cannot_write: AtomicBool,
}

impl Sqlite {
    /// Opens the file. Creates it (readable by this user alone) and its folder if they are missing.
    ///
    /// # Errors
    /// [`OpenError::File`].
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let problem = |problem: String| OpenError::File { path: path.display().to_string(), problem };
        file::create_if_missing(path).map_err(problem)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let pool = |connections, options| {
            let limits = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY_TIMEOUT);
            limits
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .after_release(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
                .connect_with(options)
        };
        let failed =
            |error: Error| problem(format!("is not a database that can be opened ({})", cause(&error)));
        let writer = pool(1, options.clone()).await.map_err(failed)?;
        let readers = pool(READERS, options.pragma("query_only", "ON")).await.map_err(failed)?;
        Ok(Self { writer, readers, file: path.to_owned(), cannot_write: AtomicBool::new(false) })
    }

    async fn test_write(&self) -> Result<(), Error> {
        let mut transaction = self.writer.begin_with(BEGIN).await?;
        for sql in [CHANGE, CHANGE_BACK] {
            sqlx::query(sql).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Returns the rows of a statement, each decoded to a value.
    async fn all<T>(
        &self,
        query: SqliteQuery<'_>,
        decode: impl Fn(&SqliteRow) -> Result<T, Error>,
    ) -> Result<Vec<T>, ReadError> {
        let rows = query.fetch_all(&self.readers).await.and_then(|rows| rows.iter().map(decode).collect());
        rows.map_err(|error| Failure::of(&error).into())
    }

    /// Returns the first row, decoded to a value.
    async fn first<T>(
        &self,
        query: SqliteQuery<'_>,
        decode: impl Fn(&SqliteRow) -> Result<T, Error>,
    ) -> Result<Option<T>, ReadError> {
        Ok(self.all(query, decode).await?.into_iter().next())
    }
}

#[async_trait]
impl RequestReads for Sqlite {
    /// Returns `Ok` if the database answers and can be written to. After a failed commit, each call
    /// tries to write.
    async fn ping(&self) -> Result<(), ReadError> {
        self.all(sqlx::query(PING), |_| Ok(())).await?;
        if self.cannot_write.load(Ordering::Relaxed) {
            if file::free_bytes(&self.file) < MIN_FREE {
                return Err(ReadError::Unavailable);
            }
            self.test_write().await.map_err(|error| ReadError::from(Failure::of(&error)))?;
            self.cannot_write.store(false, Ordering::Relaxed);
        }
        Ok(())
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

    fn timestamp(&self, at: usize) -> Result<Option<Timestamp>, Error> {
        Ok(self.try_get::<Option<i64>, _>(at)?.map(Timestamp))
    }
}
