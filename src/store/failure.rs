//! Classifies a database error: whether anything was done, and whether a retry can help. The error
//! itself goes only into a log line, with its code, because its message may quote a value.

use std::fmt;

use sqlx::Error;

use super::ReadError;

/// The error for a read that was answered by a server that accepts no writes: its data may be old.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standby;

impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server accepts no writes, as a standby does")
    }
}

impl std::error::Error for Standby {}

/// What an error says about the statement that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The database answered: the statement is refused for good. Nothing was done.
    Refused,
    /// The database answered: its data is damaged, or does not have the form that byok writes.
    Malformed,
    /// The database answered: the statement is not possible now (a lock, no room). Nothing was
    /// done.
    Temporary,
    /// The database answered: the statement exceeded its time limit. Nothing was done.
    TimedOut,
    /// The database answered: it accepts no writes, as a standby does. Nothing was done.
    Standby,
    /// The database was not asked: all connections are in use for longer than a call can wait.
    Busy,
    /// There was no answer: the statement may have been executed.
    Lost,
}

impl Failure {
    /// Classifies an error and logs its code.
    pub(super) fn of(error: &Error) -> Self {
        let failure = Self::classify(error);
        match failure {
            Self::Refused if is_of_pooler(error) => tracing::error!(
                cause = cause(error),
                "a prepared statement is missing, or belongs to another client: if a pooler is in front of the database, set BYOK_DATABASE_PGBOUNCER=true"
            ),
            Self::Refused => tracing::error!(cause = cause(error), "the database refused a statement"),
            Self::Malformed => {
                tracing::error!(
                    cause = cause(error),
                    "a row is damaged, or does not have the form that byok writes"
                )
            }
            Self::Temporary | Self::TimedOut | Self::Standby | Self::Busy | Self::Lost => {
                tracing::warn!(cause = cause(error), "the database could not execute a statement")
            }
        }
        failure
    }

    fn classify(error: &Error) -> Self {
        match error {
            Error::Database(error) => match error.code().as_deref() {
                Some(code) if code.len() == 5 => Self::of_sqlstate(code),
                Some(code) => code.parse().map_or(Self::Refused, Self::of_sqlite),
                None => Self::Refused,
            },
            Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed => Self::Lost,
            Error::PoolTimedOut | Error::PoolClosed | Error::BeginFailed => Self::Temporary,
            Error::Decode(_) | Error::ColumnDecode { .. } => Self::Malformed,
            Error::AnyDriverError(error) if error.is::<Standby>() => Self::Standby,
            _ => Self::Refused,
        }
    }

    /// Classifies an SQLSTATE by the PostgreSQL manual, appendix A. A server that is shutting down
    /// (57P, 08) may have committed before it reported so.
    fn of_sqlstate(code: &str) -> Self {
        match code {
            // query_canceled
            "57014" => Self::TimedOut,
            // serialization_failure, deadlock_detected, lock_not_available,
            // idle_in_transaction_session_timeout
            "40001" | "40P01" | "55P03" | "25P03" => Self::Temporary,
            // read_only_sql_transaction
            "25006" => Self::Standby,
            _ if code.starts_with("57P") || code.starts_with("08") => Self::Lost,
            // insufficient_resources, system_error
            _ if code.starts_with("53") || code.starts_with("58") => Self::Temporary,
            // data_corrupted, index_corrupted
            "XX001" | "XX002" => Self::Malformed,
            _ => Self::Refused,
        }
    }

    /// Classifies an SQLite result code. The low byte is the primary code.
    fn of_sqlite(code: i32) -> Self {
        match code & 0xff {
            // BUSY, LOCKED, NOMEM, READONLY (what a file system becomes after an error), INTERRUPT,
            // IOERR, FULL, CANTOPEN
            5..=10 | 13 | 14 => Self::Temporary,
            // CORRUPT
            11 => Self::Malformed,
            _ => Self::Refused,
        }
    }
}

/// Returns whether the error is invalid_sql_statement_name or duplicate_prepared_statement. A
/// server reports these when a pooler handed over a connection that another client used before.
fn is_of_pooler(error: &Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("26000" | "42P05"))
}

/// Returns a name for an error that contains no value: its code and constraint, or its kind.
pub(super) fn cause(error: &Error) -> String {
    match error {
        Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            error.constraint().map_or_else(|| code.to_string(), |constraint| format!("{code} {constraint}"))
        }
        Error::Io(error) => format!("{:?}", error.kind()),
        Error::Tls(_) => "TLS".to_owned(),
        Error::Protocol(_) => "protocol".to_owned(),
        Error::PoolTimedOut => "no connection in time".to_owned(),
        Error::ColumnDecode { index, .. } => format!("column {index} has an unexpected form"),
        Error::Configuration(_) => "configuration".to_owned(),
        Error::AnyDriverError(error) if error.is::<Standby>() => Standby.to_string(),
        _ => "driver".to_owned(),
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused => Self::Rejected,
            Failure::Malformed => Self::Malformed,
            Failure::Busy => Self::Busy,
            Failure::Temporary | Failure::TimedOut | Failure::Standby | Failure::Lost => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_goes_down_leaves_the_outcome_open() {
        assert_eq!(Failure::of_sqlstate("57P01"), Failure::Lost);
        assert_eq!(Failure::of_sqlstate("57014"), Failure::TimedOut);
        assert_eq!(Failure::of_sqlstate("23505"), Failure::Refused);
    }

    #[test]
    fn a_refused_statement_is_told_from_a_damaged_row() {
        // undefined_table, undefined_column, insufficient_privilege
        for code in ["42P01", "42703", "42501"] {
            assert_eq!(ReadError::from(Failure::of_sqlstate(code)), ReadError::Rejected, "{code}");
        }
        assert_eq!(ReadError::from(Failure::of_sqlstate("XX001")), ReadError::Malformed);
        assert_eq!(ReadError::from(Failure::of_sqlite(1)), ReadError::Rejected);
        assert_eq!(ReadError::from(Failure::of_sqlite(11 | (1 << 8))), ReadError::Malformed);
        let decoded = Error::Decode("not of the form that byok writes".into());
        assert_eq!(ReadError::from(Failure::classify(&decoded)), ReadError::Malformed);
    }

    #[test]
    fn sqlite_extended_codes_count_as_their_primary_code() {
        assert_eq!(Failure::of_sqlite(5 | (2 << 8)), Failure::Temporary);
        assert_eq!(Failure::of_sqlite(2067), Failure::Refused);
    }
}
