//! Damage that a database superuser, whom no trigger stops, does to the audit log and to the rows
//! of DEKs. `byok audit verify` finds and locates all of it, and so do `verify-bundle` and the
//! Python verifier in a bundle exported afterwards. Some damage is found only with a checkpoint
//! that was saved elsewhere.

use std::path::Path;

use byok::audit::{Checkpoint, digest_of, pack};
use byok::crypto::Ed25519SigningKey;
use byok::merkle::{Frontier, Hash};
use byok::model::{Operation, Tenant, TenantUid};
use byok::store::{AuditReads as _, Change, Commits as _};

use crate::support::rows;
use crate::support::sealed::{Sealed, entry};

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sealed {
    /// Recomputes the head from the first entries as they are now, as somebody who knows the code
    /// would.
    async fn recompute_head(&self, size: u64) {
        let mut frontier = Frontier::default();
        let leaves = self.store.leaves(self.tenant.uid, 0..size).await.unwrap();
        leaves.into_iter().for_each(|(_, leaf)| frontier.append(leaf));
        let roots = hexadecimal(&frontier.to_bytes());
        self.damage(&format!("UPDATE np_byok_heads SET size = {size}, frontier = '\\x{roots}'")).await;
    }

    /// Changes an entry and every hash that depends on it.
    async fn rewrite(&self, position: u64) {
        self.damage(&format!("UPDATE np_byok_audit SET role = 'somebody-else' WHERE seq = {position}")).await;
        let row = self.store.entries_from(self.tenant.uid, position, 1).await.unwrap().remove(0).row;
        let digest = hexadecimal(&digest_of(self.tenant.uid, &row).unwrap());
        self.damage(&format!("UPDATE np_byok_audit SET digest = '\\x{digest}' WHERE seq = {position}")).await;
        self.recompute_head(12).await;
    }

    /// Exports everything that checkpoints cover, and asserts that both verifiers find the damage
    /// in the bundle too.
    async fn both_find(&self, name: &str, position: &str) {
        let bundle = self.export(&[]).await.unwrap_or_else(|verdict| panic!("{}", verdict.text));
        for verdict in self.both(&bundle, None).await {
            verdict.finds(name, position);
        }
    }

    async fn verify_against(&self, pinned: &Path) -> crate::support::sealed::Verdict {
        self.verify(&["--checkpoint", pinned.to_str().unwrap()]).await
    }
}

#[tokio::test]
async fn a_log_that_nobody_touched_holds() {
    let sealed = Sealed::start().await;
    let early = sealed.checkpoint_of(5).await;
    let late = sealed.checkpoint().await;
    for pinned in [&early, &late] {
        let verdict = sealed.verify_against(pinned).await;
        verdict.holds();
        for claim in ["content", "personal", "order", "tree", "signed", "pinned", "deks"] {
            assert!(verdict.text.contains(&format!("holds  {claim} ")), "{}", verdict.text);
        }
    }
    let unpinned = sealed.verify(&[]).await;
    unpinned.holds();
    assert!(unpinned.text.contains("open   pinned "), "{}", unpinned.text);
}

#[tokio::test]
async fn a_changed_field_is_found() {
    let sealed = Sealed::sealed().await;
    for (column, value) in [("role", "'admin2'"), ("operation", "'decrypt'"), ("outcome", "'REFUSED'")] {
        let sealed = Sealed::sealed().await;
        sealed.damage(&format!("UPDATE np_byok_audit SET {column} = {value} WHERE seq = 3")).await;
        sealed.verify(&[]).await.finds("changed-field", "place 3");
        sealed.both_find("changed-field", "place 3").await;
    }
    sealed.damage("UPDATE np_byok_audit SET operation = 'nothing of ours' WHERE seq = 3").await;
    sealed.verify(&[]).await.finds("changed-field", "place 3");
    sealed.both_find("changed-field", "place 3").await;
    sealed.damage("UPDATE np_byok_audit SET at = at + interval '1 hour' WHERE seq = 4").await;
    sealed.verify(&[]).await.finds("changed-time", "place 4");
}

#[tokio::test]
async fn a_changed_name_is_found() {
    let sealed = Sealed::sealed().await;
    sealed.damage("UPDATE np_byok_audit SET user_id = 'somebody-else' WHERE seq = 3").await;
    sealed.verify(&[]).await.finds("changed-field", "place 3: the user");
    sealed.both_find("changed-field", "place 3").await;
}

