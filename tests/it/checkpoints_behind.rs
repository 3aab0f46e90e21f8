//! A log that no longer contains what was published of it, because the database was restored or the
//! log rewritten. Nothing is served until `byok audit restored` opens another log that names the
//! old one; then both logs verify.

use std::path::Path;

use byok::audit::pack;
use byok::merkle::Frontier;
use byok::model::{Entry, Operation, Tenant, TenantUid};
use byok::store::{
    AuditReads as _, Batch, Change, Commits as _, EntryFilter, EntrySearch as _, Postgres, TenantReads as _,
};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::checkpoints::{KEY_FILE, byok, eventually, made_key, note, printed, verified, vkeys};
use crate::checkpoints_destinations::{DIRECTORY, EVERY, caught_up};
use crate::support::postgres::{connect, execute};
use crate::support::rows::{changes, now};
use crate::support::server::TestServer;
use crate::support::{needed, shared_vault::VaultKey};

/// A server that publishes to a directory.
struct Bench {
    server: TestServer,
    folder: tempfile::TempDir,
    directory: std::path::PathBuf,
}

impl Bench {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = made_key(folder.path(), "key.pem").await;
        let directory = folder.path().join("checkpoints");
        let at = directory.display().to_string();
        let settings = [&[(KEY_FILE, &*key), (DIRECTORY, &*at), EVERY], more].concat();
        Self { server: TestServer::with(&settings).await, folder, directory }
    }

    async fn encrypt(&self, records: std::ops::Range<u32>) -> Vec<String> {
        let mut tokens = Vec::new();
        for n in records {
            tokens.push(self.server.encrypt("p", &format!("r-{n}")).await);
        }
        tokens
    }

    async fn published(&self) -> String {
        caught_up(&self.server, &self.directory).await
    }

    fn database(&self) -> &str {
        self.server.database_url.rsplit_once('/').unwrap().1
    }

    async fn store(&self) -> (Postgres, TenantUid) {
        let store = connect(&self.server.database_url);
        let tenant = store.tenant("primary").await.unwrap().unwrap().uid;
        (store, tenant)
    }

    /// Copies the database as it is now, while the server is stopped, and returns the copy's name.
    async fn back_up(&mut self) -> String {
        self.server.stop().await;
        let copy = format!("byok_{}", uuid::Uuid::now_v7().simple());
        execute(&needed("DATABASE_URL"), &format!("CREATE DATABASE {copy} TEMPLATE {}", self.database()))
            .await;
        self.server.start_again().await;
        copy
    }

    /// Replaces the database with the copy, while the server is stopped.
    async fn restore(&mut self, copy: &str) {
        self.server.stop().await;
        self.replace_with(copy).await;
        self.server.start_again().await;
    }

    async fn replace_with(&self, copy: &str) {
        let server = needed("DATABASE_URL");
        execute(&server, &format!("DROP DATABASE {} WITH (FORCE)", self.database())).await;
        execute(&server, &format!("ALTER DATABASE {copy} RENAME TO {}", self.database())).await;
    }

    async fn refused(&self) -> bool {
        let body = json!({ "plaintext": "p", "context": { "record_id": "r-1" } });
        let answer = self.server.post("/byok/encrypt", body).await;
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => answer.body["code"] == "AUDIT_LOG_BEHIND",
            status => {
                assert_eq!(status, 200, "{}", answer.body);
                false
            }
        }
    }

    async fn restored(&self, more: &[&str]) -> Vec<String> {
        let printed = printed(&self.server.environment, &[&["audit", "restored"], more].concat()).await;
        printed.lines().map(str::to_owned).collect()
    }

    /// Runs statements as a superuser, whom no trigger stops.
    async fn damage(&self, sql: &str) {
        let sql = format!("SET session_replication_role = replica; {sql}");
        execute(&self.server.database_url, &sql).await;
    }
}

