//! The bytes that each user and each connection holds: at most half of what the others leave free,
//! so that a newcomer always finds room. The counters are atomic, so that requests never wait for
//! each other here.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of counters. Names whose hashes collide share one; the hash is keyed, so nobody can
/// choose a collision.
const COUNTERS: usize = 4_096;

/// The counter of one user or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(usize);

/// The bytes held, by user and connection.
pub(super) struct Shares {
    max: usize,
    held: Box<[AtomicUsize]>,
    hasher: RandomState,
}

impl Shares {
    /// No shares at all.
    pub(super) fn none() -> Self {
        Self { max: 0, held: Box::default(), hasher: RandomState::new() }
    }

    /// Shares of `max` bytes.
    pub(super) fn of(max: usize) -> Self {
        let held = (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect();
        Self { max, held, hasher: RandomState::new() }
    }

    /// The share of the user or connection with this name.
    pub(super) fn share(&self, name: impl Hash) -> Share {
        // The remainder is below `COUNTERS`.
        Share((self.hasher.hash_one(name) % COUNTERS as u64) as usize)
    }

    /// Adds the bytes to each of these shares, if each stays within half of what the others leave
    /// free; otherwise to none. `all_held` is what everybody holds, these bytes included.
    pub(super) fn try_acquire(&self, shares: &[Share], bytes: usize, all_held: usize) -> bool {
        for (acquired, share) in shares.iter().enumerate() {
            let mine = self.held[share.0].fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            let others = all_held.saturating_sub(mine);
            if mine > self.max.saturating_sub(others) / 2 {
                self.release(&shares[..=acquired], bytes);
                return false;
            }
        }
        true
    }

    /// Adds the bytes to each of these shares, even beyond its limit.
    pub(super) fn acquire_anyway(&self, shares: &[Share], bytes: usize) {
        for share in shares {
            self.held[share.0].fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Subtracts the bytes from each of these shares.
    pub(super) fn release(&self, shares: &[Share], bytes: usize) {
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
            assert!(!shares.try_acquire(&[*user], half + 1, all + half + 1));
            assert!(shares.try_acquire(&[*user], half, all + half));
            all += half;
            assert!(!shares.try_acquire(&[*user], 1, all + 1), "that is all");
        }
        shares.release(&users[..1], 512);
        assert!(shares.try_acquire(&users[3..], 200, all - 512 + 200));
    }

    #[test]
    fn a_refusal_by_one_share_takes_nothing_of_another() {
        let shares = Shares::of(100);
        let (user, connection) = (Share(1), Share(2));
        assert!(shares.try_acquire(&[connection], 40, 40));
        assert!(!shares.try_acquire(&[user, connection], 20, 60));
        assert_eq!(shares.held[1].load(Ordering::Relaxed), 0);
        assert!(shares.try_acquire(&[user], 30, 70));
    }
}
