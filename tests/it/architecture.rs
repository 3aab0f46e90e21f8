//! The rules about the tree itself. `ARCHITECTURE.md` has a map of the top-level modules in rows:
//! imports run only down the rows, and `src/lib.rs` lists the same modules in the same rows. The
//! documents cite only what exists, every dependency is used, and names are short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules by name, each with its row, from the table of `ARCHITECTURE.md`.
struct Map(BTreeMap<String, usize>);

impl Map {
    fn read() -> Self {
        let text = read("ARCHITECTURE.md");
        let table = text.split("| row | rooms |").nth(1).expect("ARCHITECTURE.md has the table of modules");
        let mut modules = BTreeMap::new();
        for line in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let row = cells[1].parse::<usize>().unwrap_or_else(|_| panic!("no number of a row: {line}"));
            for module in cells[2].split('`').skip(1).step_by(2) {
                let before = modules.insert(module.to_owned(), row);
                assert_eq!(before, None, "the module {module} is in the table twice");
            }
        }
        Self(modules)
    }

    fn row_of(&self, module: &str) -> usize {
        *self
            .0
            .get(module)
            .unwrap_or_else(|| panic!("the module {module} is not in the table of ARCHITECTURE.md"))
    }

    /// The modules that a text names: `crate::module::…` and the members of `use crate::{…}`.
    fn named_in(&self, text: &str) -> Vec<String> {
        let mut modules = named_after("crate::", text);
        modules.retain(|module| self.0.contains_key(module));
        modules
    }
}

/// The names after a prefix in a text: `prefix::name…` and the members of `prefix::{…}`.
fn named_after(prefix: &str, text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for after in text.split(prefix).skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                names.extend(list.split('}').next().unwrap().split(',').map(|member| word(member.trim())))
            }
            None => names.push(word(after)),
        }
    }
    names
}

/// Modules and crates that a front never names, whatever the rows allow.
const HIDDEN_FROM_FRONTS: [&str; 6] =
    ["crate::crypto", "crate::keyring", "crate::kms", "crate::store", "sqlx", "use ring"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder that have this extension.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending))
        } else if path.extension().is_some_and(|end| end == ending) {
            found.push(path)
        }
    }
    found
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let source = root().join("src");
    files(&source, "rs")
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix(&source).unwrap().to_owned();
            let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, inside, text)
        })
        .collect()
}

#[test]
fn imports_run_down_only() {
    let map = Map::read();
    let mut upward = BTreeMap::new();
    for (module, path, text) in sources() {
        if module == "lib" {
            continue;
        }
        for named in map.named_in(&text) {
            if named != module && map.row_of(&named) >= map.row_of(&module) {
                upward.insert(path.display().to_string(), named);
            }
        }
    }
    assert!(upward.is_empty(), "these files import upward or sideways: {upward:#?}");
}

/// The table in `src/keyring/mod.rs` lists the files in order. Only the files in its last row use
/// `Keyring` itself.
#[test]
fn files_of_the_keyring_use_only_files_above_them() {
    let text = read("src/keyring/mod.rs");
    let table = text
        .split("//! | layer | files | purpose |")
        .nth(1)
        .expect("src/keyring/mod.rs has the table of files");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with("//! |"))
        .map(|line| quoted(line.split('|').nth(2).unwrap()).collect())
        .collect();
    let order = rows.concat();
    let index_of = |file: &str| order.iter().position(|listed| *listed == file);
    let calls = rows.last().expect("the table has rows");

    let mut seen = BTreeSet::new();
    for (module, path, text) in sources() {
        if module != "keyring" || path == Path::new("keyring/mod.rs") {
            continue;
        }
        let file = path.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
        let index =
            index_of(file).unwrap_or_else(|| panic!("{file} is not in the table of src/keyring/mod.rs"));
        seen.insert(order[index]);
        for named in [named_after("super::", &text), named_after("crate::keyring::", &text)].concat() {
            let is_above = index_of(&named).is_none_or(|named| named <= index);
            assert!(is_above, "{} uses {named}, which is below it", path.display());
        }
        let knows_keyring = has_word(&text, "Keyring");
        assert!(!knows_keyring || calls.contains(&file), "{} knows the keyring", path.display());
    }
    assert_eq!(
        seen,
        order.iter().copied().collect::<BTreeSet<_>>(),
        "files, and the table of src/keyring/mod.rs"
    );
}

/// The list of `lib.rs` has a comment above each group of modules: `// Row 3: …`.
#[test]
fn the_map_the_module_list_and_the_folders_agree() {
    let map = Map::read();
    let mut listed = BTreeMap::new();
    let mut row = None;
    for line in read("src/lib.rs").lines() {
        if let Some(comment) = line.strip_prefix("// Row ") {
            row = comment.split(':').next().unwrap().parse().ok();
        }
        if let Some(module) = line.strip_prefix("pub mod ") {
            let row: usize = row.unwrap_or_else(|| panic!("no row is named above `{line}`"));
            listed.insert(module.trim_end_matches(';').to_owned(), row);
        }
    }
    listed.insert("main".to_owned(), map.row_of("main"));
    assert_eq!(listed, map.0, "src/lib.rs and the table of ARCHITECTURE.md differ");
    let mut folders: BTreeSet<String> = sources().into_iter().map(|(module, ..)| module).collect();
    folders.remove("lib");
    assert_eq!(
        folders,
        map.0.into_keys().collect::<BTreeSet<_>>(),
        "src/ and the table of ARCHITECTURE.md differ"
    );
}

