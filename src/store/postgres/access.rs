//! How the database is reached: the URLs, and the pool of connections that read. Another [`Access`]
//! may replace this one while the server runs.

use std::str::FromStr;
use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::config;

use super::super::OpenError;
use super::primary::Trust;
use super::{ACQUIRE, FRESH, LIMITS};

pub(super) struct Access {
    pub(super) readers: PgPool,
    pub(super) serving: PgConnectOptions,
    /// The owner of the tables, if it is a role other than the serving one.
    pub(super) owner: Option<PgConnectOptions>,
}

impl Access {
    /// Makes the access without connecting. `most_read` is the largest number of connections that
    /// read; they are used only while `trust` covers them.
    pub(super) fn new(
        settings: &config::Postgres,
        most_read: u32,
        trust: Arc<Trust>,
    ) -> Result<Self, OpenError> {
        let pgbouncer = settings.pgbouncer;
        let owner = settings.migration_url.as_ref().map(|url| options(url.expose())).transpose()?;
        let serving = options(settings.url.expose())?;
        let serving = if pgbouncer { without_session(serving) } else { limited(serving) };
        let owner = owner.map(|owner| if pgbouncer { without_session(owner) } else { owner });
        let readers = PgPoolOptions::new()
            .max_connections(most_read)
            .acquire_timeout(ACQUIRE)
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let is_trusted = trust.covers_age(meta.age);
                Box::pin(async move {
                    if !is_trusted {
                        return Ok(false);
                    }
                    if meta.idle_for > FRESH {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(serving.clone());
        Ok(Self { readers, serving, owner })
    }

    /// Returns the options for connecting as the tables' owner.
    pub(super) fn as_owner(&self) -> &PgConnectOptions {
        self.owner.as_ref().unwrap_or(&self.serving)
    }
}

fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    // The driver's error says what is wrong with which part and quotes none. Even so, only its kind
    // is kept.
    let options = PgConnectOptions::from_str(url).map_err(|_| OpenError::Url {
        problem: "it is not `postgres://user:password@host:port/database`".to_owned(),
    })?;
    Ok(options.application_name("byok").disable_statement_logging())
}

/// Adds the server's limits, unless the URL sets its own.
fn limited(options: PgConnectOptions) -> PgConnectOptions {
    let own = options.get_options().unwrap_or_default().to_owned();
    options.options(LIMITS.into_iter().filter(|(name, _)| !own.contains(name)))
}

/// Removes everything that a pooler in transaction mode would lose or refuse.
fn without_session(options: PgConnectOptions) -> PgConnectOptions {
    options.statement_cache_capacity(0).extra_float_digits(None)
}