#[tokio::test]
async fn a_stripped_value_is_found_and_an_erased_one_is_none() {
    let sealed = Sealed::sealed().await;
    for (set, which, what) in [
        ("user_id = NULL, user_salt = NULL", "seq = 2", "place 2: the user"),
        ("request_id = NULL, request_salt = NULL", "seq = 4", "place 4: the request id"),
        ("records = jsonb_set(records, '{1}', 'null')", "seq = 10", "place 10: the record id of item 1"),
    ] {
        let sealed = Sealed::sealed().await;
        sealed.damage(&format!("UPDATE np_byok_audit SET {set} WHERE {which}")).await;
        sealed.verify(&[]).await.finds("unmarked-erasure", what);
        // In a bundle to the end of the log, no later entry can record the erasure.
        let (position, _) = what.split_once(':').unwrap();
        sealed.both_find("unmarked-erasure", position).await;
        // In a bundle of an earlier range, a later entry could record the erasure.
        let time = "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM np_byok_audit WHERE seq = 11";
        let last: String = sqlx::query_scalar(time).fetch_one(&sealed.server.database().await).await.unwrap();
        open(
            &sealed,
            &sealed.export(&["--to", &last]).await.ok().unwrap(),
            "1 of them erased; at 1 place(s)",
        )
        .await;
    }

    let url = [("DATABASE_URL", &*sealed.server.database_url)];
    let erased = sealed.byok(&["erase", "--record", "record-3"], &url).await;
    erased.holds();
    assert!(erased.text.starts_with("erased from 1 entries and 1 rows of DEKs"), "{}", erased.text);
    let verdict = sealed.verify(&[]).await;
    verdict.holds();
    assert!(verdict.text.contains("(1 of them erased)"), "{}", verdict.text);
    // The entry that says so is after what the last checkpoint covers.
    open(&sealed, &sealed.export(&[]).await.ok().unwrap(), "1 of them erased; at 1 place(s)").await;
    sealed.checkpoint().await;
    for verdict in sealed.both(&sealed.export(&[]).await.ok().unwrap(), None).await {
        verdict.holds();
        assert!(
            verdict.text.contains("(1 of them erased)") || verdict.text.contains(", 1 values erased\n"),
            "{}",
            verdict.text
        );
    }
    // An erasure of records does not account for users, or for anything that came after it.
    let strip = "UPDATE np_byok_audit SET user_id = NULL, user_salt = NULL";
    sealed.damage(&format!("{strip} WHERE seq = 5")).await;
    sealed.verify(&[]).await.finds("unmarked-erasure", "place 5: the user");
    sealed.byok(&["erase", "--user", "nobody"], &url).await.holds();
    sealed.verify(&[]).await.holds();
    sealed.server.encrypt("a secret", "record-10").await;
    let last = sealed.head().await.end() - 1;
    sealed.damage(&format!("{strip} WHERE seq = {last}")).await;
    sealed.verify(&[]).await.finds("unmarked-erasure", &format!("place {last}: the user"));
    sealed.checkpoint().await;
    let bundle = sealed.export(&[]).await.ok().unwrap();
    for verdict in sealed.both(&bundle, None).await {
        verdict.finds("unmarked-erasure", &format!("place {last}: "));
        assert_eq!(
            verdict.text.matches("unmarked-erasure: ").count(),
            1,
            "the last one alone: {}",
            verdict.text
        );
    }
}

/// Both verifiers say how many missing values of a bundle they can neither confirm nor refute.
async fn open(sealed: &Sealed, bundle: &Path, count: &str) {
    let [ours, python] = sealed.both(bundle, None).await;
    ours.holds();
    assert!(ours.text.contains("open   personal") && ours.text.contains(count), "{}", ours.text);
    python.holds();
    let report = ", 1 values erased (open: at 1 place(s) no entry of the bundle says so)";
    assert!(python.text.contains(report), "{}", python.text);
}

#[tokio::test]
async fn a_removed_entry_is_found() {
    let sealed = Sealed::sealed().await;
    sealed.damage("DELETE FROM np_byok_audit WHERE seq = 4").await;
    sealed.verify(&[]).await.finds("removed-entry", "place 4");
    let verdict = sealed.export(&[]).await.unwrap_err();
    assert!(verdict.text.contains("the entry at place 4 is missing"), "{}", verdict.text);
}

#[tokio::test]
async fn a_swapped_pair_is_found() {
    let sealed = Sealed::sealed().await;
    sealed.damage("UPDATE np_byok_audit SET seq = 8 - seq WHERE seq IN (2, 6)").await;
    sealed.verify(&[]).await.finds("swapped-pair", "places 2 and 6");
    let bundle = sealed.export(&[]).await.ok().unwrap();
    let [ours, python] = sealed.both(&bundle, None).await;
    ours.finds("swapped-pair", "places 2 and 6");
    python.finds("rewritten-history", "checkpoint of size 12");
}

