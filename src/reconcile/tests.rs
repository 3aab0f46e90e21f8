//! Tests each format with records written after its provider's documentation, and the comparison of
//! both logs.

use std::time::Duration;

use crate::audit::pack;
use crate::model::{
    DekId, Entry, EntryId, ErrorCode, Extensions, Item, KeyVersion, Means, Operation, Outcome, Source,
    TenantUid, Timestamp,
};
use crate::store::PlacedEntry;

use super::*;

const CLOUDTRAIL: &str = include_str!("../../tests/vectors/reconcile/cloudtrail.json");
const VAULT: &str = include_str!("../../tests/vectors/reconcile/vault.jsonl");
const GOOGLE: &str = include_str!("../../tests/vectors/reconcile/google.json");
const KEY_VAULT: &str = include_str!("../../tests/vectors/reconcile/key_vault.json");
const AWS_KEY: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

fn export(text: &str, key: &str) -> Export {
    Export::read(text.as_bytes(), vec![key.into()], Between::default()).unwrap()
}

/// Returns the ids of the calls, each with its use and whether it was refused, in the order of the
/// ids.
fn calls(export: &Export) -> Vec<(&str, Use, bool)> {
    let mut calls: Vec<_> = export.calls.iter().map(|(id, call)| (&**id, call.used, call.refused)).collect();
    calls.sort();
    calls
}

fn at(second: i64) -> Timestamp {
    Timestamp::parse("2026-11-23T10:00:00Z").unwrap().plus(Duration::from_secs(second.unsigned_abs()))
}

fn item(key: &str, source: Source, id: Option<&str>) -> Item {
    Item {
        dek_id: Some(DekId::new()),
        key_version: Some(KeyVersion::new(key, "1")),
        source: Some(source),
        kms_request_id: id.map(Into::into),
        ..Item::default()
    }
}

fn entry(seq: u64, second: i64, items: Vec<Item>) -> PlacedEntry {
    let entry = Entry {
        id: EntryId::new(),
        // Half a second later, so between the records of two seconds.
        at: at(second).plus(Duration::from_millis(500)),
        operation: Operation::Decrypt,
        outcome: Outcome::Ok,
        role: "user".into(),
        user: None,
        means: Means::Jwt,
        request_id: None,
        detail: None,
        reason: None,
        ledger_hash: None,
        issuer: None,
        extensions: Extensions::default(),
        items,
    };
    PlacedEntry { seq, row: pack(TenantUid([7; 16]), &entry) }
}

fn terms() -> Terms {
    Terms { from: None, until: None, margin: Duration::ZERO, own: Vec::new() }
}

fn reconciled(export: Export, terms: Terms, entries: &[PlacedEntry]) -> Report {
    let mut reconciliation = Reconciliation::new(export, terms);
    entries.iter().for_each(|entry| reconciliation.take(entry));
    reconciliation.report()
}

fn named(report: &Report) -> Vec<(&str, Why)> {
    report.named.iter().map(|named| (&*named.kms_request_id, named.why)).collect()
}

#[test]
fn cloudtrail_is_read() {
    let export = export(CLOUDTRAIL, AWS_KEY);
    assert_eq!((export.format, export.records, export.unreadable), (Format::CloudTrail, 6, 0));
    assert_eq!(export.covers(), (at(1), at(6)));
    let expected = [
        ("aws-made", Use::Wrap, false),
        ("aws-mallory", Use::Unwrap, true),
        ("aws-probe", Use::Unwrap, false),
        ("aws-rewrap", Use::Rewrap, false),
    ];
    assert_eq!(calls(&export), expected);
    let of = |id: &str| &export.calls[id];
    assert_eq!(&*of("aws-made").principal, "arn:aws:iam::111122223333:role/byok");
    assert!(of("aws-probe").probe && !of("aws-made").probe && !of("aws-rewrap").probe);
}