fn size_of(note: &str) -> u64 {
    note.lines().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_restored_database_stops_the_tenant_until_another_log_is_opened() {
    let mut bench = Bench::start().await;
    let kept = bench.encrypt(0..3).await;
    let copy = bench.back_up().await;
    let lost = bench.encrypt(3..8).await;
    let last = bench.published().await;
    let [vkey] = &vkeys(&bench.server).await[..] else { panic!("one key") };
    bench.restore(&copy).await;

    assert!(bench.refused().await);
    for (path, body) in [
        ("/byok/decrypt", json!({ "ciphertext": kept[0], "context": { "record_id": "r-0" } })),
        ("/byok/rotate", json!({})),
    ] {
        let answer = bench.server.post(path, body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (503, &json!("AUDIT_LOG_BEHIND")),
            "{path}"
        );
    }
    for path in ["/byok/audit", "/byok/audit/checkpoint"] {
        assert_eq!(bench.server.get(path).await.body["code"], "AUDIT_LOG_BEHIND", "{path}");
    }
    let health = bench.server.get("/byok/health").await;
    assert_eq!((health.status.as_u16(), &health.body["audit_log"]), (503, &json!("BEHIND")));
    assert_eq!(health.body["error"], "AUDIT_LOG_BEHIND");
    assert_eq!(bench.server.get("/ready").await.status, 200);
    assert!(
        bench.server.doctor().await.contains("FAIL  audit log: it is shorter than what was published of it")
    );
    let metrics = bench.server.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("audit_log_behind 1"));
    let (store, tenant) = bench.store().await;
    let ended = store.log_head(tenant).await.unwrap().unwrap();

    let report = bench.restored(&["--by", "the-operator"]).await;
    let [_, size, root] = last.lines().take(3).collect::<Vec<_>>()[..] else { panic!("three lines") };
    let (ended_size, ended_root) = (ended.frontier.size(), ended.frontier.root());
    let ended_said = format!("byok/primary/1 {ended_size} {ended_root}");
    let lost_said = format!("byok/primary/1 {size} {root}");
    let expected = [
        format!("ended   {ended_said}"),
        format!("lost    {lost_said}"),
        "opened  byok/primary/2".to_owned(),
    ];
    assert_eq!(report, expected);
    assert!(ended_size < size_of(&last));

    // The running server resumes by itself.
    eventually(async || !bench.refused().await).await;
    let of_it = EntryFilter { operation: Some(Operation::Restore), ..EntryFilter::default() };
    let entries = store.entries(tenant, &of_it, None, 10).await.unwrap().entries;
    let details: Vec<_> = entries.iter().rev().map(|placed| placed.row.detail.as_deref().unwrap()).collect();
    assert_eq!(details, [&*format!("restore {ended_said}"), &*format!("lost {lost_said}")]);
    let first = entries.last().unwrap();
    assert_eq!(
        (first.seq, first.row.user.as_ref().and_then(|user| user.value.as_deref())),
        (ended.end(), Some("the-operator"))
    );
    assert_eq!(store.ended_logs(tenant).await.unwrap(), [ended]);

    assert_eq!(bench.server.decrypt(&kept[0], "r-0").await.body["plaintext"], "p");
    assert_eq!(bench.server.decrypt(&lost[0], "r-3").await.body["code"], "DECRYPT_FAILED");
    let now = bench.published_in_log(2).await;
    let vkey_2 = printed(&bench.server.environment, &["audit", "key", "--log", "2"]).await;
    assert_eq!(vkeys(&bench.server).await, [vkey.as_str(), vkey_2.trim()], "of every log");
    let (_, unfit) = code_and_text(&bench.server.environment, &["audit", "verify", "--key", vkey]).await;
    assert!(unfit.contains("\nwrong-key: no key that was given fits the checkpoint of size "), "{unfit}");
    assert!(unfit.contains(": it says that it is signed with byok/primary/2+"), "{unfit}");
    assert!(!unfit.contains("forged-checkpoint"), "{unfit}");
    assert_eq!(verified(&now, vkey_2.trim()).unwrap().origin, "byok/primary/2");
    assert!(verified(&last, vkey).is_some(), "what was published before still verifies");

    let seen = printed(&bench.server.environment, &["audit", "verify", "--key", vkey_2.trim()]).await;
    let unseen =
        format!("the {ended_size} entries before are in earlier logs, which were not verified: --log 1\n");
    assert!(seen.starts_with("log byok/primary/2: ") && seen.contains(&unseen), "{seen}");
    let again = byok(&bench.server.environment, &["audit", "restored"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing was changed"));
    bench.server.stop().await;
    bench.server.start_again().await;
    assert!(!bench.refused().await, "and the same after another start");
}

async fn code_and_text(environment: &[(String, String)], arguments: &[&str]) -> (Option<i32>, String) {
    let output = byok(environment, arguments).await;
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

impl Bench {
    async fn published_in_log(&self, log: u32) -> String {
        let latest = self.directory.join(format!("byok%2Fprimary%2F{log}/latest"));
        let now = note(&self.server).await;
        eventually(async || std::fs::read_to_string(&latest).is_ok_and(|latest| latest == now)).await;
        now
    }
}

#[tokio::test]
async fn events_streamed_after_a_restore_name_the_new_log() {
    let streamed = tempfile::tempdir().unwrap();
    let file = streamed.path().join("audit.jsonl");
    let mut bench = Bench::with(&[("BYOK_AUDIT_STREAM_FILE", file.to_str().unwrap())]).await;
    let events = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let operations = |log: u32| {
        let of_log = events().into_iter().filter(move |event| event["unmapped"]["log"] == log);
        of_log.map(|event| event["api"]["operation"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    bench.encrypt(0..2).await;
    let (one, other) = (bench.back_up().await, bench.back_up().await);
    // The same backup is restored each time: the database loses what came after it, but that was
    // already streamed.
    for (log, copy) in [(1, &one), (2, &other)] {
        bench.encrypt(2..4).await;
        match log {
            1 => bench.published().await,
            _ => bench.published_in_log(log).await,
        };
        eventually(async || operations(log).iter().filter(|one| *one == "encrypt").count() >= 2).await;
        bench.restore(copy).await;
        assert!(bench.refused().await);
        bench.restored(&[]).await;
        eventually(async || !bench.refused().await).await;
    }
    eventually(async || operations(3).iter().any(|operation| operation == "encrypt")).await;
    let (mut entries, mut positions) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
    for event in events() {
        let position =
            (event["unmapped"]["log"].as_u64().unwrap(), event["metadata"]["sequence"].as_u64().unwrap());
        let entry = event["metadata"]["uid"].as_str().unwrap().to_owned();
        assert_eq!(
            *entries.entry(position).or_insert_with(|| entry.clone()),
            entry,
            "{position:?}: two entries"
        );
        assert_eq!(*positions.entry(entry).or_insert(position), position, "one entry at two places");
    }
    let sequences: std::collections::BTreeSet<u64> = entries.keys().map(|(_, sequence)| *sequence).collect();
    assert!(sequences.len() < entries.len(), "positions repeat only across logs");
}

#[tokio::test]
async fn a_backup_from_before_the_last_restore_opens_an_unpublished_log() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..2).await;
    let (one, other) = (bench.back_up().await, bench.back_up().await);
    bench.encrypt(2..4).await;
    bench.published().await;
    bench.restore(&one).await;
    bench.restored(&[]).await;
    eventually(async || !bench.refused().await).await;
    bench.published_in_log(2).await;
    bench.restore(&other).await;
    assert!(bench.refused().await);
    assert_eq!(bench.restored(&[]).await.last().unwrap(), "opened  byok/primary/3");
    eventually(async || !bench.refused().await).await;
}

#[tokio::test]
async fn a_log_that_has_ended_still_verifies_and_is_exported() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..3).await;
    let early = bench.published().await;
    let copy = bench.back_up().await;
    bench.encrypt(3..8).await;
    let last = bench.published().await;
    let [key] = &vkeys(&bench.server).await[..] else { panic!("one key") };
    bench.restore(&copy).await;
    bench.restored(&[]).await;
    eventually(async || !bench.refused().await).await;
    let file = |name: &str, content: &str| {
        let path = bench.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (early, last) = (file("early", &early), file("last", &last));
    let run_audit = async |arguments: &[&str]| {
        let (code, text) = code_and_text(&bench.server.environment, &[&["audit"], arguments].concat()).await;
        (code.unwrap(), text)
    };
    let of_it = ["verify", "--log", "1", "--key", key];

    let (code, text) = run_audit(&[&of_it[..], &["--checkpoint", &early]].concat()).await;
    assert!(code == 0 && text.starts_with("log byok/primary/1, which has ended: "), "{text}");
    for claim in ["holds  tree ", "holds  signed ", "holds  pinned ", "open   deks "] {
        assert!(text.contains(claim), "no {claim}in {text}");
    }
    let (code, text) = run_audit(&[&of_it[..], &["--checkpoint", &last]].concat()).await;
    assert!(code == 1 && text.contains("\ntruncated-tail: "), "{text}");
    let (code, text) = run_audit(&["verify", "--log", "3"]).await;
    assert!(code == 1 && text.contains("there is no log 3"), "{text}");
    assert_eq!(run_audit(&["verify", "--log", "2"]).await.0, 0, "the current one");

    let bundle = bench.folder.path().join("bundle").display().to_string();
    let (code, text) = run_audit(&["export", "--log", "1", "--key", key, "--out", &bundle]).await;
    assert_eq!(code, 0, "{text}");
    let of_bundle = ["verify-bundle", &*bundle, "--key", key, "--checkpoint", &early];
    let (code, text) = run_audit(&of_bundle).await;
    assert!(code == 0 && text.starts_with("log byok/primary/1: "), "{text}");

    // Later entries about the ended log count: the record of an erasure is in the current log.
    let erased = printed(&bench.server.environment, &["audit", "erase", "--record", "r-0"]).await;
    assert!(erased.starts_with("erased from 1 entries"), "{erased}");
    let (code, text) = run_audit(&of_it).await;
    assert!(code == 0 && text.contains("(1 of them erased)"), "{text}");
    // A bundle of the ended log cannot contain it, so the verifiers leave it open and report no
    // finding.
    let bundle = bench.folder.path().join("later").display().to_string();
    let (code, text) = run_audit(&["export", "--log", "1", "--key", key, "--out", &bundle]).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = run_audit(&["verify-bundle", &bundle, "--key", key]).await;
    assert!(code == 0 && text.contains("open   personal"), "{text}");
    bench.damage("UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL WHERE seq = 1").await;
    let (code, text) = run_audit(&of_it).await;
    assert!(code == 1 && text.contains("\nunmarked-erasure: place 1: the user "), "{text}");
}

#[tokio::test]
async fn a_log_that_is_rewritten_after_it_has_ended_is_found() {
    let bench = Bench::start().await;
    bench.encrypt(0..3).await;
    bench.published().await;
    bench.restored(&["--anyway"]).await;
    let of_it = ["audit", "verify", "--log", "1"];
    assert!(printed(&bench.server.environment, &of_it).await.contains("holds  content "));
    // Everything that depends on the entry is changed too, except for the entry of `audit
    // restored`.
    let (store, tenant) = bench.store().await;
    let ended = store.ended_logs(tenant).await.unwrap().remove(0);
    let digest = "decode(repeat('ab', 32), 'hex')";
    bench.damage(&format!("UPDATE np_byok_audit SET digest = {digest} WHERE seq = 1")).await;
    let other = frontier(&store, tenant, ended.first..ended.end()).await;
    bench.damage("DELETE FROM np_byok_checkpoints WHERE log = 1").await;
    let query = sqlx::query("UPDATE np_byok_logs SET frontier = $1").bind(other.to_bytes());
    query.execute(&bench.server.database().await).await.unwrap();
    let output = byok(&bench.server.environment, &of_it).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let line =
        text.lines().find(|line| line.starts_with("rewritten-history: ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("the restore that ended the log at size"), "{line}");
}

#[tokio::test]
async fn a_running_server_finds_its_database_restored_under_it() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..2).await;
    let copy = bench.back_up().await;
    bench.encrypt(2..9).await;
    bench.published().await;
    bench.replace_with(&copy).await;
    // Calls fail until the connections are renewed; a few may be answered in the second before that
    // is noticed.
    eventually(async || {
        let body = json!({ "ciphertext": "byok:v1:x", "context": {} });
        bench.server.post("/byok/decrypt", body).await.body["code"] == "AUDIT_LOG_BEHIND"
    })
    .await;
    bench.restored(&[]).await;
    eventually(async || bench.server.get("/byok/audit").await.status == 200).await;
    assert!(!bench.refused().await);
}

#[tokio::test]
async fn a_tail_that_was_cut_off_shows_without_any_place() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let mut bench = Bench::with(&[]).await;
    bench.server.stop().await;
    bench.server.environment.retain(|(name, _)| name != DIRECTORY && name != KEY_FILE);
    bench.server.environment.push((KEY_FILE.to_owned(), key));
    bench.server.start_again().await;
    bench.encrypt(0..4).await;
    note(&bench.server).await;
    bench.server.stop().await;
    let (store, tenant) = bench.store().await;
    let head = store.log_head(tenant).await.unwrap().unwrap();
    let shorter = frontier(&store, tenant, head.first..head.end() - 1).await;
    bench.damage(&format!("DELETE FROM np_byok_audit WHERE seq = {}", head.end() - 1)).await;
    set_head(&bench, head.end() - 1, &shorter).await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
}

#[tokio::test]
async fn a_history_that_was_rewritten_at_the_same_size_shows() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..4).await;
    bench.published().await;
    bench.server.stop().await;
    rewrite(&bench).await;
    // An attacker who can rewrite the log can also rewrite the checkpoints stored beside it.
    bench.damage("DELETE FROM np_byok_checkpoints; DELETE FROM np_byok_publications").await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
    let report = bench.restored(&[]).await;
    let (ended, lost) = (report[0].split(' ').rev().nth(1), report[1].split(' ').rev().nth(1));
    assert_eq!(ended, lost, "of one size, with two roots");
}

