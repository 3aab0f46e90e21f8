//! Turns of work that runs beside requests, so that no tenant's work waits for another tenant's to
//! end. Each key, usually a tenant, has one task, which waits for its turn in the order of arrival.
//! A bounded number of tasks work at once; one that is stuck gives up its turn to the next.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// How many tasks work at once. The jobs share the database's connections with calls.
const AT_ONCE: usize = 8;
/// How many tasks that are stuck work on beside them. Past these, the next ones keep their turns.
const STUCK_AT_ONCE: usize = 256;
/// How long a task may work while others wait.
const TURN: Duration = Duration::from_secs(10);
/// The time after which a task that should have ended its turn is stuck in a step; up to twice as
/// long if nobody waited at first.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// The tasks of one job. They go on when this is dropped.
pub struct Turns<K> {
    tasks: HashMap<K, JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    turns: Arc<Semaphore>,
    stuck: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The turn of one task.
pub struct Turn {
    began: Instant,
    shared: Arc<Shared>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        let shared = Shared { turns: of(AT_ONCE), stuck: of(STUCK_AT_ONCE), waiting: AtomicUsize::new(0) };
        Self { tasks: HashMap::new(), shared: Arc::new(shared) }
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Starts a task for each of these keys that has none. It runs the work when its turn comes.
    pub fn start<F, W>(&mut self, works: impl IntoIterator<Item = (K, F)>)
    where
        F: FnOnce(Turn) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        self.tasks.retain(|_, task| !task.is_finished());
        for (key, work) in works {
            let shared = &self.shared;
            self.tasks.entry(key).or_insert_with(|| tokio::spawn(run(shared.clone(), work)));
        }
    }

    /// Waits until all tasks have ended.
    pub async fn end(self) {
        for (_, task) in self.tasks {
            let _ = task.await;
        }
    }
}

impl Turn {
    /// Returns whether the task should end, because it has worked for long and others wait. Its key
    /// gets another turn after them.
    pub fn is_over(&self) -> bool {
        self.began.elapsed() >= TURN && self.shared.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Runs work when its turn comes.
async fn run<F, W>(shared: Arc<Shared>, work: F)
where
    F: FnOnce(Turn) -> W,
    W: Future<Output = ()>,
{
    shared.waiting.fetch_add(1, Ordering::Relaxed);
    let turn = shared.turns.clone().acquire_owned().await;
    shared.waiting.fetch_sub(1, Ordering::Relaxed);
    // The semaphore is never closed.
    let Ok(permit) = turn else { return };
    let mut work = pin!(work(Turn { began: Instant::now(), shared: shared.clone() }));
    // As long as nobody waits, long work is not stuck: it has had no reason to end its turn.
    let mut others_waited = false;
    while !others_waited {
        others_waited = shared.waiting.load(Ordering::Relaxed) > 0;
        if timeout(STUCK_AFTER, work.as_mut()).await.is_ok() {
            return;
        }
    }
    // Work is not cancelled: a KMS call that was sent costs, whether it is waited for or not.
    match shared.stuck.clone().try_acquire_owned() {
        Ok(_stuck) => {
            drop(permit);
            work.await;
        }
        Err(_) => work.await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use super::*;

    /// The keys whose work has begun.
    type Begun = Arc<Mutex<Vec<usize>>>;

    /// Starts work that notes its key, and hangs for these keys.
    fn start(
        turns: &mut Turns<usize>,
        keys: std::ops::Range<usize>,
        begun: &Begun,
        hangs: fn(usize) -> bool,
    ) {
        turns.start(keys.map(|key| {
            let begun = begun.clone();
            let work = move |_: Turn| async move {
                begun.lock().unwrap().push(key);
                if hangs(key) {
                    pending().await
                }
            };
            (key, work)
        }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_gives_up_the_turn_to_the_next() {
        let (mut turns, begun) = (Turns::default(), Begun::default());
        start(&mut turns, 0..AT_ONCE + 1, &begun, |key| key < AT_ONCE);
        tokio::time::sleep(STUCK_AFTER / 2).await;
        assert_eq!(begun.lock().unwrap().len(), AT_ONCE, "no more than these at once");
        tokio::time::sleep(2 * STUCK_AFTER).await;
        assert_eq!(begun.lock().unwrap().last(), Some(&AT_ONCE));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_delays_no_other_and_has_one_task() {
        let (mut turns, begun) = (Turns::default(), Begun::default());
        for _ in 0..3 {
            start(&mut turns, 0..2, &begun, |key| key == 0);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(*begun.lock().unwrap(), [0, 1, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_over_only_while_others_wait() {
        let mut turns = Turns::default();
        let ended = Arc::new(AtomicUsize::new(0));
        let mut works = |keys: std::ops::Range<usize>| {
            turns.start(keys.map(|key| {
                let ended = ended.clone();
                let work = move |turn: Turn| async move {
                    while !turn.is_over() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    ended.fetch_add(1, Ordering::Relaxed);
                };
                (key, work)
            }));
        };
        works(0..AT_ONCE);
        tokio::time::sleep(TURN + TURN / 2).await;
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        works(0..AT_ONCE + 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(ended.load(Ordering::Relaxed) > 0);
    }
}
