//! Imports run down only. Reads the `crate::` paths of every file and holds them against the rows of `lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of each row; a room may import from rows below its own.
const ROWS: [&[&str]; 13] = [
    &["crypto", "model"],
    &["config", "merkle"],
    &["telemetry", "store", "kms", "auth", "webhook", "archive"],
    &["audit", "tenancy"],
    &["verify", "reconcile"],
    &["keyring", "admin"],
    &["jobs"],
    &["app"],
    &["rest", "graphql", "console"],
    &["server"],
    &["cli"],
    &["main"],
    &["lib"],
];

/// What a front never names, whatever the rows allow.
const HIDDEN_FROM_FRONTS: [&str; 6] =
    ["crate::crypto", "crate::keyring", "crate::kms", "crate::store", "sqlx", "use ring"];

fn row_of(room: &str) -> usize {
    ROWS.iter()
        .position(|row| row.contains(&room))
        .unwrap_or_else(|| panic!("the room {room} has no row in this test"))
}

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found)
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path)
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix(&root).unwrap().to_owned();
            let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (room, inside, text)
        })
        .collect()
}

/// The rooms that a text names: `crate::room::…` and the members of `use crate::{…}`.
fn named_rooms(text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for after in text.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                rooms.extend(list.split('}').next().unwrap().split(',').map(|member| word(member.trim())))
            }
            None => rooms.push(word(after)),
        }
    }
    rooms.retain(|room| ROWS.iter().any(|row| row.contains(&room.as_str())));
    rooms
}

#[test]
fn imports_run_down_only() {
    let mut upward = BTreeMap::new();
    for (room, path, text) in sources() {
        if room == "lib" {
            continue;
        }
        for named in named_rooms(&text) {
            if named != room && row_of(&named) >= row_of(&room) {
                upward.insert(path.display().to_string(), named);
            }
        }
    }
    assert!(upward.is_empty(), "these files import upward or sideways: {upward:#?}");
}

#[test]
fn a_front_never_sees_what_lies_behind_the_use_cases() {
    for (room, path, text) in sources() {
        if ["rest", "graphql", "console"].contains(&room.as_str()) {
            for hidden in HIDDEN_FROM_FRONTS {
                assert!(!text.contains(hidden), "{} names {hidden}", path.display());
            }
        }
    }
}

#[test]
fn only_the_command_line_names_a_concrete_provider_or_database() {
    for (room, path, text) in sources() {
        if !["cli", "kms", "store", "config"].contains(&room.as_str()) {
            let before_tests = text.split("#[cfg(test)]").next().unwrap();
            for concrete in [
                "VaultTransit",
                "kms::vault",
                "kms::local",
                "Postgres::",
                "Sqlite::",
                "store::postgres",
                "store::sqlite",
            ] {
                assert!(!before_tests.contains(concrete), "{} names {concrete}", path.display());
            }
        }
    }
}

#[test]
fn every_room_says_what_it_does() {
    for (_, path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with `//!`", path.display());
    }
}

/// `docs/threats.md` names a test for each thing that it says is stopped.
#[test]
fn the_tests_that_the_threats_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/threats.md")).unwrap();
    let named: Vec<(&str, &str)> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, _)| *file != "file")
        .collect();
    assert!(named.len() > 10, "{named:?}");
    for (file, test) in named {
        let tests = fs::read_to_string(root.join(format!("tests/it/{file}.rs")));
        let tests =
            tests.unwrap_or_else(|_| panic!("docs/threats.md names {file}::{test}: there is no such file"));
        assert!(
            tests.contains(&format!("fn {test}(")),
            "docs/threats.md names {file}::{test}, which is not there"
        );
    }
}
