//! The right edge of a tree, which suffices to append leaves.

use std::fmt;

use super::{Hash, cover, fold};

/// The frontier of a tree: the roots of its largest complete subtrees, from left to right, one for
/// each bit that is set in its size.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

/// The number of hashes does not match the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrontier;

impl Frontier {
    /// The frontier of a tree with this many leaves and these roots of subtrees.
    ///
    /// # Errors
    /// [`NoFrontier`].
    pub fn new(size: u64, roots: Vec<Hash>) -> Result<Self, NoFrontier> {
        if roots.len() == size.count_ones() as usize { Ok(Self { size, roots }) } else { Err(NoFrontier) }
    }

    /// Parses the form of [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`NoFrontier`].
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Result<Self, NoFrontier> {
        let (roots, []) = bytes.as_chunks() else { return Err(NoFrontier) };
        Self::new(size, roots.iter().copied().map(Hash).collect())
    }

    /// The roots, one after the other.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|root| root.0).collect()
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of its largest complete subtrees, from left to right.
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        fold(&self.roots)
    }

    /// Adds a leaf, with one hash for each trailing one bit of the size.
    pub fn append(&mut self, leaf: Hash) {
        let mut root = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                root = Hash::of_children(left, root);
            }
        }
        self.roots.push(root);
        self.size += 1;
    }

    /// Adds `count` leaves, given by the roots of their [`cover`].
    ///
    /// # Errors
    /// [`NoFrontier`]: the number of roots does not match.
    pub fn append_cover(&mut self, count: u64, roots: &[Hash]) -> Result<(), NoFrontier> {
        let end = self.size.checked_add(count).ok_or(NoFrontier)?;
        let nodes = cover(self.size..end);
        if nodes.len() != roots.len() {
            return Err(NoFrontier);
        }
        for (node, root) in nodes.iter().zip(roots) {
            let mut root = *root;
            for _ in 0..(self.size >> node.level).trailing_ones() {
                let left = self.roots.pop().ok_or(NoFrontier)?;
                root = Hash::of_children(left, root);
            }
            self.roots.push(root);
            self.size += 1 << node.level;
        }
        Ok(())
    }
}

impl fmt::Debug for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leaves, root {}", self.size, self.root())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Node, root_of};
    use super::*;

    fn leaf(number: u64) -> Hash {
        Hash::of_leaf(&number.to_be_bytes())
    }

    fn of(count: u64) -> Frontier {
        let mut frontier = Frontier::default();
        (0..count).for_each(|number| frontier.append(leaf(number)));
        frontier
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        for count in [0, 1, 2, 3, 7, 8, 255, 256, 1_000] {
            let frontier = of(count);
            assert_eq!(Frontier::from_bytes(count, &frontier.to_bytes()), Ok(frontier));
        }
        assert_eq!(Frontier::from_bytes(1, &[0; 31]), Err(NoFrontier));
        assert_eq!(Frontier::from_bytes(3, &[0; 32]), Err(NoFrontier));
    }

    #[test]
    fn whole_subtrees_are_added_like_their_leaves() {
        let root = |node: Node| root_of(node.leaves().map(leaf));
        for (start, count) in [(0, 0), (0, 13), (1, 1), (5, 300), (256, 256), (300, 724), (511, 2)] {
            let mut frontier = of(start);
            let roots: Vec<Hash> = cover(start..start + count).into_iter().map(root).collect();
            assert_eq!(frontier.append_cover(count, &roots), Ok(()));
            assert_eq!(frontier, of(start + count));
            assert_eq!(frontier.append_cover(1, &[]), Err(NoFrontier));
        }
    }
}