#[test]
fn cloudtrail_is_read_as_its_look_up_prints_it() {
    let records: serde_json::Value = serde_json::from_str(CLOUDTRAIL).unwrap();
    let record = records["Records"][0].to_string();
    let events = serde_json::json!({ "Events": [{ "EventId": "e", "CloudTrailEvent": record }] });
    assert_eq!(calls(&export(&format!("{events:#}"), AWS_KEY)), [("aws-made", Use::Wrap, false)]);
}

#[test]
fn vaults_audit_device_is_read() {
    let export = export(VAULT, "fields");
    assert_eq!((export.format, export.records, export.unreadable), (Format::Vault, 22, 0));
    let expected = [
        ("vault-canary", Use::Wrap, false),
        ("vault-datakey", Use::Wrap, false),
        ("vault-denied", Use::Unwrap, true),
        ("vault-export", Use::Export, false),
        ("vault-made", Use::Wrap, false),
        ("vault-many", Use::Unwrap, false),
        ("vault-probe", Use::Unwrap, false),
        ("vault-rewrap", Use::Rewrap, false),
        ("vault-root", Use::Unwrap, false),
    ];
    assert_eq!(calls(&export), expected);
    let of = |id: &str| &export.calls[id];
    assert_eq!(of("vault-made").made, of("vault-many").given);
    assert_eq!(&*of("vault-many").principal, "approle (entity 11111111-0000-0000-0000-000000000000)");
    assert_eq!(&*of("vault-denied").principal, "nobody known");
}

#[test]
fn googles_log_is_read() {
    let export = export(GOOGLE, "fields");
    assert_eq!((export.format, export.records), (Format::Google, 4));
    let expected = [
        ("google-mallory", Use::Unwrap, true),
        ("google-ours", Use::Unwrap, false),
        ("google-wrap", Use::Wrap, false),
    ];
    assert_eq!(calls(&export), expected);
}

#[test]
fn azures_log_is_read() {
    let read = export(KEY_VAULT, "fields");
    assert_eq!((read.format, read.records), (Format::KeyVault, 5));
    let expected = [
        ("azure-made", Use::Wrap, false),
        ("azure-mallory", Use::Unwrap, true),
        ("azure-probe", Use::Unwrap, false),
    ];
    assert_eq!(calls(&read), expected);
    assert_eq!(&*read.calls["azure-mallory"].principal, "mallory@contoso.com");
    let wrapped = format!("{{\"records\":[{}]}}", KEY_VAULT.trim_end().replace('\n', ",\n"));
    assert_eq!(calls(&export(&wrapped, "fields")), expected);
}

#[test]
fn what_is_no_export_is_refused_and_unreadable_lines_are_counted() {
    let read = |text: &str| Export::read(text.as_bytes(), vec!["fields".into()], Between::default());
    for text in ["", "\n", "{}", "[]", "{\"type\":\"request\"}", "\u{0}\u{1}", "{\"Records\":[]}"] {
        assert!(matches!(read(text), Err(UnusableExport::NoRecords)), "{text:?}");
    }
    let torn = format!("no log\n{VAULT}{{\"type\":\n{{}}\n{{\"eventSource\":\"kms.amazonaws.com\"}}");
    let export = read(&torn).unwrap();
    assert_eq!((export.records, export.unreadable), (22, 4));
    assert_eq!(export.unreadable_lines, [1, 24, 25, 26]);
}

#[test]
fn no_missing_or_mistyped_field_makes_it_panic() {
    for text in [CLOUDTRAIL, VAULT, GOOGLE, KEY_VAULT] {
        for (old, new) in
            [("\":\"", "\":[\""), ("\": \"", "\": -1, \"x\": \""), ("Z\"", "\""), ("{", "{\"a\":{},")]
        {
            let _ =
                Export::read(text.replace(old, new).as_bytes(), vec!["fields".into()], Between::default());
        }
        for end in (0..text.len()).step_by(7) {
            let _ = Export::read(&text.as_bytes()[..end], vec!["fields".into()], Between::default());
        }
    }
}

