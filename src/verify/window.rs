//! The leaves since the last root that held. If the next root does not hold, they may show why.

use crate::merkle::{Frontier, Hash};

/// The number of leaves that are remembered.
const LEAVES: usize = 4_096;
/// The number of hashes that a search may cost.
const BUDGET: usize = 4 << 20;

pub(super) struct Window {
    /// The tree whose root held.
    pub(super) base: Frontier,
    leaves: Vec<(Hash, bool)>,
    /// Whether the leaves are all that came since then.
    whole: bool,
}

impl Window {
    pub(super) fn after(base: Frontier) -> Self {
        Self { base, leaves: Vec::new(), whole: true }
    }

    /// Remembers a leaf, and whether the time of its entry is odd.
    pub(super) fn push(&mut self, leaf: Hash, odd: bool) {
        if self.whole && self.leaves.len() < LEAVES {
            self.leaves.push((leaf, odd));
        } else {
            self.skip();
        }
    }

    /// Notes that something came that is not a leaf, or one leaf too many.
    pub(super) fn skip(&mut self) {
        self.whole = false;
        self.leaves = Vec::new();
    }

    /// Returns the leaves whose time is odd, by their index in the log.
    pub(super) fn odd(&self) -> Vec<u64> {
        let odd = self.leaves.iter().zip(self.base.size()..).filter(|((_, odd), _)| *odd);
        odd.map(|(_, leaf)| leaf).collect()
    }

    /// Returns the two leaves, by their index in the log, that give this root if they are swapped,
    /// and the resulting tree. It tries pairs that are close together first, and gives up when the
    /// search gets too expensive.
    pub(super) fn swapped(&self, root: Hash) -> Option<(u64, u64, Frontier)> {
        let mut leaves: Vec<Hash> = self.leaves.iter().map(|(leaf, _)| *leaf).collect();
        let mut spent = 0;
        for apart in 1..leaves.len() {
            let mut before = self.base.clone();
            for low in 0..leaves.len() - apart {
                let high = low + apart;
                spent += leaves.len() - low;
                if spent > BUDGET {
                    return None;
                }
                if leaves[low] != leaves[high] {
                    leaves.swap(low, high);
                    let mut frontier = before.clone();
                    leaves[low..].iter().for_each(|leaf| frontier.append(*leaf));
                    leaves.swap(low, high);
                    if frontier.root() == root {
                        let start = self.base.size();
                        return Some((start + low as u64, start + high as u64, frontier));
                    }
                }
                before.append(leaves[low]);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::root_of;

    fn leaf(number: u64) -> Hash {
        Hash::of_leaf(&number.to_be_bytes())
    }

    #[test]
    fn two_leaves_in_each_others_place_are_found() {
        let mut base = Frontier::default();
        (0..13).for_each(|number| base.append(leaf(number)));
        let root = root_of((0..90).map(leaf));
        for (low, high) in [(13, 14), (20, 88), (88, 89), (13, 89)] {
            let mut window = Window::after(base.clone());
            for number in 13..90 {
                let swapped = match number {
                    _ if number == low => high,
                    _ if number == high => low,
                    _ => number,
                };
                window.push(leaf(swapped), false);
            }
            let (one, other, tree) = window.swapped(root).unwrap();
            assert_eq!((one, other, tree.root()), (low, high, root));
        }
    }

    #[test]
    fn what_is_no_swap_is_none() {
        let mut window = Window::after(Frontier::default());
        (0..50).for_each(|number| window.push(leaf(number + 1), false));
        assert!(window.swapped(root_of((0..50).map(leaf))).is_none());
        (0..5_000).for_each(|number| window.push(leaf(number), false));
        assert!(window.swapped(leaf(1)).is_none());
    }
}
