//! Checkpoints of the audit log: what is signed, by which keys, and who may read it. Notes are
//! verified here without the crate's own code.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byok::merkle::root_of;
use byok::store::{AuditReads as _, TenantReads as _};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::process::Command;

use crate::support::postgres::connect;
use crate::support::server::{Answer, TestServer, answer};

pub(crate) const KEY_FILE: &str = "BYOK_AUDIT_SIGNING_KEY_FILE";
const PREVIOUS_KEY_FILE: &str = "BYOK_AUDIT_PREVIOUS_SIGNING_KEY_FILE";

/// The content of a checkpoint's note: origin, size and root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) origin: String,
    pub(crate) size: u64,
    pub(crate) root: String,
}

/// Parses a note by c2sp.org/tlog-checkpoint and c2sp.org/signed-note. Returns `None` unless this
/// key has signed it.
pub(crate) fn verified(note: &str, vkey: &str) -> Option<Note> {
    let (name, rest) = vkey.split_once('+')?;
    let (id, key) = rest.split_once('+')?;
    let key = STANDARD.decode(key).ok()?;
    let hash = ring::digest::digest(&ring::digest::SHA256, &[name.as_bytes(), b"\n", &key].concat());
    let own_id: String = hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(id, own_id, "a key's id is the beginning of its hash");
    assert_eq!((key[0], key.len()), (1, 33), "Ed25519");
    let (body, signatures) = note.split_once("\n\n")?;
    let body = format!("{body}\n");
    let signed = signatures.lines().any(|line| {
        let Some(signature) = line.strip_prefix(&format!("— {name} ")) else { return false };
        let signature = STANDARD.decode(signature).unwrap();
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &key[1..]);
        signature[..4] == hash.as_ref()[..4] && key.verify(body.as_bytes(), &signature[4..]).is_ok()
    });
    let [origin, size, root] = body.lines().collect::<Vec<_>>().try_into().ok()?;
    assert_eq!(origin, name);
    let parsed = Note { origin: origin.to_owned(), size: size.parse().unwrap(), root: root.to_owned() };
    signed.then_some(parsed)
}

