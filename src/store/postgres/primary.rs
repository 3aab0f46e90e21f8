//! Restricts reads to the primary. After a failover an address may lead to the server that was
//! demoted, or to a standby whose replay is behind. Rows from there are out of date, and a missing
//! row there says nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{Error, Row};

use super::super::failure::Standby;

/// Returns the rows of a read.
///
/// # Errors
/// [`Standby`] if the rows come from a standby. Another error if the statement was not a read
/// (`reads`).
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

/// Which connections are trusted to lead to the primary. A connection is trusted until one that was
/// opened later turns out not to lead there.
#[derive(Default)]
pub(super) struct Trust(Mutex<Option<Instant>>);

impl Trust {
    /// Stops trusting every connection that is open now.
    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns whether a connection of this age is trusted.
    pub(super) fn covers_age(&self, age: Duration) -> bool {
        let ended = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.is_none_or(|ended| age < ended.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_opened_after_a_standby_was_found_is_trusted() {
        let trust = Trust::default();
        assert!(trust.covers_age(Duration::from_secs(3_600)));
        trust.end();
        assert!(!trust.covers_age(Duration::from_secs(3_600)));
        std::thread::sleep(Duration::from_millis(2));
        assert!(trust.covers_age(Duration::ZERO));
    }
}