#[tokio::test]
async fn a_rewritten_history_is_found_even_after_another_log_began() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..4).await;
    let published = bench.published().await;
    bench.server.stop().await;
    rewrite(&bench).await;
    // As if the database had been restored without `audit restored`.
    bench.damage("DELETE FROM np_byok_checkpoints; DELETE FROM np_byok_publications").await;
    bench.damage("UPDATE np_byok_heads SET log = 2, first = size, frontier = ''").await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
    let report = bench.restored(&[]).await;
    let [_, size, root] = published.lines().take(3).collect::<Vec<_>>()[..] else { panic!("three lines") };
    let lost = format!("lost    byok/primary/1 {size} {root}");
    assert_eq!(report[1..], [lost, "opened  byok/primary/3".to_owned()]);
    eventually(async || !bench.refused().await).await;
    bench.published_in_log(3).await;
    bench.server.stop().await;
    bench.server.start_again().await;
    assert!(!bench.refused().await, "it was named");
}

#[tokio::test]
async fn a_running_server_finds_a_history_that_is_rewritten_under_it() {
    let bench = Bench::start().await;
    bench.encrypt(0..4).await;
    bench.published().await;
    rewrite(&bench).await;
    bench.damage("DELETE FROM np_byok_checkpoints").await;
    eventually(async || bench.refused().await).await;
}

