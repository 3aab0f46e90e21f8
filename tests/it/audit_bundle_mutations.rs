//! The two verifiers of bundles, ours and the one in `docs/`, reject the same bundles. The bundles
//! of the vectors are mutated here, both verifiers get each mutation, and their verdicts are
//! compared. Whether a verdict is right is up to other tests.

use std::io::Write as _;
use std::process::Stdio;

use byok::audit::{CheckpointKey, SignedCheckpoint};
use byok::verify::{Trust, verify_bundle};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::support::needed;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/audit");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify_bundle.py");

/// A script that verifies every bundle named on standard input, in one process: each line has the
/// paths of a bundle and a checkpoint.
const MANY: &str = "
import importlib.util, sys
spec = importlib.util.spec_from_file_location('verify_bundle', sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
for line in sys.stdin:
    try:
        script.verify(line.split()[0], sys.argv[2], line.split()[1])
        print('holds')
    except SystemExit as found:
        print('refused:', repr(found.code))
    except Exception as error:
        print('refused:', repr(error))
";

/// The distance between two changed bytes.
const STRIDE: usize = 7;
/// Replacements for every value: JSON texts, and some that are not JSON.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "1.0",
    "1e3",
    "01",
    "4294967297",
    "4611686018427387904",
    "18446744073709551616",
    "NaN",
    r#""""#,
    r#"" ""#,
    r#""x""#,
    r#""\ud800""#,
    r#""\u0000""#,
    "[]",
    "[null]",
    "{}",
    r#"{"x":1}"#,
];
/// The personal values of an entry.
const PERSONAL: [&str; 3] = ["/entry/user", "/entry/request", "/entry/items/0/record"];
/// A marker for the place in the text where one of the values goes.
const MARK: &str = "\u{2}mark\u{2}";

struct Mutation {
    what: String,
    bundle: Vec<u8>,
    pinned: String,
}

#[tokio::test]
async fn both_verifiers_refuse_the_same() {
    let read = |name: &str| std::fs::read_to_string(format!("{VECTORS}/{name}")).unwrap();
    let (key, pinned) = (read("key").trim().to_owned(), read("checkpoint-5"));
    let mut mutations = Vec::new();
    let bundles =
        std::fs::read_dir(VECTORS).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut bundles: Vec<String> = bundles.filter(|name| name.ends_with(".jsonl")).collect();
    bundles.sort();
    assert!(!bundles.is_empty());
    for name in bundles {
        let bundle = read(&name);
        let mut add = |what: String, bundle: Vec<u8>| {
            mutations.push(Mutation { what: format!("{name}: {what}"), bundle, pinned: pinned.clone() });
        };
        add("as it is".to_owned(), bundle.clone().into_bytes());
        of_erasures(&bundle, &mut add);
        of_bytes(&bundle, &mut add);
        of_lines(&bundle, &mut add);
        of_values(&bundle, &mut add);
        of_notes_and_keys(&bundle, &mut add);
        for (what, note) in notes(&pinned) {
            let what = format!("{name}, pinned: {what}");
            mutations.push(Mutation { what, bundle: bundle.clone().into_bytes(), pinned: note });
        }
    }
    let ours: Vec<Result<(), String>> = mutations.iter().map(|mutation| ours(mutation, &key)).collect();
    let theirs = theirs(&mutations, &key).await;
    assert_eq!(theirs.len(), mutations.len());
    assert!(theirs[0] == "holds" && ours[0].is_ok(), "{}: {:?}", theirs[0], ours[0]);
    let differ: Vec<String> = mutations
        .iter()
        .zip(ours.iter().zip(&theirs))
        .filter(|(_, (ours, theirs))| ours.is_ok() != (*theirs == "holds"))
        .map(|(mutation, (ours, theirs))| format!("{}\n  ours: {ours:?}\n  theirs: {theirs}", mutation.what))
        .collect();
    let shown = differ.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(differ.is_empty(), "{} of {}:\n{shown}", differ.len(), mutations.len());
}

