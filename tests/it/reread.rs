//! Files that are reread while the server runs: good content replaces the old, bad content is
//! reported and changes nothing, and SIGHUP ends no connection.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::json;

use crate::guarded::until;
use crate::support::pki::{Authority, Files, client};
use crate::support::server::{JWT_SECRET, TestServer, answer};

pub(crate) fn hang_up(server: &TestServer) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// A folder like a Kubernetes secret mount: its files are links into `..data`, a link that is
/// swapped.
struct Mounted {
    folder: tempfile::TempDir,
    editions: usize,
}

impl Mounted {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().unwrap(), editions: 0 };
        mounted.put(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), mounted.path(name)).unwrap();
        }
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces all files at once.
    fn put(&mut self, files: &[(&str, &[u8])]) {
        self.editions += 1;
        let edition = format!("..edition-{}", self.editions);
        fs::create_dir(self.path(&edition)).unwrap();
        for (name, bytes) in files {
            fs::write(self.path(&edition).join(name), bytes).unwrap();
        }
        symlink(&edition, self.path("..next")).unwrap();
        fs::rename(self.path("..next"), self.path("..data")).unwrap();
    }
}

fn pair(files: &Files) -> [(&'static str, Vec<u8>); 2] {
    [("tls.crt", fs::read(&files.certificate).unwrap()), ("tls.key", fs::read(&files.key).unwrap())]
}

fn borrowed<'a>(pair: &'a [(&'static str, Vec<u8>); 2]) -> [(&'static str, &'a [u8]); 2] {
    [(pair[0].0, &pair[0].1[..]), (pair[1].0, &pair[1].1[..])]
}

/// Whether a new connection presents a certificate of this authority.
async fn shows(server: &TestServer, authority: &Authority) -> bool {
    let https = server.base.replace("http://", "https://");
    client(&authority.file(), None).get(format!("{https}/live")).send().await.is_ok()
}

#[tokio::test]
async fn a_swapped_certificate_serves_new_connections_and_a_bad_one_none() {
    let (one, other) = (Authority::new(), Authority::new());
    let (first, second) = (pair(&one.server()), pair(&other.server()));
    let mut mounted = Mounted::with(&borrowed(&first));
    let server = TestServer::with(&[
        ("BYOK_TLS_CERT_FILE", mounted.path("tls.crt").to_str().unwrap()),
        ("BYOK_TLS_KEY_FILE", mounted.path("tls.key").to_str().unwrap()),
    ])
    .await;
    let https = server.base.replace("http://", "https://");
    let long = client(&one.file(), None);
    assert_eq!(answer(long.get(format!("{https}/live"))).await.status, 200);

    // Half of a PEM.
    mounted.put(&[("tls.crt", &second[0].1[..second[0].1.len() / 2]), ("tls.key", &second[1].1[..])]);
    until("half a certificate is reported", async || server.logged().contains("holds no PEM certificates"))
        .await;
    // A key that does not belong to the certificate.
    mounted.put(&[("tls.crt", &second[0].1[..]), ("tls.key", &first[1].1[..])]);
    until("a wrong key is reported", async || server.logged().contains("does not belong to the certificate"))
        .await;
    assert!(shows(&server, &one).await && !shows(&server, &other).await, "the old pair stays");
    let metrics = answer(long.get(format!("{https}/metrics"))).await.body;
    assert!(metrics.as_str().unwrap().contains(r#"byok_files_behind{part="tls"} 1"#), "{metrics}");

    mounted.put(&borrowed(&second));
    until("the new pair is shown", async || shows(&server, &other).await).await;
    assert!(!shows(&server, &one).await);
    let metrics = answer(long.get(format!("{https}/metrics"))).await.body;
    assert!(
        metrics.as_str().unwrap().contains(r#"byok_files_behind{part="tls"} 0"#),
        "the old connection stays"
    );
    assert!(!server.logged().contains("PRIVATE KEY"));
}

/// Whether the role `user` may encrypt.
async fn may_encrypt(server: &TestServer) -> bool {
    let body = json!({ "plaintext": "p", "context": { "record_id": "7" } });
    let status =
        server.call(Method::POST, "/byok/encrypt", &server.jwt("user", "7"), Some(body)).await.status;
    assert!([200, 403].contains(&status.as_u16()), "{status}");
    status == 200
}

#[tokio::test]
async fn permissions_that_are_narrowed_count_and_bad_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("permissions.yaml");
    fs::write(&path, "roles: { user: { encrypt: true } }").unwrap();
    let server = TestServer::with(&[("BYOK_PERMISSIONS_FILE", path.to_str().unwrap())]).await;
    assert!(may_encrypt(&server).await);
    fs::write(&path, "roles: { user: { encrypt: perhaps-s3cret } }").unwrap();
    until("the error is reported", async || server.logged().contains("roles.user.encrypt")).await;
    assert!(may_encrypt(&server).await, "the previous policy stays");
    for bad in ["", "roles: [", "roles: {}\nroles: {}"] {
        fs::write(&path, bad).unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        assert!(may_encrypt(&server).await, "{bad:?}");
    }
    fs::write(&path, "roles: { user: { encrypt: false } }").unwrap();
    until("the narrower grants apply", async || !may_encrypt(&server).await).await;
    fs::remove_file(&path).unwrap();
    until("the missing file is reported", async || server.logged().contains("cannot be read")).await;
    assert!(!may_encrypt(&server).await, "a lost file grants nothing");
    assert!(!server.logged().contains("s3cret"));
}

#[tokio::test]
async fn a_hangup_reads_everything_again_and_ends_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwt.json");
    let configured = |secret: &str| json!({ "type": "HS256", "key": secret }).to_string();
    fs::write(&path, configured(JWT_SECRET)).unwrap();
    let mut server = TestServer::with(&[
        ("HASURA_GRAPHQL_JWT_SECRET", ""),
        ("HASURA_GRAPHQL_JWT_SECRET_FILE", path.to_str().unwrap()),
    ])
    .await;
    let token = server.encrypt("plain", "r").await;
    hang_up(&server);
    until("it is reported", async || server.logged().contains("SIGHUP: reading all files again")).await;
    until("and done", async || server.logged().contains(r#""part":"callers""#)).await;
    assert_eq!(server.decrypt(&token, "r").await.status, 200, "nothing has changed");

    fs::write(&path, "\n").unwrap();
    hang_up(&server);
    until("an empty secret is reported", async || server.logged().contains("names a file that is empty"))
        .await;
    assert_eq!(server.decrypt(&token, "r").await.status, 200, "the secret before stays");

    fs::write(&path, configured("another secret that is also long enough for it")).unwrap();
    hang_up(&server);
    until("the old secret is refused", async || server.decrypt(&token, "r").await.status == 401).await;
    assert!(!server.logged().contains("another secret"));
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_secret_bound_to_a_start_is_named_and_keeps_counting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("row-mac-key");
    let key = |byte: u8| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode([byte; 32])
    };
    fs::write(&path, key(7)).unwrap();
    let server = TestServer::with(&[("BYOK_ROW_MAC_KEY_FILE", path.to_str().unwrap())]).await;
    let token = server.encrypt("plain", "r").await;
    fs::write(&path, key(8)).unwrap();
    until("it is reported", async || server.logged().contains("takes effect only after a restart")).await;
    assert!(server.logged().contains("BYOK_ROW_MAC_KEY_FILE"));
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
    let metrics = server.get("/metrics").await.body;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains(r#"byok_rereads_total{part="row_mac",outcome="needs_restart"} 1"#), "{metrics}");
}

#[tokio::test]
async fn a_signing_key_is_replaced_if_the_previous_one_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let [current, previous] = ["current.pem", "previous.pem"].map(|name| folder.path().join(name));
    let make = |path: &Path| {
        fs::remove_file(path).ok();
        let made = std::process::Command::new("openssl")
            .args(["genpkey", "-algorithm", "ed25519", "-out"])
            .arg(path)
            .status();
        assert!(made.unwrap().success());
    };
    make(&current);
    fs::copy(&current, &previous).unwrap();
    let server = TestServer::with(&[
        ("BYOK_AUDIT_SIGNING_KEY_FILE", current.to_str().unwrap()),
        ("BYOK_AUDIT_PREVIOUS_SIGNING_KEY_FILE", previous.to_str().unwrap()),
    ])
    .await;
    server.encrypt("plain", "r").await;
    let keys = async || server.get("/byok/audit/keys").await.body.to_string();
    let before = keys().await;
    make(&current);
    until("both keys count", async || keys().await != before).await;
    let rotated = keys().await;
    // New keys, as from somebody who can write the files; this server has signed with neither.
    make(&current);
    make(&previous);
    until("it is refused", async || server.logged().contains("takes effect only after a restart")).await;
    assert_eq!(keys().await, rotated);
}

#[tokio::test]
async fn a_pipe_or_huge_file_as_a_secret_delays_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let secret = "a secret of Hasura's, ".replace([' ', ','], "-");
    fs::write(&path, &secret).unwrap();
    let server = TestServer::with(&[("BYOK_HASURA_SECRET_FILE", path.to_str().unwrap())]).await;
    fs::remove_file(&path).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    until("the pipe is reported", async || server.logged().contains("is not a regular file")).await;
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    until("the size is reported", async || server.logged().contains("more than 1048576 bytes")).await;
    let request = server.client.post(format!("{}/byok/encrypt", server.base));
    let request = request.header("x-byok-secret", &secret).header("x-hasura-role", "admin");
    let body = json!({ "plaintext": "p", "context": { "record_id": "7" } });
    assert_eq!(answer(request.json(&body)).await.status, 200, "the secret before stays");
}
