//! Opens the database that the configuration names.

use std::fmt;
use std::sync::Arc;

use crate::config;

use super::{Database, Postgres, Sqlite};

/// Why a database could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The URL cannot be parsed, or it names a certificate that cannot be read.
    Url {
        /// What is wrong with the URL; never the URL itself.
        problem: String,
    },
    /// The SQLite file or its folder cannot be created or opened.
    File {
        /// The path of the file or folder.
        path: String,
        /// What is wrong with the path.
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

/// Opens the database that the configuration names. PostgreSQL need not be reachable: connections
/// are made when they are needed, so a server starts and answers health checks without it. A
/// missing SQLite file is created.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(settings: &config::Store) -> Result<Arc<dyn Database>, OpenError> {
    match &settings.engine {
        config::Engine::Postgres(postgres) => Ok(Arc::new(Postgres::connect_lazy(postgres)?)),
        config::Engine::Sqlite { path } => Ok(Arc::new(Sqlite::open(path).await?)),
    }
}
