//! Proofs that a leaf is in a tree, and that one tree is the beginning of another (RFC 9162,
//! sections 2.1.3 and 2.1.4; the proofs are those of RFC 6962). A proof is a list of roots of
//! ranges of leaves; the functions here return the ranges.

use std::ops::Range;

use super::Hash;

/// The ranges whose roots prove that leaf `index` is in the tree of this size, from the leaf
/// upwards. Empty if the tree has no such leaf.
pub fn inclusion_ranges(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut within = 0..size;
    if index >= size {
        return ranges;
    }
    while within.end - within.start > 1 {
        let middle = split(&within);
        if index < middle {
            ranges.push(middle..within.end);
            within.end = middle;
        } else {
            ranges.push(within.start..middle);
            within.start = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The ranges whose roots prove that the tree of size `from` is the beginning of that of size `to`.
/// Empty if there is nothing to prove: from no leaves, to the same size, or to fewer.
pub fn consistency_ranges(from: u64, to: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    if from == 0 || from >= to {
        return ranges;
    }
    let mut within = 0..to;
    // While the left edge is the whole smaller tree, the verifier knows its root.
    let mut known = true;
    while within.end != from {
        let middle = split(&within);
        if from <= middle {
            ranges.push(middle..within.end);
            within.end = middle;
        } else {
            ranges.push(within.start..middle);
            within.start = middle;
            known = false;
        }
    }
    if !known {
        ranges.push(within);
    }
    ranges.reverse();
    ranges
}

/// The leaf at which a subtree splits: after the largest power of two smaller than its size.
fn split(within: &Range<u64>) -> u64 {
    let size = within.end - within.start;
    within.start + (1 << (63 - (size - 1).leading_zeros()))
}

/// Whether `proof` shows that this leaf is at `index` in the tree of this size and root.
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash], root: Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = Hash::of_children(*sibling, hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = Hash::of_children(hash, *sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == root
}

/// Whether `proof` shows that the tree of size `from` and root `from_root` is the beginning of the
/// other.
pub fn verify_consistency(
    (from, from_root): (u64, Hash),
    (to, to_root): (u64, Hash),
    proof: &[Hash],
) -> bool {
    if from > to {
        return false;
    }
    if from == to {
        return proof.is_empty() && from_root == to_root;
    }
    if from == 0 {
        return proof.is_empty() && from_root == Hash::of_nothing();
    }
    let (mut node, mut last) = (from - 1, to - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let mut proof = proof.iter().copied();
    let first = if node == 0 { Some(from_root) } else { proof.next() };
    let Some(first) = first else { return false };
    let (mut of_from, mut of_to) = (first, first);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            of_from = Hash::of_children(sibling, of_from);
            of_to = Hash::of_children(sibling, of_to);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            of_to = Hash::of_children(of_to, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && of_from == from_root && of_to == to_root
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::super::root_of;
    use super::*;

    fn leaf(number: u64) -> Hash {
        Hash::of_leaf(&number.to_be_bytes())
    }

    fn root(range: Range<u64>) -> Hash {
        root_of(range.map(leaf))
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_no_other() {
        for size in 0..70 {
            for index in 0..size {
                let proof: Vec<Hash> = inclusion_ranges(index, size).into_iter().map(root).collect();
                assert!(
                    verify_inclusion(leaf(index), index, size, &proof, root(0..size)),
                    "{index} of {size}"
                );
                assert!(!verify_inclusion(leaf(index + 1), index, size, &proof, root(0..size)));
                assert!(!verify_inclusion(leaf(index), index, size, &proof, root(0..size + 1)));
                let longer = [proof, vec![leaf(0)]].concat();
                assert!(!verify_inclusion(leaf(index), index, size, &longer, root(0..size)));
            }
        }
    }

    #[test]
    fn every_tree_is_the_beginning_of_every_later_one() {
        for to in 0..70 {
            for from in 0..=to {
                let proof: Vec<Hash> = consistency_ranges(from, to).into_iter().map(root).collect();
                let (smaller, larger) = ((from, root(0..from)), (to, root(0..to)));
                assert!(verify_consistency(smaller, larger, &proof), "{from} in {to}");
                assert!(!verify_consistency((from, leaf(99)), larger, &proof));
                // Any tree begins with no leaves.
                assert_eq!(verify_consistency(smaller, (to, leaf(99)), &proof), from == 0 && to > 0);
                assert_eq!(verify_consistency(larger, smaller, &proof), from == to);
            }
        }
    }

    /// Parses test vectors; `tests/vectors/merkle/README.md` gives their source.
    fn vectors(file: &str) -> impl Iterator<Item = Value> {
        file.lines().map(|line| serde_json::from_str(line).unwrap())
    }

    fn hash(value: &Value) -> Option<Hash> {
        Hash::from_base64(value.as_str()?)
    }

    fn proof(vector: &Value) -> Option<Vec<Hash>> {
        match vector["proof"].as_array() {
            Some(hashes) => hashes.iter().map(hash).collect(),
            None => Some(Vec::new()),
        }
    }

    fn holds(vector: &Value, verified: impl FnOnce() -> Option<bool>) {
        // One vector accepts any two equal texts as roots; ours have 32 bytes.
        let of_no_hashes = vector["desc"] == "sizes are equal (one) and proof is empty";
        let refused = of_no_hashes || vector["wantErr"].as_bool().unwrap();
        assert_eq!(verified().unwrap_or(false), !refused, "{vector}");
    }

    #[test]
    fn the_public_inclusion_vectors_hold() {
        let mut count = 0;
        for vector in vectors(include_str!("../../tests/vectors/merkle/inclusion.jsonl")) {
            holds(&vector, || {
                let (index, size) = (vector["leafIdx"].as_u64()?, vector["treeSize"].as_u64()?);
                let (leaf, root) = (hash(&vector["leafHash"])?, hash(&vector["root"])?);
                Some(verify_inclusion(leaf, index, size, &proof(&vector)?, root))
            });
            count += 1;
        }
        assert!(count > 50);
    }

    #[test]
    fn the_public_consistency_vectors_hold() {
        let mut count = 0;
        for vector in vectors(include_str!("../../tests/vectors/merkle/consistency.jsonl")) {
            holds(&vector, || {
                let (from, to) = (vector["size1"].as_u64()?, vector["size2"].as_u64()?);
                let (smaller, larger) = (hash(&vector["root1"])?, hash(&vector["root2"])?);
                Some(verify_consistency((from, smaller), (to, larger), &proof(&vector)?))
            });
            count += 1;
        }
        assert!(count > 50);
    }

    #[test]
    fn what_is_no_hash_is_no_proof() {
        assert_eq!(hash(&Value::from(STANDARD.encode([0; 31]))), None);
    }
}