/// Replaces the hash of the second entry, and makes the head match.
async fn rewrite(bench: &Bench) {
    let (store, tenant) = bench.store().await;
    let head = store.log_head(tenant).await.unwrap().unwrap();
    let digest = "decode(repeat('ab', 32), 'hex')";
    bench.damage(&format!("UPDATE np_byok_audit SET digest = {digest} WHERE seq = {}", head.first + 1)).await;
    let other = frontier(&store, tenant, head.first..head.end()).await;
    assert_ne!(other.root(), head.frontier.root());
    set_head(bench, head.end(), &other).await;
}

async fn frontier(store: &Postgres, tenant: TenantUid, positions: std::ops::Range<u64>) -> Frontier {
    let mut frontier = Frontier::default();
    for (_, leaf) in store.leaves(tenant, positions).await.unwrap() {
        frontier.append(leaf);
    }
    frontier
}

async fn set_head(bench: &Bench, size: u64, frontier: &Frontier) {
    let sql = "UPDATE np_byok_heads SET size = $1, frontier = $2";
    let query = sqlx::query(AssertSqlSafe(sql)).bind(i64::try_from(size).unwrap()).bind(frontier.to_bytes());
    query.execute(&bench.server.database().await).await.unwrap();
}

#[tokio::test]
async fn no_log_is_opened_without_readable_destinations_or_loss_unless_forced() {
    let bench = Bench::start().await;
    bench.encrypt(0..2).await;
    bench.published().await;
    let refused = byok(&bench.server.environment, &["audit", "restored"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("contains all that was published"));
    let latest = bench.directory.join("byok%2Fprimary%2F1/latest");
    std::fs::remove_file(&latest).unwrap();
    std::fs::create_dir(&latest).unwrap();
    let refused = byok(&bench.server.environment, &["audit", "restored"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stderr)
            .contains("the directory that checkpoints are published to cannot be read")
    );
    let report = bench.restored(&["--anyway"]).await;
    assert_eq!((report.len(), &*report[1]), (2, "opened  byok/primary/2"));
    eventually(async || !bench.refused().await).await;
    eventually(async || note(&bench.server).await.starts_with("byok/primary/2\n")).await;
    let unknown = byok(&bench.server.environment, &["audit", "restored", "--tenant", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(bench.folder.path().exists());
}

#[tokio::test]
async fn the_serving_role_cannot_open_a_log() {
    let (_database, store, owner, serving) = crate::store_postgres::with_two_roles().await;
    let tenant = Tenant { uid: TenantUid(*uuid::Uuid::new_v4().as_bytes()), name: "primary".to_owned() };
    store.commit(&changes(tenant.uid, vec![Change::CreateTenant(tenant)])).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let environment = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        let all = [&[("DATABASE_URL", &*serving), (KEY_FILE, &*key)], more].concat();
        all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let arguments = ["audit", "restored", "--anyway"];
    let refused = byok(&environment(&[]), &arguments).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only the tables' owner may"));
    let report = printed(&environment(&[("BYOK_MIGRATION_DATABASE_URL", &owner)]), &arguments).await;
    assert!(report.ends_with("opened  byok/primary/2\n"), "{report}");
}

#[tokio::test]
async fn an_older_copy_restored_as_the_latest_hides_nothing() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..2).await;
    bench.published().await;
    let copy = bench.back_up().await;
    bench.encrypt(2..3).await;
    let older = bench.published().await;
    bench.encrypt(3..5).await;
    bench.published().await;
    bench.server.stop().await;
    bench.replace_with(&copy).await;
    let latest = bench.directory.join("byok%2Fprimary%2F1/latest");
    // A checkpoint that the current database matches.
    let first = std::fs::read_dir(latest.parent().unwrap()).unwrap();
    let mut notes: Vec<_> = first.map(|file| file.unwrap().path()).filter(|path| *path != latest).collect();
    notes.sort();
    std::fs::copy(&notes[0], &latest).unwrap();
    bench.server.start_again().await;
    assert!(bench.refused().await, "the numbered notes say more");
    std::fs::remove_file(&latest).unwrap();
    bench.server.stop().await;
    bench.server.start_again().await;
    assert!(bench.refused().await, "even without a copy");
    let lost = bench.restored(&[]).await;
    assert!(lost.iter().any(|line| line.starts_with("lost")), "{lost:?}");
    assert!(size_of(&older) > 2);
    eventually(async || !bench.refused().await).await;
}

#[tokio::test]
async fn a_file_that_was_copied_back_is_found_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let file = folder.path().join("byok.db");
    let (url, at) = (format!("sqlite://{}", file.display()), folder.path().join("c").display().to_string());
    let more = [("DATABASE_URL", &*url), (KEY_FILE, &*key), (DIRECTORY, &*at), EVERY];
    let mut server = TestServer::on(VaultKey::create().await, url.clone(), &more).await;
    server.encrypt("p", "r-1").await;
    server.stop().await;
    let copy = copied(folder.path(), &folder.path().join("copy"));
    server.start_again().await;
    server.encrypt("p", "r-2").await;
    caught_up(&server, &folder.path().join("c")).await;
    server.stop().await;
    copied(&copy, folder.path());
    server.start_again().await;
    let body = json!({ "plaintext": "p", "context": { "record_id": "r-1" } });
    let refused = server.post("/byok/encrypt", body.clone()).await;
    assert_eq!(refused.body["code"], "AUDIT_LOG_BEHIND");
    assert!(printed(&server.environment, &["audit", "restored"]).await.ends_with("opened  byok/primary/2\n"));
    eventually(async || server.post("/byok/encrypt", body.clone()).await.status == 200).await;
}

