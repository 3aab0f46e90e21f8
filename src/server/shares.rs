//! What each user, and each connection, holds of the server's bytes: never more than half of what the others leave, so that
//! whoever comes finds room. Counters without a lock: a request that holds little must not wait for another one here.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many counters there are. Two who have the same one share it; nobody can choose theirs.
const COUNTERS: usize = 4_096;

/// One who holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(usize);

/// Who holds how much of an amount.
pub(super) struct Shares {
    most: usize,
    held: Box<[AtomicUsize]>,
    hasher: RandomState,
}

impl Shares {
    /// Where nobody has a share.
    pub(super) fn none() -> Self {
        Self { most: 0, held: Box::default(), hasher: RandomState::new() }
    }

    /// Of so many bytes.
    pub(super) fn of(most: usize) -> Self {
        let held = (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect();
        Self { most, held, hasher: RandomState::new() }
    }

    /// The share of whoever has this name.
    pub(super) fn share(&self, name: impl Hash) -> Share {
        // The remainder is below `COUNTERS`.
        Share((self.hasher.hash_one(name) % COUNTERS as u64) as usize)
    }

    /// Takes so many bytes for each of these, where all that is held (these included) would leave it to them; else takes
    /// nothing.
    pub(super) fn take(&self, shares: &[Share], bytes: usize, all_held: usize) -> bool {
        for (taken, share) in shares.iter().enumerate() {
            let mine = self.held[share.0].fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            let others = all_held.saturating_sub(mine);
            if mine > self.most.saturating_sub(others) / 2 {
                self.give(&shares[..=taken], bytes);
                return false;
            }
        }
        true
    }

    /// Takes so many bytes for each of these in any case.
    pub(super) fn take_anyway(&self, shares: &[Share], bytes: usize) {
        for share in shares {
            self.held[share.0].fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Gives so many bytes of each of these back.
    pub(super) fn give(&self, shares: &[Share], bytes: usize) {
        for share in shares {
            self.held[share.0].fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_half_of_what_the_others_leave() {
        let shares = Shares::of(1_024);
        let users: Vec<Share> = (0..4).map(Share).collect();
        let mut all = 0;
        for (user, half) in users.iter().zip([512, 256, 128, 64]) {
            assert!(!shares.take(&[*user], half + 1, all + half + 1));
            assert!(shares.take(&[*user], half, all + half));
            all += half;
            assert!(!shares.take(&[*user], 1, all + 1), "that is all");
        }
        shares.give(&users[..1], 512);
        assert!(shares.take(&users[3..], 200, all - 512 + 200));
    }

    #[test]
    fn who_is_refused_by_one_share_takes_nothing_of_another() {
        let shares = Shares::of(100);
        let (user, connection) = (Share(1), Share(2));
        assert!(shares.take(&[connection], 40, 40));
        assert!(!shares.take(&[user, connection], 20, 60));
        assert_eq!(shares.held[1].load(Ordering::Relaxed), 0);
        assert!(shares.take(&[user], 30, 70));
    }
}
