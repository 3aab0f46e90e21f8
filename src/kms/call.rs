//! The policy by which every provider is called: a deadline, a bound on concurrent requests, few
//! retries, and a pause while the provider throttles. The content of a call and the meaning of its
//! answer are the provider's; this file only decides whether and when a request is made.
//!
//! - **Deadline.** It ends everything: the waits for a permit, a token, an answer or a pause.
//! - **Bound.** At most [`AT_ONCE`] requests are under way to one key, [`PER_CALL`] of them for one
//!   call of [`super::Kms`], so that a large batch leaves permits for others. Waiting calls are
//!   served in the order of arrival.
//! - **Retries.** A request that failed in the network or inside the provider is retried at most
//!   [`RETRIES`] times, after a pause that grows fourfold and half of which is random. Retries are
//!   paid from an allowance, which gains one retry with ten successes, so that a provider that
//!   fails gets no storm of retries. Retrying is safe: unwrap changes nothing, and wrap, rewrap and
//!   generate only make wrapped DEKs that are thrown away.
//! - **Throttling.** While a provider throttles, it gets one request at a time, after a pause that
//!   all calls share: the one that it asks for (up to [`LONGEST_ASKED`]), or one that doubles from
//!   [`FIRST_BRAKE`] to [`LONGEST_BRAKE`]. A call that cannot have its turn before its deadline
//!   fails without a request. The first success or refusal of a call that had its turn ends the
//!   throttling.
//! - **Budget.** Each request, including retries, is charged to the tenant's [`Budget`] right
//!   before it is made. If the budget is spent, the call fails without a request.
//! - **Probes** of the key wait for none of these: they have permits of their own
//!   ([`PROBES_AT_ONCE`]), their retries cost no allowance, they ignore the brake, and the budget
//!   does not refuse them. They are few, and a probe that does not get through turns the tenant
//!   off.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::crypto::random;
use crate::kms::budget::{Budget, Share};
use crate::kms::{Asked, KmsError, KmsErrorClass, Purpose, RequestCounts, Verdict};

/// The most requests under way to one key.
pub(super) const AT_ONCE: usize = 64;
/// The most probes of one key under way besides: a few that hang must not delay the next one.
const PROBES_AT_ONCE: usize = 16;
/// The most requests under way for one call of [`super::Kms`].
pub(super) const PER_CALL: usize = 16;
/// The most retries of a request.
const RETRIES: u32 = 2;
/// The pause before the first retry, without jitter; the second waits four times as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The first pause of a provider that throttles without saying for how long, and the longest.
const FIRST_BRAKE: Duration = Duration::from_millis(100);
const LONGEST_BRAKE: Duration = Duration::from_secs(2);
/// The longest pause that a provider can ask for: the minute of a quota. One answer must not lock
/// us out for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// The cost of a retry, the gain of a success, and the most that the allowance holds.
const RETRY_COST: u32 = 10;
const SUCCESS_GAIN: u32 = 1;
const FULL_ALLOWANCE: u32 = 20 * RETRY_COST;

/// Makes one call for each item, [`PER_CALL`] at a time, and returns the answers in the order of
/// the items.
pub(super) async fn each<Item, Call: Future>(
    items: impl IntoIterator<Item = Item>,
    call: impl Fn(Item) -> Call,
) -> Vec<Call::Output> {
    let calls: Vec<_> = items.into_iter().map(call).collect();
    futures_util::stream::iter(calls).buffered(PER_CALL).collect().await
}

/// The failure of one attempt.
pub(super) struct Failed {
    pub(super) error: KmsError,
    /// The pause that the provider asked for (`Retry-After`).
    pub(super) wait: Option<Duration>,
}

impl From<KmsError> for Failed {
    fn from(error: KmsError) -> Self {
        Self { error, wait: None }
    }
}

/// The operation of a call, the party that it is made for, and its deadline.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) asked: Asked,
    pub(super) share: Share,
    pub(super) deadline: Instant,
}