#[tokio::test]
async fn only_a_pinned_checkpoint_finds_a_tail_truncated_without_traces() {
    let sealed = Sealed::start().await;
    sealed.checkpoint_of(5).await;
    let pinned = sealed.checkpoint().await;
    sealed.damage("DELETE FROM np_byok_audit WHERE seq >= 9").await;
    sealed.verify(&[]).await.finds("truncated-tail", "places 9 to 11");
    sealed.recompute_head(9).await;
    sealed.verify(&[]).await.finds("truncated-tail", "the checkpoint of size 12 covers more");
    assert!(sealed.export(&[]).await.is_err());

    sealed.damage("DELETE FROM np_byok_checkpoints WHERE size = 12").await;
    // Only the DEKs remain of the entries that were cut off; they are deleted as well.
    sealed
        .damage("DELETE FROM np_byok_wrapped_deks WHERE record_id LIKE 'batch-%' OR record_id = 'record-9'")
        .await;
    sealed.verify(&[]).await.holds();
    sealed.verify_against(&pinned).await.finds("truncated-tail", "the pinned checkpoint of size 12");
    let bundle = sealed.export(&[]).await.ok().unwrap();
    for verdict in sealed.both(&bundle, None).await {
        verdict.holds();
    }
    for verdict in sealed.both(&bundle, Some(&pinned)).await {
        verdict.finds("pinned-not-shown", "pinned size");
    }
}

#[tokio::test]
async fn a_rewritten_history_under_a_stolen_key_needs_a_pinned_checkpoint() {
    let sealed = Sealed::start().await;
    let pinned = sealed.checkpoint().await;
    sealed.rewrite(3).await;
    sealed.verify(&[]).await.finds("rewritten-history", "the checkpoint of size 12");
    sealed.both_find("rewritten-history", "checkpoint of ").await;

    sealed.damage("DELETE FROM np_byok_checkpoints").await;
    sealed.checkpoint_of(12).await;
    sealed.verify(&[]).await.holds();
    sealed.verify_against(&pinned).await.finds("rewritten-history", "the pinned checkpoint of size 12");
    let bundle = sealed.export(&[]).await.ok().unwrap();
    for verdict in sealed.both(&bundle, None).await {
        verdict.holds();
    }
    for verdict in sealed.both(&bundle, Some(&pinned)).await {
        verdict.finds("rewritten-history", "pinned checkpoint");
    }
}

#[tokio::test]
async fn a_forged_or_missing_checkpoint_is_found() {
    let sealed = Sealed::start().await;
    let pinned = sealed.checkpoint().await;
    sealed.rewrite(3).await;
    let head = sealed.head().await;
    let (origin, size, root) = (sealed.origin(), head.frontier.size(), head.frontier.root());
    let kept = std::fs::read_to_string(&pinned).unwrap();
    let forged = kept.replace(kept.lines().nth(2).unwrap(), &root.to_string());
    sealed.damage(&format!("UPDATE np_byok_checkpoints SET note = '{forged}'")).await;
    sealed.verify(&[]).await.finds("forged-checkpoint", "size 12");
    sealed.both_find("forged-checkpoint", "size 12").await;
    // If another key signed it, the finding is that the keys differ; nobody can tell which of them
    // is wrong.
    let other = sealed.sign(&Ed25519SigningKey::generate_pem(), Checkpoint { origin, size, root });
    sealed.damage(&format!("UPDATE np_byok_checkpoints SET note = '{other}'")).await;
    sealed.verify(&[]).await.finds("wrong-key", "size 12");
    sealed.both_find("wrong-key", "size 12").await;

    sealed.damage("DELETE FROM np_byok_checkpoints").await;
    sealed.verify(&[]).await.finds("missing-checkpoint", "no signed checkpoint");
    sealed.verify_against(&pinned).await.finds("missing-checkpoint", "size 12 is no longer kept");
    let verdict = sealed.export(&[]).await.unwrap_err();
    assert!(verdict.text.contains("no checkpoint of this log is kept"), "{}", verdict.text);
}

#[tokio::test]
async fn another_tenants_entry_is_found() {
    let sealed = Sealed::sealed().await;
    let other = Tenant { uid: TenantUid([9; 16]), name: "other".to_owned() };
    let create = rows::changes(other.uid, vec![Change::CreateTenant(other.clone())]);
    sealed.store.commit(&create).await.unwrap();
    let entry = entry(Operation::Decrypt, None);
    sealed.store.commit(&rows::entries(other.uid, 0, vec![pack(other.uid, &entry)])).await.unwrap();
    let (ours, theirs) = (hexadecimal(&sealed.tenant.uid.0), hexadecimal(&other.uid.0));
    sealed.damage(&format!("DELETE FROM np_byok_audit WHERE seq = 3 AND tenant = '\\x{ours}'")).await;
    let moved = format!("SET tenant = '\\x{ours}', seq = 3 WHERE tenant = '\\x{theirs}'");
    sealed.damage(&format!("UPDATE np_byok_audit {moved}")).await;
    sealed.verify(&[]).await.finds("wrong-tenant", "place 3");
    sealed.both_find("wrong-tenant", "place 3").await;
}

