//! The renewal of credentials that end: one state machine for the tokens of Vault, Google and Azure
//! and the sessions of AWS. A [`Source`] says how one credential is obtained; the [`Renewer`]
//! decides when.
//!
//! - **One fetch at a time.** It runs in a task of its own, so that it goes on when its caller
//!   hangs up. Callers who come meanwhile share its outcome, unless that is a timeout.
//! - **Ahead of the end.** One task replaces a credential as early as its source wants, and after
//!   [`LONGEST_USE`] at the latest.
//! - **Kept in an outage.** While its replacement fails for another reason than a refusal, a
//!   credential is used up to its end.
//! - **Dropped when refused.** It is dropped when its replacement is refused [`Rules::refusals`]
//!   times in a row; at once when the KMS refused it as well.
//! - **Paced.** Evidence that was refused is not presented again at once (`pacing`). If the KMS
//!   refuses a replacement too, that one is not replaced at once either.
//!
//! **The bound.** Evidence that is revoked (a secret id, an account's key, a role's trust) is
//! refused at the next replacement, so the credential that it gave before is used no longer than
//! [`BOUND`], as long as the service that refuses can be reached. In an outage of that service it
//! is used until it expires.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::call::Failed;
use super::pacing::{Fingerprint, PAUSES, Pacing, longer};
use super::{KmsError, KmsErrorClass};

/// The longest use of a credential whose evidence was revoked.
const BOUND: Duration = Duration::from_secs(15 * 60);
/// The longest use of a credential before another one is asked for. The rest of the bound is for
/// the refusals that it takes to drop it.
const LONGEST_USE: Duration = Duration::from_secs(BOUND.as_secs() - 120);
/// The pause after a failed replacement in the background, at least and at most.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest sleep of the background task: a credential may have come meanwhile.
const WATCH: Duration = Duration::from_secs(1);

/// The source of the credentials of one identity.
pub(super) trait Source: Send + Sync + 'static {
    /// A credential as requests carry it.
    type Credential: Send + Sync + 'static;
    /// The proof of identity that is presented to get one: a secret, a key, a signed assertion.
    type Evidence: Send + 'static;

    /// Reads the evidence as it is now, with a hash that identifies it.
    fn evidence(&self) -> Result<(Self::Evidence, Fingerprint), KmsError>;

    /// Asks for a credential.
    fn fetch(
        &self,
        evidence: Self::Evidence,
        deadline: Instant,
    ) -> impl Future<Output = Result<Granted<Self::Credential>, Failed>> + Send;

    /// Extends a credential that was granted for `granted`. `None` if another one has to be
    /// fetched.
    fn extend(
        &self,
        _credential: &Self::Credential,
        _granted: Option<Duration>,
        _deadline: Instant,
    ) -> impl Future<Output = Option<Life>> + Send {
        async { None }
    }

    /// The meaning of a failed fetch.
    fn meaning(&self, failed: &Failed) -> Meaning;

    /// Logs a failed fetch; `error.retry_after` is the time for which the evidence is not presented
    /// again.
    fn note(&self, error: &KmsError);
}

/// A credential that was obtained.
pub(super) struct Granted<C> {
    pub(super) credential: C,
    pub(super) life: Life,
}

/// How long a credential can be used.
#[derive(Clone, Copy)]
pub(super) struct Life {
    /// The time for which it was granted; `None` where it has no end.
    pub(super) granted: Option<Duration>,
    /// The time for which requests are begun with it; `None` where it has no end.
    pub(super) usable: Option<Duration>,
    /// The age at which its source wants it replaced.
    pub(super) renew_after: Option<Duration>,
}

/// The meaning of a failed fetch for the evidence.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// An outage, which says nothing about the evidence.
    Outage,
    /// No answer, which says nothing about the evidence. The other side may have counted a refusal.
    Unanswered,
    /// A failure after which the evidence is not to be presented again for a while.
    Deferred(Option<Duration>),
    /// A refusal.
    Refused,
    /// A refusal that the other side counts towards a lockout.
    Counted,
}

