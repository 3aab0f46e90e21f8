//! Replays the corpora of `fuzz/` with the checks that the fuzz targets make.

use crate::crypto;

#[path = "../../fuzz/checks/context.rs"]
mod context;
#[path = "../../fuzz/checks/token.rs"]
mod token;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        // Printed only when the check panics: it names the culprit.
        println!("{}", path.display());
        check(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count >= 20, "the corpus is there");
}

#[test]
fn the_corpus_of_tokens_holds() {
    replay("token", token::check);
}

#[test]
fn the_corpus_of_contexts_holds() {
    replay("context", context::check);
}
