//! SQLite on a full disk and on a failing one, where SQLite rolls back by itself. Everything that
//! needs a commit is refused meanwhile, and works again once there is space, without a restart.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::server::TestServer;
use crate::support::shared_vault::VaultKey;

/// `unshare` with its own mount namespace, in which a file system can be mounted.
pub(crate) fn unshare() -> &'static str {
    if rustix::process::geteuid().is_root() { "unshare -m" } else { "unshare -Urm" }
}

async fn encrypt(server: &TestServer, record: &str) -> Value {
    let body = json!({ "plaintext": "p".repeat(100), "context": { "record_id": record } });
    let answer = server.post("/byok/encrypt", body).await;
    if answer.status != 200 {
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (503, &json!("STORE_UNAVAILABLE")));
    }
    answer.body
}

/// Asserts that a server refuses after `fail`, recovers after `mend`, and loses nothing that it
/// acknowledged.
async fn survives(server: &TestServer, fail: impl AsyncFn(), mend: impl AsyncFn()) {
    let mut tokens = Vec::new();
    for turn in 0..5 {
        let record = format!("before-{turn}");
        tokens.push((encrypt(server, &record).await["ciphertext"].as_str().unwrap().to_owned(), record));
    }
    assert_eq!(server.get("/readyz").await.status, 200);
    fail().await;
    // SQLite may still write to the space that its files already have.
    let mut refused = 0;
    for turn in 0..10_000 {
        let record = format!("meanwhile-{turn}");
        match encrypt(server, &record).await["ciphertext"].as_str() {
            Some(token) => tokens.push((token.to_owned(), record)),
            None => refused += 1,
        }
        if refused == 10 {
            break;
        }
    }
    assert_eq!(refused, 10, "it never failed");
    let decrypt = server.decrypt(&tokens[0].0, &tokens[0].1).await;
    assert_eq!((decrypt.status.as_u16(), &decrypt.body["code"]), (503, &json!("STORE_UNAVAILABLE")));
    // The previous result is cached for a moment.
    for turn in 0.. {
        let ready = server.get("/readyz").await;
        if ready.status != 200 {
            assert_eq!((ready.status.as_u16(), &ready.body["reason"]), (503, &json!("STORE_UNAVAILABLE")));
            break;
        }
        assert!(turn < 100, "it is still ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    mend().await;
    for turn in 0.. {
        let record = format!("after-{turn}");
        if let Some(token) = encrypt(server, &record).await["ciphertext"].as_str() {
            tokens.push((token.to_owned(), record));
            break;
        }
        assert!(turn < 600, "it never works again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The previous result is cached for a moment.
    for turn in 0.. {
        if server.get("/readyz").await.status == 200 {
            break;
        }
        assert!(turn < 600, "it is never ready again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (token, record) in &tokens {
        let answer = server.decrypt(token, record).await;
        assert_eq!(answer.status, 200, "{record}: {}", answer.body);
    }
}

async fn until_there(path: &Path) {
    for _ in 0..2_400 {
        if path.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{} never appeared", path.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_for_now_and_recovers_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, control) = (folder.path().join("disk"), folder.path().join("control"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::create_dir(&control).unwrap();
    // Only this shell and the server see the mount, so the shell fills the disk and frees it.
    let script = format!(
        "exec {unshare} sh -c 'mount -t tmpfs -o size=16m tmpfs {disk} || exit 1
        (while kill -0 $$ 2>/dev/null; do
            if [ -e {control}/fill ]; then rm {control}/fill; cat /dev/zero >{disk}/filling 2>/dev/null; touch {control}/filled; fi
            if [ -e {control}/free ]; then rm {control}/free {disk}/filling; touch {control}/freed; fi
            sleep 0.05
        done) &
        exec \"$0\" serve' \"$0\"",
        unshare = unshare(),
        disk = disk.display(),
        control = control.display(),
    );
    let url = format!("sqlite://{}", disk.join("byok.db").display());
    let server = TestServer::by_shell(&script, VaultKey::create().await, url, &[]).await;
    let tell = async |word: &str, done: &str| {
        std::fs::write(control.join(word), "").unwrap();
        until_there(&control.join(done)).await;
    };
    survives(&server, async || tell("fill", "filled").await, async || tell("free", "freed").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_refuses_for_now_and_succeeds_when_writes_work() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("byok.db").display());
    let script = "trap '' XFSZ; exec \"$0\" serve";
    let server = TestServer::by_shell(script, VaultKey::create().await, url, &[]).await;
    // A write beyond the limit fails with EFBIG, which SQLite treats as an I/O error.
    let limit = async |bytes: &str| {
        let pid = server.pid().to_string();
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:")]).status();
        assert!(limited.unwrap().success());
    };
    survives(&server, async || limit("4096").await, async || limit("unlimited").await).await;
}
