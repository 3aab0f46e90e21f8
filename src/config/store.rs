//! The database.

use std::path::{Path, PathBuf};

use crate::crypto::SecretText;

use super::{Reader, postgres_url};

/// The database, and how to reach it.
pub struct Store {
    /// The kind of database.
    pub engine: Engine,
}

/// A supported database.
pub enum Engine {
    /// PostgreSQL, or a database that speaks its protocol.
    Postgres(Postgres),
    /// A file on this machine.
    Sqlite {
        /// The file. It is created if it is missing.
        path: PathBuf,
    },
}

/// How to reach PostgreSQL.
pub struct Postgres {
    /// `DATABASE_URL`: the URL to serve with. It also configures TLS (`sslmode`, `sslrootcert`,
    /// `sslcert`, `sslkey`).
    pub url: SecretText,
    /// `BYOK_MIGRATION_DATABASE_URL`: the URL to migrate with, as the tables' owner. Without it,
    /// the serving role owns the tables.
    pub migration_url: Option<SecretText>,
    /// `BYOK_DATABASE_MAX_CONNECTIONS`: the number of connections of each replica, at least 2. A
    /// quarter of them commit, the rest read.
    pub max_connections: u32,
    /// `BYOK_DATABASE_PGBOUNCER`, or `pgbouncer=true` in the URL: no prepared statement and no
    /// session setting outlives a transaction, and no start-up option is sent. This is for any
    /// pooler in transaction mode. It costs three round trips per call.
    pub pgbouncer: bool,
}

const URL: &str = "DATABASE_URL";
const OUR_URL: &str = "BYOK_DATABASE_URL";
const MIGRATION_URL: &str = "BYOK_MIGRATION_DATABASE_URL";
const TAKES: &str = "takes `postgres://user:password@host:port/database` or `sqlite://path`";

impl Store {
    /// Returns the settings for working as the tables' owner, if that is a role other than the
    /// serving one.
    #[must_use]
    pub fn as_owner(mut self) -> Self {
        if let Engine::Postgres(postgres) = &mut self.engine
            && let Some(url) = postgres.migration_url.take()
        {
            postgres.url = url;
        }
        self
    }

    /// Returns whether the owner's URL is set.
    pub fn has_owner(&self) -> bool {
        matches!(&self.engine, Engine::Postgres(postgres) if postgres.migration_url.is_some())
    }

    /// Reads the section. `default` is the SQLite file of a deployment that needs no configuration.
    /// Returns `None` if there is an error; the reader then holds it.
    pub fn read(reader: &mut Reader<'_>, default: Option<&Path>) -> Option<Self> {
        let variable = if reader.is_set(OUR_URL) { OUR_URL } else { URL };
        let max_connections = reader.number("BYOK_DATABASE_MAX_CONNECTIONS", 16, 2..=1_000);
        let pgbouncer = reader.flag("BYOK_DATABASE_PGBOUNCER", false);
        let migration_url = reader.secret(MIGRATION_URL);
        let migration_url_is_set = reader.is_set(MIGRATION_URL);

        let url_is_set = reader.is_set(variable);
        let Some(url) = reader.secret(variable) else {
            if url_is_set {
                return None;
            }
            let Some(path) = default else {
                reader.error(variable, format!("is not set; it {TAKES}"));
                return None;
            };
            return Some(Self { engine: Engine::Sqlite { path: path.to_owned() } });
        };

        if let Some(path) = sqlite_path(url.expose()) {
            if path.is_empty() || path.contains(['?', ':']) {
                reader.error(variable, "takes `sqlite://` and the path of a file, and nothing more");
                return None;
            }
            if migration_url_is_set {
                reader.error(
                    MIGRATION_URL,
                    format!("is set, but {variable} names an SQLite file, which has no roles"),
                );
                return None;
            }
            return Some(Self { engine: Engine::Sqlite { path: PathBuf::from(path) } });
        }

        let mut sound = is_postgres(reader, variable, url.expose());
        if let Some(migration_url) = &migration_url {
            sound &= is_postgres(reader, MIGRATION_URL, migration_url.expose());
        }
        let (url, asks_for_pgbouncer) = postgres_url::for_driver(&url);
        let migration_url = migration_url.map(|url| postgres_url::for_driver(&url).0);
        let pgbouncer = pgbouncer || asks_for_pgbouncer;
        let postgres = Postgres { url, migration_url, max_connections, pgbouncer };
        (sound && migration_url_is_set == postgres.migration_url.is_some())
            .then_some(Self { engine: Engine::Postgres(postgres) })
    }
}

