//! Servers for one test, which may stop, seal or kill them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use super::shared_vault::VaultKey;

/// One server in its own folder, run by `scripts/servers`. It stops when it is dropped.
pub(crate) struct Private {
    folder: PathBuf,
    kind: &'static str,
}

impl Private {
    /// Starts a PostgreSQL.
    pub(crate) async fn postgres() -> Self {
        Self::start("postgres").await
    }

    /// Starts a Vault.
    pub(crate) async fn vault() -> Self {
        Self::start("vault").await
    }

    async fn start(kind: &'static str) -> Self {
        // Always below /tmp, whatever TMPDIR says, so that PostgreSQL's system user can reach it.
        let folder = PathBuf::from(format!("/tmp/byok-test-{}", uuid::Uuid::now_v7().simple()));
        let server = Self { folder, kind };
        server.start_again().await;
        server
    }

    /// Starts the server after it was stopped: PostgreSQL with its data, Vault with an empty store.
    pub(crate) async fn start_again(&self) {
        run(&[&format!("start-{}", self.kind), path(&self.folder)]).await;
    }

    /// Ends the process at once, like a crash.
    pub(crate) async fn kill(&self) {
        let pids = std::fs::read_to_string(self.folder.join("pids")).expect("it was started");
        let line = pids.lines().find(|line| line.starts_with(self.kind)).expect("it was started");
        let pid: i32 = line.split(' ').nth(1).and_then(|pid| pid.parse().ok()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        // QUIT is an immediate shutdown of PostgreSQL, and a crash of Vault.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).expect("it can be signalled");
        for _ in 0..100 {
            let state =
                std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{} did not end", self.kind);
    }

    /// A variable of the server's environment file.
    pub(crate) fn variable(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join(self.kind).join("env")).expect("it was started");
        let lines: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('=')).collect();
        lines
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in its environment"))
            .trim_matches('\'')
            .to_owned()
    }

    /// A new key in the Vault.
    pub(crate) async fn key(&self) -> VaultKey {
        VaultKey::create_at(self.variable("BYOK_TEST_VAULT_ADDR"), self.variable("BYOK_TEST_VAULT_TOKEN"))
            .await
    }

    /// Seals the Vault.
    pub(crate) async fn seal(&self, key: &VaultKey) {
        key.admin(Method::POST, "sys/seal", json!({})).await;
    }

    /// Unseals the Vault and waits until it serves. For a moment after a seal it refuses to be
    /// unsealed.
    pub(crate) async fn unseal(&self, key: &VaultKey) {
        let client = super::http();
        let body = json!({ "key": self.variable("BYOK_TEST_VAULT_UNSEAL_KEY") });
        for _ in 0..200 {
            let _ = client.post(format!("{}/v1/sys/unseal", key.address)).json(&body).send().await;
            let health = client.get(format!("{}/v1/sys/health", key.address)).send().await;
            if health.is_ok_and(|health| health.status() == 200) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("Vault was not unsealed");
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let script = script();
        let _ = std::process::Command::new(script)
            .args(["stop", path(&self.folder)])
            .stdout(Stdio::null())
            .status();
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers")
}

fn path(folder: &Path) -> &str {
    folder.to_str().expect("an ASCII path")
}

async fn run(arguments: &[&str]) {
    let output =
        Command::new(script()).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status().await;
    assert!(output.expect("the script runs").success(), "scripts/servers {arguments:?} failed");
}