fn ours(mutation: &Mutation, key: &str) -> Result<(), String> {
    let pinned = SignedCheckpoint::parse(&mutation.pinned).map_err(|error| error.to_string())?;
    let trust = Trust { keys: vec![CheckpointKey::parse(key).unwrap()], pinned: Some(pinned) };
    let report = verify_bundle(&mut &mutation.bundle[..], &trust, &mut |_| ()).unwrap();
    match report.findings.first() {
        None => Ok(()),
        Some(finding) => Err(format!("{}: {finding}", finding.name())),
    }
}

async fn theirs(mutations: &[Mutation], key: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut named = Vec::new();
    for (number, mutation) in mutations.iter().enumerate() {
        let (bundle, pinned) =
            (folder.path().join(number.to_string()), folder.path().join(format!("{number}.note")));
        std::fs::write(&bundle, &mutation.bundle).unwrap();
        std::fs::write(&pinned, &mutation.pinned).unwrap();
        writeln!(named, "{} {}", bundle.display(), pinned.display()).unwrap();
    }
    let mut python = tokio::process::Command::new(needed("BYOK_TEST_PYTHON"));
    python.args(["-c", MANY, SCRIPT, key]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut python = python.spawn().expect("Python runs");
    let mut stdin = python.stdin.take().unwrap();
    let fed = tokio::spawn(async move { stdin.write_all(&named).await });
    let output = python.wait_with_output().await.unwrap();
    fed.await.unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Mutations of a byte: changed, removed, doubled.
fn of_bytes(bundle: &str, add: &mut dyn FnMut(String, Vec<u8>)) {
    for (turn, index) in (0..bundle.len()).step_by(STRIDE).enumerate() {
        let mut bytes = bundle.as_bytes().to_vec();
        match turn % 4 {
            0 => bytes[index] ^= 0x01,
            1 => bytes[index] ^= 0x20,
            2 => drop(bytes.remove(index)),
            _ => bytes.insert(index, bytes[index]),
        }
        add(format!("byte {index}, in turn {}", turn % 4), bytes);
    }
}

/// Mutations that remove personal values from an entry, in a range that reaches the end of the log
/// or ends one entry before it.
fn of_erasures(bundle: &str, add: &mut dyn FnMut(String, Vec<u8>)) {
    let lines: Vec<Value> = bundle.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let size = lines[0]["header"]["size"].as_u64().unwrap();
    for (behind, to) in [(None, size), (Some(false), size), (Some(true), size), (None, size - 1)] {
        for (index, value) in (0..lines.len()).flat_map(|index| PERSONAL.map(|value| (index, value))) {
            let mut lines = lines.clone();
            lines[0]["header"]["to"] = to.into();
            if let Some(behind) = behind {
                lines[0]["header"]["erasures_behind"] = behind.into();
            }
            if let Some(Value::Object(personal)) = lines[index].pointer_mut(value) {
                personal.retain(|name, _| name == "hmac");
                let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                add(format!("line {index} without {value}, to {to}, behind {behind:?}"), text.into_bytes());
            }
        }
    }
}

/// Mutations of whole lines: removed, doubled, reordered, with other line ends.
fn of_lines(bundle: &str, add: &mut dyn FnMut(String, Vec<u8>)) {
    let lines: Vec<&str> = bundle.split_inclusive('\n').collect();
    for index in 0..lines.len() {
        let mut with = |what: &str, put: &[&str]| {
            let mut all = lines.clone();
            all.splice(index..=index, put.iter().copied());
            add(format!("line {index} {what}"), all.concat().into_bytes());
        };
        let line = lines[index];
        let bare = line.trim_end();
        with("left out", &[]);
        with("twice", &[line, line]);
        with("without its end", &[bare]);
        for end in
            ["\r\n", "\n\n", "\r", " \n", "\t\n", "\u{b}\n", "\u{a0}\n", "\u{2028}", "\0\n", ",\n", "\n\r\n"]
        {
            with(&format!("ends in {end:?}"), &[bare, end]);
        }
        for begin in [" ", "\u{feff}", "\r", "\n"] {
            with(&format!("begins with {begin:?}"), &[begin, line]);
        }
        for more in
            [r#"{"skip":{"count":0,"roots":[]}}"#, r#"{"pruned":{"count":0,"roots":[]}}"#, "{}", "[]", "null"]
        {
            with(&format!("after {more}"), &[more, "\n", line]);
        }
        if index + 1 < lines.len() {
            let mut all = lines.clone();
            all.swap(index, index + 1);
            add(format!("lines {index} and the next in each other's place"), all.concat().into_bytes());
        }
    }
}

/// Mutations of every value in every line: changed, removed, doubled, with another one added, and
/// an object turned into a list.
fn of_values(bundle: &str, add: &mut dyn FnMut(String, Vec<u8>)) {
    let lines: Vec<&str> = bundle.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let value: Value = serde_json::from_str(line).unwrap();
        let mut pointers = Vec::new();
        pointers_of(&value, String::new(), &mut pointers);
        let mut with = |what: String, text: String| {
            let mut all: Vec<&str> = lines.clone();
            all[index] = &text;
            add(format!("line {index} {what}"), (all.join("\n") + "\n").into_bytes());
        };
        for pointer in pointers {
            let mut marked = value.clone();
            let at = marked.pointer_mut(&pointer).unwrap();
            let was = std::mem::replace(at, MARK.into());
            let marked = marked.to_string();
            let mark = Value::from(MARK).to_string();
            let mut put = |text: &str| with(format!("{pointer} = {text}"), marked.replacen(&mark, text, 1));
            VALUES.iter().for_each(|text| put(text));
            match &was {
                Value::Object(members) => {
                    put(&Value::from(members.values().cloned().collect::<Vec<_>>()).to_string());
                    for (name, member) in members {
                        let text = was.to_string();
                        let inside = &text[1..text.len() - 1];
                        let again = if inside.is_empty() { "" } else { "," };
                        put(&format!("{{{inside}{again}{}:{member}}}", Value::from(name.as_str())));
                        let mut fewer = members.clone();
                        fewer.remove(name);
                        put(&Value::from(fewer).to_string());
                    }
                    let mut more = members.clone();
                    more.insert("more".to_owned(), Value::Null);
                    put(&Value::from(more).to_string());
                }
                Value::Array(values) => {
                    put(&Value::from([&values[..], &[Value::Null]].concat()).to_string());
                    if let Some((last, fewer)) = values.split_last() {
                        put(&Value::from(fewer.to_vec()).to_string());
                        put(&Value::from([&values[..], std::slice::from_ref(last)].concat()).to_string());
                    }
                }
                Value::String(text) => {
                    for other in [
                        format!("{text} "),
                        format!("{text}="),
                        format!("{text}\n"),
                        text.to_uppercase(),
                        text.replace('-', ""),
                        text.chars().skip(1).collect(),
                    ] {
                        put(&Value::from(other).to_string());
                    }
                    put(&Value::from(spare_bit(text)).to_string());
                }
                Value::Number(number) => {
                    put(&format!("{number}.0"));
                    put(&format!("\"{number}\""));
                    put(&format!("-{number}"));
                }
                Value::Null | Value::Bool(_) => {}
            }
        }
    }
}

fn pointers_of(value: &Value, pointer: String, all: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| pointers_of(member, format!("{pointer}/{name}"), all));
        }
        Value::Array(values) => {
            let values = values.iter().enumerate();
            values.for_each(|(index, value)| pointers_of(value, format!("{pointer}/{index}"), all));
        }
        _ => {}
    }
    all.push(pointer);
}

