//! Which calls leave entries in the audit log, and how many: a caller without rights cannot fill
//! the log, a state that is polled leaves one entry an hour, and one log can have entries of both
//! forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byok::audit::{Checkpoint, CheckpointKey, SignedCheckpoint, origin_of, pack, unpack};
use byok::crypto::Ed25519SigningKey;
use byok::model::{Entry, EntryId, ErrorCode, Extensions, Item, Operation, Outcome, Salted};
use byok::store::{Change, Commits as _, EntryFilter, EntryRow, EntrySearch as _, Sqlite, TenantReads as _};
use byok::verify::{Claim, Export, State, Trust, Wanted, verify_bundle, verify_log};
use reqwest::Method;
use serde_json::{Value, json};

use crate::guarded::{Deployment, until};
use crate::support::rows;
use crate::support::sealed::entry;
use crate::support::server::TestServer;

#[tokio::test]
async fn a_call_whose_items_are_all_refused_leaves_a_small_entry() {
    let server = TestServer::start().await;
    // A role with no grants, and an invalid token with the longest accepted record id.
    let nobody = server.jwt("nobody", "n");
    let mallory = server.jwt("service", "m");
    let items: Vec<Value> = (0..2_000)
        .map(|n| json!({ "ciphertext": "byok:v1:junk", "record_id": format!("{n:0>500}") }))
        .collect();
    let body = json!({ "items": items });
    for token in [&nobody, &mallory] {
        server.call(Method::POST, "/byok/decrypt/many", token, Some(body.clone())).await;
    }
    let page = server.get("/byok/audit?operation=decrypt&user=m").await.body;
    let entry = &page["entries"][0];
    assert_eq!(entry["items"].as_array().map(Vec::len), Some(8), "{entry}");
    assert_eq!(
        (&entry["item_count"], &entry["unlisted_refusals"]["TOKEN_MALFORMED"]),
        (&json!(2_000), &json!(1_992))
    );
    let of_graphql = "{ byokAudit(first: 1, filter: { user: \"m\" }) { edges { node { itemCount voids
        unlistedRefusals { code count } items { recordId } } } } }";
    let answer = server.graphql(&server.jwt("admin", "a"), of_graphql, json!(null)).await;
    let node = &answer["data"]["byokAudit"]["edges"][0]["node"];
    assert_eq!(node["itemCount"], 2_000, "{answer}");
    assert_eq!(node["unlistedRefusals"], json!([{ "code": "TOKEN_MALFORMED", "count": 1_992 }]));
    let largest: i64 = sqlx::query_scalar(
        "SELECT max(octet_length(records::text) + octet_length(items))::int8 FROM np_byok_audit",
    )
    .fetch_one(&server.database().await)
    .await
    .unwrap();
    assert!(largest < 16_384, "{largest} bytes");
}

