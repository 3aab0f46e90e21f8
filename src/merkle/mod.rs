//! Merkle trees of RFC 6962, section 2.1, over SHA-256: hashes, the frontier for appending, and the
//! subtrees of proofs. Pure: independent of entries, databases and signatures; of a tree it holds
//! only the frontier.

mod frontier;
mod proof;

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::crypto::sha256_of;

pub use frontier::{Frontier, NoFrontier};
pub use proof::{consistency_ranges, inclusion_ranges, verify_consistency, verify_inclusion};

/// The hash of a leaf or of a subtree. Shown in base64, as checkpoints show roots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of a leaf: SHA-256(0x00 ‖ data).
    pub fn of_leaf(data: &[u8]) -> Self {
        Self(sha256_of(&[&[0], data]))
    }

    /// The hash of the node above two subtrees: SHA-256(0x01 ‖ left ‖ right).
    pub fn of_children(left: Self, right: Self) -> Self {
        Self(sha256_of(&[&[1], &left.0, &right.0]))
    }

    /// The root of the tree without leaves: SHA-256 of nothing.
    pub fn of_nothing() -> Self {
        Self(sha256_of(&[]))
    }

    /// Parses canonical base64.
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A complete subtree: the leaves from `index << level` on, 1 << `level` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// The level; 0 for a leaf.
    pub level: u32,
    /// The index among the nodes of its level, from 0.
    pub index: u64,
}

impl Node {
    /// The leaves below the node.
    pub fn leaves(self) -> Range<u64> {
        self.index << self.level..(self.index + 1) << self.level
    }
}

/// The largest complete subtrees that together hold exactly these leaves, from left to right: fewer
/// than twice the number of bits of `leaves.end`.
pub fn cover(leaves: Range<u64>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut at = leaves.start;
    while at < leaves.end {
        let fits = 63 - (leaves.end - at).leading_zeros();
        let level = at.trailing_zeros().min(fits);
        nodes.push(Node { level, index: at >> level });
        at += 1 << level;
    }
    nodes
}

/// The root of a subtree whose leaves begin where a subtree of a tree may begin, from the roots of
/// its [`cover`].
pub fn fold(roots: &[Hash]) -> Hash {
    let mut roots = roots.iter().rev().copied();
    let Some(last) = roots.next() else { return Hash::of_nothing() };
    roots.fold(last, |right, left| Hash::of_children(left, right))
}

/// The root over all these leaves.
pub fn root_of(leaves: impl IntoIterator<Item = Hash>) -> Hash {
    let mut frontier = Frontier::default();
    leaves.into_iter().for_each(|leaf| frontier.append(leaf));
    frontier.root()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf(number: u64) -> Hash {
        Hash::of_leaf(&number.to_be_bytes())
    }

    /// Computes the root as the standard defines it (RFC 6962, 2.1).
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of_nothing(),
            [one] => *one,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                Hash::of_children(mth(&leaves[..split]), mth(&leaves[split..]))
            }
        }
    }

    #[test]
    fn the_root_of_no_leaves_is_the_hash_of_nothing() {
        assert_eq!(root_of([]).to_string(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    proptest! {
        #[test]
        fn a_cover_holds_exactly_its_leaves(start in 0_u64..5_000, length in 0_u64..5_000) {
            let nodes = cover(start..start + length);
            let mut at = start;
            for node in &nodes {
                prop_assert_eq!(node.leaves().start, at);
                at = node.leaves().end;
            }
            prop_assert_eq!(at, start + length);
            prop_assert!(nodes.len() <= 2 * 13);
        }

        #[test]
        fn the_root_is_that_of_the_definition(count in 0_u64..600) {
            let leaves: Vec<Hash> = (0..count).map(leaf).collect();
            prop_assert_eq!(root_of(leaves.iter().copied()), mth(&leaves));
            let of_cover = |node: Node| mth(&leaves[node.leaves().start as usize..node.leaves().end as usize]);
            let roots: Vec<Hash> = cover(0..count).into_iter().map(of_cover).collect();
            prop_assert_eq!(fold(&roots), mth(&leaves));
        }
    }

    #[test]
    fn a_hash_has_one_spelling() {
        let hash = leaf(7);
        assert_eq!(Hash::from_base64(&hash.to_string()), Some(hash));
        let unpadded = hash.to_string().trim_end_matches('=').to_owned();
        for bad in ["", "AAAA", unpadded.as_str()] {
            assert_eq!(Hash::from_base64(bad), None);
        }
    }
}
