//! The PostgreSQL store. A commit of entries with their new DEKs is one statement and one round
//! trip; everything else is one explicit transaction. Nothing waits forever: a stopped database is
//! `Unavailable` (or, during a commit, `Unknown`) within seconds, and once it is back the next call
//! reaches it.
//!
//! Nothing is read from a standby, which may be arbitrarily far behind. Each read reports whether
//! its transaction could write (`reads!`). If one could not, its connection is closed together with
//! all that were opened before it (`primary`).
//!
//! Behind PgBouncer in transaction mode, byok relies on no session state: each call is an explicit
//! transaction with unnamed statements, because the driver prepares and executes in two steps,
//! which may otherwise reach two servers.

mod access;
mod announcements;
mod append;
mod audit;
mod changes;
mod checkpoints;
mod commit;
mod compatibility;
mod database;
mod dek_writes;
mod deks;
mod derived;
mod indexes;
mod jobs;
mod migrate;
mod outgoing;
mod primary;
mod proofs;
mod publications;
mod read_queue;
mod retention;
mod streams;
mod tenancy;
mod tenants;
mod timestamptz;
mod writers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Error, Row};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config;
use crate::model::{TenantUid, Timestamp};

use super::byte_limit::AdaptiveByteLimit;
use super::failure::Failure;
use super::row::Columns;
use super::statements::{reads, statements};
use super::{LogHead, OpenError, ReadError, RequestReads};
use access::Access;
use primary::{Trust, of_primary};
use read_queue::ReadQueue;
use timestamptz::Timestamptz;
use writers::Writers;

/// The time limit for acquiring a connection.
const ACQUIRE: Duration = Duration::from_secs(2);
/// The time limit for the server's answer to a statement. The server's own limit ends a second
/// earlier, so that the outcome is known.
const EXCHANGE: Duration = Duration::from_secs(6);
/// A connection that was idle for longer than this is tested before it is used.
const FRESH: Duration = Duration::from_millis(500);
/// The server's own limits, for a connection that keeps its settings.
const LIMITS: [(&str, &str); 2] =
    [("statement_timeout", "5s"), ("idle_in_transaction_session_timeout", "5s")];

statements! {
    /// Opens a transaction with its time limits. Its commit is durable whatever the server's
    /// default; `remote_apply`, which is stronger, is kept.
    BEGIN = "BEGIN; SELECT set_config('statement_timeout', '5s', true),
        set_config('idle_in_transaction_session_timeout', '5s', true), set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)";
}

reads! {
    PING = "SELECT 1";
}

/// Returns every statement that is prepared, for the test that prepares them.
pub fn statements() -> impl Iterator<Item = &'static str> {
    [
        ALL,
        READS,
        announcements::ALL,
        append::ALL,
        audit::READS,
        checkpoints::ALL,
        checkpoints::READS,
        commit::READS,
        dek_writes::ALL,
        deks::READS,
        derived::ALL,
        derived::READS,
        indexes::ALL,
        jobs::ALL,
        jobs::READS,
        database::READS,
        retention::ALL,
        retention::READS,
        migrate::ALL,
        migrate::READS,
        outgoing::READS,
        proofs::ALL,
        proofs::READS,
        publications::ALL,
        streams::ALL,
        tenancy::READS,
        tenants::ALL,
        tenants::READS,
    ]
    .into_iter()
    .flatten()
    .copied()
    .filter(|sql| *sql != BEGIN)
}

/// A PostgreSQL database.
pub struct Postgres {
    access: RwLock<Arc<Access>>,
    most_read: u32,
    read_queue: ReadQueue,
    writers: Writers,
    /// Whether connections lead to the primary.
    trust: Arc<Trust>,
    pgbouncer: bool,
    byte_limit: AdaptiveByteLimit,
    /// The head of each log after the last commit of this process.
    heads: Mutex<HashMap<TenantUid, LogHead>>,
}