#[test]
fn what_others_wrote_is_shortened_and_moves_no_cursor() {
    let text = VAULT.replace("vault-root", &"i".repeat(1_000)).replace("\"root\"", "\"\\u001b[2Jroot\"");
    let report = reconciled(export(&text, "fields"), terms(), &[]);
    let named = report.named.iter().find(|named| named.kms_request_id.starts_with("iii")).unwrap();
    assert_eq!(named.kms_request_id.len(), 128);
    assert!(named.principal.starts_with("\u{fffd}[2Jroot"), "{}", named.principal);
}

#[test]
fn an_aws_probe_is_known_by_context_others_need_entries() {
    let made = entry(0, 1, vec![item(AWS_KEY, Source::Kms, Some("aws-made"))]);
    let report = reconciled(export(CLOUDTRAIL, AWS_KEY), terms(), &[made]);
    assert_eq!((report.calls, report.matched, report.probes), (4, 1, 1));
    assert_eq!(named(&report), [("aws-mallory", Why::Stranger), ("aws-rewrap", Why::NoEntry)]);
    assert!(!report.explained());
}

#[test]
fn an_aws_probe_of_a_records_dek_needs_an_incident() {
    let call = |id: &str, second: u8, dek: &str| {
        format!(
            r#"{{"eventSource":"kms.amazonaws.com","eventName":"Decrypt","eventTime":"2026-11-23T10:00:0{second}Z","requestID":"{id}","userIdentity":{{"arn":"ours"}},"requestParameters":{{"keyId":"{AWS_KEY}","encryptionContext":{{"byok:tenant":"t","byok:dek":"{dek}"}}}}}}"#
        ) + "\n"
    };
    let text = call("probe-1", 1, "d") + &call("probe-2", 2, "d") + &call("stolen", 3, "e");
    let report = reconciled(export(&text, AWS_KEY), terms(), &[incident(0, 2, AWS_KEY, "probe-2")]);
    assert_eq!((named(&report), report.matched), (vec![("stolen", Why::NoEntry)], 1));
}

#[test]
fn a_vault_call_is_a_probe_where_it_opens_a_canary() {
    let ours = |id: &str| item("fields", Source::Kms, Some(id));
    let mut entries = vec![
        entry(0, 1, vec![ours("vault-made"), ours("vault-made")]),
        entry(1, 4, vec![ours("vault-many"), item("fields", Source::Cache, Some("vault-made"))]),
        entry(2, 5, vec![ours("vault-rewrap")]),
    ];
    let report = reconciled(export(VAULT, "fields"), terms(), &entries);
    assert_eq!((report.matched, report.cache_hits, report.from_kms, report.missing), (3, 1, 4, 0));
    assert_eq!(report.without_entry.get(&Use::Unwrap), Some(&1));
    assert_eq!(report.without_entry.get(&Use::Wrap), Some(&1));
    let strangers = ["vault-root", "vault-export", "vault-denied", "vault-datakey"];
    assert_eq!(named(&report), strangers.map(|id| (id, Why::Stranger)));

    // A missing entry leaves an unwrap of what other entries made.
    entries.remove(1);
    let report = reconciled(export(VAULT, "fields"), terms(), &entries);
    assert_eq!(named(&report)[0], ("vault-many", Why::RecordWithoutEntry));

    // A value that nobody made and that is not probed repeatedly is no canary. One that is may be a
    // canary.
    let probe = VAULT.lines().find(|line| line.contains("vault-probe")).unwrap();
    for (times, apart, is_probed) in [(1, 20, false), (2, 4, false), (2, 5, true), (3, 5, true)] {
        let more = (1..=times).map(|n| {
            let later = format!("10:00:{:02}.1Z", 3 + n * apart);
            let probe =
                probe.replace("vault-probe", &format!("vault-probe-{n}")).replace("10:00:03.1Z", &later);
            probe + "\n"
        });
        let made = VAULT.lines().find(|line| line.contains("vault-many")).unwrap();
        let text = [made, "\n", probe, "\n", &more.collect::<String>()].concat();
        let export = export(&text, "fields");
        let report = reconciled(export, terms(), &[entry(0, 4, vec![ours("vault-many")])]);
        assert_eq!(named(&report).len(), if is_probed { 0 } else { times + 1 }, "{times}, {apart} s apart");
    }
}