#[test]
fn a_front_never_sees_what_lies_behind_the_use_cases() {
    for (module, path, text) in sources() {
        if ["rest", "graphql", "console"].contains(&module.as_str()) {
            for hidden in HIDDEN_FROM_FRONTS {
                assert!(!text.contains(hidden), "{} names {hidden}", path.display());
            }
        }
    }
}

#[test]
fn only_the_command_line_names_a_concrete_provider_or_database() {
    for (module, path, text) in sources() {
        if !["cli", "kms", "store", "config"].contains(&module.as_str()) {
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

/// The parts of a text between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a text has this word by itself, not within a longer word.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

/// `docs/threats.md` names a test for each attack that it says is stopped.
#[test]
fn the_tests_that_the_threats_name_exist() {
    let text = read("docs/threats.md");
    let named: Vec<(&str, &str)> =
        quoted(&text).filter_map(|code| code.split_once("::")).filter(|(file, _)| *file != "file").collect();
    assert!(named.len() > 10, "{named:?}");
    for (file, test) in named {
        let tests = fs::read_to_string(root().join(format!("tests/it/{file}.rs")));
        let tests =
            tests.unwrap_or_else(|_| panic!("docs/threats.md names {file}::{test}: there is no such file"));
        assert!(
            tests.contains(&format!("fn {test}(")),
            "docs/threats.md names {file}::{test}, which is not there"
        );
    }
}

/// `CONTRIBUTING.md` cites paths, and names in those files as `path::name`.
#[test]
fn what_the_guide_for_contributors_cites_exists() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let is_path =
        |code: &str| code.contains('/') && !code.starts_with('/') && !code.contains(char::is_whitespace);
    let cited: Vec<&str> = quoted(&text).filter(|code| is_path(code)).collect();
    assert!(cited.len() > 40, "{cited:?}");
    for cited in cited {
        let (path, name) = cited.split_once("::").map_or((cited, None), |(path, name)| (path, Some(name)));
        let path = root().join(path);
        assert!(path.exists(), "CONTRIBUTING.md cites {cited}: there is no such file");
        if let Some(name) = name {
            let text = fs::read_to_string(path).unwrap();
            assert!(has_word(&text, name), "CONTRIBUTING.md cites {cited}, which is not there");
        }
    }
}

#[test]
fn links_between_documents_lead_to_files() {
    let mut pages: Vec<PathBuf> = ["docs", "hasura-metadata", "fuzz"]
        .iter()
        .flat_map(|folder| files(&root().join(folder), "md"))
        .collect();
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(top.filter(|path| path.extension().is_some_and(|end| end == "md")));
    assert!(pages.len() > 20, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            assert!(page.with_file_name(target).exists(), "{} links to {target}", page.display());
        }
    }
}

/// An unused dependency is still built, licensed and reported on.
#[test]
fn every_dependency_is_used() {
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let is_test = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().ends_with("tests");
    let (tests, source): (Vec<PathBuf>, Vec<PathBuf>) =
        files(&root().join("src"), "rs").into_iter().partition(is_test);
    let shipped: String =
        source.iter().map(|path| read(path).split("#[cfg(test)]").next().unwrap().to_owned()).collect();
    let beside = ["tests", "benches"].iter().flat_map(|folder| files(&root().join(folder), "rs"));
    let all: String = source.into_iter().chain(tests).chain(beside).map(|path| read(&path)).collect();

    // `name::`, `use name;` or `name!`, and not a module of ours with the same name.
    let is_used = |text: &str, name: &str| {
        text.match_indices(name).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + name.len()..]);
            !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                && ["::", ";", "!"].iter().any(|next| after.starts_with(next))
        })
    };
    let manifest = read(&root().join("Cargo.toml"));
    for (section, text) in [("dependencies", &shipped), ("dev-dependencies", &all)] {
        let block = manifest.split(&format!("\n[{section}]\n")).nth(1).unwrap().split("\n[").next().unwrap();
        let names: Vec<&str> =
            block.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
        assert!(names.len() > 5, "{names:?}");
        for name in names {
            assert!(is_used(text, &name.replace('-', "_")), "{name} of [{section}] is not used");
        }
    }
}

#[test]
fn names_of_functions_have_fewer_than_twelve_words() {
    let folders = ["src", "tests", "benches", "fuzz/checks", "fuzz/fuzz_targets"];
    for path in folders.iter().flat_map(|folder| files(&root().join(folder), "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let names = text
            .split("fn ")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap());
        for name in names {
            assert!(name.split('_').count() < 12, "{}: {name}", path.display());
        }
    }
}

/// Rust files that are ours, with their texts.
fn rust_files() -> Vec<(PathBuf, String)> {
    let mut found = vec![root().join("build.rs")];
    found.extend(["src", "benches", "tests/it"].iter().flat_map(|folder| files(&root().join(folder), "rs")));
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Whether a line is a comment wider than 100 columns. Rows of tables and addresses cannot be
/// wrapped.
fn is_wide_comment(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with("//")
        && line.chars().count() > 100
        && !text.contains("://")
        && !text.trim_start_matches(['/', '!', ' ']).starts_with('|')
}

#[test]
fn comments_wrap_at_a_hundred_columns() {
    let wide = format!("// {}", "a".repeat(98));
    assert!(is_wide_comment(&wide) && !is_wide_comment(&wide[1..]) && !is_wide_comment(&wide[..100]));
    let mut found = Vec::new();
    for (path, text) in rust_files() {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| is_wide_comment(line));
        found.extend(lines.map(|(number, _)| format!("{}:{number}", path.display())));
    }
    assert!(found.is_empty(), "{found:#?}");
}