/// The settings that differ between identities.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// The time limit of one fetch.
    pub(super) timeout: Duration,
    /// The number of refused replacements in a row after which the credential in use is dropped.
    /// More than one where a new secret takes a moment to be known everywhere.
    pub(super) refusals: u32,
    /// Whether a credential is also replaced while nobody uses it. If not, it is dropped when it is
    /// due.
    pub(super) renews_unused: bool,
}

/// The credential in use, and its renewal.
pub(super) struct Renewer<S: Source> {
    inner: Arc<Inner<S>>,
    /// The task that replaces the credential ahead of its end; it ends with the renewer.
    task: Option<JoinHandle<()>>,
}

struct Inner<S: Source> {
    source: S,
    rules: Rules,
    state: Mutex<State<S::Credential>>,
    gate: Arc<tokio::sync::Mutex<Gate>>,
    used: AtomicBool,
}

/// The state that one fetch leaves to the next.
#[derive(Default)]
struct Gate {
    /// The last failure, for the callers who waited for it.
    failed: Option<(Instant, KmsError)>,
    pacing: Pacing,
}

struct State<C> {
    held: Option<Held<C>>,
    /// The last replacement of a credential that the KMS refused.
    replaced: Option<Replaced<C>>,
}

struct Held<C> {
    credential: Arc<C>,
    /// The time of the fetch.
    since: Instant,
    granted: Option<Duration>,
    usable_until: Option<Instant>,
    renew_at: Option<Instant>,
    /// The refusals in a row of its replacement.
    refusals: u32,
}

struct Replaced<C> {
    by: Weak<C>,
    at: Instant,
    /// The time for which it is not replaced again.
    pause: Duration,
}

/// The reason for a replacement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Because {
    Due,
    Refused,
}

impl<S: Source> Renewer<S> {
    /// A renewer that holds nothing yet, and its task.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(super) fn start(source: S, rules: Rules) -> Self {
        let inner = Arc::new(Inner::new(source, rules, None));
        let task = tokio::spawn(Arc::clone(&inner).keep());
        Self { inner, task: Some(task) }
    }

    /// A renewer of a credential that never ends and has no successor.
    pub(super) fn fixed(source: S, rules: Rules, credential: S::Credential) -> Self {
        let life = Life { granted: None, usable: None, renew_after: None };
        let held = Held::new(Arc::new(credential), life);
        Self { inner: Arc::new(Inner::new(source, rules, Some(held))), task: None }
    }

    /// The credential in use, if there is one.
    pub(super) fn current(&self) -> Option<Arc<S::Credential>> {
        self.inner.state().held.as_ref().map(|held| Arc::clone(&held.credential))
    }

    /// The age of this credential, if it is the one in use.
    pub(super) fn age(&self, credential: &Arc<S::Credential>) -> Option<Duration> {
        let state = self.inner.state();
        let held = state.held.as_ref().filter(|held| Arc::ptr_eq(&held.credential, credential));
        held.map(|held| held.since.elapsed())
    }

    /// A valid credential, for a request that began at `began`.
    pub(super) async fn get(
        &self,
        began: Instant,
        deadline: Instant,
    ) -> Result<Arc<S::Credential>, KmsError> {
        self.inner.used.store(true, Ordering::Relaxed);
        match self.inner.live(None) {
            Some(credential) => Ok(credential),
            None => self.inner.fetch(None, began, deadline).await,
        }
    }

    /// Another credential than this one, which the KMS refused; `None` while it is too early to ask
    /// for another.
    pub(super) async fn another(
        &self,
        refused: &Arc<S::Credential>,
        deadline: Instant,
    ) -> Result<Option<Arc<S::Credential>>, KmsError> {
        if let Some(other) = self.inner.live(Some(refused)) {
            return Ok(Some(other));
        }
        if self.inner.state().is_too_early(refused) {
            return Ok(None);
        }
        let other = self.inner.fetch(Some((refused, Because::Refused)), Instant::now(), deadline).await?;
        self.inner.state().has_replaced(&other);
        Ok(Some(other))
    }
}

impl<S: Source> Drop for Renewer<S> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl<S: Source> Inner<S> {
    fn new(source: S, rules: Rules, held: Option<Held<S::Credential>>) -> Self {
        let state = Mutex::new(State { held, replaced: None });
        Self { source, rules, state, gate: Arc::default(), used: AtomicBool::new(false) }
    }