#[tokio::test]
async fn a_state_that_is_polled_leaves_one_entry_for_each_person() {
    let server = TestServer::start().await;
    server.encrypt("value", "r-1").await;
    let started = server.post("/byok/rotate", json!({})).await;
    let path = format!("/byok/rotate/{}", started.body["id"].as_str().unwrap());
    let [ada, bob] = ["ada", "bob"].map(|user| server.jwt("admin", user));
    for token in [&ada, &ada, &bob, &ada] {
        assert_eq!(server.call(Method::GET, &path, token, None).await.status, 200);
    }
    for user in ["ada", "bob"] {
        let page = server.get(&format!("/byok/audit?operation=rotate&user={user}")).await.body;
        let entries = page["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 1, "{page}");
        assert_eq!((&entries[0]["detail"], &entries[0]["outcome"]), (&json!("read state"), &json!("OK")));
    }
}

#[tokio::test]
async fn a_state_read_after_the_database_was_restored_leaves_another_entry() {
    let deployment = Deployment::new().await;
    let one = deployment.replica().await;
    let caller = one.caller();
    assert!(one.app.rotate(&caller, false).await.is_ok());
    let backup = deployment.folder.path().join("backup.db");
    let original = format!("sqlite://{}/byok.db", deployment.folder.path().display());
    let original = sqlx::SqlitePool::connect(&original).await.unwrap();
    let into = sqlx::AssertSqlSafe(format!("VACUUM INTO '{}'", backup.display()));
    sqlx::raw_sql(into).execute(&original).await.unwrap();
    let read = async || one.app.rotation(&caller, None).await.is_ok();
    assert!(read().await && read().await);
    assert_eq!(one.outcomes(9).await, ["Rotate Ok", "Rotate Ok"], "the start, and one for both reads");
    *deployment.database.lock().unwrap() = Arc::new(Sqlite::open(&backup).await.unwrap());
    assert!(one.encrypt("r").await.is_err(), "it is found out");
    until("it is read", read).await;
    assert_eq!(one.outcomes(9).await, ["Rotate Ok", "Rotate Ok"], "the start, and one for the reads since");
}

/// An entry as the first release wrote it: one item succeeded, one refused.
fn of_the_first_form() -> EntryRow {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let salted = |value: &str, salt: u8, hmac: &str| Salted {
        value: Some(value.to_owned()),
        salt: Some([salt; 16]),
        hmac: hex(hmac).try_into().unwrap(),
    };
    EntryRow {
        id: EntryId(uuid::Uuid::from_bytes([1; 16])),
        operation: Operation::Decrypt,
        outcome: Outcome::Partial,
        role: "user".into(),
        user: Some(salted("u-1", 7, "3a8a8a4cfab47524288ee9e27e5f0b1a484019d0468e82cea05d549e2e437ffa")),
        request: salted("r-1", 8, "765e2710136abf62533106f6373ac62b5e7f85e13259ab1db9f7cb7e98ee1e2b"),
        item_count: 2,
        records: format!("[[\"record-1\",\"{}\"],null]", STANDARD.encode([9; 16])),
        items: hex(
            "010001000462796f6b000133000100057265712d310001000e444543525950545f4641494c454407000100010000\
             010101010101010101010101010101012c5536df8353826d3ebfde20927b48911482176800765e9418ecef98e7b0fc7e\
             00000000000001",
        ),
        ..rows::entry()
    }
}

/// A refusal of the second form that voids that entry, with every field of the form set.
fn of_the_second_form() -> Entry {
    let mut extensions = Extensions::default();
    extensions.set_voids(of_the_first_form().id);
    extensions.set_unlisted_refusals(&BTreeMap::from([("DECRYPT_FAILED", 3)]));
    let item = Item {
        record_id: Some("record-2".into()),
        wrapped_hash: Some([4; 32]),
        key_id: Some([5; 16]),
        wrapping_key_id: Some([6; 16]),
        form: Some("mask".into()),
        ..Item::default()
    };
    Entry {
        at: rows::now(),
        outcome: Outcome::Refused(ErrorCode::KmsUnavailable),
        request_id: Some("r-1".to_owned()),
        reason: Some("support-case".into()),
        ledger_hash: Some([7; 32]),
        issuer: Some("https://id.example".into()),
        extensions,
        items: vec![item],
        ..entry(Operation::Decrypt, None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_both_entry_forms_verifies_in_database_and_bundle() {
    let (_folder, store) = crate::store_sqlite::migrated().await;
    let uid = byok::model::TenantUid([7; 16]);
    let tenant = byok::model::Tenant { uid, name: "both-forms".to_owned() };
    store.commit(&rows::changes(uid, vec![Change::CreateTenant(tenant.clone())])).await.unwrap();
    let mut first = of_the_first_form();
    // The digest that the first release computed for this tenant.
    let digest = "b75c000127f5e2b4bb849196d18ad259ebfddd5b44294dd3e62e282b44b4c00d";
    first.digest = std::array::from_fn(|at| u8::from_str_radix(&digest[2 * at..2 * at + 2], 16).unwrap());
    let second = of_the_second_form();
    let rows = vec![first, pack(uid, &second)];
    store.commit(&rows::entries(uid, 0, rows)).await.unwrap();

    let read = store.entries(uid, &EntryFilter::default(), None, 10).await.unwrap().entries;
    let read: Vec<Entry> = read.iter().map(|placed| unpack(&placed.row).unwrap()).collect();
    assert_eq!((read[0].reason.as_deref(), &read[0].items), (Some("support-case"), &second.items));
    assert_eq!(read[1].items[0].record_id.as_deref(), Some("record-1"));

    let key = Ed25519SigningKey::from_pem(&Ed25519SigningKey::generate_pem()).unwrap();
    let head = store.log_head(uid).await.unwrap().unwrap();
    let origin = origin_of("byok", &tenant.name, 1);
    let (size, root) = (head.frontier.size(), head.frontier.root());
    let note = Checkpoint { origin: origin.clone(), size, root }.sign([&key]);
    let trust = Trust {
        keys: vec![CheckpointKey { name: origin, key: key.verifying_key() }],
        pinned: Some(SignedCheckpoint::parse(&note).unwrap()),
    };
    let add = Change::AddCheckpoint { log: 1, size, note: note.into() };
    store.commit(&rows::changes(uid, vec![add])).await.unwrap();
    let in_database = verify_log(&*store, &tenant, None, trust.clone(), &mut |_, _| ()).await.unwrap();
    let wanted = Wanted { ended: None, places: 0..u64::MAX, keys: Vec::new(), pinned: None };
    let mut bundle = Vec::new();
    let export = Export::prepare(&*store, &tenant, wanted).await.unwrap();
    export.write(&mut bundle, &mut |_, _| ()).await.unwrap();
    let in_bundle = verify_bundle(&mut &bundle[..], &trust, &mut |_| ()).unwrap();
    for report in [in_database, in_bundle] {
        assert_eq!(report.findings, []);
        let mut claims = report.claims.iter().filter(|(claim, ..)| *claim != Claim::Deks);
        assert!(claims.all(|(_, state, _)| *state == State::Holds), "{:?}", report.claims);
    }
}
