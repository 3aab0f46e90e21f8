//! Work that concurrent calls share. The first call starts it, and the others wait for its result.
//! Results are not remembered: the next call after the end starts the work again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The work that is under way, by its key.
pub(super) struct SingleFlight<K: Eq + Hash, T>(Arc<UnderWay<K, T>>);

/// The receiver on which calls wait for a result; `None` until it is there.
type Awaited<T> = watch::Receiver<Option<T>>;

/// The sender of the result, and the guard that lets others join, for work that begins now.
type Begun<K, T> = (watch::Sender<Option<T>>, Joinable<K, T>);

struct UnderWay<K, T>(Mutex<HashMap<K, Awaited<T>>>);

/// A guard: until it is dropped, further calls join the work.
pub(super) struct Joinable<K: Eq + Hash, T> {
    under_way: Arc<UnderWay<K, T>>,
    key: K,
}

impl<K: Eq + Hash, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self(Arc::new(UnderWay(Mutex::default())))
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work for this key, or starts it if there is none to join, and returns its result.
    /// It runs to its end even if every caller hangs up. Returns `None` if it panics.
    pub(super) async fn run<F>(&self, key: K, work: impl FnOnce(Joinable<K, T>) -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut result, begun) = self.join(key);
        if let Some((sender, joinable)) = begun {
            let work = work(joinable);
            tokio::spawn(async move {
                let result = work.await;
                let _ = sender.send(Some(result));
            });
        }
        result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }

    /// Returns the receiver of the result and, if the work has not begun, what it needs to begin.
    fn join(&self, key: K) -> (Awaited<T>, Option<Begun<K, T>>) {
        let mut under_way = self.0.lock();
        if let Some(result) = under_way.get(&key) {
            return (result.clone(), None);
        }
        let (sender, result) = watch::channel(None);
        under_way.insert(key.clone(), result.clone());
        (result, Some((sender, Joinable { under_way: self.0.clone(), key })))
    }
}

impl<K, T> UnderWay<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Awaited<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Drop for Joinable<K, T> {
    /// Ends the joining, also after a panic, so that no call waits for work that is gone.
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// Work that takes long, and returns how often it was started.
    #[derive(Default)]
    struct Counted {
        flights: SingleFlight<u8, usize>,
        started: Arc<AtomicUsize>,
    }

    impl Counted {
        async fn run(&self, key: u8) -> Option<usize> {
            self.flights
                .run(key, |joinable| {
                    let started = self.started.clone();
                    async move {
                        let _joinable = joinable;
                        let started = started.fetch_add(1, Ordering::SeqCst) + 1;
                        sleep(LONG).await;
                        started
                    }
                })
                .await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_calls_share_the_work_and_later_ones_begin_anew() {
        let counted = Counted::default();
        assert_eq!(join_all((0..100).map(|_| counted.run(1))).await, vec![Some(1); 100]);
        assert_eq!(counted.run(1).await, Some(2));
        assert_eq!(tokio::join!(counted.run(1), counted.run(2)), (Some(3), Some(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_hangs_up_ends_nothing_for_the_others() {
        let counted = Counted::default();
        for _ in 0..9 {
            assert!(timeout(LONG / 10, counted.run(1)).await.is_err());
        }
        assert_eq!(counted.run(1).await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_no_longer_joinable_is_begun_anew() {
        let flights = SingleFlight::default();
        let first = flights.run(1, |joinable| async move {
            drop(joinable);
            sleep(LONG).await;
            "first"
        });
        let second = async {
            sleep(LONG / 2).await;
            flights.run(1, |_| async { "second" }).await
        };
        assert_eq!(tokio::join!(first, second), (Some("first"), Some("second")));
    }

    #[tokio::test]
    async fn work_that_panics_is_begun_anew_by_the_next_call() {
        let flights = SingleFlight::default();
        let fails = flights.run(1, |joinable| async move {
            let _joinable = joinable;
            panic!("it fails")
        });
        assert_eq!(fails.await, None::<u32>);
        assert_eq!(flights.run(1, |_| async { 7 }).await, Some(7));
    }
}