    async fn keep(self: Arc<Self>) {
        loop {
            let due = self.renew_what_is_due().await;
            sleep(due.min(WATCH)).await;
        }
    }

    /// Replaces the credential if it is due, and returns the time until the next check.
    async fn renew_what_is_due(self: &Arc<Self>) -> Duration {
        let (credential, granted, age) = {
            let mut state = self.state();
            let Some(held) = &state.held else { return WATCH };
            let Some(renew_at) = held.renew_at else { return WATCH };
            let left = renew_at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return left;
            }
            if !self.used.swap(false, Ordering::Relaxed) && !self.rules.renews_unused {
                state.held = None;
                return WATCH;
            }
            (Arc::clone(&held.credential), held.granted, held.since.elapsed())
        };
        let deadline = Instant::now() + self.rules.timeout;
        if age < LONGEST_USE
            && let Some(life) = self.source.extend(&credential, granted, deadline).await
        {
            if let Some(held) = self.state().held_as(&credential) {
                held.lives(life);
            }
        } else if let Err(error) =
            self.fetch(Some((&credential, Because::Due)), Instant::now(), deadline).await
        {
            // It was in use, so its replacement is still wanted.
            self.used.store(true, Ordering::Relaxed);
            if let Some(held) = self.state().held_as(&credential) {
                held.put_off(error.retry_after);
            }
        }
        let next = self.state().held.as_ref().and_then(|held| held.renew_at);
        next.map_or(WATCH, |next| next.saturating_duration_since(Instant::now()))
    }

    /// A valid credential other than `instead_of`: one that another fetch has just obtained, or a
    /// new one.
    async fn fetch(
        self: &Arc<Self>,
        instead_of: Option<(&Arc<S::Credential>, Because)>,
        began: Instant,
        deadline: Instant,
    ) -> Result<Arc<S::Credential>, KmsError> {
        let timeout = || KmsError::local(KmsErrorClass::Timeout).of_credential();
        let gate = timeout_at(deadline, Arc::clone(&self.gate).lock_owned()).await.map_err(|_| timeout())?;
        if let Some(credential) = self.live(instead_of.map(|(old, _)| old)) {
            return Ok(credential);
        }
        // The timeout of another fetch does not apply to a caller who has time left.
        if let Some((at, error)) = &gate.failed
            && *at >= began
            && error.class != KmsErrorClass::Timeout
        {
            return Err(error.clone());
        }
        let (evidence, fingerprint) = self.source.evidence().map_err(KmsError::of_credential)?;
        gate.pacing.may_present(&fingerprint)?;
        let instead_of = instead_of.map(|(old, because)| (Arc::clone(old), because));
        // In a task of its own, so that a refusal is noted even if the caller hangs up.
        let fetch = tokio::spawn(Arc::clone(self).fetch_now(evidence, fingerprint, instead_of, gate));
        match timeout_at(deadline, fetch).await {
            Ok(outcome) => {
                outcome.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Internal).of_credential()))
            }
            Err(_) => Err(timeout()),
        }
    }

    async fn fetch_now(
        self: Arc<Self>,
        evidence: S::Evidence,
        fingerprint: Fingerprint,
        instead_of: Option<(Arc<S::Credential>, Because)>,
        mut gate: OwnedMutexGuard<Gate>,
    ) -> Result<Arc<S::Credential>, KmsError> {
        let deadline = Instant::now() + self.rules.timeout;
        let outcome = timeout_at(deadline, self.source.fetch(evidence, deadline)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Timeout).into()));
        let failed = match outcome {
            Ok(Granted { credential, life }) => {
                gate.failed = None;
                gate.pacing.succeeded();
                let credential = Arc::new(credential);
                self.state().held = Some(Held::new(Arc::clone(&credential), life));
                return Ok(credential);
            }
            Err(failed) => failed,
        };
        let meaning = self.source.meaning(&failed);
        let error = failed.error.of_credential();
        let pause = match meaning {
            Meaning::Outage => None,
            Meaning::Unanswered => {
                gate.pacing.unanswered(fingerprint);
                None
            }
            Meaning::Deferred(wait) => Some(gate.pacing.deferred(fingerprint, &error, wait)),
            Meaning::Refused => Some(gate.pacing.refused(fingerprint, &error)),
            Meaning::Counted => Some(gate.pacing.refused_and_counted(fingerprint, &error)),
        };
        let error = KmsError { retry_after: pause, ..error };
        self.source.note(&error);
        if let (Some((old, because)), Meaning::Refused | Meaning::Counted) = (&instead_of, meaning) {
            self.refused(old, *because);
        }
        gate.failed = Some((Instant::now(), error.clone()));
        Err(error)
    }

    /// Counts a refusal to replace the credential in use, and drops the credential at the last one.
    fn refused(&self, old: &Arc<S::Credential>, because: Because) {
        let mut state = self.state();
        let Some(held) = state.held_as(old) else { return };
        held.refusals += 1;
        if because == Because::Refused || held.refusals >= self.rules.refusals {
            state.held = None;
        }
    }

    fn live(&self, instead_of: Option<&Arc<S::Credential>>) -> Option<Arc<S::Credential>> {
        let state = self.state();
        let held = state.held.as_ref()?;
        let lives = held.usable_until.is_none_or(|end| Instant::now() < end);
        let is_other = instead_of.is_none_or(|old| !Arc::ptr_eq(old, &held.credential));
        (lives && is_other).then(|| Arc::clone(&held.credential))
    }

    fn state(&self) -> MutexGuard<'_, State<S::Credential>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> State<C> {
    fn held_as(&mut self, credential: &Arc<C>) -> Option<&mut Held<C>> {
        self.held.as_mut().filter(|held| Arc::ptr_eq(&held.credential, credential))
    }

    fn is_too_early(&self, refused: &Arc<C>) -> bool {
        let last = self.replaced.as_ref().filter(|last| last.by.as_ptr() == Arc::as_ptr(refused));
        last.is_some_and(|last| last.at.elapsed() < last.pause)
    }

    fn has_replaced(&mut self, by: &Arc<C>) {
        let pause = match &self.replaced {
            // Several callers waited for the same replacement.
            Some(last) if last.by.as_ptr() == Arc::as_ptr(by) => return,
            Some(last) if last.at.elapsed() < last.pause * 2 => longer(last.pause),
            Some(_) | None => PAUSES.0,
        };
        self.replaced = Some(Replaced { by: Arc::downgrade(by), at: Instant::now(), pause });
    }
}

