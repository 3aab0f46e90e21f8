//! Calls at a fixed rate, each begun when it is due, whether or not those before it have been answered: a server that stalls for
//! a second is late for all calls of that second, and not only for the one that it was asked.

use std::time::{Duration, Instant};

use byok::model::ErrorCode;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// What became of the calls.
pub(crate) struct Offered {
    /// From when each was due until it was answered, in order.
    waits: Vec<Duration>,
    pub(crate) refused: usize,
}

/// Offers calls, which are numbered from 0, for so long; and waits for the last answer.
pub(crate) async fn offer<F>(
    per_second: f64,
    window: Duration,
    call: impl Fn(u64) -> F + Send + 'static,
) -> Offered
where
    F: Future<Output = Result<(), ErrorCode>> + Send + 'static,
{
    let runtime = Handle::current();
    // On a thread of its own: timers of the runtime are to the millisecond, and late when it is busy.
    let offering = tokio::task::spawn_blocking(move || {
        let mut calls = JoinSet::new();
        let begin = Instant::now();
        for number in 0..(per_second * window.as_secs_f64()) as u64 {
            let due = begin + Duration::from_secs_f64(number as f64 / per_second);
            let early = due.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            let answer = call(number);
            let call = async move {
                let answer = answer.await;
                (due.elapsed(), answer)
            };
            calls.spawn_on(call, &runtime);
        }
        calls
    });
    let answered = offering.await.expect("nothing panics here").join_all().await;
    let refused = answered.iter().filter(|(_, answer)| answer.is_err()).count();
    let mut waits: Vec<_> = answered.into_iter().map(|(wait, _)| wait).collect();
    waits.sort_unstable();
    Offered { waits, refused }
}

impl Offered {
    pub(crate) fn calls(&self) -> usize {
        self.waits.len()
    }

    /// The wait that this part of all calls did not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, part: f64) -> f64 {
        let place = (self.waits.len().saturating_sub(1) as f64 * part).round() as usize;
        self.waits.get(place).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
    }
}