/// Copies the files of the database `byok.db`, and no others.
fn copied(from: &Path, to: &Path) -> std::path::PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for name in ["byok.db", "byok.db-wal", "byok.db-shm"] {
        let _ = std::fs::remove_file(to.join(name));
        let _ = std::fs::copy(from.join(name), to.join(name));
    }
    to.to_owned()
}

impl Bench {
    /// Appends entries that no call made, as anybody who can write the database can.
    async fn append(&self, number: usize, operation: Operation, detail: &str) {
        let (store, tenant) = self.store().await;
        let base = store.log_head(tenant).await.unwrap().unwrap().end();
        let entry = || pack(tenant, &Entry::of_operator(now(), operation, None, Some(detail.into())));
        let entries = (0..number).map(|_| entry()).collect();
        store
            .commit(&Batch { tenant, base, entries, changes: Vec::new(), gate: None, fence: Vec::new() })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_log_opened_without_a_first_entry_is_behind_until_confirmed() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..8).await;
    let published = bench.published().await;
    bench.server.stop().await;
    bench
        .damage(
            "DELETE FROM np_byok_audit WHERE seq >= 5; DELETE FROM np_byok_tiles; DELETE FROM np_byok_filters;
             DELETE FROM np_byok_checkpoints WHERE size > 5; DELETE FROM np_byok_publications;
             UPDATE np_byok_heads SET log = 2, first = 5, size = 6, frontier = decode(repeat('ab', 32), 'hex')",
        )
        .await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
    assert!(
        bench.server.doctor().await.contains("FAIL  audit log: it is shorter than what was published of it")
    );
    // To append an entry about a retention needs no secret.
    bench.server.stop().await;
    bench.append(1, Operation::Prune, "prune 2 0 1").await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(bench.refused().await, "and it remains stopped");
    assert!(!bench.directory.join("byok%2Fprimary%2F2").exists(), "nothing was signed of it");