impl Postgres {
    /// Makes the store without connecting: connections are made when they are needed. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub fn connect_lazy(settings: &config::Postgres) -> Result<Self, OpenError> {
        let commit_on = (settings.max_connections / 4).max(1);
        let most_read = settings.max_connections.saturating_sub(commit_on).max(1);
        let trust = Arc::new(Trust::default());
        let access = Access::new(settings, most_read, trust.clone())?;
        Ok(Self {
            writers: Writers::new(access.serving.clone(), commit_on),
            access: RwLock::new(Arc::new(access)),
            most_read,
            read_queue: ReadQueue::new(most_read),
            trust,
            pgbouncer: settings.pgbouncer,
            byte_limit: AdaptiveByteLimit::default(),
            heads: Mutex::default(),
        })
    }

    fn access(&self) -> Arc<Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Switches to other URLs for new connections. Existing connections are closed, each as soon as
    /// it is idle.
    pub(super) fn switch_urls(&self, settings: &config::Postgres) -> Result<bool, OpenError> {
        if settings.pgbouncer != self.pgbouncer {
            return Ok(false);
        }
        let access = Arc::new(Access::new(settings, self.most_read, self.trust.clone())?);
        self.writers.switch_options(access.serving.clone());
        let before = {
            let mut place = self.access.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, access)
        };
        tokio::spawn(async move { before.readers.close().await });
        Ok(true)
    }

    /// Returns a connection for reads.
    async fn reader(&self) -> Result<PoolConnection<sqlx::Postgres>, Error> {
        loop {
            match self.access().readers.acquire().await {
                // Another pool has replaced this one meanwhile.
                Err(Error::PoolClosed) => {}
                acquired => return acquired,
            }
        }
    }

    /// Stops using the connections that were opened so far, because the address may lead to another
    /// server by now.
    fn distrust_open_connections(&self) {
        self.trust.end();
        self.writers.close_idle();
    }

    /// Returns the rows of a read, within the deadline.
    async fn rows(&self, query: Query<'_, sqlx::Postgres, PgArguments>) -> Result<Vec<PgRow>, Failure> {
        let failed = |error: Error| Failure::of(&error);
        let _permit = self.read_queue.acquire().await.ok_or(Failure::Busy)?;
        let mut connection = self.reader().await.map_err(|error| {
            Failure::of(&error);
            Failure::Temporary
        })?;
        let answer = async {
            if self.pgbouncer {
                let mut transaction = connection.begin_with(BEGIN).await?;
                let rows = query.persistent(false).fetch_all(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(rows)
            } else {
                query.fetch_all(&mut *connection).await
            }
        };
        match timeout(EXCHANGE, answer).await {
            Ok(rows) => rows.and_then(of_primary).map_err(failed).inspect_err(|failure| {
                if *failure == Failure::Standby {
                    self.distrust_open_connections();
                }
            }),
            Err(_) => {
                connection.close_on_drop();
                Err(failed(Error::PoolTimedOut))
            }
        }
    }

    /// Returns the rows, each decoded to a value.
    async fn all<T>(
        &self,
        query: Query<'_, sqlx::Postgres, PgArguments>,
        decode: impl Fn(&PgRow) -> Result<T, Error>,
    ) -> Result<Vec<T>, ReadError> {
        decoded(&self.rows(query).await?, decode)
    }

    /// Returns the rows of a statement that reads entries and takes a limit on the bytes of entries
    /// that it may read. A statement that exceeds the server's time limit is tried again with fewer
    /// bytes, and finally with one entry.
    async fn within_byte_limit<'q, T>(
        &self,
        query: impl Fn(i64) -> Query<'q, sqlx::Postgres, PgArguments>,
        decode: impl Fn(&PgRow) -> Result<T, Error>,
    ) -> Result<Vec<T>, ReadError> {
        let mut limit = self.byte_limit.current();
        let rows = loop {
            match self.rows(query(limit.bytes())).await {
                Err(Failure::TimedOut) => match self.byte_limit.took_too_long(limit) {
                    Some(smaller) => limit = smaller,
                    None => break Err(Failure::TimedOut),
                },
                rows => break rows,
            }
        }?;
        self.byte_limit.in_time(limit);
        decoded(&rows, decode)
    }

    /// Returns the first row, decoded to a value.
    async fn first<T>(
        &self,
        query: Query<'_, sqlx::Postgres, PgArguments>,
        decode: impl Fn(&PgRow) -> Result<T, Error>,
    ) -> Result<Option<T>, ReadError> {
        Ok(self.all(query, decode).await?.into_iter().next())
    }
}

#[async_trait]
impl RequestReads for Postgres {
    async fn ping(&self) -> Result<(), ReadError> {
        Ok(self.rows(sqlx::query(PING)).await.map(drop)?)
    }
}

fn decoded<T>(rows: &[PgRow], decode: impl Fn(&PgRow) -> Result<T, Error>) -> Result<Vec<T>, ReadError> {
    rows.iter().map(decode).collect::<Result<_, _>>().map_err(|error| Failure::of(&error).into())
}

/// Converts a time to PostgreSQL's type.
fn timestamptz(at: Timestamp) -> Timestamptz {
    at.into()
}

impl Columns for PgRow {
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
        Ok(self.try_get::<Option<Timestamptz>, _>(at)?.map(Timestamp::from))
    }
}
