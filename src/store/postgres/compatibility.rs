//! Checks whether byok can work with the database behind the URL: its encoding must be UTF-8, and
//! there must be no pooler that byok does not know of and that drops a connection's settings and
//! prepared statements.

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Error, Row};
use tokio::time::timeout;

use super::super::MigrateError;
use super::migrate::failed;
use super::{ACQUIRE, LIMITS, Postgres};

/// All settings in one statement, so that a pooler uses one server for it.
const SETTINGS: &str = "SELECT pg_catalog.current_setting('server_encoding'), \
    pg_catalog.current_setting('statement_timeout'), \
    pg_catalog.current_setting('idle_in_transaction_session_timeout')";

impl Postgres {
    /// Checks that byok can work with the database.
    ///
    /// # Errors
    /// [`MigrateError::Encoding`], [`MigrateError::Pooler`]; other errors if the check itself
    /// fails.
    pub(super) async fn check_compatible(&self) -> Result<(), MigrateError> {
        let connected = timeout(ACQUIRE, self.access().serving.connect()).await;
        let mut connection = connected.map_err(|_| MigrateError::Unavailable)?.map_err(|error| {
            if refuses_settings(&error) { MigrateError::Pooler } else { failed(0, &error) }
        })?;
        let settings = timeout(ACQUIRE, self.settings(&mut connection)).await;
        let (encoding, settings_arrived) =
            settings.map_err(|_| MigrateError::Unavailable)?.map_err(|error| failed(0, &error))?;
        if encoding != "UTF8" {
            return Err(MigrateError::Encoding { found: encoding });
        }
        if settings_arrived { Ok(()) } else { Err(MigrateError::Pooler) }
    }

    /// Returns the database's encoding, and whether the limits that a connection is opened with
    /// have reached the server.
    async fn settings(&self, connection: &mut PgConnection) -> Result<(String, bool), Error> {
        let row = sqlx::raw_sql(SETTINGS).fetch_one(connection).await?;
        let access = self.access();
        let own = access.serving.get_options().unwrap_or_default();
        let mut settings_arrived = true;
        for (place, (name, limit)) in LIMITS.iter().enumerate() {
            let sent = own.contains(&format!("{name}={limit}"));
            settings_arrived &= self.pgbouncer || !sent || row.try_get::<String, _>(place + 1)? == *limit;
        }
        Ok((row.try_get(0)?, settings_arrived))
    }
}

/// Returns whether a pooler refused the connection's settings. PgBouncer refuses start-up
/// parameters that it cannot track, with a message that PostgreSQL never uses.
fn refuses_settings(error: &Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("unsupported startup parameter"))
}