    let report = bench.restored(&[]).await;
    let [_, size, root] = published.lines().take(3).collect::<Vec<_>>()[..] else { panic!("three lines") };
    assert_eq!(
        report[1..],
        [format!("lost    byok/primary/1 {size} {root}"), "opened  byok/primary/3".into()]
    );
    eventually(async || !bench.refused().await).await;
}

#[tokio::test]
async fn a_log_without_its_pruned_entries_continues_where_signed() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..2).await;
    let copy = bench.back_up().await;
    bench.encrypt(2..6).await;
    bench.published().await;
    bench.restore(&copy).await;
    bench.restored(&[]).await;
    eventually(async || !bench.refused().await).await;
    let (store, tenant) = bench.store().await;
    bench.server.stop().await;
    bench.append(260, Operation::Hold, "hold on").await;
    bench.server.start_again().await;
    bench.published_in_log(2).await;
    let database = bench.server.database().await;
    let tiles = "SELECT count(*) FROM np_byok_tiles WHERE log = 2";
    eventually(async || sqlx::query_scalar::<_, i64>(tiles).fetch_one(&database).await.unwrap() > 0).await;
    bench.server.stop().await;
    let first = store.log_head(tenant).await.unwrap().unwrap().first;
    let pruned = first..first + 256;
    bench
        .damage(&format!("DELETE FROM np_byok_audit WHERE seq >= {} AND seq < {}", pruned.start, pruned.end))
        .await;
    bench.server.start_again().await;
    assert!(bench.refused().await, "no entry says where they are");
    bench.server.stop().await;
    bench.append(1, Operation::Prune, "prune 2 0 256").await;
    bench.server.start_again().await;
    assert!(!bench.refused().await);
}

