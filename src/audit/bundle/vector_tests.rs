//! Replays `tests/vectors/audit/`, which another language wrote from `docs/audit-log.md`.

use serde_json::Value;

use super::line::tenant_of;
use super::{BundleEntry, verify_bundle};
use crate::audit::{CheckpointKey, Finding, Report, SignedCheckpoint, State, Trust};
use crate::crypto::sha256;
use crate::merkle::{Hash, root_of};

const LEAVES: &str = include_str!("../../../tests/vectors/audit/leaves.json");
const BUNDLE: &str = include_str!("../../../tests/vectors/audit/bundle.jsonl");

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
    assert!(vectors.len() >= 4);
    for vector in vectors {
        let tenant = tenant_of(vector["tenant"].as_str().unwrap()).unwrap();
        let entry: BundleEntry = serde_json::from_value(vector["entry"].clone()).unwrap();
        assert_eq!(entry.computed(tenant).to_vec(), sha256(&bytes(&vector["covered"])));
        assert_eq!(entry.computed(tenant), entry.digest.0);
        assert_eq!(entry.leaf().0.to_vec(), bytes(&vector["leaf"]));
        let items = vector["items"].as_array().unwrap().iter().map(|item| Hash::of_leaf(&bytes(item)));
        assert!(bytes(&vector["covered"]).ends_with(&root_of(items).0));
    }
}

#[test]
fn the_bundle_of_the_vectors_holds() {
    let report = verified(BUNDLE.as_bytes());
    assert_eq!(report.findings, []);
    assert!(report.claims.iter().all(|(_, state, _)| *state == State::Holds), "{:?}", report.claims);
    let unpinned = verify_bundle(&mut BUNDLE.as_bytes(), &trust(false), &mut |_| ()).unwrap();
    let open = unpinned.claims.iter().filter(|(_, state, _)| *state == State::Open).count();
    assert_eq!((unpinned.findings.len(), open), (0, 1));
}

#[test]
fn no_line_can_be_left_out_doubled_or_moved() {
    let lines: Vec<&str> = BUNDLE.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for place in (0..lines.len()).filter(|place| ![1, 6].contains(place)) {
        let mut fewer = lines.clone();
        let line = fewer.remove(place);
        assert!(!verified(joined(&fewer).as_bytes()).is_clean(), "without line {place}");
        fewer.insert((place + 1) % lines.len(), line);
        assert!(!verified(joined(&fewer).as_bytes()).is_clean(), "line {place} moved");
        // A checkpoint that is said twice says nothing more.
        if place != 10 {
            let mut more = lines.clone();
            more.insert(place, line);
            assert!(!verified(joined(&more).as_bytes()).is_clean(), "line {place} twice");
        }
    }
    // Neither the key, which the auditor has, nor a checkpoint on the way is needed.
    for place in [1, 6] {
        let mut fewer = lines.clone();
        fewer.remove(place);
        assert_eq!(verified(joined(&fewer).as_bytes()).findings, []);
    }
}

#[test]
fn no_byte_can_be_changed() {
    // How much of the log is asked for is not signed: what is shown of it is.
    let range = BUNDLE.find("\"from\"").unwrap()..BUNDLE.find("\"size\"").unwrap();
    for place in (0..BUNDLE.len()).filter(|place| !range.contains(place)) {
        let mut bundle = BUNDLE.as_bytes().to_vec();
        bundle[place] ^= 1;
        let report = verified(&bundle);
        let from = place.saturating_sub(20);
        assert!(!report.is_clean(), "byte {place}: {}", &BUNDLE[from..place]);
        assert!(report.findings.iter().all(|finding| !finding.to_string().is_empty()));
    }
}

#[test]
fn a_pruned_range_has_to_be_named() {
    let cut = BUNDLE.replace("prune 0 3", "prune 0 2");
    assert!(verified(cut.as_bytes()).findings.contains(&Finding::Missing {
        places: 0..3,
        oldest: true,
        kept: true
    }));
}