/// Runs the binary with these variables and no others.
pub(crate) async fn byok(environment: &[(String, String)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
    command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.output().await.expect("byok runs")
}

/// The standard output of the binary, which must succeed.
pub(crate) async fn printed(environment: &[(String, String)], arguments: &[&str]) -> String {
    let output = byok(environment, arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Has the binary create a key in that folder, and returns the file's path.
pub(crate) async fn made_key(folder: &Path, name: &str) -> String {
    let path = folder.join(name).display().to_string();
    printed(&[], &["audit", "key", "--generate", &path]).await;
    path
}

/// The verifier keys for the server's configured signing keys.
pub(crate) async fn vkeys(server: &TestServer) -> Vec<String> {
    printed(&server.environment, &["audit", "key"]).await.lines().map(str::to_owned).collect()
}

/// The note that the server returns.
pub(crate) async fn note(server: &TestServer) -> String {
    let answer = checkpoint(server, &server.jwt("admin", "the-admin")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    answer.body.as_str().unwrap().to_owned()
}

async fn checkpoint(server: &TestServer, token: &str) -> Answer {
    server.call(Method::GET, "/byok/audit/checkpoint", token, None).await
}

/// Waits until a condition holds.
pub(crate) async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The size and root of the tree, from the entries' own leaves.
async fn tree(server: &TestServer) -> (u64, String) {
    let store = connect(&server.database_url);
    let tenant = store.tenant("primary").await.unwrap().unwrap().uid;
    let head = store.log_head(tenant).await.unwrap().unwrap();
    let leaves = store.leaves(tenant, head.first..head.end()).await.unwrap();
    (leaves.len() as u64, root_of(leaves.into_iter().map(|(_, leaf)| leaf)).to_string())
}

#[tokio::test]
async fn a_checkpoint_of_the_tree_verifies_with_the_printed_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let server = TestServer::with(&[(KEY_FILE, &key), ("BYOK_AUDIT_ORIGIN", "byok.example/eu")]).await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    assert!(vkey.starts_with("byok.example/eu/primary/1+"), "{vkey}");
    let first = verified(&note(&server).await, vkey).unwrap();
    assert_eq!((first.size, first.root), tree(&server).await);
    assert_eq!(first.size, 1, "the entry of this read, the first of an hour");
    let mut before = first.size;
    for n in 0..5 {
        server.encrypt("p", &format!("r-{n}")).await;
        let parsed = verified(&note(&server).await, vkey).unwrap();
        assert_eq!((parsed.size, parsed.root.clone()), tree(&server).await);
        assert!(parsed.size > before, "it covers the answered entry");
        before = parsed.size;
    }
    let query = "{ byokAuditCheckpoint { note origin size root keys } }";
    let shown = server.graphql(&server.jwt("admin", "a"), query, json!({})).await;
    let shown = &shown["data"]["byokAuditCheckpoint"];
    let parsed = verified(shown["note"].as_str().unwrap(), vkey).unwrap();
    assert_eq!(
        (shown["origin"].as_str(), shown["root"].as_str()),
        (Some(&*parsed.origin), Some(&*parsed.root))
    );
    assert_eq!((&shown["size"], &shown["keys"]), (&json!(parsed.size), &json!([vkey])));
    let keys = server.get("/byok/audit/keys").await;
    assert_eq!(keys.body, json!(format!("{vkey}\n")));
    assert!(server.doctor().await.contains("ok    audit log: it contains all that is known to be published"));
}

#[tokio::test]
async fn keys_overlap_and_an_old_checkpoint_verifies_with_the_old_key() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (made_key(folder.path(), "old.pem").await, made_key(folder.path(), "new.pem").await);
    let mut server = TestServer::with(&[(KEY_FILE, &old)]).await;
    server.encrypt("p", "r-1").await;
    let [old_vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    let before = note(&server).await;

    server.stop().await;
    server.environment.retain(|(name, _)| name != KEY_FILE);
    server.environment.push((KEY_FILE.to_owned(), new.clone()));
    server.environment.push((PREVIOUS_KEY_FILE.to_owned(), old.clone()));
    server.start_again().await;
    server.encrypt("p", "r-2").await;
    let [new_vkey, also] = &vkeys(&server).await[..] else { panic!("two keys") };
    assert_eq!(also, old_vkey);
    let overlap = note(&server).await;
    assert_eq!(verified(&overlap, old_vkey), verified(&overlap, new_vkey));
    assert!(verified(&overlap, old_vkey).is_some());

    server.stop().await;
    server.environment.retain(|(name, _)| name != PREVIOUS_KEY_FILE);
    server.start_again().await;
    server.encrypt("p", "r-3").await;
    assert_eq!(vkeys(&server).await, std::slice::from_ref(new_vkey));
    let after = note(&server).await;
    assert!(verified(&after, new_vkey).is_some() && verified(&after, old_vkey).is_none());
    assert!(verified(&before, old_vkey).is_some() && verified(&before, new_vkey).is_none());
}

#[tokio::test]
async fn who_may_read_the_audit_may_have_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let server = TestServer::with(&[(KEY_FILE, &key)]).await;
    for path in ["/byok/audit/checkpoint", "/byok/audit/keys"] {
        let stranger = answer(server.client.get(format!("{}{path}", server.base))).await;
        assert_eq!(
            (stranger.status, &stranger.body["code"]),
            (StatusCode::UNAUTHORIZED, &json!("invalid-headers"))
        );
        for role in ["user", "service"] {
            let refused = server.call(Method::GET, path, &server.jwt(role, "u"), None).await;
            let code = &refused.body["code"];
            assert_eq!(
                (refused.status, code),
                (StatusCode::FORBIDDEN, &json!("PERMISSION_DENIED")),
                "{role}"
            );
        }
        assert_eq!(server.get(path).await.status, 200);
    }
    let asked = server.graphql(&server.jwt("user", "u"), "{ byokAuditCheckpoint { note } }", json!({})).await;
    assert_eq!(asked["errors"][0]["extensions"]["code"], "PERMISSION_DENIED");
}

#[tokio::test]
async fn without_a_key_there_is_none_and_the_doctor_says_so() {
    let server = TestServer::start().await;
    server.encrypt("p", "r").await;
    let answer = checkpoint(&server, &server.jwt("admin", "a")).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::NOT_FOUND, &json!("NOT_FOUND")));
    assert!(server.doctor().await.contains("warn  audit log: no checkpoint is signed"));
    let printed = byok(&server.environment, &["audit", "key"]).await;
    assert_eq!(printed.status.code(), Some(3));
}

