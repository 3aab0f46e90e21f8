//! What keeps reads to the primary. After a failover an address may lead to the server that was demoted, or to a standby whose
//! replay is behind: its rows are of the past, and that a row is missing there says nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{Error, Row};

use super::super::failure::Standby;

/// The rows of a read.
///
/// # Errors
/// [`Standby`], where they come from one; another where what was run is no read (`reads`).
pub(super) fn of_primary(mut rows: Vec<PgRow>) -> Result<Vec<PgRow>, Error> {
    let first = rows.first().ok_or(Error::RowNotFound)?;
    if first.try_get::<bool, _>("byok_read_only")? {
        return Err(Error::AnyDriverError(Box::new(Standby)));
    }
    if first.try_get::<Option<bool>, _>("byok_there")?.is_none() {
        rows.clear();
    }
    Ok(rows)
}

/// Whether connections are believed to lead to the primary: each until one that was opened later was found not to.
#[derive(Default)]
pub(super) struct Trust(Mutex<Option<Instant>>);

impl Trust {
    /// No connection that is open now is believed any more.
    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age is believed.
    pub(super) fn is_in_one_opened_ago(&self, age: Duration) -> bool {
        let ended = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.is_none_or(|ended| age < ended.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_believed_if_opened_after_a_standby_was_met() {
        let trust = Trust::default();
        assert!(trust.is_in_one_opened_ago(Duration::from_secs(3_600)));
        trust.end();
        assert!(!trust.is_in_one_opened_ago(Duration::from_secs(3_600)));
        std::thread::sleep(Duration::from_millis(2));
        assert!(trust.is_in_one_opened_ago(Duration::ZERO));
    }
}
