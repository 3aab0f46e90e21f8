//! Replays the corpus of `fuzz/` with the check that the fuzz target makes.

use crate::{auth, config, crypto, model};

#[path = "../../fuzz/checks/jwt_config.rs"]
mod check;

#[test]
fn the_corpus_of_jwt_configurations_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/jwt_config");
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