/// The policy of one key's calls, shared by all of them.
pub(super) struct CallPolicy {
    counts: Arc<RequestCounts>,
    timeout: Duration,
    permits: Semaphore,
    probe_permits: Semaphore,
    allowance: Mutex<u32>,
    budget: Budget,
    brake: Brake,
}

impl CallPolicy {
    /// A policy; `provider` is the name in metrics, `timeout` that of a call as a whole
    /// (`BYOK_KMS_TIMEOUT_MS`), `per_minute` the most requests (`BYOK_KMS_CALLS_PER_MINUTE`).
    pub(super) fn new(provider: &'static str, timeout: Duration, per_minute: Option<NonZeroU32>) -> Self {
        Self {
            counts: Arc::new(RequestCounts::new(provider)),
            timeout,
            permits: Semaphore::new(AT_ONCE),
            probe_permits: Semaphore::new(PROBES_AT_ONCE),
            allowance: Mutex::new(FULL_ALLOWANCE),
            budget: Budget::new(per_minute),
            brake: Brake::default(),
        }
    }

    /// The deadline of a call that begins now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The counts of the requests that were made, and of those that were not.
    pub(super) fn counts(&self) -> Arc<RequestCounts> {
        Arc::clone(&self.counts)
    }

    /// Takes the requests of one re-wrap, which belong together, from the budget, all or none, and
    /// returns the share that each of them then has.
    pub(super) fn prepay_rewrap(&self, purpose: Purpose, count: NonZeroU32) -> Result<Share, KmsError> {
        match Share::of_rewrap([purpose]) {
            Share::Probe => Ok(Share::Probe),
            rotation => match self.budget.take_all(rotation, count) {
                Ok(()) => Ok(Share::Prepaid),
                Err(error) => {
                    self.counts.withheld(Asked::Unwrap, error.class);
                    Err(error)
                }
            },
        }
    }

    /// Takes one more request within an attempt from the budget. On an error the request must not
    /// be made.
    pub(super) fn one_more(&self, share: Share) -> Result<(), KmsError> {
        self.budget.take(share)
    }

    /// Makes attempts until one succeeds, fails for good, or time is up. An attempt makes one
    /// request.
    pub(super) async fn run<T, Attempt: Future<Output = Result<T, Failed>>>(
        &self,
        call: Call,
        attempt: impl Fn() -> Attempt,
    ) -> Result<T, KmsError> {
        self.run_batch(call, |_| None, attempt).await
    }

    /// Like [`Self::run`], for an answer with several items. `class` returns the error class of an
    /// item in the answer, which counts as the result of the request.
    pub(super) async fn run_batch<T, Attempt: Future<Output = Result<T, Failed>>>(
        &self,
        call: Call,
        class: impl Fn(&T) -> Option<KmsErrorClass>,
        attempt: impl Fn() -> Attempt,
    ) -> Result<T, KmsError> {
        let mut before = None;
        let Call { share, deadline, .. } = call;
        for retry in 0.. {
            let share = if retry > 0 && share == Share::Prepaid { Share::Rotation } else { share };
            let failed = match self.attempt(Call { share, ..call }, &class, &attempt).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            let Failed { error, wait } = failed;
            tracing::debug!(class = ?error.class, http_status = error.http_status, retry, "a request to the KMS failed");
            // The retry ended without an answer: time was up, or there was no turn or budget. The
            // error of the attempt before tells more.
            if error.http_status.is_none()
                && matches!(
                    error.class,
                    KmsErrorClass::Timeout | KmsErrorClass::Throttled | KmsErrorClass::BudgetSpent
                )
            {
                return Err(before.unwrap_or(error));
            }
            // A throttled call waits for the pause that all calls share, except a probe, which
            // ignores it.
            let pause = match error.class {
                KmsErrorClass::Throttled if share != Share::Probe => Duration::ZERO,
                _ => jittered(FIRST_PAUSE * 4_u32.pow(retry)).max(asked(wait)),
            };
            if !error.class.retryable()
                || retry == RETRIES
                || Instant::now() + pause >= deadline
                || !(share == Share::Probe || self.pay())
            {
                return Err(error);
            }
            before = Some(error);
            sleep(pause).await;
        }
        unreachable!("the loop ends with the last retry")
    }

