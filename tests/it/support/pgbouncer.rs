//! A real PgBouncer in transaction mode, with fewer server connections than we open.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::needed;

/// A running PgBouncer, which stops when it is dropped.
pub(crate) struct PgBouncer {
    process: Child,
    /// The database's URL by way of PgBouncer.
    pub(crate) url: String,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one in front of the database of this URL.
    pub(crate) async fn before(database_url: &str) -> Self {
        Self::with("", database_url).await
    }

    /// Starts one that silently ignores a connection's settings, which is a common setup.
    pub(crate) async fn ignoring_settings(database_url: &str) -> Self {
        Self::with("ignore_startup_parameters = extra_float_digits, options\n", database_url).await
    }

    async fn with(more: &str, database_url: &str) -> Self {
        let binary = needed("BYOK_TEST_PGBOUNCER");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("its mode");
        let (_, rest) = database_url.split_once('@').expect("a user");
        let (server, name) = rest.split_once('/').expect("a database");
        let (host, server_port) = server.split_once(':').expect("a port");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("a port")
            .port();
        let configuration = format!(
            "[databases]\n{name} = host={host} port={server_port} dbname={name}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nunix_socket_dir =\n{more}"
        );
        // With `auth_type = any` the server's user must be named.
        let configuration =
            configuration.replace(&format!("dbname={name}\n"), &format!("dbname={name} user=postgres\n"));
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, configuration).expect("the file is written");
        let process = start(&binary, &path);
        let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, url, _folder: folder }
    }
}

/// Starts the process as another user than root, as which it refuses to run.
fn start(binary: &str, configuration: &Path) -> Child {
    let mut command = Command::new(binary);
    if rustix::process::geteuid().is_root() {
        command.args(["-u", "postgres"]);
    }
    command
        .arg("-q")
        .arg(configuration)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbouncer runs")
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