#[tokio::test]
async fn a_pruned_range_that_is_not_marked_is_found() {
    let sealed = Sealed::sealed().await;
    sealed.damage("DELETE FROM np_byok_audit WHERE seq < 4").await;
    sealed.verify(&[]).await.finds("unmarked-prune", "places 0 to 3");
    // An entry alone is not enough: the hashes must be present as well.
    let prune = pack(sealed.tenant.uid, &entry(Operation::Prune, Some("prune 1 0 4")));
    sealed.store.commit(&rows::entries(sealed.tenant.uid, 12, vec![prune])).await.unwrap();
    sealed.verify(&[]).await.finds("unmarked-prune", "places 0 to 3");
}

#[tokio::test]
async fn an_item_changed_inside_a_batch_is_found() {
    let sealed = Sealed::sealed().await;
    sealed
        .damage(
            "UPDATE np_byok_audit SET records = jsonb_set(records, '{1,0}', '\"another\"') WHERE seq = 10",
        )
        .await;
    sealed.verify(&[]).await.finds("changed-field", "place 10: the record id of item 1");
    sealed.both_find("changed-field", "place 10").await;
    // The last byte of the last record's HMAC, which the hash of the wrapped DEK follows.
    let last = "octet_length(items) - 33";
    let flip = format!("items = set_byte(items, {last}, get_byte(items, {last}) # 1)");
    sealed.damage(&format!("UPDATE np_byok_audit SET {flip} WHERE seq = 10")).await;
    let verdict = sealed.verify(&[]).await;
    verdict.finds("changed-field", "place 10: the entry, or one of its items");
    verdict.finds("changed-field", "place 10: the record id of item 2");
    sealed.both_find("changed-field", "place 10").await;
}

#[tokio::test]
async fn an_entry_beside_the_log_is_found() {
    let sealed = Sealed::sealed().await;
    let copy = |position: u64| {
        format!(
            "CREATE TEMP TABLE one AS SELECT * FROM np_byok_audit WHERE seq = 5;
             UPDATE one SET seq = {position}, at = at + interval '1 second'; INSERT INTO np_byok_audit SELECT * FROM one"
        )
    };
    sealed.damage(&copy(12)).await;
    sealed.verify(&[]).await.finds("beyond-head", "place 12");
    sealed.damage(&copy(5)).await;
    sealed.verify(&[]).await.finds("doubled-entry", "place 5");
}

#[tokio::test]
async fn a_key_version_edited_by_hand_is_found_a_rotation_not() {
    let sealed = Sealed::start().await;
    let old: String = sqlx::query_scalar("SELECT key_version FROM np_byok_wrapped_deks LIMIT 1")
        .fetch_one(&sealed.server.database().await)
        .await
        .unwrap();
    sealed.server.key.rotate().await;
    let job = sealed.server.post("/byok/rotate", serde_json::json!({})).await.body;
    let id = job["id"].as_str().unwrap_or_else(|| panic!("{job}"));
    while sealed.server.get(&format!("/byok/rotate/{id}")).await.body["state"] != "DONE" {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    sealed.checkpoint().await;
    sealed.verify(&[]).await.holds();
    let one = "record_id = 'record-3'";
    sealed.damage(&format!("UPDATE np_byok_wrapped_deks SET key_version = '{old}' WHERE {one}")).await;
    sealed.verify(&[]).await.finds("dek-key-version", "expected");
    sealed.damage(&format!("DELETE FROM np_byok_wrapped_deks WHERE {one}")).await;
    sealed.verify(&[]).await.finds("dek-removed", "DEK ");
}

#[tokio::test]
async fn a_head_that_no_server_writes_is_found() {
    let sealed = Sealed::sealed().await;
    sealed.damage("UPDATE np_byok_heads SET frontier = ''").await;
    sealed.verify(&[]).await.finds("changed-head", "head");
    let root = hexadecimal(&Hash::of_leaf(b"x").0);
    sealed.damage(&format!("UPDATE np_byok_heads SET frontier = '\\x{root}{root}'")).await;
    sealed.verify(&[]).await.finds("rewritten-history", "the log's head of size 12");
}