    async fn attempt<T, Attempt: Future<Output = Result<T, Failed>>>(
        &self,
        call: Call,
        class: &impl Fn(&T) -> Option<KmsErrorClass>,
        attempt: &impl Fn() -> Attempt,
    ) -> Result<T, Failed> {
        let deadline = call.deadline;
        let (turn, permit) = match self.admitted(call).await {
            Ok(admitted) => admitted,
            Err(error) => {
                self.counts.withheld(call.asked, error.class);
                return Err(error.into());
            }
        };
        let began = Instant::now();
        let timeout = || Err(KmsError::local(KmsErrorClass::Timeout).into());
        let outcome = timeout_at(deadline, attempt()).await.unwrap_or_else(|_| timeout());
        let class = match &outcome {
            Ok(answered) => class(answered),
            Err(Failed { error, .. }) => Some(error.class),
        };
        self.counts.made(call.asked, class, began.elapsed());
        drop(permit);
        match &outcome {
            Ok(_) => {
                // A call without a turn began before the throttling, so its success does not end
                // it.
                if turn.is_some() {
                    self.brake.release();
                }
                let mut allowance = lock(&self.allowance);
                *allowance = (*allowance + SUCCESS_GAIN).min(FULL_ALLOWANCE);
            }
            Err(failed) if failed.error.class == KmsErrorClass::Throttled => {
                self.brake.press(asked(failed.wait), turn.is_some());
            }
            // The provider processed the request. With a key that is turned off there would never
            // be a success.
            Err(failed) if turn.is_some() => match failed.error.class.verdict() {
                Verdict::Revoked | Verdict::Item | Verdict::Misconfigured => self.brake.release(),
                Verdict::Outage | Verdict::Unasked => {}
            },
            Err(_) => {}
        }
        outcome
    }

    /// Waits until a request may be made: for its turn where the provider throttles, and for a
    /// permit. Where the budget is spent it does not wait.
    async fn admitted(
        &self,
        Call { share, deadline, .. }: Call,
    ) -> Result<(Option<tokio::sync::MutexGuard<'_, ()>>, SemaphorePermit<'_>), KmsError> {
        // A future is polled once before its time is looked at: that would be a request.
        if Instant::now() >= deadline {
            return Err(KmsError::local(KmsErrorClass::Timeout));
        }
        let admitted = match share {
            Share::Probe => (None, permit(&self.probe_permits, deadline).await?),
            Share::Caller | Share::Rotation | Share::Prepaid => loop {
                let turn = self.brake.pass(deadline).await?;
                let permit = permit(&self.permits, deadline).await?;
                // The throttling may have begun while this call waited for its permit.
                if turn.is_some() || !self.brake.is_pressed() {
                    break (turn, permit);
                }
            },
        };
        if share != Share::Prepaid {
            self.budget.take(share)?;
        }
        Ok(admitted)
    }

    fn pay(&self) -> bool {
        let mut allowance = lock(&self.allowance);
        match allowance.checked_sub(RETRY_COST) {
            Some(rest) => {
                *allowance = rest;
                true
            }
            None => false,
        }
    }
}

/// The pause that a throttled call imposes on all others.
#[derive(Default)]
struct Brake {
    pressed: Mutex<Option<Pressed>>,
    /// The turn, held by one call at a time while the brake is pressed.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Pressed {
    until: Instant,
    pause: Duration,
}

impl Brake {
    /// Waits for the caller's turn, if there are turns. The error is a local
    /// [`KmsErrorClass::Throttled`].
    async fn pass(&self, deadline: Instant) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, KmsError> {
        let too_late = || KmsError::local(KmsErrorClass::Throttled);
        let now = || *lock(&self.pressed);
        match now() {
            None => return Ok(None),
            Some(pressed) if pressed.until >= deadline => return Err(too_late()),
            Some(_) => {}
        }
        let turn = timeout_at(deadline, self.turn.lock()).await.map_err(|_| too_late())?;
        loop {
            match now() {
                None => return Ok(None),
                Some(pressed) if pressed.until >= deadline => return Err(too_late()),
                Some(pressed) if pressed.until <= Instant::now() => return Ok(Some(turn)),
                // Calls that are under way may still lengthen the pause.
                Some(pressed) => sleep_until(pressed.until).await,
            }
        }
    }