#[tokio::test]
async fn every_replica_signs_a_growing_log_once_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let server = TestServer::with(&[(KEY_FILE, &key)]).await;
    let replica = server.replica().await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        server.encrypt("p", "r-1").await;
        replica.encrypt("p", "r-2").await;
    }
    let database = server.database().await;
    let kept = async || -> Vec<(i64, String)> {
        let sql = "SELECT size, note FROM np_byok_checkpoints ORDER BY size";
        sqlx::query_as(sql).fetch_all(&database).await.unwrap()
    };
    let (size, root) = tree(&server).await;
    eventually(async || kept().await.last().is_some_and(|(last, _)| *last as u64 == size)).await;
    let all = kept().await;
    let most = 2 * (began.elapsed().as_secs() + 2);
    assert!((2..=most).contains(&(all.len() as u64)), "{} in {:?}", all.len(), began.elapsed());
    for (size, note) in &all {
        assert_eq!(verified(note, vkey).unwrap().size, *size as u64);
    }
    assert_eq!(verified(&all.last().unwrap().1, vkey).unwrap().root, root);
    // The first read of a user leaves an entry at each replica, and so moves the head.
    for one in [&server, &replica] {
        note(one).await;
    }
    assert_eq!(note(&server).await, note(&replica).await, "one head has one note");
    for one in [&server, &replica] {
        let metrics = one.get("/metrics").await.body;
        assert!(metrics.as_str().unwrap().contains("audit_log_behind 0"), "{metrics}");
    }
}

#[tokio::test]
async fn a_new_key_is_readable_by_its_owner_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    // In the environment of a server that already names the file to create.
    let path = folder.path().join("key.pem").display().to_string();
    let configured = [(KEY_FILE.to_owned(), path.clone())];
    printed(&configured, &["audit", "key", "--generate", &path]).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let pem = std::fs::read_to_string(&path).unwrap();
    let again = byok(&[], &["audit", "key", "--generate", &path]).await;
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), pem);
    let environment =
        [(KEY_FILE.to_owned(), path), ("BYOK_AUDIT_ORIGIN".to_owned(), "byok.example".to_owned())];
    let arguments = ["audit", "key", "--tenant", "a b/../c", "--log", "3"];
    let vkey = printed(&environment, &arguments).await;
    assert!(vkey.starts_with("byok.example/a%20b%2F..%2Fc/3+"), "{vkey}");
    assert!(!vkey.contains(pem.lines().nth(1).unwrap()), "no private key is printed");
}

#[tokio::test]
async fn keys_are_printed_without_a_database_and_while_it_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let key = (KEY_FILE.to_owned(), made_key(folder.path(), "key.pem").await);
    let without = byok(std::slice::from_ref(&key), &["audit", "key"]).await;
    let printed = String::from_utf8(without.stdout).unwrap();
    assert!(printed.starts_with("byok/primary/1+") && printed.lines().count() == 1, "{printed}");
    assert!(without.status.success() && without.stderr.is_empty());
    let nowhere = ("DATABASE_URL".to_owned(), "postgres://nobody@127.0.0.1:9/nothing".to_owned());
    let unreachable = byok(&[key, nowhere], &["audit", "key"]).await;
    assert_eq!((unreachable.status.code(), &*unreachable.stdout), (Some(0), printed.as_bytes()));
    let message = String::from_utf8(unreachable.stderr).unwrap();
    assert!(message.starts_with("only the key of log 1 is printed"), "{message}");
}
