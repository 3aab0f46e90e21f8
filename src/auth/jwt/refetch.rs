//! Early fetches of the keys of `jwk_url`, made when a token names an unknown key. Concurrent
//! requests share one fetch, and the rate is limited, so that nobody can use this server to
//! overload the identity provider.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};

/// The shortest time between two early fetches: six a minute for the tokens of all senders.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a request waits for such a fetch.
const MAX_WAIT: Duration = Duration::from_secs(3);
/// The most requests that wait at once; further ones are answered without waiting.
const MAX_WAITING: usize = 64;

/// The state of early fetches.
pub(super) struct Refetch {
    state: Mutex<State>,
    requested: Notify,
    /// The number of early fetches that have ended.
    ended: watch::Sender<u64>,
    waiting: Semaphore,
    /// Whether the last fetch, early or not, has failed.
    failing: AtomicBool,
}

#[derive(Default)]
struct State {
    stage: Stage,
    requested_at: Option<Instant>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// Requested, and not begun since.
    Requested,
    Fetching,
}

impl Default for Refetch {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            requested: Notify::new(),
            ended: watch::Sender::new(0),
            waiting: Semaphore::new(MAX_WAITING),
            failing: AtomicBool::new(false),
        }
    }
}

impl Refetch {
    /// Requests a fetch, or joins one already requested, and waits for its end. Returns at once if
    /// one was requested less than [`INTERVAL`] ago.
    pub(super) async fn request(&self) {
        let Ok(_permit) = self.waiting.try_acquire() else { return };
        let mut ended = {
            let mut state = self.state();
            if state.stage == Stage::Idle {
                if state.requested_at.is_some_and(|at| at.elapsed() < INTERVAL) {
                    return;
                }
                *state = State { stage: Stage::Requested, requested_at: Some(Instant::now()) };
                self.requested.notify_one();
            }
            self.ended.subscribe()
        };
        let _ = timeout(MAX_WAIT, ended.changed()).await;
    }

    /// Resolves once a fetch is requested.
    pub(super) async fn requested(&self) {
        while self.state().stage != Stage::Requested {
            self.requested.notified().await;
        }
    }

    /// Records that a fetch begins.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        if state.stage == Stage::Requested {
            state.stage = Stage::Fetching;
        }
    }

    /// Records that the fetch has ended.
    pub(super) fn end(&self, failed: bool) {
        self.failing.store(failed, Ordering::Relaxed);
        let mut state = self.state();
        if state.stage == Stage::Fetching {
            state.stage = Stage::Idle;
            self.ended.send_modify(|ended| *ended += 1);
        }
    }

    /// Whether the last fetch has failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Fetches at each request, and counts the fetches.
    fn fetching(refetch: &Arc<Refetch>) -> Arc<AtomicUsize> {
        let (refetch, fetches) = (Arc::clone(refetch), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&fetches);
        tokio::spawn(async move {
            loop {
                refetch.requested().await;
                refetch.begin();
                tokio::time::sleep(Duration::from_millis(100)).await;
                counter.fetch_add(1, Ordering::SeqCst);
                refetch.end(false);
            }
        });
        fetches
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_fetch() {
        let refetch = Arc::new(Refetch::default());
        let fetches = fetching(&refetch);
        let asking = (0..50).map(|_| refetch.request());
        futures_util::future::join_all(asking).await;
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn endless_requests_cause_six_fetches_a_minute() {
        let refetch = Arc::new(Refetch::default());
        let fetches = fetching(&refetch);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            refetch.request().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(fetches.load(Ordering::SeqCst), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_waiting_requests_and_their_wait_are_limited() {
        let refetch = Arc::new(Refetch::default());
        let asking = (0..MAX_WAITING).map(|_| refetch.request());
        let asking = futures_util::future::join_all(asking);
        let began = Instant::now();
        tokio::join!(asking, async {
            tokio::task::yield_now().await;
            refetch.request().await;
            assert_eq!(began.elapsed(), Duration::ZERO);
        });
        assert_eq!(began.elapsed(), MAX_WAIT);
    }
}
