//! Replays the corpus of checkpoints in `fuzz/` with the checks that the fuzz target makes.

use crate::{audit, crypto};

#[path = "../../fuzz/checks/checkpoint.rs"]
mod check;

#[test]
fn the_corpus_of_checkpoints_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/checkpoint");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        // Printed only when the check panics: it names the culprit.
        println!("{}", path.display());
        check::check(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count >= 20, "the corpus is there");
}

proptest::proptest! {
    #[test]
    fn a_checkpoint_of_any_bytes_is_read_or_refused(data: Vec<u8>) {
        check::check(&data);
    }

    #[test]
    fn a_note_of_any_lines_is_read_or_refused(lines in proptest::collection::vec("(— )?[a-z/]{0,9}[ +]?[0-9]{0,20}[A-Za-z0-9+/=]{0,48}", 0..8)) {
        check::check((lines.join("\n") + "\n").as_bytes());
    }
}
