//! The blocks of a documentation page, run as a reader would run them: one bash for the whole page,
//! with each block pasted into it. The output is compared with the output that the page shows.
//!
//! `sh` blocks must succeed. In `console` blocks each line after `$ ` is run, and the lines below
//! it are the expected output: `…` matches anything, a line that is only `…` matches any lines, and
//! a number matches any number. A block marked `not-run` is not run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// The line that bash prints when a block is done; no command of a page prints it.
const DONE: &str = "@@ done ";

/// A page, and the bash that its blocks are pasted into. Dropping it ends whatever was started
/// there.
pub(crate) struct Page {
    name: String,
    blocks: Vec<Block>,
    bash: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

struct Block {
    heading: String,
    /// `sh` or `console`.
    kind: String,
    lines: Vec<String>,
}

impl Page {
    /// Opens a page of `docs/`. Its first block exports the variables that each reader sets; they
    /// get these values. `tools` are folders for the front of `PATH`, which already has `byok`.
    pub(crate) fn open(name: &str, own: &[(&str, &str)], tools: &[&Path]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut blocks = blocks(&text);
        let first = blocks.first_mut().unwrap_or_else(|| panic!("{name} has no block"));
        for (variable, value) in own {
            let export = format!("export {variable}=");
            let line = first.lines.iter_mut().find(|line| line.starts_with(&export));
            let line = line.unwrap_or_else(|| panic!("the first block of {name} has no {export}"));
            *line = format!("{export}'{value}'");
        }
        let byok = Path::new(env!("CARGO_BIN_EXE_byok")).parent().expect("a folder");
        let folders = tools.iter().copied().chain([byok]).map(|folder| folder.display().to_string());
        let search: Vec<String> = folders.chain(["/usr/bin".to_owned(), "/bin".to_owned()]).collect();
        // A block that does not end, such as one with an open quote, fails.
        let mut bash = Command::new("timeout")
            .args(["--kill-after=1", "300", "bash"])
            .env_clear()
            .env("PATH", search.join(":"))
            .env("HOME", "/nonexistent")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let (input, output) = (bash.stdin.take().expect("piped"), bash.stdout.take().expect("piped"));
        let mut page = Self { name: name.to_owned(), blocks, bash, input, output: BufReader::new(output) };
        page.paste("exec 2>&1; set -o pipefail");
        page
    }

    /// Runs all blocks.
    pub(crate) fn run(&mut self) {
        for block in std::mem::take(&mut self.blocks) {
            self.run_block(&block);
        }
    }

    /// Runs the blocks up to the first whose command begins like this, and that one.
    pub(crate) fn run_to(&mut self, command: &str) {
        let is_last = |block: &Block| block.lines.iter().any(|line| line.starts_with(command));
        let last = self.blocks.iter().position(is_last);
        let last = last.unwrap_or_else(|| panic!("{} has no block with {command:?}", self.name));
        let rest = self.blocks.split_off(last + 1);
        for block in std::mem::replace(&mut self.blocks, rest) {
            self.run_block(&block);
        }
    }

    fn run_block(&mut self, block: &Block) {
        let location = format!("{}, {}", self.name, block.heading);
        if block.kind == "sh" {
            let (printed, code) = self.paste(&block.lines.join("\n"));
            assert_eq!(
                code,
                Some(0),
                "{location}: a command failed, the last of which these are what it printed:\n{printed}"
            );
            return;
        }
        let mut lines = block.lines.iter().map(String::as_str).peekable();
        while let Some(line) = lines.next() {
            let first = line.strip_prefix("$ ");
            let mut command = first.unwrap_or_else(|| panic!("{location}: no command: {line}")).to_owned();
            while command.ends_with('\\') {
                command = format!("{command}\n{}", lines.next().unwrap_or_default());
            }
            let mut expected = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                expected.push(line);
            }
            let (printed, code) = self.paste(&command);
            assert!(code.is_some(), "{location}:\n$ {command}\nended bash, or did not end:\n{printed}");
            let lines: Vec<&str> = printed.lines().collect();
            assert!(
                fits(&expected, &lines),
                "{location}:\n$ {command}\nis said to print\n{}\nand prints\n{printed}",
                expected.join("\n")
            );
        }
    }

    /// The output of the commands and their exit code; no code if a command of an `sh` block
    /// failed, which ends bash.
    pub(crate) fn paste(&mut self, commands: &str) -> (String, Option<i32>) {
        // The braces keep a command from reading what is pasted after it as its standard input.
        let pasted = format!("{{\n{commands}\n}} < /dev/null\necho; echo \"{DONE}$?\"\n");
        self.input.write_all(pasted.as_bytes()).expect("bash reads");
        let mut printed = String::new();
        loop {
            let from = printed.len();
            if self.output.read_line(&mut printed).expect("bash writes") == 0 {
                return (printed, None);
            }
            if let Some(code) = printed[from..].strip_prefix(DONE) {
                let code = code.trim().parse().ok();
                printed.truncate(from - 1);
                return (printed, code);
            }
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.bash.id() as i32).expect("a pid");
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.bash.wait();
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut heading) = (Vec::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            heading = line.to_owned();
        }
        let Some(fence) = line.strip_prefix("```") else { continue };
        let lines: Vec<String> =
            lines.by_ref().take_while(|line| !line.starts_with("```")).map(str::to_owned).collect();
        if fence == "sh" || fence == "console" {
            blocks.push(Block { heading: heading.clone(), kind: fence.to_owned(), lines });
        }
    }
    blocks
}

/// Whether these lines match the ones that a page shows.
fn fits(expected: &[&str], printed: &[&str]) -> bool {
    match (expected, printed) {
        ([], printed) => printed.iter().all(|line| line.is_empty()),
        (["…", rest @ ..], _) => (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..])),
        ([line, expected @ ..], [real, printed @ ..]) => line_fits(line, real) && fits(expected, printed),
        (_, []) => false,
    }
}

fn line_fits(expected: &str, printed: &str) -> bool {
    let (expected, printed) = (without_numbers(expected), without_numbers(printed));
    let mut pieces = expected.split('…');
    let Some(mut rest) = printed.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, between)) = pieces.split_last() else { return rest.is_empty() };
    for piece in between {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The text with every number, negative ones included, replaced by `0`.
fn without_numbers(text: &str) -> String {
    let mut kept = String::new();
    let mut chars = text.trim_end().chars().peekable();
    while let Some(char) = chars.next() {
        let is_sign = char == '-' && kept.ends_with(' ') && chars.peek().is_some_and(char::is_ascii_digit);
        if is_sign || (char.is_ascii_digit() && kept.ends_with('0')) {
            continue;
        }
        kept.push(if char.is_ascii_digit() { '0' } else { char });
    }
    kept
}

#[test]
fn what_a_page_shows_is_held_against_what_was_printed() {
    assert!(fits(&["took 12 ms", "…", "done"], &["took 7 ms", "a", "b", "done"]));
    // A plaintext may come before the key is off.
    assert!(fits(&["after 12 ms"], &["after -4 ms"]) && !fits(&["a-b"], &["a-1"]));
    assert!(fits(&["{\"key\":\"byok:v1:…\",\"on\":true}"], &["{\"key\":\"byok:v1:A9\",\"on\":true}", ""]));
    assert!(!fits(&["took 12 ms"], &["took 12 s"]));
    assert!(!fits(&["done"], &["done", "and more"]));
    assert!(!fits(&["done", "again"], &["done"]));
}
