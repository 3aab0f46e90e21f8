//! Bundles of the audit log: what an auditor receives, verified by `byok` in an empty environment
//! and by the Python in `docs/`, intact and damaged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byok::admin::LogAdmin;
use byok::audit::{Checkpoint, CheckpointKey, Committer, SignedCheckpoint, Tree, origin_of, pack};
use byok::crypto::Ed25519SigningKey;
use byok::merkle::{Frontier, Hash};
use byok::model::{Clock, Entry, Operation, SystemClock, Tenant, Timestamp};
use byok::store::{Batch, Change, Commits as _, Database, LogHead, Retention};
use byok::verify::{Claim, Export, Finding, Report, State, Trust, Wanted, verify_bundle, verify_log};
use serde_json::{Value, json};

use crate::support::sealed::{Sealed, Verdict, entry};
use crate::support::tiles::derive;
use crate::support::{needed, rows};

fn lines(bundle: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(bundle).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn written(sealed: &Sealed, lines: &[Value]) -> PathBuf {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    sealed.file(&format!("{}.jsonl", uuid::Uuid::now_v7().simple()), &text)
}

/// The line with the entry at this position.
fn entry_of(lines: &[Value], position: u64) -> usize {
    lines.iter().position(|line| line["entry"]["place"] == position).unwrap()
}

fn line_of(lines: &[Value], kind: &str) -> usize {
    lines.iter().position(|line| line.get(kind).is_some()).unwrap()
}

#[tokio::test]
async fn a_bundle_verifies_with_the_public_key_alone() {
    let sealed = Sealed::sealed().await;
    let bundle = sealed.export(&["--by", "an-operator"]).await.ok().unwrap();
    for verdict in sealed.both(&bundle, None).await {
        verdict.holds();
    }
    let [ours, _] = sealed.both(&bundle, None).await;
    for (state, claim) in [("holds", "content"), ("holds", "tree"), ("holds", "signed"), ("open ", "pinned")]
    {
        assert!(ours.text.contains(&format!("{state}  {claim} ")), "{}", ours.text);
    }
    let last = sealed.server.get("/byok/audit?first=2").await.body;
    assert_eq!(last["entries"][0]["operation"], "audit", "{last}");
    let key = sealed.public();
    let asked = ["verify-bundle", bundle.to_str().unwrap(), "--key", &key, "--json"];
    let report: Value = serde_json::from_str(&sealed.byok(&asked, &[]).await.text).unwrap();
    assert_eq!((&report["holds"], &report["findings"]), (&json!(true), &json!([])));
}

#[tokio::test]
async fn what_no_checkpoint_speaks_of_is_said_and_not_exported() {
    let sealed = Sealed::start().await;
    sealed.checkpoint_of(7).await;
    let key = sealed.public();
    let verdict =
        sealed.byok(&["export", "--key", &key], &[("DATABASE_URL", &sealed.server.database_url)]).await;
    verdict.holds();
    assert!(verdict.text.contains("no checkpoint covers places 7 to before 12 yet"), "{}", verdict.text);
    // With a retention that requires it, only exported entries may be pruned.
    let noted: Vec<(i64, i64)> = sqlx::query_as("SELECT first, past FROM np_byok_exports")
        .fetch_all(&sealed.server.database().await)
        .await
        .unwrap();
    assert_eq!(noted, [(0, 7)]);
}

#[tokio::test]
async fn every_part_of_a_log_is_proven_against_pinned_checkpoints() {
    let sealed = Sealed::start().await;
    let pinned = [sealed.checkpoint_of(1).await, sealed.checkpoint_of(6).await, sealed.checkpoint().await];
    let times: Vec<String> = lines(&sealed.export(&[]).await.ok().unwrap())
        .iter()
        .filter_map(|line| Some(Timestamp(line["entry"]["at"].as_i64()?).to_string()))
        .collect();
    for (from, to) in [(0, 3), (4, 9), (9, 11), (5, 6)] {
        for pinned in &pinned {
            let range =
                ["--from", &times[from], "--to", &times[to], "--checkpoint", pinned.to_str().unwrap()];
            let bundle = sealed.export(&range).await.unwrap_or_else(|verdict| panic!("{}", verdict.text));
            let entries = lines(&bundle).iter().filter(|line| line.get("entry").is_some()).count();
            assert_eq!(entries, to - from);
            for verdict in sealed.both(&bundle, Some(pinned)).await {
                verdict.holds();
            }
        }
    }
    for (range, count) in
        [(["--from", &times[8]], 4), (["--to", &times[8]], 8), (["--from", "2020-01-01"], 12)]
    {
        let bundle = sealed.export(&range).await.unwrap_or_else(|verdict| panic!("{}", verdict.text));
        let entries = lines(&bundle).iter().filter(|line| line.get("entry").is_some()).count();
        assert_eq!(entries, count, "{range:?}");
    }
    let never = sealed.export(&["--to", "2020-01-01"]).await.unwrap_err();
    assert!(never.text.contains("there is no entry of that time"), "{}", never.text);
}

#[tokio::test]
async fn whatever_is_done_to_a_bundle_is_found() {
    let sealed = Sealed::start().await;
    sealed.checkpoint_of(5).await;
    sealed.checkpoint().await;
    let whole = lines(&sealed.export(&[]).await.ok().unwrap());
    let find = async |name: &str, position: &str, change: &dyn Fn(&mut Vec<Value>)| {
        let mut lines = whole.clone();
        change(&mut lines);
        for verdict in sealed.both(&written(&sealed, &lines), None).await {
            verdict.finds(name, position);
        }
    };
    let at = |position: u64| entry_of(&whole, position);
    let tree = Tree::open(&sealed.store, sealed.tenant.uid).await.unwrap().unwrap();
    let leaf = tree.cover(4..5).await.unwrap()[0].to_string();
    find("changed-field", "place 3", &|lines| lines[at(3)]["entry"]["role"] = json!("admin2")).await;
    find("changed-field", "place 10", &|lines| {
        lines[at(10)]["entry"]["items"][1]["version"] = json!("99");
    })
    .await;
    find("changed-field", "place 10", &|lines| {
        lines[at(10)]["entry"]["items"].as_array_mut().unwrap().swap(0, 1);
    })
    .await;
    find("removed-entry", "place 3", &|lines| {
        lines.remove(at(3));
    })
    .await;
    find("missing-checkpoint", "no signed checkpoint", &|lines| {
        lines.remove(lines.len() - 2);
    })
    .await;
    find("malformed-bundle", "", &|lines| {
        lines.pop();
    })
    .await;
    find("removed-entry", "place 4", &|lines| {
        // The entry is skipped, as if it were outside the range.
        lines[at(4)] = json!({ "skip": { "count": 1, "roots": [leaf.clone()] } });
    })
    .await;
    find("rewritten-history", "checkpoint of ", &|lines| {
        lines[at(2)]["entry"]["at"] = json!(lines[at(2)]["entry"]["at"].as_i64().unwrap() + 1);
    })
    .await;
    find("changed-field", "place 0", &|lines| lines[0]["header"]["tenant"] = json!("0".repeat(32))).await;
    find("forged-checkpoint", "", &|lines| {
        let position = lines.len() - 2;
        let note = lines[position]["checkpoint"].as_str().unwrap().replace("\n12\n", "\n13\n");
        lines[position] = json!({ "checkpoint": note });
    })
    .await;
}

#[test]
fn the_python_verifies_the_bundles_of_the_vectors() {
    let open = " (open: at 1 place(s) no entry of the bundle says so)";
    let bundles =
        [("bundle.jsonl", 8, 5, open), ("bundle-1.jsonl", 7, 4, open), ("bundle-erased.jsonl", 13, 10, "")];
    for (name, end, entries, open) in bundles {
        let (output, verdict) = python(&vectors().join(name), Some(&vectors().join("checkpoint-5")));
        let range = format!("places 0 to before {end} of byok.example/acme/1");
        let expected = format!(
            "holds: {range}, tenant 000102030405060708090a0b0c0d0e0f, {entries} entries, 3 values erased{open}\n"
        );
        assert_eq!((output, verdict), (Some(0), expected));
    }
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/audit")
}

/// The output of the Python verifier for a bundle, under the key of the vectors as the second of
/// several.
fn python(bundle: &Path, pinned: Option<&Path>) -> (Option<i32>, String) {
    let key = std::fs::read_to_string(vectors().join("key")).unwrap();
    let other = "byok.example/acme/1+523477bf+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG5";
    let mut python = std::process::Command::new(needed("BYOK_TEST_PYTHON"));
    python.arg(vectors().join("../../../docs/verify_bundle.py")).arg(bundle).arg(format!("{other}\n{key}"));
    let output = python.args(pinned).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

type Edit<'a> = &'a dyn Fn(&mut Vec<String>);

#[test]
fn neither_verifier_accepts_a_bundle_that_omits_entries_of_its_range() {
    let text = std::fs::read_to_string(vectors().join("bundle.jsonl")).unwrap();
    let whole: Vec<&str> = text.lines().collect();
    let leaf = {
        let entry: Value = serde_json::from_str(whole[5]).unwrap();
        let digest = STANDARD.decode(entry["entry"]["digest"].as_str().unwrap()).unwrap();
        let at = entry["entry"]["at"].as_i64().unwrap();
        Hash::of_leaf(&[&at.to_be_bytes()[..], &digest].concat())
    };
    let narrow = whole[0].replace("\"from\":0", "\"from\":5");
    let skip = |count: &str| format!("{{\"skip\":{{\"count\":{count},\"roots\":[\"{leaf}\"]}}}}");
    let start = format!("{{\"start\":{{\"size\":1,\"roots\":[\"{leaf}\"]}}}}");
    let service = "\"role\":\"service\"";
    let edits: [(&str, Edit<'_>); 11] = [
        ("as it is", &|_| ()),
        ("a second start", &|lines| lines[5] = start.clone()),
        ("a skip of fewer than none", &|lines| lines[5] = skip("-1")),
        ("a start behind the range", &|lines| {
            lines[2] = whole[3].replace("pruned", "start").replace("count", "size");
            lines.remove(3);
        }),
        ("another header before what is left out", &|lines| {
            lines.splice(5..6, [narrow.clone(), skip("1"), whole[0].to_owned()]);
        }),
        ("an empty range", &|lines| lines[0] = lines[0].replace("\"to\":8", "\"to\":0")),
        ("more than there is", &|lines| lines[0] = lines[0].replace("\"to\":8", "\"to\":80")),
        ("another count of entries", &|lines| {
            *lines.last_mut().unwrap() = "{\"end\":{\"entries\":3}}".to_owned()
        }),
        ("a member that comes twice", &|lines| {
            lines[4] = lines[4].replace(service, &format!("\"role\":\"admin\",{service}"));
        }),
        ("a member that nobody knows", &|lines| {
            lines[4] = lines[4].replace(service, &format!("\"note\":\"approved\",{service}"));
        }),
        ("another log's name", &|lines| lines[0] = lines[0].replace("acme/1", "acne/1")),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.jsonl");
    let key = std::fs::read_to_string(vectors().join("key")).unwrap();
    let trust = Trust { keys: vec![CheckpointKey::parse(key.trim()).unwrap()], pinned: None };
    for (what, edit) in edits {
        let mut lines: Vec<String> = whole.iter().map(|line| (*line).to_owned()).collect();
        edit(&mut lines);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, &text).unwrap();
        let report = verify_bundle(&mut text.as_bytes(), &trust, &mut |_| ()).unwrap();
        assert_eq!(report.is_clean(), what == "as it is", "{what}: {:?}", report.findings);
        let (code, verdict) = python(&file, None);
        assert_eq!(code, Some(i32::from(what != "as it is")), "{what}: {verdict}");
    }
}

#[tokio::test]
async fn a_bundle_needs_a_key_that_signed_it() {
    let sealed = Sealed::sealed().await;
    let bundle = sealed.export(&[]).await.ok().unwrap();
    let without = sealed.byok(&["verify-bundle", bundle.to_str().unwrap()], &[]).await;
    assert_eq!(without.code, Some(2), "{}", without.text);
    let other = Sealed::start().await.public();
    let verdict = sealed.byok(&["verify-bundle", bundle.to_str().unwrap(), "--key", &other], &[]).await;
    verdict.finds("wrong-key", "size 12");
    // The Python verifier, with the same arguments.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify_bundle.py");
    let mut python = tokio::process::Command::new(needed("BYOK_TEST_PYTHON"));
    let verdict = Verdict::of(&python.arg(script).arg(&bundle).arg(&other).output().await.unwrap());
    verdict.finds("wrong-key", "size 12");
    assert!(
        verdict.text.contains(&sealed.public()["byok/primary/1+".len()..][..8]),
        "it says whose it is: {}",
        verdict.text
    );
}

#[test]
fn the_python_says_how_it_is_used() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify_bundle.py");
    for arguments in [&[][..], &["bundle"], &["bundle", "key", "checkpoint", "more"]] {
        let mut python = std::process::Command::new(needed("BYOK_TEST_PYTHON"));
        let output = python.arg(script).args(arguments).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        assert!(output.stderr.starts_with(b"usage: verify_bundle.py BUNDLE KEY [CHECKPOINT]\n"));
    }
}

#[tokio::test]
async fn a_pruned_range_holds_with_a_later_entry_and_its_hashes() {
    let sealed = Sealed::start().await;
    let prune = entry(Operation::Prune, Some("prune 1 0 5"));
    let prune = pack(sealed.tenant.uid, &prune);
    sealed.store.commit(&rows::entries(sealed.tenant.uid, 12, vec![prune])).await.unwrap();
    sealed.checkpoint().await;
    let tree = Tree::open(&sealed.store, sealed.tenant.uid).await.unwrap().unwrap();
    let whole = lines(&sealed.export(&[]).await.ok().unwrap());
    for (end, named) in [(5, true), (6, false)] {
        let roots: Vec<String> = tree.cover(0..end).await.unwrap().iter().map(ToString::to_string).collect();
        let mut lines = whole.clone();
        let from = entry_of(&lines, 0);
        lines.splice(from..from + end as usize, [json!({ "pruned": { "count": end, "roots": roots } })]);
        let position = line_of(&lines, "end");
        lines[position]["end"]["entries"] = json!(13 - end);
        for verdict in sealed.both(&written(&sealed, &lines), None).await {
            if named {
                verdict.holds();
            } else {
                verdict.finds("unmarked-prune", "place");
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_said() {
    let byok = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"));
        let output = command.arg("audit").args(arguments).env_clear().output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/audit/key");
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/audit/bundle.jsonl");
    assert_eq!(byok(&["verify-bundle", bundle, "--key", key]).await.0, Some(0));
    for (arguments, message) in [
        (vec!["verify-bundle", "not-there", "--key", key], "not-there: "),
        (vec!["verify-bundle", bundle, "--key", "no key"], "--key no key: "),
        (vec!["verify-bundle", bundle, "--key", key, "--checkpoint", bundle], "not a checkpoint"),
    ] {
        let (code, error) = byok(&arguments).await;
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(message), "{error}");
    }
    // Both keys of a key rotation, as `byok audit key` prints them.
    let folder = tempfile::tempdir().unwrap();
    let (keys, hostile) = (folder.path().join("keys"), folder.path().join("hostile"));
    let key_text = std::fs::read_to_string(key).unwrap();
    std::fs::write(&keys, key_text.repeat(2)).unwrap();
    assert_eq!(byok(&["verify-bundle", bundle, "--key", keys.to_str().unwrap()]).await.0, Some(0));
    // Control characters from a bundle must not reach a terminal.
    let text = std::fs::read_to_string(bundle).unwrap();
    std::fs::write(&hostile, text.replacen("byok.example", "\\n  holds  form\\u001b[8m\\u202e", 1)).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"));
    let arguments = ["audit", "verify-bundle", hostile.to_str().unwrap(), "--key", key];
    let output = command.args(arguments).env_clear().output().await.unwrap();
    let verdict = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        !verdict.contains(['\u{1b}', '\u{202e}']) && !verdict.contains("\n  holds  form\u{fffd}"),
        "{verdict:?}"
    );
    for what in ["verify", "export"] {
        let (code, error) = byok(&[what]).await;
        assert_eq!(code, Some(3), "{error}");
    }
}

/// A log of 512 old entries and a current one, with the tiles over them, and a signing key.
async fn old_log() -> (tempfile::TempDir, Arc<dyn Database>, Tenant, Ed25519SigningKey) {
    let (folder, store) = crate::store_sqlite::migrated().await;
    let store: Arc<dyn Database> = store;
    let uid = rows::tenant(&*store).await;
    let tenant = store.tenants().await.unwrap().into_iter().find(|tenant| tenant.uid == uid).unwrap();
    let long_ago = |n: i64| Timestamp(1_705_276_800_000_000 + n);
    let entry = |at: Timestamp| Entry { at, ..entry(Operation::Decrypt, None) };
    let entries = (0..512).map(long_ago).chain([rows::now()]).map(|at| pack(uid, &entry(at))).collect();
    store.commit(&rows::entries(uid, 0, entries)).await.unwrap();
    derive(&store).await;
    let key = Ed25519SigningKey::from_pem(&Ed25519SigningKey::generate_pem()).unwrap();
    (folder, store, tenant, key)
}

/// The findings in the database, and in a bundle of the whole log, once the log is signed.
async fn found(store: &Arc<dyn Database>, tenant: &Tenant, key: &Ed25519SigningKey) -> [Report; 2] {
    let head = store.log_head(tenant.uid).await.unwrap().unwrap();
    let (size, root) = (head.frontier.size(), head.frontier.root());
    let origin = origin_of("byok", &tenant.name, 1);
    let note = Checkpoint { origin: origin.clone(), size, root }.sign([key]);
    let trust = Trust {
        keys: vec![CheckpointKey { name: origin, key: key.verifying_key() }],
        pinned: Some(SignedCheckpoint::parse(&note).unwrap()),
    };
    let add = Change::AddCheckpoint { log: 1, size, note: note.into() };
    store.commit(&rows::changes(tenant.uid, vec![add])).await.unwrap();
    let in_database = verify_log(&**store, tenant, None, trust.clone(), &mut |_, _| ()).await.unwrap();
    let wanted = Wanted { ended: None, places: 0..u64::MAX, keys: Vec::new(), pinned: None };
    let mut bundle = Vec::new();
    let export = Export::prepare(&**store, tenant, wanted).await.unwrap();
    export.write(&mut bundle, &mut |_, _| ()).await.unwrap();
    [in_database, verify_bundle(&mut &bundle[..], &trust, &mut |_| ()).unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_log_still_verifies_and_so_does_its_bundle() {
    let (_folder, store, tenant, key) = old_log().await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
    let keeper = LogAdmin::new(store.clone(), committer, clock, None);
    assert_eq!(keeper.prune(retention()).await, Ok(512));
    for report in found(&store, &tenant, &key).await {
        assert_eq!(report.findings, []);
        let mut claims = report.claims.iter().filter(|(claim, ..)| *claim != Claim::Deks);
        assert!(claims.all(|(_, state, _)| *state == State::Holds), "{:?}", report.claims);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_log_may_be_pruned_whole_if_recorded_later() {
    let (_folder, store, tenant, _) = old_log().await;
    let leaves = store.leaves(tenant.uid, 0..512).await.unwrap();
    let mut frontier = Frontier::default();
    leaves.into_iter().for_each(|(_, leaf)| frontier.append(leaf));
    let whole = LogHead { log: 1, first: 0, frontier };
    let head = store.log_head(tenant.uid).await.unwrap().unwrap();
    let (size, root) = (head.frontier.size(), head.frontier.root());
    let restore = entry(Operation::Restore, Some(&format!("restore byok/{}/1 {size} {root}", tenant.name)));
    let open = rows::changes(tenant.uid, vec![Change::OpenLog { from: head.clone(), log: 2 }]);
    let batch = Batch { base: head.end(), entries: vec![pack(tenant.uid, &restore)], ..open };
    store.commit(&batch).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let committer = Arc::new(Committer::start(store.clone(), clock.clone()));
    assert_eq!(LogAdmin::new(store.clone(), committer, clock, None).prune(retention()).await, Ok(512));
    let verified = async |head| {
        verify_log(&*store, &tenant, Some(head), Trust::default(), &mut |_, _| ()).await.unwrap()
    };
    assert_eq!(verified(head).await.findings, []);
    // A log that ended with its last pruned entry: only its tiles are left.
    assert_eq!(verified(whole).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_pruned_without_a_word_does_not_verify() {
    let (_folder, store, tenant, key) = old_log().await;
    for part in store.prunable(retention()).await.unwrap() {
        store.prune(retention(), &part).await.unwrap();
    }
    for report in found(&store, &tenant, &key).await {
        let missing = Finding::Missing { range: 0..512, oldest: true, kept: true };
        assert_eq!(report.findings, [missing]);
        assert_eq!(report.findings[0].name(), "unmarked-prune");
    }
}

fn retention() -> Retention {
    Retention { before: SystemClock.now().minus(Duration::from_secs(365 * 86_400)), exported_only: false }
}
