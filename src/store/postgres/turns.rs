//! Turns at the connections that read. Many simultaneous readers are no outage: they queue. A
//! reader that would wait longer than a call can is rejected at once, before it costs anything.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// The longest time to wait for a turn.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

pub(super) struct Turns {
    /// One permit per connection: a reader that has one waits for no other reader any more.
    free: Semaphore,
    most: usize,
    waiting: AtomicUsize,
    /// The average duration of a turn, in microseconds. Recent turns count most.
    usual: AtomicU64,
}

/// A turn, which ends when this value is dropped.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    began: Instant,
    _free: SemaphorePermit<'t>,
}

impl Turns {
    pub(super) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(1);
        Self { free: Semaphore::new(most), most, waiting: AtomicUsize::new(0), usual: AtomicU64::new(0) }
    }

    /// Waits for a turn. Returns `None` if there is none in time, or if there would be none.
    pub(super) async fn take(&self) -> Option<Turn<'_>> {
        let turn = |free| Turn { turns: self, began: Instant::now(), _free: free };
        if let Ok(free) = self.free.try_acquire() {
            return Some(turn(free));
        }
        let waiting = Waiting::among(&self.waiting);
        if self.expected(waiting.place) > PATIENCE {
            return None;
        }
        timeout(PATIENCE, self.free.acquire()).await.ok()?.ok().map(turn)
    }

    /// Returns the time until all readers up to this position in the queue have had their turn.
    fn expected(&self, place: usize) -> Duration {
        let rounds = u64::try_from(place.div_ceil(self.most)).unwrap_or(u64::MAX);
        Duration::from_micros(self.usual.load(Ordering::Relaxed).saturating_mul(rounds))
    }

    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual.store(usual - usual / 8 + took / 8, Ordering::Relaxed);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.note(self.began.elapsed());
    }
}

/// A waiting reader, at a position in the queue counted from 1.
struct Waiting<'w> {
    waiting: &'w AtomicUsize,
    place: usize,
}

impl<'w> Waiting<'w> {
    fn among(waiting: &'w AtomicUsize) -> Self {
        Self { waiting, place: waiting.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_comes_while_all_are_taken_waits_for_the_first_free() {
        let turns = Turns::new(1);
        let first = turns.take().await.unwrap();
        let mut second = std::pin::pin!(turns.take());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn who_would_wait_for_too_long_is_turned_away_at_once() {
        let turns = Turns::new(2);
        let _all = (turns.take().await.unwrap(), turns.take().await.unwrap());
        for _ in 0..100 {
            turns.note(Duration::from_secs(5));
        }
        let mut waiting = [(); 2].map(|()| Box::pin(turns.take()));
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()), "one round of 5 s");
        assert!(turns.take().now_or_never().unwrap().is_none(), "two rounds");
        drop(waiting);
        assert!(turns.take().now_or_never().is_none(), "who has left is not waited for");
    }
}