#[tokio::test]
async fn a_log_opened_without_a_restore_entry_stops_a_running_server() {
    let bench = Bench::start().await;
    bench.encrypt(0..3).await;
    bench.published().await;
    bench.damage("UPDATE np_byok_heads SET log = 2, first = size, frontier = ''").await;
    eventually(async || bench.refused().await).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(bench.refused().await, "and it remains stopped");
    let logged = bench.server.logged();
    assert_eq!(
        logged.matches("the audit log is shorter than what was published of it").count(),
        1,
        "{logged}"
    );
    assert!(!logged.contains("another audit log was opened"), "{logged}");
    bench.restored(&[]).await;
    eventually(async || !bench.refused().await).await;
}

#[tokio::test]
async fn what_is_missing_is_complained_of_once() {
    let bench = Bench::start().await;
    bench.encrypt(0..3).await;
    bench.published().await;
    bench.damage("DELETE FROM np_byok_audit WHERE seq = 1").await;
    eventually(async || bench.refused().await).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let logged = bench.server.logged();
    assert_eq!(logged.matches("an entry of the audit log is missing").count(), 1, "{logged}");
}

#[tokio::test]
async fn the_latest_ended_logs_are_checked_however_many_there_were() {
    let mut bench = Bench::start().await;
    bench.encrypt(0..2).await;
    bench.published().await;
    bench.server.stop().await;
    for _ in 0..33 {
        bench.restored(&["--anyway"]).await;
    }
    bench.server.start_again().await;
    bench.encrypt(2..4).await;
    bench.published_in_log(34).await;
    bench.server.stop().await;
    // The last log is removed without an entry, along with its checkpoints.
    bench.damage("DELETE FROM np_byok_checkpoints; DELETE FROM np_byok_publications").await;
    bench.damage("UPDATE np_byok_heads SET log = 35, first = size, frontier = ''").await;
    bench.server.start_again().await;
    assert!(bench.refused().await);
}