/// Mutations of checkpoints and keys within the bundle.
fn of_notes_and_keys(bundle: &str, add: &mut dyn FnMut(String, Vec<u8>)) {
    let lines: Vec<&str> = bundle.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let value: Value = serde_json::from_str(line).unwrap();
        let (kind, others) = match (value["checkpoint"].as_str(), value["key"].as_str()) {
            (Some(note), _) => ("checkpoint", notes(note)),
            (_, Some(key)) => ("key", keys(key)),
            _ => continue,
        };
        for (what, other) in others {
            let text = serde_json::json!({ kind: other }).to_string();
            let mut all: Vec<&str> = lines.clone();
            all[index] = &text;
            add(format!("line {index}: {what}"), (all.join("\n") + "\n").into_bytes());
        }
    }
}

/// Other spellings of a signed note, and texts that are not notes.
fn notes(note: &str) -> Vec<(String, String)> {
    let (body, signatures) = note.rsplit_once("\n\n").unwrap();
    let signature = signatures.trim_end();
    let [dash, name, base64] = signature.split(' ').collect::<Vec<_>>()[..] else { panic!("{note}") };
    let signed = |signatures: String| format!("{body}\n\n{signatures}");
    let other = "— other AAAAAAAA\n";
    [
        ("no last line end", signed(signature.to_owned())),
        ("an empty line at the end", signed(format!("{signature}\n\n"))),
        ("a carriage return", signed(format!("{signature}\r\n"))),
        ("carriage returns", note.replace('\n', "\r\n")),
        ("another's signature after it", signed(format!("{signature}\n{other}"))),
        ("another's signature before it", signed(format!("{other}{signature}\n"))),
        ("its signature twice", signed(format!("{signature}\n{signature}\n"))),
        ("no signature after it", signed(format!("{signature}\nx\n"))),
        ("no signature before it", signed(format!("x\n{signature}\n"))),
        ("a signature without bytes after it", signed(format!("{signature}\n— other AAAA\n"))),
        ("a signature that is no base64 after it", signed(format!("{signature}\n— other !!!!\n"))),
        ("a signature without a name after it", signed(format!("{signature}\n—  AAAAAAAA\n"))),
        ("a name with a plus after it", signed(format!("{signature}\n— a+b AAAAAAAA\n"))),
        ("a name with a tab after it", signed(format!("{signature}\n— a\tb AAAAAAAA\n"))),
        ("a name with a wide space after it", signed(format!("{signature}\n— a\u{3000}b AAAAAAAA\n"))),
        ("more words", signed(format!("{signature} more\n"))),
        ("two spaces", signed(format!("{dash} {name}  {base64}\n"))),
        ("a spare bit", signed(format!("{dash} {name} {}\n", spare_bit(base64)))),
        ("no padding", signed(format!("{dash} {name} {}\n", base64.trim_end_matches('=')))),
        ("another name", signed(format!("{dash} {name}x {base64}\n"))),
        ("a hyphen", signed(format!("- {name} {base64}\n"))),
        ("too long", signed(format!("{signature}\n{}", other.repeat(1_000)))),
        ("no empty line", format!("{body}\n{signatures}")),
        ("two empty lines", format!("{body}\n\n\n{signatures}")),
        ("another line in its body", format!("{body}\nmore\n\n{signatures}")),
        ("a size with a sign", note.replacen('\n', "\n+", 1)),
        ("a size with a zero before it", note.replacen('\n', "\n0", 1)),
        ("nothing", String::new()),
        ("nothing that is signed", format!("\n\n{signatures}")),
    ]
    .map(|(what, note)| (what.to_owned(), note))
    .to_vec()
}

