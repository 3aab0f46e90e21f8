//! A real PgBouncer in transaction mode, with fewer server connections than we open.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use byok::model::Posture;
use byok::store::{Batch, Change, CommitError, Database, DekReads, Must, Postgres, Store, TenantReads};
use tempfile::TempDir;

use crate::support::postgres::{TestDatabase, empty, settings, variable};
use crate::support::rows::{dek, entry, fence, prove, tenant, watch};

struct PgBouncer {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl PgBouncer {
    async fn before(database: &TestDatabase) -> Self {
        let binary = variable("BYOK_TEST_PGBOUNCER");
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let (_, rest) = database.url.split_once('@').unwrap();
        let (server, name) = rest.split_once('/').unwrap();
        let (host, server_port) = server.split_once(':').unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = format!(
            "[databases]\n{name} = host={host} port={server_port} dbname={name}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nunix_socket_dir =\n"
        );
        // With `auth_type = any` the server's user has to be named.
        let configuration =
            configuration.replace(&format!("dbname={name}\n"), &format!("dbname={name} user=postgres\n"));
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, configuration).unwrap();
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

/// It refuses to run as root.
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

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_it_migrates_commits_and_reads_under_contention() {
    let database = empty().await;
    let pgbouncer = PgBouncer::before(&database).await;
    let store = Arc::new(Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap());
    assert_eq!(store.migrate().await.unwrap().ran, 3);
    assert_eq!(store.schema().await.unwrap().usable(), Ok(()));
    let tenant = tenant(&*store).await;
    let writers = [(); 6].map(|()| {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut done, mut base) = (0, 0);
            while done < 15 {
                let record: Arc<str> = uuid::Uuid::new_v4().to_string().into();
                let row = dek(Some(&record));
                let batch = Batch {
                    tenant,
                    base,
                    entries: vec![entry()],
                    changes: vec![Change::InsertDek(row.clone())],
                    fence: Vec::new(),
                };
                match store.commit(&batch).await {
                    Ok(_) => {
                        done += 1;
                        assert_eq!(store.deks_of_records(tenant, &[record]).await.unwrap(), [row]);
                    }
                    Err(CommitError::Moved { size }) => base = size,
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.log_size(tenant).await.unwrap(), 90);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_the_fence_is_held_in_both_forms() {
    let database = empty().await;
    let pgbouncer = PgBouncer::before(&database).await;
    let store = Arc::new(Postgres::connect_lazy(&settings(&pgbouncer.url, None, true)).unwrap());
    store.migrate().await.unwrap();
    let tenant = tenant(&*store).await;
    let proof = watch(&*store, tenant, "1").await;
    let must = Must::BeProven { epoch: 1, within: Duration::from_secs(600) };
    let batch = move || Batch {
        tenant,
        base: 0,
        entries: vec![entry()],
        changes: vec![Change::InsertDek(dek(None))],
        fence: vec![fence("1", must)],
    };
    let writers = [(); 6].map(|()| {
        let (store, proven_at) = (store.clone(), proof.proven_at);
        tokio::spawn(async move {
            for _ in 0..10 {
                let done = store.commit_in_turn(&mut batch()).await.unwrap();
                assert_eq!(done.passed.unwrap().proven_at, [proven_at]);
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    let last = Batch { base: 60, ..batch() };
    assert_eq!(store.commit(&last).await.unwrap().passed.unwrap().proven_at, [proof.proven_at]);
    prove(&*store, tenant, &proof, |to| to.posture = Posture::Revoked).await;
    assert_eq!(store.commit(&Batch { base: 61, ..batch() }).await, Err(CommitError::Fenced));
    assert_eq!(store.commit_in_turn(&mut batch()).await, Err(CommitError::Fenced));
    assert_eq!(store.commit(&last).await.unwrap().passed, None, "it stands");
    assert_eq!(store.log_size(tenant).await.unwrap(), 61);
}
