//! Connections that commit: a few, apart from the pool of readers, because that tests each connection with a round trip
//! when it comes back, which a commit in a row of commits need not pay.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Error};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::turns::PATIENCE;
use super::{ACQUIRE, FRESH};

pub(super) struct Writers {
    options: PgConnectOptions,
    permits: Semaphore,
    idle: Mutex<Vec<(PgConnection, Instant)>>,
}

/// A connection for one commit. Dropping it closes it; [`Writer::keep`] gives it back.
pub(super) struct Writer<'w> {
    pub(super) connection: PgConnection,
    writers: &'w Writers,
    _permit: SemaphorePermit<'w>,
}

impl Writers {
    pub(super) fn new(options: PgConnectOptions, most: u32) -> Self {
        let permits = usize::try_from(most).unwrap_or(1);
        Self { options, permits: Semaphore::new(permits), idle: Mutex::default() }
    }

    /// A connection that was alive a moment ago; within [`ACQUIRE`] once it is its turn.
    pub(super) async fn take(&self) -> Result<Writer<'_>, Error> {
        let permit = timeout(PATIENCE, self.permits.acquire()).await.map_err(|_| Error::PoolTimedOut)?;
        let permit = permit.map_err(|_| Error::PoolClosed)?;
        let taken = async {
            while let Some((mut connection, since)) = self.pop() {
                let alive =
                    since.elapsed() < FRESH || matches!(timeout(FRESH, connection.ping()).await, Ok(Ok(())));
                if alive {
                    return Ok(Writer { connection, writers: self, _permit: permit });
                }
            }
            let connection = self.options.connect().await?;
            Ok(Writer { connection, writers: self, _permit: permit })
        };
        timeout(ACQUIRE, taken).await.unwrap_or(Err(Error::PoolTimedOut))
    }

    /// Closes what is idle: when one connection broke, the others are likely to be broken too.
    pub(super) fn close_idle(&self) {
        let stale = std::mem::take(&mut *self.idle());
        drop(stale);
    }

    fn pop(&self) -> Option<(PgConnection, Instant)> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer<'_> {
    /// Gives the connection back; it must not be in the middle of anything.
    pub(super) fn keep(self) {
        self.writers.idle().push((self.connection, Instant::now()));
    }
}
