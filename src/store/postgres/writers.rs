//! Connections that commit. There are a few, apart from the pool of readers, because that pool
//! tests each connection with a round trip when it is returned. A commit in a series of commits
//! need not pay for that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Error};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::read_queue::LONGEST_WAIT;
use super::{ACQUIRE, FRESH};

pub(super) struct Writers {
    options: Mutex<Current>,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

/// The current options for new connections.
#[derive(Clone)]
struct Current {
    options: PgConnectOptions,
    /// How often the options were changed.
    generation: u64,
}

/// A connection that is not in use.
struct Idle {
    connection: PgConnection,
    since: Instant,
    generation: u64,
}

/// A connection for one commit. Dropping it closes the connection; [`Writer::keep`] returns it for
/// reuse.
pub(super) struct Writer<'w> {
    pub(super) connection: PgConnection,
    generation: u64,
    writers: &'w Writers,
    _permit: SemaphorePermit<'w>,
}

impl Writers {
    pub(super) fn new(options: PgConnectOptions, most: u32) -> Self {
        let permits = usize::try_from(most).unwrap_or(1);
        let options = Mutex::new(Current { options, generation: 0 });
        Self { options, permits: Semaphore::new(permits), idle: Mutex::default() }
    }

    /// Makes new connections with these options from now on, and hands out none that was made
    /// before.
    pub(super) fn switch_options(&self, options: PgConnectOptions) {
        {
            let mut current = self.current();
            *current = Current { options, generation: current.generation + 1 };
        }
        self.close_idle();
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a connection that was alive just now. Takes at most [`ACQUIRE`] after the wait
    /// for a permit.
    pub(super) async fn take(&self) -> Result<Writer<'_>, Error> {
        let permit = timeout(LONGEST_WAIT, self.permits.acquire()).await.map_err(|_| Error::PoolTimedOut)?;
        let permit = permit.map_err(|_| Error::PoolClosed)?;
        let taken = async {
            let Current { options, generation } = self.current().clone();
            while let Some(Idle { mut connection, since, generation: of }) = self.pop() {
                let alive = of == generation
                    && (since.elapsed() < FRESH
                        || matches!(timeout(FRESH, connection.ping()).await, Ok(Ok(()))));
                if alive {
                    return Ok(Writer { connection, generation, writers: self, _permit: permit });
                }
            }
            let connection = options.connect().await?;
            Ok(Writer { connection, generation, writers: self, _permit: permit })
        };
        timeout(ACQUIRE, taken).await.unwrap_or(Err(Error::PoolTimedOut))
    }

    /// Closes idle connections: when one connection broke, the others are probably broken too.
    pub(super) fn close_idle(&self) {
        let stale = std::mem::take(&mut *self.idle());
        drop(stale);
    }

    fn pop(&self) -> Option<Idle> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer<'_> {
    /// Returns the connection for reuse. It must not be in the middle of anything.
    pub(super) fn keep(self) {
        // The generation is checked while the idle connections are locked. A later change of the
        // generation then closes this connection together with the others.
        let mut idle = self.writers.idle();
        if self.generation == self.writers.current().generation {
            idle.push(Idle {
                connection: self.connection,
                since: Instant::now(),
                generation: self.generation,
            });
        }
    }
}