    /// Begins or lengthens the pause. Only the call whose turn it was lengthens it: the others were
    /// under way together.
    fn press(&self, asked: Duration, its_turn: bool) {
        let mut pressed = lock(&self.pressed);
        let pause = match *pressed {
            None => FIRST_BRAKE,
            Some(before) if its_turn => (before.pause * 2).min(LONGEST_BRAKE),
            Some(before) => before.pause,
        };
        let until = Instant::now() + jittered(pause).max(asked);
        let until = pressed.map_or(until, |before| before.until.max(until));
        *pressed = Some(Pressed { until, pause });
    }

    fn is_pressed(&self) -> bool {
        lock(&self.pressed).is_some()
    }

    fn release(&self) {
        *lock(&self.pressed) = None;
    }
}

async fn permit(permits: &Semaphore, deadline: Instant) -> Result<SemaphorePermit<'_>, KmsError> {
    match timeout_at(deadline, permits.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(KmsError::local(KmsErrorClass::Timeout)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pause that a provider asks for, up to the longest one that we accept.
fn asked(wait: Option<Duration>) -> Duration {
    wait.unwrap_or_default().min(LONGEST_ASKED)
}

/// A random time between half and all of `pause`, so that calls that failed together do not come
/// back together.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random();
    pause.mul_f32(0.5 + f32::from(byte) / 510.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn call(deadline: Instant, share: Share) -> Call {
        Call { asked: Asked::Unwrap, share, deadline }
    }

    fn failed(class: KmsErrorClass) -> Failed {
        KmsError::answered(class, 500, None).into()
    }

    /// Runs `calls` calls at once against a provider that answers each attempt with `answer`.
    /// Returns the number of attempts that it saw, the most at a time, and the outcomes of the
    /// calls.
    async fn storm(
        policy: &CallPolicy,
        calls: usize,
        answer: impl Fn(usize) -> Result<(), Failed>,
    ) -> (usize, usize, Vec<Result<(), KmsError>>) {
        let (seen, now, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let deadline = policy.deadline();
        let attempt = || async {
            let number = seen.fetch_add(1, Ordering::Relaxed);
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            answer(number)
        };
        let outcomes = futures_util::future::join_all(
            (0..calls).map(|_| policy.run(call(deadline, Share::Caller), attempt)),
        )
        .await;
        (seen.into_inner(), most.into_inner(), outcomes)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_once_are_bounded() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let (seen, most, outcomes) = storm(&policy, 500, |_| Ok(())).await;
        assert_eq!((seen, most), (500, AT_ONCE));
        assert!(outcomes.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_takes_some_of_the_permits_and_keeps_its_order() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let answers = each(0..100, |item| {
            let (now, most) = (&now, &most);
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                sleep(Duration::from_millis(100 - item)).await;
                now.fetch_sub(1, Ordering::Relaxed);
                item
            }
        })
        .await;
        assert_eq!(answers, (0..100).collect::<Vec<_>>());
        assert_eq!(most.into_inner(), PER_CALL);
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_retried_and_lasting_ones_tried_three_times() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let once = |number| if number == 0 { Err(failed(KmsErrorClass::Internal)) } else { Ok(()) };
        let (seen, _, outcomes) = storm(&policy, 1, once).await;
        assert_eq!((seen, outcomes[0].is_ok()), (2, true));
        let (seen, ..) = storm(&policy, 1, |_| Err(failed(KmsErrorClass::Internal))).await;
        assert_eq!(seen, 3);
        let (seen, ..) = storm(&policy, 1, |_| Err(failed(KmsErrorClass::AccessDenied))).await;
        assert_eq!(seen, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_fails_gets_no_storm_of_retries() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let (seen, ..) = storm(&policy, 500, |_| Err(failed(KmsErrorClass::Internal))).await;
        assert_eq!(seen, 500 + (FULL_ALLOWANCE / RETRY_COST) as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_slows_down_and_multiplies_nothing() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let (seen, _, outcomes) = storm(&policy, 500, |_| Err(failed(KmsErrorClass::Throttled))).await;
        // Those that were under way together, and some turns; the others fail without a request.
        assert!(seen < AT_ONCE + 20, "{seen}");
        assert!(
            outcomes.iter().all(|outcome| {
                outcome.as_ref().is_err_and(|error| error.class == KmsErrorClass::Throttled)
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_throttling_ends_all_go_again() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let twice = |number| if number < 2 { Err(failed(KmsErrorClass::Throttled)) } else { Ok(()) };
        let (_, most, outcomes) = storm(&policy, 200, twice).await;
        assert!(outcomes.iter().all(Result::is_ok));
        assert!(most > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_ends_after_the_deadline_is_not_waited_for() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let asked = || Failed { wait: Some(Duration::from_secs(60)), ..failed(KmsErrorClass::Throttled) };
        let began = Instant::now();
        let (seen, _, outcomes) = storm(&policy, 1, |_| Err(asked())).await;
        assert_eq!(outcomes[0].as_ref().err().map(|error| error.http_status), Some(Some(500)));
        assert_eq!(storm(&policy, 1, |_| Ok(())).await.0, 0, "the next call need not ask");
        assert_eq!(seen, 1);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_ends_with_the_deadline() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let began = Instant::now();
        let hung = policy
            .run(call(policy.deadline(), Share::Caller), std::future::pending::<Result<(), Failed>>)
            .await;
        assert_eq!(hung.err().map(|error| error.class), Some(KmsErrorClass::Timeout));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_that_a_provider_asks_for_overflows() {
        for class in [KmsErrorClass::Throttled, KmsErrorClass::Internal] {
            let policy = CallPolicy::new("p", Duration::from_secs(5), None);
            let asked = || Failed { wait: Some(Duration::MAX), ..failed(class) };
            let (seen, _, outcomes) = storm(&policy, 1, |_| Err(asked())).await;
            assert_eq!((seen, outcomes[0].as_ref().err().map(|error| error.class)), (1, Some(class)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_pauses_us_no_longer_than_a_quota_lasts() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let day = || Failed { wait: Some(Duration::from_secs(86_400)), ..failed(KmsErrorClass::Throttled) };
        storm(&policy, 1, |_| Err(day())).await;
        sleep(LONGEST_ASKED).await;
        assert!(storm(&policy, 1, |_| Ok(())).await.2[0].is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_that_began_before_the_throttling_does_not_end_it() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let slow = policy.run(call(policy.deadline(), Share::Caller), || async {
            sleep(Duration::from_millis(100)).await;
            Ok(())
        });
        let asked = || Failed { wait: Some(Duration::from_secs(20)), ..failed(KmsErrorClass::Throttled) };
        let (slow, (seen, ..)) = tokio::join!(slow, storm(&policy, 1, |_| Err(asked())));
        assert_eq!((slow, seen), (Ok(()), 1));
        assert_eq!(storm(&policy, 10, |_| Ok(())).await.0, 0, "it asked for twenty seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_after_the_deadline() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let (deadline, seen) = (policy.deadline(), AtomicUsize::new(0));
        each(0..100, |_| {
            policy.run(call(deadline, Share::Caller), || {
                seen.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<Result<(), Failed>>()
            })
        })
        .await;
        assert_eq!(seen.into_inner(), PER_CALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_dropped_returns_its_turn_and_permit() {
        let policy = std::sync::Arc::new(CallPolicy::new("p", Duration::from_secs(5), None));
        storm(&policy, 1, |_| Err(failed(KmsErrorClass::Throttled))).await;
        assert!(policy.brake.is_pressed());
        // One sleeps with the turn, then hangs in its request; the others wait for the turn.
        let calls: Vec<_> = (0..200)
            .map(|_| {
                let policy = std::sync::Arc::clone(&policy);
                tokio::spawn(async move {
                    policy
                        .run(
                            call(policy.deadline(), Share::Caller),
                            std::future::pending::<Result<(), Failed>>,
                        )
                        .await
                })
            })
            .collect();
        for wait in [1, 3_000] {
            sleep(Duration::from_millis(wait)).await;
            calls[0].abort();
            calls[1].abort();
        }
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        sleep(Duration::from_millis(1)).await;
        assert!(storm(&policy, 1, |_| Ok(())).await.2[0].is_ok());
        assert_eq!(policy.permits.available_permits(), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_throttling_too() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        storm(&policy, 1, |_| Err(failed(KmsErrorClass::Throttled))).await;
        let (_, _, outcomes) = storm(&policy, 1_000, |_| Err(failed(KmsErrorClass::KeyDisabled))).await;
        let refused = |outcome: &&Result<(), KmsError>| {
            outcome.as_ref().is_err_and(|error| error.class == KmsErrorClass::KeyDisabled)
        };
        assert_eq!(outcomes.iter().filter(refused).count(), 1_000);
    }

    fn bounded(per_minute: u32) -> CallPolicy {
        CallPolicy::new("p", Duration::from_secs(5), NonZeroU32::new(per_minute))
    }

    /// Sends probes at once to a provider that answers each with `answer`. Returns the number of
    /// requests that it saw, and the outcomes.
    async fn probe(
        policy: &CallPolicy,
        probes: usize,
        answer: impl Fn() -> Result<(), Failed>,
    ) -> (usize, Vec<Result<(), KmsError>>) {
        let seen = AtomicUsize::new(0);
        let attempt = || async {
            seen.fetch_add(1, Ordering::Relaxed);
            answer()
        };
        let deadline = policy.deadline();
        let probes = (0..probes).map(|_| policy.run(call(deadline, Share::Probe), attempt));
        let outcomes = futures_util::future::join_all(probes).await;
        (seen.into_inner(), outcomes)
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_budget_a_call_fails_without_a_request() {
        let policy = bounded(5);
        let (seen, _, outcomes) = storm(&policy, 20, |_| Ok(())).await;
        assert_eq!(seen, 5);
        let spent: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(spent.len(), 15);
        assert!(spent.iter().all(|error| error.class == KmsErrorClass::BudgetSpent));
        assert!(spent.iter().all(|error| error.retry_after.is_some_and(|wait| wait.as_secs() <= 12)));
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_is_counted_and_each_that_was_not_made() {
        let policy = bounded(5);
        storm(&policy, 20, |_| Ok(())).await;
        storm(&policy, 1, |_| Ok(())).await;
        let requests = policy.counts.snapshot();
        let [made] = requests.made[..] else { panic!("{requests:?}") };
        assert_eq!((made.asked, made.result, made.durations.iter().sum::<u64>()), (Asked::Unwrap, "ok", 5));
        assert_eq!(made.total, Duration::from_millis(50));
        let withheld: Vec<_> = requests.withheld.iter().map(|one| (one.reason, one.count)).collect();
        assert_eq!(withheld, [("budget", 16)]);

        // In a batch, the error of an item counts, although the answer as a whole is a success.
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let class = |_: &()| Some(KmsErrorClass::KeyVersionUnavailable);
        let once = || async { Ok(()) };
        let call = call(policy.deadline(), Share::Caller);
        assert_eq!(policy.run_batch(call, class, once).await, Ok(()));
        assert_eq!(policy.counts.snapshot().made[0].result, "refused");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_charged_to_the_budget_and_the_providers_reason_kept() {
        let policy = bounded(2);
        let (seen, _, outcomes) = storm(&policy, 1, |_| Err(failed(KmsErrorClass::Internal))).await;
        assert_eq!(seen, 2);
        assert_eq!(outcomes[0].as_ref().unwrap_err().class, KmsErrorClass::Internal);
        let (seen, _, outcomes) = storm(&policy, 1, |_| Ok(())).await;
        assert_eq!((seen, outcomes[0].as_ref().unwrap_err().class), (0, KmsErrorClass::BudgetSpent));
    }

    #[tokio::test(start_paused = true)]
    async fn prepaid_requests_are_charged_once_and_their_retries_as_usual() {
        let policy = bounded(6);
        let share = policy.prepay_rewrap(Purpose::Record, NonZeroU32::new(2).unwrap()).unwrap();
        assert_eq!(share, Share::Prepaid);
        let once = || async { Ok(()) };
        for _ in 0..2 {
            assert_eq!(policy.run(call(policy.deadline(), Share::Prepaid), once).await, Ok(()));
        }
        let seen = AtomicUsize::new(0);
        let fails = || async {
            seen.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(failed(KmsErrorClass::Internal))
        };
        let failed = policy.run(call(policy.deadline(), Share::Prepaid), fails).await.unwrap_err();
        assert_eq!(
            (failed.class, seen.into_inner()),
            (KmsErrorClass::Internal, 2),
            "a rotation's half is three"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_request_within_an_attempt_is_taken_from_the_budget() {
        let policy = bounded(3);
        let attempt = || async {
            policy.one_more(Share::Caller)?;
            Ok(())
        };
        let deadline = policy.deadline();
        assert_eq!(policy.run(call(deadline, Share::Caller), attempt).await, Ok(()));
        let spent = policy.run(call(deadline, Share::Caller), attempt).await.unwrap_err();
        assert_eq!((spent.class, spent.http_status), (KmsErrorClass::BudgetSpent, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_budget_says_nothing_about_the_end_of_the_throttling() {
        let policy = bounded(1);
        storm(&policy, 1, |_| Err(failed(KmsErrorClass::Throttled))).await;
        assert!(policy.brake.is_pressed());
        storm(&policy, 1, |_| Ok(())).await;
        assert!(policy.brake.is_pressed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_goes_through_a_spent_budget() {
        let policy = bounded(1);
        storm(&policy, 5, |_| Ok(())).await;
        assert_eq!(probe(&policy, 100, || Ok(())).await, (100, vec![Ok(()); 100]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_wait_behind_calls_that_hang() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let hang =
            || policy.run(call(policy.deadline(), Share::Caller), std::future::pending::<Result<(), Failed>>);
        let hanging = futures_util::future::join_all((0..AT_ONCE + 100).map(|_| hang()));
        let probing = async {
            sleep(Duration::from_millis(10)).await;
            assert_eq!(policy.permits.available_permits(), 0);
            let began = Instant::now();
            assert_eq!(probe(&policy, 1, || Ok(())).await.1, [Ok(())]);
            assert_eq!(began.elapsed(), Duration::ZERO);
        };
        tokio::join!(hanging, probing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_tried_again_when_nothing_else_is() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        storm(&policy, 500, |_| Err(failed(KmsErrorClass::Internal))).await;
        assert!(!policy.pay());
        assert_eq!(probe(&policy, 1, || Err(failed(KmsErrorClass::Internal))).await.0, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_ignores_the_brake_and_does_not_release_it() {
        let policy = CallPolicy::new("p", Duration::from_secs(5), None);
        let asked = || Failed { wait: Some(Duration::from_secs(60)), ..failed(KmsErrorClass::Throttled) };
        storm(&policy, 1, |_| Err(asked())).await;
        assert_eq!(probe(&policy, 1, || Ok(())).await.1, [Ok(())]);
        assert_eq!(storm(&policy, 10, |_| Ok(())).await.0, 0, "it asked for a minute");
        let (seen, outcomes) = probe(&policy, 1, || Err(failed(KmsErrorClass::Throttled))).await;
        assert_eq!((seen, outcomes[0].as_ref().unwrap_err().class), (3, KmsErrorClass::Throttled));
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_for_the_pause_to_end_wait_when_it_is_extended() {
        let brake = Brake::default();
        brake.press(Duration::ZERO, false);
        let longer = async {
            sleep(Duration::from_millis(10)).await;
            brake.press(Duration::from_secs(20), false);
        };
        let (turn, ()) = tokio::join!(brake.pass(Instant::now() + Duration::from_secs(5)), longer);
        assert!(turn.is_err());
    }
}