/// Other spellings of a key, and texts that are not keys.
fn keys(key: &str) -> Vec<(String, String)> {
    let [name, id, base64] = key.splitn(3, '+').collect::<Vec<_>>()[..] else { panic!("{key}") };
    [
        format!("{name}+{}+{base64}", id.to_uppercase()),
        format!("{name}+00000000+{base64}"),
        format!("{name}+{id}"),
        format!("{name}+{id}+"),
        format!("{name}+{id}+{base64}="),
        format!("{name}+{id}+{base64}\n"),
        format!("{name}+{id}+ {base64}"),
        format!("{name}+{id}+{}", spare_bit(base64)),
        format!("{name}+{id}+AA=="),
        format!("{name}+{id}+Ag{}", &base64[2..]),
        format!("{name}+{id}+{base64}+{base64}"),
        format!(" {name}+{id}+{base64}"),
        format!("{name}x+{id}+{base64}"),
        format!("+{id}+{base64}"),
        name.to_owned(),
        format!("{name}+"),
    ]
    .map(|other| (format!("key {other:?}"), other))
    .to_vec()
}

/// The same base64 with a bit set that its padding ignores, or the text itself if there is no such
/// bit.
fn spare_bit(base64: &str) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bare = base64.trim_end_matches('=');
    let last = bare.chars().last().and_then(|last| DIGITS.find(last));
    match (bare.len() < base64.len(), last.and_then(|last| DIGITS.get(last + 1..last + 2))) {
        (true, Some(next)) => format!("{}{next}{}", &bare[..bare.len() - 1], &base64[bare.len()..]),
        _ => base64.to_owned(),
    }
}
