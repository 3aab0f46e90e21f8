//! ReadQueue at the connections that read. Many simultaneous readers are no outage: they queue. A
//! reader that would wait longer than a call can is rejected at once, before it costs anything.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// The longest time to wait for a permit.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Readers that use a connection, and those that wait for one.
pub(super) struct ReadQueue {
    /// One permit per connection: a reader that has one waits for no other reader any more.
    permits: Semaphore,
    connections: usize,
    waiting: AtomicUsize,
    /// The average duration of a read, in microseconds. Recent reads count most.
    average: AtomicU64,
}

/// The permission to read, which ends when this value is dropped.
pub(super) struct ReadPermit<'q> {
    queue: &'q ReadQueue,
    began: Instant,
    _permit: SemaphorePermit<'q>,
}

impl ReadQueue {
    pub(super) fn new(connections: u32) -> Self {
        let connections = usize::try_from(connections).unwrap_or(1);
        let (waiting, average) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { permits: Semaphore::new(connections), connections, waiting, average }
    }

    /// Waits for a permit. Returns `None` if there is none in time, or if there would be none.
    pub(super) async fn acquire(&self) -> Option<ReadPermit<'_>> {
        let permit = |permit| ReadPermit { queue: self, began: Instant::now(), _permit: permit };
        if let Ok(free) = self.permits.try_acquire() {
            return Some(permit(free));
        }
        let waiting = Waiting::among(&self.waiting);
        if self.expected_wait(waiting.position) > LONGEST_WAIT {
            return None;
        }
        timeout(LONGEST_WAIT, self.permits.acquire()).await.ok()?.ok().map(permit)
    }

    /// Returns the time until all readers up to this position in the queue have read.
    fn expected_wait(&self, position: usize) -> Duration {
        let rounds = u64::try_from(position.div_ceil(self.connections)).unwrap_or(u64::MAX);
        Duration::from_micros(self.average.load(Ordering::Relaxed).saturating_mul(rounds))
    }

    fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let average = self.average.load(Ordering::Relaxed);
        self.average.store(average - average / 8 + took / 8, Ordering::Relaxed);
    }
}

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        self.queue.record(self.began.elapsed());
    }
}

/// A waiting reader, at a position in the queue counted from 1.
struct Waiting<'w> {
    waiting: &'w AtomicUsize,
    position: usize,
}

impl<'w> Waiting<'w> {
    fn among(waiting: &'w AtomicUsize) -> Self {
        Self { waiting, position: waiting.fetch_add(1, Ordering::Relaxed) + 1 }
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
    async fn a_reader_waits_while_all_connections_are_in_use() {
        let queue = ReadQueue::new(1);
        let first = queue.acquire().await.unwrap();
        let mut second = std::pin::pin!(queue.acquire());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn a_reader_that_would_wait_too_long_is_rejected_at_once() {
        let queue = ReadQueue::new(2);
        let _all = (queue.acquire().await.unwrap(), queue.acquire().await.unwrap());
        for _ in 0..100 {
            queue.record(Duration::from_secs(5));
        }
        let mut waiting = [(); 2].map(|()| Box::pin(queue.acquire()));
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()), "one round of 5 s");
        assert!(queue.acquire().now_or_never().unwrap().is_none(), "two rounds");
        drop(waiting);
        assert!(queue.acquire().now_or_never().is_none(), "a reader that has left is not waited for");
    }
}
