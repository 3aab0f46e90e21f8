//! An open-loop load: each call begins when it is due, whether or not the calls before it have been
//! answered. If the server stalls for a second, every call that was due in that second has a long
//! latency, not only the first.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use byok::model::ErrorCode;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// The answers to all calls of a load.
pub(crate) struct Answers {
    /// The time from when each call was due until its answer, sorted.
    latencies: Vec<Duration>,
    /// The number of refused calls by error code.
    pub(crate) refusals: BTreeMap<&'static str, usize>,
}

/// Makes calls, numbered from 0, at this rate for this long. Returns once all are answered.
pub(crate) async fn open_loop<F>(
    per_second: f64,
    window: Duration,
    call: impl Fn(u64) -> F + Send + 'static,
) -> Answers
where
    F: Future<Output = Result<(), ErrorCode>> + Send + 'static,
{
    let runtime = Handle::current();
    // A thread of its own keeps the schedule: the runtime's timers have a resolution of 1 ms, and
    // are late when it is busy.
    let schedule = tokio::task::spawn_blocking(move || {
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
    let answers = schedule.await.expect("the schedule does not panic").join_all().await;
    let mut refusals = BTreeMap::new();
    for code in answers.iter().filter_map(|(_, answer)| answer.err()) {
        *refusals.entry(code.as_str()).or_default() += 1;
    }
    let mut latencies: Vec<_> = answers.into_iter().map(|(latency, _)| latency).collect();
    latencies.sort_unstable();
    Answers { latencies, refusals }
}

impl Answers {
    pub(crate) fn calls(&self) -> usize {
        self.latencies.len()
    }

    pub(crate) fn refused(&self) -> usize {
        self.refusals.values().sum()
    }

    /// The latency that this share of the calls did not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, share: f64) -> f64 {
        let index = (self.latencies.len().saturating_sub(1) as f64 * share).round() as usize;
        self.latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}
