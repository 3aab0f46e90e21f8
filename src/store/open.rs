//! From configuration to a database.

use std::fmt;
use std::sync::Arc;

use crate::config;

use super::{Database, Postgres, Sqlite};

/// Why a database could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The URL cannot be read, or names a certificate that cannot.
    Url {
        /// What is wrong with it; never the URL itself.
        problem: String,
    },
    /// The SQLite file, or its folder, cannot be made or opened.
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { problem } => write!(f, "the database's URL is not usable: {problem}"),
            Self::File { path, problem } => write!(f, "{path}: {problem}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// Opens what the configuration names. PostgreSQL need not be in reach: connections are made when they are needed, so a
/// server starts and answers health without it. An SQLite file is made when it is not there.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(settings: &config::Store) -> Result<Arc<dyn Database>, OpenError> {
    match &settings.engine {
        config::Engine::Postgres(postgres) => Ok(Arc::new(Postgres::connect_lazy(postgres)?)),
        config::Engine::Sqlite { path } => Ok(Arc::new(Sqlite::open(path).await?)),
    }
}