impl<C> Held<C> {
    fn new(credential: Arc<C>, life: Life) -> Self {
        let since = Instant::now();
        let mut held =
            Self { credential, since, granted: None, usable_until: None, renew_at: None, refusals: 0 };
        held.lives(life);
        held
    }

    /// Sets its life from now on. The bound on its use counts from the fetch.
    fn lives(&mut self, life: Life) {
        let now = Instant::now();
        self.granted = life.granted;
        self.usable_until = life.usable.map(|usable| now + usable);
        let latest = self.since + LONGEST_USE;
        self.renew_at = life.renew_after.map(|after| (now + after.max(RETRY_PAUSES.0)).min(latest));
    }

    /// Sets the next attempt to replace it, after one that failed.
    fn put_off(&mut self, pause: Option<Duration>) {
        let now = Instant::now();
        let rest = self.usable_until.map_or(RETRY_PAUSES.1, |end| end.saturating_duration_since(now) / 3);
        self.renew_at = Some(now + pause.unwrap_or(rest).clamp(RETRY_PAUSES.0, RETRY_PAUSES.1));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::time::advance;

    use super::*;

    const LIFE: Duration = Duration::from_secs(3600);
    const RULES: Rules = Rules { timeout: Duration::from_secs(5), refusals: 3, renews_unused: true };

    /// A source that answers as its turn says, and numbers what it gives.
    #[derive(Default)]
    struct Turned {
        fetches: AtomicUsize,
        turn: Mutex<Turn>,
        life: Mutex<Option<Duration>>,
    }

    #[derive(Clone, Copy, Default)]
    enum Turn {
        #[default]
        Gives,
        GivesAfter(Duration),
        Fails(KmsErrorClass),
        Hangs,
    }

    impl Turned {
        fn turns(&self, turn: Turn) {
            *self.turn.lock().unwrap() = turn;
        }
    }

    impl Source for Arc<Turned> {
        type Credential = usize;
        type Evidence = ();

        fn evidence(&self) -> Result<((), Fingerprint), KmsError> {
            Ok(((), [0; 32]))
        }

        async fn fetch(&self, (): (), _: Instant) -> Result<Granted<usize>, Failed> {
            let credential = self.fetches.fetch_add(1, Ordering::Relaxed);
            let turn = *self.turn.lock().unwrap();
            match turn {
                Turn::Gives => {}
                Turn::GivesAfter(time) => sleep(time).await,
                Turn::Fails(class) => return Err(KmsError::local(class).into()),
                Turn::Hangs => std::future::pending().await,
            }
            let life = self.life.lock().unwrap().unwrap_or(LIFE);
            let life = Life { granted: Some(life), usable: Some(life), renew_after: Some(life * 2 / 3) };
            Ok(Granted { credential, life })
        }

        fn meaning(&self, failed: &Failed) -> Meaning {
            match failed.error.class {
                KmsErrorClass::CredentialInvalid => Meaning::Refused,
                KmsErrorClass::Misconfigured => Meaning::Deferred(None),
                _ => Meaning::Outage,
            }
        }

        fn note(&self, _: &KmsError) {}
    }

    fn renewer(rules: Rules) -> (Arc<Turned>, Renewer<Arc<Turned>>) {
        let source = Arc::new(Turned::default());
        (source.clone(), Renewer::start(source, rules))
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    async fn got(renewer: &Renewer<Arc<Turned>>) -> Result<usize, KmsErrorClass> {
        let credential = renewer.get(Instant::now(), deadline()).await;
        credential.map(|credential| *credential).map_err(|error| error.class)
    }

    const REFUSED: Turn = Turn::Fails(KmsErrorClass::CredentialInvalid);
    const OUTAGE: Turn = Turn::Fails(KmsErrorClass::Unreachable);

    #[tokio::test(start_paused = true)]
    async fn many_who_come_together_fetch_once() {
        let (source, renewer) = renewer(RULES);
        source.turns(Turn::GivesAfter(Duration::from_millis(50)));
        let all = futures_util::future::join_all((0..100).map(|_| got(&renewer))).await;
        assert!(all.iter().all(|one| *one == Ok(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_caller_does_not_share_the_timeout_of_another() {
        let (source, renewer) = renewer(RULES);
        source.turns(Turn::Hangs);
        let later = async {
            sleep(Duration::from_secs(4)).await;
            source.turns(Turn::Gives);
            got(&renewer).await
        };
        assert_eq!(tokio::join!(got(&renewer), later), (Err(KmsErrorClass::Timeout), Ok(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_hangs_up_takes_nothing_with_it() {
        let (source, renewer) = renewer(RULES);
        source.turns(Turn::GivesAfter(Duration::from_secs(1)));
        assert!(tokio::time::timeout(Duration::from_millis(10), got(&renewer)).await.is_err());
        assert_eq!(got(&renewer).await, Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_is_replaced_within_the_bound_and_before_its_end() {
        for (life, replaced_after) in [(86_400, 780), (3_600, 780), (600, 400)] {
            let (source, renewer) = renewer(RULES);
            *source.life.lock().unwrap() = Some(Duration::from_secs(life));
            assert_eq!(got(&renewer).await, Ok(0));
            sleep(Duration::from_secs(replaced_after - 2)).await;
            assert_eq!(got(&renewer).await, Ok(0));
            sleep(Duration::from_secs(4)).await;
            assert_eq!(got(&renewer).await, Ok(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_whose_evidence_is_revoked_is_dropped_within_the_bound() {
        for refusals in [1, 3] {
            let (source, renewer) = renewer(Rules { refusals, ..RULES });
            *source.life.lock().unwrap() = Some(Duration::from_secs(30 * 86_400));
            assert_eq!(got(&renewer).await, Ok(0));
            source.turns(REFUSED);
            let began = Instant::now();
            while got(&renewer).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
            assert!(began.elapsed() <= BOUND, "{:?}", began.elapsed());
            assert!(source.fetches.load(Ordering::Relaxed) <= 2 + refusals as usize);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_what_lives_up_to_its_end() {
        let (source, renewer) = renewer(RULES);
        assert_eq!(got(&renewer).await, Ok(0));
        source.turns(OUTAGE);
        sleep(LIFE - Duration::from_secs(1)).await;
        assert_eq!(got(&renewer).await, Ok(0));
        assert!(source.fetches.load(Ordering::Relaxed) > 10, "it is tried again");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(got(&renewer).await, Err(KmsErrorClass::Unreachable));
    }

    #[tokio::test(start_paused = true)]
    async fn outages_between_refusals_do_not_make_them_forgotten() {
        let (source, renewer) = renewer(RULES);
        assert_eq!(got(&renewer).await, Ok(0));
        source.turns(REFUSED);
        sleep(LONGEST_USE + Duration::from_millis(500)).await;
        source.turns(OUTAGE);
        sleep(Duration::from_secs(61)).await;
        assert_eq!(got(&renewer).await, Ok(0));
        source.turns(REFUSED);
        sleep(Duration::from_secs(130)).await;
        assert_eq!(got(&renewer).await, Err(KmsErrorClass::CredentialInvalid));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_credential_is_dropped_when_due_if_so_configured() {
        let (source, renewer) = renewer(Rules { renews_unused: false, ..RULES });
        assert_eq!(got(&renewer).await, Ok(0));
        // It was used for the first time when it came.
        sleep(LONGEST_USE + Duration::from_secs(2)).await;
        assert_eq!(renewer.current().map(|held| *held), Some(1));
        sleep(LONGEST_USE + Duration::from_secs(2)).await;
        assert_eq!((renewer.current(), source.fetches.load(Ordering::Relaxed)), (None, 2));
        assert_eq!(got(&renewer).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_asked_for_again_at_once() {
        let (source, renewer) = renewer(RULES);
        for turn in [REFUSED, Turn::Fails(KmsErrorClass::Misconfigured)] {
            source.turns(turn);
            source.fetches.store(0, Ordering::Relaxed);
            for _ in 0..600 {
                assert!(got(&renewer).await.is_err());
                advance(Duration::from_secs(1)).await;
            }
            // After 1, 2, 4, … 32 s, and then each minute.
            let asked = source.fetches.load(Ordering::Relaxed);
            assert!((9..=18).contains(&asked), "{asked}");
        }
        advance(PAUSES.1).await;
        source.turns(Turn::Gives);
        assert!(got(&renewer).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_replaced_once_for_all_who_held_it() {
        let (source, renewer) = renewer(RULES);
        let first = renewer.get(Instant::now(), deadline()).await.unwrap();
        let second = renewer.another(&first, deadline()).await.unwrap().unwrap();
        source.turns(REFUSED);
        assert_eq!(renewer.another(&first, deadline()).await, Ok(Some(second)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_refusal_by_kms_and_source_drops_it() {
        for (turn, is_dropped) in [(REFUSED, true), (OUTAGE, false)] {
            let (source, renewer) = renewer(RULES);
            let held = renewer.get(Instant::now(), deadline()).await.unwrap();
            source.turns(turn);
            assert!(renewer.another(&held, deadline()).await.is_err());
            assert_eq!(renewer.current().is_none(), is_dropped);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kms_that_refuses_everything_causes_no_renewal_per_call() {
        let (source, renewer) = renewer(RULES);
        let mut held = renewer.get(Instant::now(), deadline()).await.unwrap();
        for _ in 0..6_000 {
            held = renewer.another(&held, deadline()).await.unwrap().unwrap_or(held);
            advance(Duration::from_millis(100)).await;
        }
        let asked = source.fetches.load(Ordering::Relaxed);
        assert!((12..=18).contains(&asked), "{asked}");
        advance(2 * PAUSES.1).await;
        assert!(renewer.another(&held, deadline()).await.unwrap().is_some());
    }
}
