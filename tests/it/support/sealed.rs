//! A log that the real server has written, and the commands that verify it.

use std::path::PathBuf;
use std::process::Output;

use byok::audit::{Checkpoint, CheckpointKey, Tree, origin_of};
use byok::crypto::{Ed25519SigningKey, SecretText};
use byok::model::{Entry, Operation, Tenant};
use byok::store::{Change, Commits as _, LogHead, Postgres, TenantReads as _};
use serde_json::{Value, json};
use tokio::process::Command;

use super::server::TestServer;
use super::{needed, postgres, rows};

/// The entry of an administrative operation on the log.
pub(crate) fn entry(operation: Operation, detail: Option<&str>) -> Entry {
    Entry::of_operator(rows::now(), operation, None, detail.map(Into::into))
}

/// A server, the log that it wrote, and a key of the test's that signs checkpoints.
pub(crate) struct Sealed {
    pub(crate) server: TestServer,
    pub(crate) store: Postgres,
    pub(crate) tenant: Tenant,
    key: SecretText,
    folder: tempfile::TempDir,
}

/// The exit code and output of a verifier.
pub(crate) struct Verdict {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Verdict {
    pub(crate) fn of(output: &Output) -> Self {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        Self { code: output.status.code(), text: String::from_utf8(text).expect("UTF-8") }
    }

    /// Asserts that the log verifies.
    #[track_caller]
    pub(crate) fn holds(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
    }

    /// Asserts that it does not, and that a line of the output starts with this name and contains
    /// this position.
    #[track_caller]
    pub(crate) fn finds(&self, name: &str, position: &str) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        let named =
            self.text.lines().any(|line| line.starts_with(&format!("{name}: ")) && line.contains(position));
        assert!(named, "no {name} at {position} in:\n{}", self.text);
    }
}

impl Sealed {
    /// Starts with a log of 12 entries and no checkpoint: ten of one record each, one batch of
    /// three, and one read of the log.
    pub(crate) async fn start() -> Self {
        let server = TestServer::start().await;
        for record in 0..10 {
            server.encrypt("a secret", &format!("record-{record}")).await;
        }
        let items: Vec<Value> =
            (0..3).map(|n| json!({ "plaintext": "a secret", "record_id": format!("batch-{n}") })).collect();
        let answer = server.post("/byok/encrypt/many", json!({ "items": items })).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        server.get("/byok/audit").await;
        let store = postgres::connect(&server.database_url);
        let tenant = store.tenant("primary").await.expect("it is read").expect("it is there");
        let folder = tempfile::tempdir().expect("a folder");
        Self { server, store, tenant, key: Ed25519SigningKey::generate_pem(), folder }
    }

    /// Starts with the same log and a checkpoint of all of it.
    pub(crate) async fn sealed() -> Self {
        let sealed = Self::start().await;
        sealed.checkpoint().await;
        sealed
    }

    /// The log's head.
    pub(crate) async fn head(&self) -> LogHead {
        self.store.log_head(self.tenant.uid).await.expect("it is read").expect("it is there")
    }

    /// Signs the log as it is, stores the checkpoint in the database, and returns a file with it.
    pub(crate) async fn checkpoint(&self) -> PathBuf {
        self.checkpoint_of(self.head().await.frontier.size()).await
    }

    /// Signs the log's first entries, in the same way.
    pub(crate) async fn checkpoint_of(&self, size: u64) -> PathBuf {
        let tree = Tree::open(&self.store, self.tenant.uid).await.expect("it is read").expect("it is there");
        let root = tree.frontier_at(size).await.expect("it is whole").root();
        let note = self.sign(&self.key, Checkpoint { origin: self.origin(), size, root });
        let add = Change::AddCheckpoint { log: tree.head.log, size, note: note.as_str().into() };
        self.store.commit(&rows::changes(self.tenant.uid, vec![add])).await.expect("it is kept");
        self.file(&format!("{}.checkpoint", uuid::Uuid::now_v7().simple()), &note)
    }

    /// A checkpoint signed with this key.
    pub(crate) fn sign(&self, key: &SecretText, checkpoint: Checkpoint) -> String {
        checkpoint.sign([&Ed25519SigningKey::from_pem(key).expect("a key")])
    }

    /// The origin in the log's checkpoints.
    pub(crate) fn origin(&self) -> String {
        origin_of("byok", "primary", 1)
    }

    /// The key that verifies checkpoints.
    pub(crate) fn public(&self) -> String {
        let key = Ed25519SigningKey::from_pem(&self.key).expect("a key").verifying_key();
        CheckpointKey { name: self.origin(), key }.to_string()
    }

    /// A file of this name and content.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("it is written");
        path
    }

    /// Runs statements as a database superuser, whom no trigger stops.
    pub(crate) async fn damage(&self, sql: &str) {
        let sql = format!("SET session_replication_role = replica; {sql}");
        postgres::execute(&self.server.database_url, &sql).await;
    }

    /// Runs `byok audit …` in an empty environment with these variables.
    pub(crate) async fn byok(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Verdict {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
        command.arg("audit").args(arguments).env_clear().envs(variables.iter().copied());
        Verdict::of(&command.output().await.expect("byok runs"))
    }

    /// Runs `byok audit verify` with the key and more arguments.
    pub(crate) async fn verify(&self, more: &[&str]) -> Verdict {
        let key = self.public();
        let arguments = [&["verify", "--key", key.as_str()], more].concat();
        self.byok(&arguments, &[("DATABASE_URL", &self.server.database_url)]).await
    }

    /// Exports a bundle and returns its file, or the output if there is none.
    pub(crate) async fn export(&self, more: &[&str]) -> Result<PathBuf, Verdict> {
        let path = self.folder.path().join(format!("{}.jsonl", uuid::Uuid::now_v7().simple()));
        let key = self.public();
        let to = ["export", "--key", key.as_str(), "--out", path.to_str().expect("UTF-8")];
        let verdict =
            self.byok(&[&to[..], more].concat(), &[("DATABASE_URL", &self.server.database_url)]).await;
        if verdict.code == Some(0) { Ok(path) } else { Err(verdict) }
    }

    /// The output of both verifiers about a bundle, ours and the one in `docs/`, with the key and a
    /// pinned checkpoint.
    pub(crate) async fn both(
        &self,
        bundle: &std::path::Path,
        pinned: Option<&std::path::Path>,
    ) -> [Verdict; 2] {
        let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
        let (bundle, key, pinned) = (text(bundle), self.public(), pinned.map(text));
        let mut arguments = vec!["verify-bundle", bundle.as_str(), "--key", &key];
        if let Some(pinned) = &pinned {
            arguments.extend(["--checkpoint", pinned]);
        }
        let ours = self.byok(&arguments, &[]).await;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify_bundle.py");
        let mut python = Command::new(needed("BYOK_TEST_PYTHON"));
        python.arg(script).args([&bundle, &key]).args(&pinned);
        [ours, Verdict::of(&python.output().await.expect("Python runs"))]
    }
}
