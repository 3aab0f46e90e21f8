//! PostgreSQL for tests: a new database on the shared server, or a server for one test, which can
//! stop and start it.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use byok::config::{self, Env};
use byok::crypto::SecretText;
use byok::store::{Database, Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

/// A database that is dropped when the test ends.
pub(crate) struct TestDatabase {
    /// The URL of its owner, a superuser.
    pub(crate) url: String,
    server: String,
    name: String,
    roles: Vec<String>,
}

/// The value of a variable. A test without it fails: nothing is skipped.
pub(crate) fn variable(name: &str) -> String {
    let env = Env::of_process();
    let value = env.get(name).map(str::to_owned);
    value.unwrap_or_else(|| {
        panic!("{name} is not set: run `dir=$(scripts/servers start) && source \"$dir/env\"` first, or `scripts/test`")
    })
}

/// An empty database on the shared server.
pub(crate) async fn empty() -> TestDatabase {
    let server = variable("DATABASE_URL");
    let name = format!("byok_test_{}", Uuid::new_v4().simple());
    execute(&server, &format!("CREATE DATABASE {name}")).await;
    TestDatabase { url: on_database(&server, &name), server, name, roles: Vec::new() }
}

/// The number of migrations.
pub(crate) const LEVEL: u32 = 16;

/// A database with our tables, and the store on it.
pub(crate) async fn migrated() -> (TestDatabase, Arc<Postgres>) {
    let database = empty().await;
    let store = Arc::new(connect(&database.url));
    store.migrate().await.expect("migrations run on an empty database");
    (database, store)
}

/// A store with the settings that most tests use.
pub(crate) fn connect(url: &str) -> Postgres {
    Postgres::connect_lazy(&settings(url, None, false)).expect("the URL is sound")
}

/// Settings like those that `config` reads.
pub(crate) fn settings(url: &str, migration_url: Option<&str>, pgbouncer: bool) -> config::Postgres {
    config::Postgres {
        url: SecretText::new(url.to_owned()),
        migration_url: migration_url.map(|url| SecretText::new(url.to_owned())),
        max_connections: 8,
        pgbouncer,
    }
}

/// Runs one statement, and panics when it is refused.
pub(crate) async fn execute(url: &str, sql: &str) {
    try_execute(url, sql).await.unwrap_or_else(|code| panic!("{sql}: {code}"));
}

/// Runs statements and returns the number of changed rows, or the SQLSTATE of the refusal.
pub(crate) async fn try_execute(url: &str, sql: &str) -> Result<u64, String> {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
    connection.close().await.ok();
    done.map(|done| done.rows_affected()).map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code().map(|code| code.to_string()));
        code.unwrap_or_else(|| panic!("{sql}: {error}"))
    })
}

/// The number that a query returns.
pub(crate) async fn number(url: &str, sql: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let number = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
    connection.close().await.ok();
    number.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn on_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the URL names a database");
    format!("{server}/{name}")
}

/// The URL with another user.
pub(crate) fn as_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{user}@{host}")
}

impl TestDatabase {
    /// Creates a role that can log in and has no other right. Returns its URL.
    pub(crate) async fn role(&mut self) -> String {
        let role = format!("byok_role_{}", Uuid::new_v4().simple());
        execute(&self.server, &format!("CREATE ROLE {role} LOGIN")).await;
        self.roles.push(role.clone());
        as_user(&self.url, &role)
    }

    /// Makes the role of that URL the owner of the database.
    pub(crate) async fn give_to(&self, role_url: &str) {
        let role = role_url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).expect("a URL").0;
        execute(&self.server, &format!("ALTER DATABASE {} OWNER TO {role}", self.name)).await;
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, name, roles) = (self.server.clone(), self.name.clone(), std::mem::take(&mut self.roles));
        // A drop cannot wait on the test's runtime.
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                try_execute(&server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.ok();
                for role in roles {
                    try_execute(&server, &format!("DROP ROLE IF EXISTS {role}")).await.ok();
                }
            });
        });
        dropped.join().ok();
    }
}

/// A server for one test.
pub(crate) struct Server {
    folder: PathBuf,
    /// The URL of the database `postgres`.
    pub(crate) url: String,
}

impl Server {
    /// Starts a server with an empty database.
    pub(crate) fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("byok-postgres-{}", Uuid::new_v4().simple()));
        let mut server = Self { folder, url: String::new() };
        server.start_again();
        server.url = server.read_url();
        server
    }

    /// Starts a hot standby that follows this server's WAL.
    pub(crate) fn standby(&self) -> Self {
        let folder = std::env::temp_dir().join(format!("byok-postgres-{}", Uuid::new_v4().simple()));
        let mut standby = Self { folder, url: String::new() };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
        let done = Command::new(script).arg("start-standby").args([&standby.folder, &self.folder]).output();
        let done = done.expect("scripts/servers runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        standby.url = standby.read_url();
        standby
    }

    /// The folder of its Unix socket, and its port.
    pub(crate) fn socket(&self) -> (PathBuf, String) {
        let home = self.folder.join("postgres");
        let port = std::fs::read_to_string(home.join("port")).expect("scripts/servers wrote it");
        (home, port.trim().to_owned())
    }

    fn read_url(&self) -> String {
        let env =
            std::fs::read_to_string(self.folder.join("postgres/env")).expect("scripts/servers wrote it");
        let url =
            env.trim().strip_prefix("export DATABASE_URL=").expect("the line that scripts/servers writes");
        url.to_owned()
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("postgres/data")
    }

    /// Starts the server again after [`Self::kill`], with the same data on the same port.
    pub(crate) fn start_again(&mut self) {
        self.script("start-postgres");
    }

    /// Ends the server like a crash, without closing connections properly.
    pub(crate) fn kill(&self) {
        let pids = std::fs::read_to_string(self.folder.join("pids")).expect("scripts/servers wrote it");
        let line = pids.lines().find(|line| line.starts_with("postgres ")).expect("postgres was started");
        let pid = line.split(' ').nth(1).expect("a pid");
        // QUIT ends it at once, without a checkpoint. KILL would leave its children to end by
        // themselves.
        assert!(Command::new("kill").args(["-QUIT", pid]).status().expect("kill runs").success());
        let proc = PathBuf::from(format!("/proc/{pid}/stat"));
        for _ in 0..500 {
            match std::fs::read_to_string(&proc) {
                Ok(stat) if !stat.contains(") Z ") => {
                    std::thread::sleep(std::time::Duration::from_millis(10))
                }
                _ => return,
            }
        }
        panic!("postgres {pid} did not end");
    }

    /// Turns TLS on, with a certificate for `127.0.0.1`. Returns the file with its authority.
    pub(crate) async fn with_tls(&self) -> PathBuf {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let data = self.folder.join("postgres/data");
        let owner = std::fs::metadata(&data).expect("the data folder");
        for (name, text) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
            let path = data.join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
        }
        execute(&self.url, "ALTER SYSTEM SET ssl = on").await;
        execute(&self.url, "SELECT pg_reload_conf()").await;
        for _ in 0..100 {
            if number(&self.url, "SELECT (current_setting('ssl') = 'on')::int4::int8").await == 1 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let authority = self.folder.join("authority.pem");
        std::fs::write(&authority, certificate.pem()).expect("written");
        authority
    }

    fn script(&self, command: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
        let done =
            Command::new(script).arg(command).arg(&self.folder).output().expect("scripts/servers runs");
        assert!(
            done.status.success(),
            "scripts/servers {command}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
        Command::new(script).arg("stop").arg(&self.folder).output().ok();
    }
}
