//! Counts of the requests to one key, by operation and result, and their durations. This file only
//! counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{KmsErrorClass, Verdict};

/// The operation that a request asks of the KMS. Where the KMS makes no data keys (all but AWS
/// KMS), a DEK is made here and wrapped by [`Self::Wrap`]; where it has no operation to re-wrap, a
/// re-wrap is an [`Self::Unwrap`] and a [`Self::Wrap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Generation of a data key, plain and wrapped.
    Generate,
    /// Wrapping of a DEK.
    Wrap,
    /// Unwrapping of a DEK.
    Unwrap,
    /// Wrapping of a wrapped DEK under another key version.
    Rewrap,
    /// A question about the key, or about our rights on it.
    Describe,
}

impl Asked {
    const ALL: [Self; 5] = [Self::Generate, Self::Wrap, Self::Unwrap, Self::Rewrap, Self::Describe];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
            Self::Describe => "describe",
        }
    }
}

/// The upper bounds of the buckets of durations, in seconds. One more bucket has the longer ones.
pub const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The names of results in metrics: a request counts under the first that applies.
const RESULTS: [&str; 7] =
    ["ok", "refused", "invalid", "misconfigured", "throttled", "timeout", "unavailable"];
/// The names in metrics of the reasons why a request was not made.
const REASONS: [&str; 4] = ["budget", "throttled", "deadline", "login"];

/// The requests for one operation with one result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestsMade {
    /// The operation.
    pub asked: Asked,
    /// The result: `ok`, `refused` (the key, or our access to it, is off), `invalid` (this wrapped
    /// DEK does not open), `misconfigured`, `throttled`, `timeout` or `unavailable`.
    pub result: &'static str,
    /// The number of requests in each bucket: up to that bound of [`BUCKETS`] and above the one
    /// before it; the last has the longer ones.
    pub durations: [u64; BUCKETS.len() + 1],
    /// The sum of their durations.
    pub total: Duration,
}

/// The requests for one operation that were wanted and, for one reason, not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestsWithheld {
    /// The operation.
    pub asked: Asked,
    /// The reason: `budget` (our own bound on requests a minute), `throttled` (the KMS asked for a
    /// pause longer than the call had time), `deadline` (no permit became free in time) or `login`
    /// (the KMS refused our credential, and it is not presented again yet).
    pub reason: &'static str,
    /// The number of requests.
    pub count: u64,
}

/// The requests to one key since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// The provider, as `BYOK_PROVIDER` names it.
    pub provider: &'static str,
    /// The requests that were made. Operations and results without requests are left out.
    pub made: Vec<RequestsMade>,
    /// The requests that were not made.
    pub withheld: Vec<RequestsWithheld>,
}

#[derive(Default)]
struct Series {
    durations: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

/// The counts of one key's requests since the start, shared by all its calls.
pub struct RequestCounts {
    provider: &'static str,
    made: [[Series; RESULTS.len()]; Asked::ALL.len()],
    withheld: [[AtomicU64; REASONS.len()]; Asked::ALL.len()],
}

impl RequestCounts {
    /// Counts that are all zero. `provider` is the provider's name in metrics.
    pub fn new(provider: &'static str) -> Self {
        Self { provider, made: Default::default(), withheld: Default::default() }
    }

    /// A copy of all counts.
    pub fn snapshot(&self) -> Requests {
        let mut requests = Requests { provider: self.provider, ..Requests::default() };
        for asked in Asked::ALL {
            for (result, series) in RESULTS.into_iter().zip(&self.made[asked as usize]) {
                let durations = series.durations.each_ref().map(|count| count.load(Ordering::Relaxed));
                if durations.iter().any(|count| *count > 0) {
                    let total = Duration::from_micros(series.micros.load(Ordering::Relaxed));
                    requests.made.push(RequestsMade { asked, result, durations, total });
                }
            }
            for (reason, count) in REASONS.into_iter().zip(&self.withheld[asked as usize]) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    requests.withheld.push(RequestsWithheld { asked, reason, count });
                }
            }
        }
        requests
    }

    /// Counts a request that was made. If `class` says that it was not sent, it counts as withheld.
    pub(super) fn made(&self, asked: Asked, class: Option<KmsErrorClass>, took: Duration) {
        let result = match class.map(|class| (class, class.verdict())) {
            None => 0,
            Some((class @ (KmsErrorClass::BudgetSpent | KmsErrorClass::LoginPaused), _)) => {
                return self.withheld(asked, class);
            }
            Some((_, Verdict::Revoked)) => 1,
            Some((_, Verdict::Item)) => 2,
            Some((_, Verdict::Misconfigured)) => 3,
            Some((KmsErrorClass::Throttled, _)) => 4,
            Some((KmsErrorClass::Timeout, _)) => 5,
            Some((_, Verdict::Outage | Verdict::Unasked)) => 6,
        };
        let series = &self.made[asked as usize][result];
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        series.durations[bucket].fetch_add(1, Ordering::Relaxed);
        series.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a request that was not made.
    pub(super) fn withheld(&self, asked: Asked, class: KmsErrorClass) {
        let reason = match class {
            KmsErrorClass::BudgetSpent => 0,
            KmsErrorClass::Throttled => 1,
            KmsErrorClass::LoginPaused => 3,
            _ => 2,
        };
        self.withheld[asked as usize][reason].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_operation_outcome_and_duration() {
        let counts = RequestCounts::new("p");
        assert_eq!(counts.snapshot(), Requests { provider: "p", ..Requests::default() });
        for millis in [1, 2, 6_000] {
            counts.made(Asked::Unwrap, None, Duration::from_millis(millis));
        }
        let [requests] = counts.snapshot().made[..] else { panic!("one kind") };
        assert_eq!((requests.asked, requests.result), (Asked::Unwrap, "ok"));
        assert_eq!(requests.durations, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(requests.total, Duration::from_millis(6_003));
    }

    #[test]
    fn the_result_of_a_request_follows_from_its_class() {
        for (class, result) in [
            (KmsErrorClass::KeyDisabled, "refused"),
            (KmsErrorClass::CredentialInvalid, "refused"),
            (KmsErrorClass::InvalidWrappedDek, "invalid"),
            (KmsErrorClass::Misconfigured, "misconfigured"),
            (KmsErrorClass::Throttled, "throttled"),
            (KmsErrorClass::Timeout, "timeout"),
            (KmsErrorClass::Sealed, "unavailable"),
            (KmsErrorClass::Unreachable, "unavailable"),
        ] {
            let counts = RequestCounts::new("p");
            counts.made(Asked::Wrap, Some(class), Duration::ZERO);
            let requests = counts.snapshot();
            assert_eq!((requests.made[0].result, requests.withheld.len()), (result, 0), "{class:?}");
        }
        for (class, reason) in [(KmsErrorClass::BudgetSpent, "budget"), (KmsErrorClass::LoginPaused, "login")]
        {
            let counts = RequestCounts::new("p");
            counts.made(Asked::Wrap, Some(class), Duration::ZERO);
            let requests = counts.snapshot();
            assert_eq!((requests.made.len(), requests.withheld[0].reason), (0, reason), "{class:?}");
        }
    }
}
