//! The results of a drill, and the verdict that follows from them. Pure code.

use std::time::Duration;

use crate::model::BootTime;

/// The extra time that the server may take to answer beyond the time of a hot call, as far as the
/// drill tolerates it.
const SLACK: Duration = Duration::from_millis(100);

/// The result of one decrypt.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) sent: BootTime,
    pub(super) received: BootTime,
    /// The server's id of the request; empty if there was no answer.
    pub(super) request_id: String,
    pub(super) answer: Answer,
}

/// The outcome of a decrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The right plaintext came back.
    Plaintext,
    /// The server refused because of the key.
    Refused { status: u16, code: String },
    /// The server refused because of the rate of requests. This says nothing about the key.
    Limited,
    /// It failed for another reason.
    Failed(String),
}

/// The time when the operator turned the key on or off, as far as it is known: not before `begun`,
/// and completed by `done`.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeySwitch {
    pub(super) begun: BootTime,
    /// `None` if nobody confirmed it.
    pub(super) done: Option<BootTime>,
}

/// The verdict of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No plaintext came after the bound, and service came back.
    Passed,
    /// A plaintext came after the bound.
    TooLate,
    /// No call was refused, whether calls were answered after the bound or not: the key may never
    /// have been off.
    NotRefused,
    /// No plaintext came after the bound, but service did not come back in time.
    NotRestored,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::TooLate => "too_late",
            Self::NotRefused => "not_refused",
            Self::NotRestored => "not_restored",
        }
    }
}

/// Returns how long hot decrypts took: the median and the 99th percentile.
pub(super) fn round_trips(samples: &[Sample]) -> (Duration, Duration) {
    let hot = samples.iter().filter(|sample| sample.answer == Answer::Plaintext);
    let mut took: Vec<Duration> = hot.map(|sample| sample.received.since(sample.sent)).collect();
    took.sort_unstable();
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
    (at(50).copied().unwrap_or_default(), at(99).copied().unwrap_or_default())
}

/// Returns the time by which the last plaintext must have come, counted from when the key was off:
/// the time that the provider needs (P), the server's bound (A), and the time to answer.
pub(super) fn allowed(provider: Duration, bound: Duration, hot: Duration) -> Duration {
    provider + bound + hot + SLACK
}

/// The conclusions from the samples.
pub(super) struct Findings<'a> {
    pub(super) first_refusal: Option<&'a Sample>,
    pub(super) last_plaintext: Option<&'a Sample>,
    /// The time from which the bound counts: the key was off by then.
    pub(super) from: Option<BootTime>,
    pub(super) plaintexts_after_bound: usize,
    pub(super) first_success: Option<&'a Sample>,
    pub(super) verdict: Verdict,
}

