//! A value that one task at a time determines for all callers that wait for it, and that remains
//! valid for a moment. So many concurrent callers, or many that hang up early, cause no more work
//! than one caller that asks continuously.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// The number of callers that may wait for one answer. Further callers get the previous answer, or
/// none, because nothing else bounds how many may ask.
const WAITING: usize = 1_024;

/// A question and its last answer.
pub(super) struct SharedCheck<T>(Arc<Inner<T>>);

struct Inner<T> {
    state: Mutex<State<T>>,
    waiting: Semaphore,
}

struct State<T> {
    last: Option<(Instant, T)>,
    /// The channel on which the answer under way will arrive. It closes without an answer if the
    /// task panicked.
    under_way: Option<watch::Receiver<Option<T>>>,
}

impl<T> Default for SharedCheck<T> {
    fn default() -> Self {
        let state = Mutex::new(State { last: None, under_way: None });
        Self(Arc::new(Inner { state, waiting: Semaphore::new(WAITING) }))
    }
}

impl<T: Clone + Send + Sync + 'static> SharedCheck<T> {
    /// Returns an answer that is younger than `fresh`, or determines a new one. That work runs to
    /// its end even if the caller goes away. Returns `None` if the work panics, or if too many
    /// callers wait and there is no earlier answer.
    pub(super) async fn answer<F>(&self, fresh: Duration, find_out: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = {
            let mut state = self.0.state();
            if let Some((_, answer)) = state.last.as_ref().filter(|(when, _)| when.elapsed() < fresh) {
                return Some(answer.clone());
            }
            let under_way = state.under_way.take().filter(|under_way| under_way.has_changed().is_ok());
            state.under_way.insert(under_way.unwrap_or_else(|| self.start(find_out()))).clone()
        };
        match self.0.waiting.try_acquire() {
            Ok(_permit) => under_way.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone()),
            Err(_) => self.last().map(|(_, answer)| answer),
        }
    }

    /// Returns the last answer, however old, and when it was determined.
    pub(super) fn last(&self) -> Option<(Instant, T)> {
        self.0.state().last.clone()
    }

    fn start<F>(&self, finding_out: F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (found, under_way) = watch::channel(None);
        let inner = self.0.clone();
        tokio::spawn(async move {
            let answer = finding_out.await;
            *inner.state() = State { last: Some((Instant::now(), answer.clone())), under_way: None };
            let _ = found.send(Some(answer));
        });
        under_way
    }
}

impl<T> Inner<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::{BoxFuture, join_all};

    use super::*;

    const MOMENT: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(30);

    /// Returns how often it was asked, after a long time.
    #[derive(Clone, Default)]
    struct Slow(Arc<AtomicU32>);

    impl Slow {
        async fn count(self) -> u32 {
            let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(LONG).await;
            count
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_one_answer_which_is_cached_briefly() {
        let (shared_check, slow) = (SharedCheck::default(), Slow::default());
        let ask = || shared_check.answer(MOMENT, || slow.clone().count());
        assert_eq!(join_all((0..100).map(|_| ask())).await, vec![Some(1); 100]);
        assert_eq!(ask().now_or_never(), Some(Some(1)));
        tokio::time::advance(MOMENT).await;
        assert_eq!(ask().await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_hangs_up_does_not_stop_the_check() {
        let (shared_check, slow) = (SharedCheck::default(), Slow::default());
        for _ in 0..50 {
            let asked = shared_check.answer(MOMENT, || slow.clone().count());
            assert!(tokio::time::timeout(LONG / 100, asked).await.is_err());
        }
        assert_eq!(shared_check.answer(MOMENT, || slow.clone().count()).await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_waits_and_others_get_the_last_finding() {
        let (shared_check, slow) = (SharedCheck::default(), Slow::default());
        let ask = || shared_check.answer(MOMENT, || slow.clone().count()).boxed();
        let answered = |waiting: &mut Vec<BoxFuture<'_, Option<u32>>>| -> Vec<Option<u32>> {
            waiting.iter_mut().filter_map(|one| std::pin::Pin::new(one).now_or_never()).collect()
        };
        let mut waiting: Vec<_> = (0..WAITING + 10).map(|_| ask()).collect();
        assert_eq!(answered(&mut waiting), vec![None; 10]);
        waiting.truncate(WAITING);
        assert_eq!(join_all(waiting).await, vec![Some(1); WAITING]);
        tokio::time::advance(MOMENT).await;
        let mut waiting: Vec<_> = (0..WAITING + 10).map(|_| ask()).collect();
        assert_eq!(answered(&mut waiting), vec![Some(1); 10]);
    }

    #[tokio::test]
    async fn what_could_not_be_found_out_is_asked_again() {
        let shared_check = SharedCheck::default();
        assert_eq!(shared_check.answer(MOMENT, || async { panic!("it fails") }).await, None::<u32>);
        assert_eq!(shared_check.answer(MOMENT, || async { 7 }).await, Some(7));
    }
}
