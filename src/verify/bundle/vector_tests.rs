//! Replays `tests/vectors/audit/`, which a program in another language wrote from
//! `docs/audit-log.md`.

use serde_json::Value;

use super::verify_bundle;
use crate::audit::{CheckpointKey, SignedCheckpoint};
use crate::crypto::sha256;
use crate::merkle::{Hash, root_of};
use crate::verify::encoding::tenant_of;
use crate::verify::entry::BundleEntry;
use crate::verify::{Claim, Finding, Report, State, Trust};

const LEAVES: &str = include_str!("../../../tests/vectors/audit/leaves.json");
const BUNDLE: &str = include_str!("../../../tests/vectors/audit/bundle.jsonl");
/// A bundle from before entries had a second form.
const FIRST_BUNDLE: &str = include_str!("../../../tests/vectors/audit/bundle-1.jsonl");

fn bytes(hexadecimal: &Value) -> Vec<u8> {
    let text = hexadecimal.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn trust(pinned: bool) -> Trust {
    let key = CheckpointKey::parse(include_str!("../../../tests/vectors/audit/key").trim()).unwrap();
    let checkpoint = include_str!("../../../tests/vectors/audit/checkpoint-5");
    Trust { keys: vec![key], pinned: pinned.then(|| SignedCheckpoint::parse(checkpoint).unwrap()) }
}

fn verified(bundle: &[u8]) -> Report {
    verify_bundle(&mut &bundle[..], &trust(true), &mut |_| ()).unwrap()
}

#[test]
fn leaves_are_those_of_the_vectors() {
    let vectors: Vec<Value> = serde_json::from_str(LEAVES).unwrap();
    let second = vectors.iter().filter(|vector| vector["entry"]["form"] == 2).count();
    assert!(second >= 2 && vectors.len() >= second + 4, "vectors of both forms");
    for vector in vectors {
        let tenant = tenant_of(vector["tenant"].as_str().unwrap()).unwrap();
        let entry: BundleEntry = serde_json::from_value(vector["entry"].clone()).unwrap();
        assert_eq!(entry.computed(tenant).to_vec(), sha256(&bytes(&vector["covered"])));
        assert_eq!(entry.computed(tenant), entry.digest.0);
        assert_eq!(entry.leaf().0.to_vec(), bytes(&vector["leaf"]));
        let items = vector["items"].as_array().unwrap().iter().map(|item| Hash::of_leaf(&bytes(item)));
        let root = root_of(items).0;
        assert!(bytes(&vector["covered"]).windows(32).any(|covered| covered == root));
    }
}

#[test]
fn the_bundle_of_the_vectors_holds() {
    let report = verified(BUNDLE.as_bytes());
    assert_eq!(report.findings, []);
    assert_eq!(open(&report), [Claim::Personal]);
    let unpinned = verify_bundle(&mut BUNDLE.as_bytes(), &trust(false), &mut |_| ()).unwrap();
    assert_eq!((unpinned.findings.len(), open(&unpinned)), (0, vec![Claim::Personal, Claim::Pinned]));
}

#[test]
fn a_bundle_of_the_first_form_holds_for_ever() {
    let report = verified(FIRST_BUNDLE.as_bytes());
    assert_eq!(report.findings, []);
    assert_eq!(open(&report), [Claim::Personal]);
}

/// Returns the open claims. The ranges end before their logs do, and some values in them are
/// missing: no entry of the bundle says that they were erased.
fn open(report: &Report) -> Vec<Claim> {
    assert!(report.claims.iter().all(|(_, state, _)| *state != State::Fails), "{:?}", report.claims);
    let open = report.claims.iter().filter(|(_, state, _)| *state == State::Open);
    open.map(|(claim, ..)| *claim).collect()
}

#[test]
fn nothing_outside_the_digest_of_an_entry_is_shown() {
    // Each of these leaves the digest of the entry, which is of the first form, unchanged.
    for more in [
        r#""reason":"support-case""#,
        r#""ledger_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=""#,
        r#""issuer":"https://id.example""#,
        r#""extensions":[["voids","x"]]"#,
    ] {
        let bundle = BUNDLE.replacen("{\"entry\":{", &format!("{{\"entry\":{{{more},"), 1);
        assert!(!verified(bundle.as_bytes()).is_clean(), "{more}");
    }
    for more in [r#""form":"mask""#, r#""wrapped_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=""#] {
        let bundle = BUNDLE.replacen("{\"dek_id\"", &format!("{{{more},\"dek_id\""), 1);
        assert!(!verified(bundle.as_bytes()).is_clean(), "{more}");
    }
    // Nor can an entry of the second form be in a bundle that readers of the first form accept.
    let older = BUNDLE.replace("byok-audit-bundle/2", "byok-audit-bundle/1");
    assert!(!verified(older.as_bytes()).is_clean());
    let unsorted = BUNDLE.replace(r#"[["unknown""#, r#"[["zzz""#);
    assert!(!verified(unsorted.as_bytes()).is_clean());
}

#[test]
fn no_line_can_be_left_out_doubled_or_moved() {
    let lines: Vec<&str> = BUNDLE.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for position in (0..lines.len()).filter(|position| ![1, 6].contains(position)) {
        let mut fewer = lines.clone();
        let line = fewer.remove(position);
        assert!(!verified(joined(&fewer).as_bytes()).is_clean(), "without line {position}");
        fewer.insert((position + 1) % lines.len(), line);
        assert!(!verified(joined(&fewer).as_bytes()).is_clean(), "line {position} moved");
        // A repeated checkpoint adds nothing and does no harm.
        if position != 11 {
            let mut more = lines.clone();
            more.insert(position, line);
            assert!(!verified(joined(&more).as_bytes()).is_clean(), "line {position} twice");
        }
    }
    // Neither the key, which the auditor has, nor an intermediate checkpoint is required.
    for position in [1, 6] {
        let mut fewer = lines.clone();
        fewer.remove(position);
        assert_eq!(verified(joined(&fewer).as_bytes()).findings, []);
    }
}

#[test]
fn no_byte_can_be_changed() {
    for whole in [BUNDLE, FIRST_BUNDLE] {
        // The requested range is not signed; its contents are.
        let range = whole.find("\"from\"").unwrap()..whole.find("\"size\"").unwrap();
        for at in (0..whole.len()).filter(|at| !range.contains(at)) {
            let mut bundle = whole.as_bytes().to_vec();
            bundle[at] ^= 1;
            let report = verified(&bundle);
            let from = at.saturating_sub(20);
            assert!(!report.is_clean(), "byte {at}: {:?}", whole.get(from..at));
            assert!(report.findings.iter().all(|finding| !finding.to_string().is_empty()));
        }
    }
}

#[test]
fn a_pruned_range_has_to_be_named() {
    let cut = BUNDLE.replace("prune 1 0 3", "prune 1 0 2");
    assert!(verified(cut.as_bytes()).findings.contains(&Finding::Missing {
        range: 0..3,
        oldest: true,
        kept: true
    }));
}

#[test]
fn the_stated_beginning_of_a_log_moves_no_prune() {
    let mut bundle =
        BUNDLE.replace("\"first\":0,\"from\":0,\"to\":8", "\"first\":100,\"from\":100,\"to\":108");
    for position in (3..8).rev() {
        bundle = bundle.replace(&format!("\"place\":{position},"), &format!("\"place\":{},", 100 + position));
    }
    assert_eq!(verified(bundle.as_bytes()).findings, []);
    // A prune of another of the tenant's logs does not apply to this one.
    let other = BUNDLE.replace("prune 1 0 3", "prune 2 0 3");
    assert!(!verified(other.as_bytes()).is_clean());
}
