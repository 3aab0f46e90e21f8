//! Replays the corpus of bundles in `fuzz/` with the checks that the fuzz target makes.

use crate::{audit, crypto, verify};

#[path = "../../fuzz/checks/bundle.rs"]
mod check;

#[test]
fn the_corpus_of_bundles_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/bundle");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        // This shows only if the check panics, and names the file at fault.
        println!("{}", path.display());
        check::check(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count >= 20, "the corpus is there");
}

proptest::proptest! {
    #[test]
    fn a_bundle_of_any_bytes_is_refused(data: Vec<u8>) {
        check::check(&data);
    }
}