/// Judges all samples, in any order. What was sent before the operator turned the key on again
/// counts as sent while the key was off.
pub(super) fn judge(
    samples: &[Sample],
    off: KeySwitch,
    on: Option<KeySwitch>,
    allowed: Duration,
) -> Findings<'_> {
    let before_on = |sample: &&Sample| on.is_none_or(|on| sample.sent < on.begun);
    let refused = |sample: &&Sample| matches!(sample.answer, Answer::Refused { .. });
    let plain = |sample: &&Sample| sample.answer == Answer::Plaintext;
    let first_refusal = samples
        .iter()
        .filter(before_on)
        .filter(refused)
        .filter(|sample| sample.received >= off.begun)
        .min_by_key(|sample| sample.received);
    let last_plaintext = samples.iter().filter(before_on).filter(plain).max_by_key(|sample| sample.received);
    let from = off.done.or(first_refusal.map(|sample| sample.received));
    let late = |sample: &&Sample| from.is_some_and(|from| sample.received > from.plus(allowed));
    let plaintexts_after_bound = samples.iter().filter(before_on).filter(plain).filter(late).count();
    let first_success = on.and_then(|on| {
        let after = samples.iter().filter(plain).filter(|sample| sample.sent >= on.begun);
        after.min_by_key(|sample| sample.received)
    });
    let verdict = match (plaintexts_after_bound, first_refusal, first_success) {
        (_, None, _) => Verdict::NotRefused,
        (1.., Some(_), _) => Verdict::TooLate,
        (0, Some(_), None) => Verdict::NotRestored,
        (0, Some(_), Some(_)) => Verdict::Passed,
    };
    Findings { first_refusal, last_plaintext, from, plaintexts_after_bound, first_success, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::at(Duration::from_millis(ms))
    }

    fn sample(ms: u64, answer: Answer) -> Sample {
        Sample { sent: at(ms), received: at(ms + 5), request_id: ms.to_string(), answer }
    }

    fn refused() -> Answer {
        Answer::Refused { status: 403, code: "KMS_ACCESS_DENIED".to_owned() }
    }

    const OFF: u64 = 1_000;

    fn verdict(samples: &[Sample], on: bool) -> (Verdict, usize) {
        let off = KeySwitch { begun: at(OFF - 50), done: Some(at(OFF)) };
        let on = on.then_some(KeySwitch { begun: at(9_000), done: Some(at(9_010)) });
        let found = judge(samples, off, on, Duration::from_secs(3));
        (found.verdict, found.plaintexts_after_bound)
    }

    #[test]
    fn a_drill_passes_when_refused_in_time_and_serving_again() {
        let samples = [
            sample(900, Answer::Plaintext),
            sample(3_900, Answer::Plaintext),
            sample(3_950, refused()),
            sample(9_500, Answer::Plaintext),
        ];
        assert_eq!(verdict(&samples, true), (Verdict::Passed, 0));
        let off = KeySwitch { begun: at(950), done: Some(at(OFF)) };
        let on = Some(KeySwitch { begun: at(9_000), done: None });
        let found = judge(&samples, off, on, Duration::from_secs(3));
        assert_eq!(found.first_refusal.unwrap().request_id, "3950");
        assert_eq!(found.last_plaintext.unwrap().request_id, "3900");
        assert_eq!(found.first_success.unwrap().request_id, "9500");
    }

    #[test]
    fn a_plaintext_after_the_bound_fails_even_after_a_refusal() {
        let samples =
            [sample(2_000, refused()), sample(4_001, Answer::Plaintext), sample(9_500, Answer::Plaintext)];
        assert_eq!(verdict(&samples, true), (Verdict::TooLate, 1));
        // What counts is when it was received, not when it was sent.
        let slow = Sample { received: at(5_000), ..sample(1_100, Answer::Plaintext) };
        assert_eq!(verdict(&[slow, sample(2_000, refused())], true).0, Verdict::TooLate);
    }

    #[test]
    fn a_key_that_is_never_refused_has_its_own_verdict() {
        assert_eq!(verdict(&[sample(8_000, Answer::Plaintext)], false), (Verdict::NotRefused, 1));
        assert_eq!(verdict(&[sample(9_500, Answer::Plaintext)], true), (Verdict::NotRefused, 0));
    }

    #[test]
    fn what_says_nothing_about_the_key_is_no_refusal() {
        let samples = [sample(2_000, Answer::Limited), sample(2_100, Answer::Failed("no answer".to_owned()))];
        assert_eq!(verdict(&samples, true), (Verdict::NotRefused, 0));
        assert_eq!(
            verdict(&[sample(900, refused())], true).0,
            Verdict::NotRefused,
            "before anybody did anything"
        );
    }

    #[test]
    fn service_that_does_not_come_back_has_a_verdict() {
        assert_eq!(verdict(&[sample(2_000, refused())], true).0, Verdict::NotRestored);
        assert_eq!(verdict(&[sample(2_000, refused())], false).0, Verdict::NotRestored);
    }

    #[test]
    fn without_a_confirmed_time_the_bound_begins_with_the_first_refusal() {
        let off = KeySwitch { begun: at(0), done: None };
        let judge_all = |samples: &[Sample]| judge(samples, off, None, Duration::from_secs(3)).verdict;
        assert_eq!(
            judge_all(&[sample(60_000, Answer::Plaintext), sample(70_000, refused())]),
            Verdict::NotRestored
        );
        assert_eq!(
            judge_all(&[sample(70_000, refused()), sample(74_000, Answer::Plaintext)]),
            Verdict::TooLate
        );
    }

    #[test]
    fn round_trips_are_those_of_plaintexts() {
        let samples = [
            sample(0, Answer::Plaintext),
            sample(50, Answer::Plaintext),
            Sample { received: at(900), ..sample(100, refused()) },
        ];
        assert_eq!(round_trips(&samples), (Duration::from_millis(5), Duration::from_millis(5)));
        assert_eq!(round_trips(&[]), (Duration::ZERO, Duration::ZERO));
    }
}
