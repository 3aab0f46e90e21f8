//! Keys of `jwk_url` that are fetched before their time, because a token names one that is not known: one fetch for all who
//! ask meanwhile, and so seldom that no stranger makes us a burden to the identity provider.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};

/// Between two fetches that tokens ask for: six a minute, whoever sends them.
const EVERY: Duration = Duration::from_secs(10);
/// How long a request waits for such a fetch.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many requests wait at once; more are answered as things stand.
const MOST_WAITING: usize = 64;

/// What is asked for, and what became of it.
pub(super) struct Refetch {
    state: Mutex<State>,
    asked: Notify,
    /// How many of the fetches that were asked for have ended.
    ended: watch::Sender<u64>,
    waiting: Semaphore,
    /// Whether the last fetch, asked for or not, has failed.
    failing: AtomicBool,
}

#[derive(Default)]
struct State {
    stage: Stage,
    asked_at: Option<Instant>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// Somebody has asked, and no fetch was begun since.
    Asked,
    Fetching,
}

impl Default for Refetch {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            asked: Notify::new(),
            ended: watch::Sender::new(0),
            waiting: Semaphore::new(MOST_WAITING),
            failing: AtomicBool::new(false),
        }
    }
}

impl Refetch {
    /// Asks for a fetch, or joins the one that was asked for, and waits for its end. Returns at once where there was one a
    /// moment ago.
    pub(super) async fn ask(&self) {
        let Ok(_waits) = self.waiting.try_acquire() else { return };
        let mut ended = {
            let mut state = self.state();
            if state.stage == Stage::Idle {
                if state.asked_at.is_some_and(|at| at.elapsed() < EVERY) {
                    return;
                }
                *state = State { stage: Stage::Asked, asked_at: Some(Instant::now()) };
                self.asked.notify_one();
            }
            self.ended.subscribe()
        };
        let _ = timeout(PATIENCE, ended.changed()).await;
    }

    /// Resolves once a fetch is asked for.
    pub(super) async fn wanted(&self) {
        while self.state().stage != Stage::Asked {
            self.asked.notified().await;
        }
    }

    /// A fetch begins.
    pub(super) fn begins(&self) {
        let mut state = self.state();
        if state.stage == Stage::Asked {
            state.stage = Stage::Fetching;
        }
    }

    /// It has ended.
    pub(super) fn ends(&self, failed: bool) {
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

    /// Fetches whenever it is asked, and counts.
    fn fetching(refetch: &Arc<Refetch>) -> Arc<AtomicUsize> {
        let (refetch, fetches) = (Arc::clone(refetch), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&fetches);
        tokio::spawn(async move {
            loop {
                refetch.wanted().await;
                refetch.begins();
                tokio::time::sleep(Duration::from_millis(100)).await;
                counter.fetch_add(1, Ordering::SeqCst);
                refetch.ends(false);
            }
        });
        fetches
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_at_once_share_one_fetch() {
        let refetch = Arc::new(Refetch::default());
        let fetches = fetching(&refetch);
        let asking = (0..50).map(|_| refetch.ask());
        futures_util::future::join_all(asking).await;
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_without_end_causes_six_fetches_a_minute() {
        let refetch = Arc::new(Refetch::default());
        let fetches = fetching(&refetch);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            refetch.ask().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(fetches.load(Ordering::SeqCst), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_so_many_do_not_wait_and_nobody_waits_for_ever() {
        let refetch = Arc::new(Refetch::default());
        let asking = (0..MOST_WAITING).map(|_| refetch.ask());
        let asking = futures_util::future::join_all(asking);
        let began = Instant::now();
        tokio::join!(asking, async {
            tokio::task::yield_now().await;
            refetch.ask().await;
            assert_eq!(began.elapsed(), Duration::ZERO);
        });
        assert_eq!(began.elapsed(), PATIENCE);
    }
}