fn sqlite_path(url: &str) -> Option<&str> {
    url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))
}

fn is_postgres(reader: &mut Reader<'_>, variable: &str, url: &str) -> bool {
    if !postgres_url::has_scheme(url) {
        reader.error(variable, TAKES);
        return false;
    }
    match postgres_url::problem(url) {
        Some(problem) => {
            reader.error(variable, problem);
            false
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, Env};
    use super::*;

    fn read(pairs: &[(&str, &str)], default: Option<&Path>) -> (Option<Store>, Vec<ConfigError>) {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let store = Store::read(&mut reader, default);
        (store, reader.into_errors())
    }

    fn postgres(pairs: &[(&str, &str)]) -> Postgres {
        match read(pairs, None).0.map(|store| store.engine) {
            Some(Engine::Postgres(postgres)) => postgres,
            _ => panic!("no PostgreSQL"),
        }
    }

    #[test]
    fn our_own_variable_goes_before_the_common_one() {
        let settings =
            postgres(&[("DATABASE_URL", "postgres://a/b"), ("BYOK_DATABASE_URL", "postgres://c/d")]);
        assert_eq!(settings.url.expose(), "postgres://c/d");
    }

    #[test]
    fn pgbouncer_may_be_in_the_url_and_is_not_forwarded() {
        let settings = postgres(&[("DATABASE_URL", "postgres://a/b?pgbouncer=true&sslmode=require")]);
        assert!(settings.pgbouncer);
        assert_eq!(settings.url.expose(), "postgres://a/b?sslmode=require");
    }

    #[test]
    fn a_statement_timeout_may_stand_in_the_url() {
        let url = "postgres://a/b?options=-c%20statement_timeout%3D2s";
        assert_eq!(postgres(&[("DATABASE_URL", url)]).url.expose(), url);
    }

    #[test]
    fn an_sqlite_url_names_a_file() {
        for (url, expected) in [("sqlite://./a/b.db", "./a/b.db"), ("sqlite:///a/b.db", "/a/b.db")] {
            match read(&[("DATABASE_URL", url)], None).0.map(|store| store.engine) {
                Some(Engine::Sqlite { path }) => assert_eq!(path, Path::new(expected)),
                _ => panic!("no SQLite"),
            }
        }
    }

    #[test]
    fn without_a_url_the_default_file_is_used_if_it_exists() {
        assert!(read(&[], Some(Path::new("x.db"))).0.is_some());
        let (store, errors) = read(&[], None);
        assert!(store.is_none());
        assert_eq!(errors[0].variable, "DATABASE_URL");
    }

    #[test]
    fn a_wrong_url_is_an_error_that_does_not_show_it() {
        for url in [
            "mysql://u:s3cret@h/d",
            "postgres://u:s3cret@h/d?sslpassword=s3cret",
            "postgres://u:a?s3cret@h/d",
            "postgres://u:a?b&s3cret",
            "postgres://u:a?b&s3cret@h/d?sslmode=require",
            "sqlite://x?mode=s3cret",
        ] {
            let (store, errors) = read(&[("DATABASE_URL", url)], None);
            assert!(store.is_none(), "{url}");
            assert_eq!(errors.len(), 1, "{url}");
            assert!(!errors[0].to_string().contains("s3cret"));
        }
    }

    #[test]
    fn a_migration_url_without_roles_is_an_error() {
        let (store, errors) = read(
            &[("DATABASE_URL", "sqlite://x.db"), ("BYOK_MIGRATION_DATABASE_URL", "postgres://a/b")],
            None,
        );
        assert!(store.is_none());
        assert_eq!(errors[0].variable, "BYOK_MIGRATION_DATABASE_URL");
    }
}