/// Returns the record of a decrypt of `values` by `auth` with `token`, and of its answer if there
/// was one.
fn decrypted(
    id: &str,
    second: u8,
    auth: &str,
    token: &str,
    values: &[&str],
    results: Option<&str>,
) -> String {
    let input: Vec<String> =
        values.iter().map(|value| format!(r#"{{"ciphertext":"hmac-sha256:{value}"}}"#)).collect();
    let line = |kind: &str, rest: &str| {
        format!(
            r#"{{"time":"2026-11-23T10:00:0{second}Z","type":"{kind}","auth":{{{auth}}},"request":{{"id":"{id}","client_token":"hmac-sha256:{token}","mount_point":"transit/","path":"transit/decrypt/fields","data":{{"batch_input":[{}]}}}}{rest}}}"#,
            input.join(",")
        ) + "\n"
    };
    match results {
        Some(results) => {
            let answered = format!(r#","response":{{"data":{results}}}"#);
            line("request", "") + &line("response", &answered)
        }
        None => line("request", r#","error":"permission denied""#),
    }
}

const OURS: &str = r#""accessor":"hmac-sha256:aaaa","display_name":"token","token_type":"service""#;
/// A record as Vault 1.21.0 writes it: an absent error and an absent reference appear as the HMAC
/// of the empty text.
const OPENED: &str = r#"{"batch_results":[{"plaintext":"hmac-sha256:99","error":"hmac-sha256:00","reference":"hmac-sha256:00"}]}"#;
/// A record as Vault 1.21.0 writes it.
const FAILED: &str =
    r#"{"http_content_type":"hmac-sha256:0a","http_raw_body":"hmac-sha256:5e","http_status_code":400}"#;

fn incident(seq: u64, second: i64, key: &str, id: &str) -> PlacedEntry {
    let item = Item { refused: Some(ErrorCode::KmsAccessDenied), ..item(key, Source::Kms, Some(id)) };
    let mut placed = entry(seq, second, vec![item]);
    placed.row.operation = Operation::Incident;
    placed
}

#[test]
fn a_probe_that_an_incident_names_leaves_its_canarys_others_explained() {
    let probes: String =
        (0..3).map(|n| decrypted(&format!("probe-{n}"), n, OURS, "1", &["c"], Some(OPENED))).collect();
    let refused: String =
        (3..5).map(|n| decrypted(&format!("probe-{n}"), n, OURS, "1", &["c"], Some(FAILED))).collect();
    let text = probes + &refused + &decrypted("probe-5", 5, OURS, "1", &["c"], Some(OPENED));
    let entries = [incident(0, 3, "fields", "probe-3"), incident(1, 5, "fields", "probe-5")];
    let report = reconciled(export(&text, "fields"), terms(), &entries);
    assert_eq!((named(&report), report.matched, report.refused), (vec![], 2, 1));
    assert_eq!(report.without_entry.get(&Use::Unwrap), Some(&3));

    // A record's DEK is still named, even together with a canary.
    let text = text
        + &decrypted("made", 6, OURS, "1", &["record"], Some(OPENED))
        + &decrypted("stolen", 7, OURS, "1", &["c", "record"], Some(OPENED))
        // An item that fails does not hide the others.
        + &decrypted("stolen-too", 8, OURS, "1", &["nonsense", "record"], Some(FAILED));
    let ours = item("fields", Source::Kms, Some("made"));
    let entries =
        [incident(0, 3, "fields", "probe-3"), incident(1, 5, "fields", "probe-5"), entry(2, 6, vec![ours])];
    let report = reconciled(export(&text, "fields"), terms(), &entries);
    assert_eq!(named(&report), ["stolen", "stolen-too"].map(|id| (id, Why::RecordWithoutEntry)));
}

#[test]
fn calls_with_a_token_that_has_ended_are_whose_it_was() {
    let text = decrypted("ours", 1, OURS, "1", &["record"], Some(OPENED))
        + &decrypted("revoked", 2, "", "1", &["c"], None)
        + &decrypted("guessed", 3, "", "2", &["c"], None);
    let ours = entry(0, 1, vec![item("fields", Source::Kms, Some("ours"))]);
    let report = reconciled(export(&text, "fields"), terms(), &[ours]);
    assert_eq!((named(&report), report.refused), (vec![("guessed", Why::Stranger)], 1));
    assert_eq!(&*report.named[0].principal, "nobody known (token 2)");
    // Somebody who knows the owner of the token can say so.
    let own = vec!["token (token accessor aaaa)".to_owned(), "nobody known (token 2)".to_owned()];
    let report = reconciled(export(&text, "fields"), Terms { own, ..terms() }, &[]);
    assert_eq!((report.refused, named(&report)), (2, vec![("ours", Why::NoCanary)]));
    // The owner of the token is also learned from records before the window.
    let between = Between(Some(at(2)), None);
    let read = Export::read(text.as_bytes(), vec!["fields".into()], between).unwrap();
    assert_eq!(&*read.calls["revoked"].principal, "token (token accessor aaaa)");
    // With `log_raw` the records hold the token itself, which must not be shown anywhere.
    let raw = text.replace("hmac-sha256:2", "hvs.secret");
    let report = reconciled(export(&raw, "fields"), terms(), &[]);
    assert!(report.named.iter().all(|named| !named.principal.contains("secret")));
}

#[test]
fn every_export_of_the_key_itself_is_reported() {
    let own = Terms { own: vec!["root (token accessor cccccccccccccccccccccccc)".to_owned()], ..terms() };
    let report = reconciled(export(VAULT, "fields"), own, &[]);
    assert!(named(&report).contains(&("vault-export", Why::Exported)));
}

#[test]
fn google_is_told_by_who_called_alone() {
    let entries = [entry(0, 1, vec![item("fields", Source::Kms, None)])];
    let report = reconciled(export(GOOGLE, "fields"), terms(), &entries);
    assert_eq!((report.unexplained, report.without_id, report.missing), (3, 1, 0));
    let own = Terms { own: vec!["byok@project.iam.gserviceaccount.com".to_owned()], ..terms() };
    let report = reconciled(export(GOOGLE, "fields"), own, &entries);
    assert_eq!(named(&report), [("google-mallory", Why::Stranger)]);
    assert_eq!(report.json()["joined_by_request_id"], false);
}

#[test]
fn azure_is_joined_and_its_probes_are_told_by_who_called() {
    let made = entry(0, 1, vec![item("fields", Source::Kms, Some("azure-made"))]);
    let report = reconciled(export(KEY_VAULT, "fields"), terms(), &[made]);
    assert_eq!((report.matched, report.without_entry.get(&Use::Unwrap)), (1, Some(&1)));
    assert_eq!(named(&report), [("azure-mallory", Why::Stranger)]);
}

#[test]
fn an_id_of_azure_is_its_callers_choice_and_hides_nobody() {
    let made = || entry(0, 1, vec![item("fields", Source::Kms, Some("azure-made"))]);
    let copied = KEY_VAULT.replace("azure-mallory", "azure-made");
    let report = reconciled(export(&copied, "fields"), terms(), &[made()]);
    // The id does not say which of the two is byok's, whichever came first; another call of byok's
    // does.
    assert_eq!(named(&report).len(), 3);
    let mut lines: Vec<&str> = copied.lines().collect();
    for _ in 0..2 {
        let entries = [made(), entry(1, 2, vec![item("fields", Source::Kms, Some("azure-probe"))])];
        let report = reconciled(export(&lines.join("\n"), "fields"), terms(), &entries);
        let [(id, Why::Stranger)] = named(&report)[..] else { panic!("{:?}", report.named) };
        assert!(id.starts_with("azure-made"));
        lines.reverse();
    }
    // Nor does a record that was delivered twice, or one without an id on the same line as another,
    // hide anybody.
    let twice = KEY_VAULT.lines().chain(KEY_VAULT.lines()).collect::<Vec<_>>().join("\n");
    let report = reconciled(export(&twice, "fields"), terms(), &[made()]);
    assert_eq!((report.calls, report.matched, named(&report).len()), (3, 1, 1));
    let none = KEY_VAULT.replace("azure-mallory", "").replace("azure-probe", "").replace('\n', " ");
    let report = reconciled(export(&none, "fields"), terms(), &[made()]);
    assert_eq!((report.calls, named(&report)), (3, vec![("(record 2)", Why::Stranger)]));
    // An item from memory names a call of long ago.
    let hit = entry(0, 3, vec![item("fields", Source::Cache, Some("azure-mallory"))]);
    let report = reconciled(export(KEY_VAULT, "fields"), terms(), &[made(), hit]);
    assert_eq!(named(&report), [("azure-mallory", Why::Stranger)]);
}

#[test]
fn a_call_of_azure_without_a_token_is_nobodys() {
    let asked = KEY_VAULT.replace("403", "401");
    let made = entry(0, 1, vec![item("fields", Source::Kms, Some("azure-made"))]);
    let report = reconciled(export(&asked, "fields"), terms(), &[made]);
    assert_eq!((report.calls, report.probes, named(&report)), (3, 1, vec![]));
}

#[test]
fn an_entrys_missing_call_is_named_once_within_range() {
    let twice = vec![item("fields", Source::Kms, Some("gone")), item("fields", Source::Kms, Some("gone"))];
    let refused = Item {
        source: None,
        key_version: None,
        refused: Some(ErrorCode::KmsAccessDenied),
        ..item("fields", Source::Kms, Some("refused"))
    };
    let entries = [
        entry(7, 5, twice),
        entry(8, 6, vec![refused, item("another", Source::Kms, Some("of another key"))]),
        entry(9, 2, vec![item("fields", Source::Kms, Some("early"))]),
        entry(10, 9, vec![item("fields", Source::Kms, Some("late"))]),
        entry(11, 5, vec![item("fields", Source::Cache, Some("filled before"))]),
        entry(12, 60, vec![item("fields", Source::Kms, Some("outside"))]),
    ];
    let margin = Duration::from_secs(2);
    let report = reconciled(export(VAULT, "fields"), Terms { margin, ..terms() }, &entries);
    let missing: Vec<_> = report.named_missing.iter().map(|one| (one.place, &*one.kms_request_id)).collect();
    assert_eq!(missing, [(7, "gone"), (8, "refused")]);
    assert_eq!((report.at_the_edge, report.other_keys, report.cache_hits), (2, 1, 1));
}

#[test]
fn the_window_that_is_said_goes_before_the_records() {
    let (from, until) = (Some(at(3)), Some(at(7)));
    let between = Between(from, until);
    let read = Export::read(VAULT.as_bytes(), vec!["fields".into()], between).unwrap();
    let report = reconciled(read, Terms { from, until, ..terms() }, &[]);
    assert_eq!((report.calls, report.unexplained), (4, 4));
    // The report shows that an export ends before the window that it should cover.
    let until = Some(at(60));
    let late = entry(3, 30, vec![item("fields", Source::Kms, Some("after its end"))]);
    let report = reconciled(export(VAULT, "fields"), Terms { from, until, ..terms() }, &[late]);
    assert_eq!(report.missing, 1);
}

#[test]
fn an_entry_that_cannot_be_read_leaves_it_unexplained() {
    let mut broken = entry(0, 3, vec![item("fields", Source::Kms, Some("vault-made"))]);
    broken.row.items.pop();
    let report = reconciled(export(VAULT, "fields"), terms(), &[broken]);
    assert_eq!(report.unreadable_entries, 1);
    assert!(!report.explained());
}
