//! Credentials that end: who fetches the next ones, when, and what a refusal leaves behind.
//!
//! - One fetch at a time; those who came meanwhile get what it brought, its failure included.
//! - They are renewed when a third of their life is over, so that a role that may no longer be
//!   taken shows while what it gave before still lives: then that is dropped at once, as it is when
//!   KMS refused it and no other is given. In an outage it goes on being used until its end.
//! - Nobody used them for their whole life: they are let go, and the next call fetches new ones.
//! - What was refused is not shown again at once: there is a pause that doubles from one second to
//!   sixty. Likewise, what KMS refuses is not replaced again at once when it came in the place of
//!   something that KMS refused.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_kms::config::Credentials;
use tokio::time::{Instant, timeout_at};

use crate::kms::pacing::{PAUSES, longer};
use crate::kms::{KmsError, KmsErrorClass, Verdict};

/// What has less than this left is not begun with.
const MARGIN: Duration = Duration::from_secs(5);

/// Credentials, until when they are good, if they end.
pub(super) struct Granted {
    pub(super) credentials: Credentials,
    pub(super) until: Option<Instant>,
}

/// Which credentials a call was signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// The credentials in use.
pub(super) struct Session {
    slot: Slot,
    /// One fetch at a time; what the last one that failed leaves to others.
    gate: tokio::sync::Mutex<Option<Failure>>,
    /// What came last in the place of something that KMS refused.
    replaced: Mutex<Option<Replaced>>,
    used: AtomicBool,
    begun: AtomicBool,
}

/// What the SDK's client signs with: whatever the session holds.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Place>>);

#[derive(Default)]
struct Place {
    held: Option<Held>,
    /// How many it has held: no two that it ever held are of one generation.
    generations: u64,
}

struct Held {
    credentials: Credentials,
    generation: Generation,
    /// End, and when to renew.
    life: Option<(Instant, Instant)>,
}

struct Replaced {
    by: Generation,
    at: Instant,
    /// How long not to replace it.
    pause: Duration,
}

struct Failure {
    at: Instant,
    error: KmsError,
    /// Of a refusal: how long not to ask again.
    pause: Option<Duration>,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            slot: Slot::default(),
            gate: tokio::sync::Mutex::new(None),
            replaced: Mutex::new(None),
            used: AtomicBool::new(false),
            begun: AtomicBool::new(false),
        }
    }

    /// For credentials that never end and of which there are no others.
    pub(super) fn fixed(credentials: Credentials) -> Self {
        let session = Self::new();
        session.slot.hold(Granted { credentials, until: None });
        session
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot.clone()
    }

    /// Live credentials, `instead_of` others that were refused; those again, where it is too early
    /// to ask for others.
    pub(super) async fn ready(
        &self,
        instead_of: Option<Generation>,
        deadline: Instant,
        fetch: impl Future<Output = Result<Granted, KmsError>>,
    ) -> Result<Generation, KmsError> {
        self.used.store(true, Ordering::Relaxed);
        if let Some(generation) = self.live(instead_of) {
            return Ok(generation);
        }
        let Some(refused) = instead_of else { return self.fetch(None, deadline, fetch).await };
        if self.is_too_early(refused) {
            return Ok(refused);
        }
        let other = self.fetch(instead_of, deadline, fetch).await?;
        self.has_replaced(other);
        Ok(other)
    }

    fn is_too_early(&self, refused: Generation) -> bool {
        let last = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_some_and(|last| last.by == refused && last.at.elapsed() < last.pause)
    }

    fn has_replaced(&self, by: Generation) {
        let mut last = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = match &*last {
            // Others waited for the same.
            Some(last) if last.by == by => return,
            Some(last) if last.at.elapsed() < last.pause * 2 => longer(last.pause),
            Some(_) | None => PAUSES.0,
        };
        *last = Some(Replaced { by, at: Instant::now(), pause });
    }

    /// Whether it holds any, or has held some before.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether it is time to renew what is in use.
    pub(super) fn is_due(&self) -> Option<Generation> {
        let place = self.slot.lock();
        let held = place.held.as_ref()?;
        let (_, renew_at) = held.life?;
        let due = renew_at <= Instant::now() && self.used.load(Ordering::Relaxed);
        due.then_some(held.generation)
    }

    /// Renews in the background. In an outage what is held stays.
    pub(super) async fn renew(
        &self,
        held: Generation,
        deadline: Instant,
        fetch: impl Future<Output = Result<Granted, KmsError>>,
    ) {
        self.used.store(false, Ordering::Relaxed);
        let Err(error) = self.fetch(Some(held), deadline, fetch).await else { return };
        self.used.store(true, Ordering::Relaxed);
        tracing::warn!(class = ?error.class, http_status = error.http_status, "the AWS session could not be renewed");
        let mut place = self.slot.lock();
        let still = place.held.as_mut().filter(|still| still.generation == held);
        if let Some((end, renew_at)) = still.and_then(|still| still.life.as_mut()) {
            let now = Instant::now();
            *renew_at = now + (end.saturating_duration_since(now) / 3).clamp(PAUSES.0, PAUSES.1);
        }
    }

    async fn fetch(
        &self,
        instead_of: Option<Generation>,
        deadline: Instant,
        fetch: impl Future<Output = Result<Granted, KmsError>>,
    ) -> Result<Generation, KmsError> {
        let began = Instant::now();
        let timeout = || KmsError::local(KmsErrorClass::Timeout).of_credential();
        let mut gate = timeout_at(deadline, self.gate.lock()).await.map_err(|_| timeout())?;
        if let Some(generation) = self.live(instead_of) {
            return Ok(generation);
        }
        let mut pause = PAUSES.0;
        if let Some(failure) = &*gate {
            // Of one whose time was up, not ours, nothing is learned.
            let shared = failure.at >= began && failure.error.class != KmsErrorClass::Timeout;
            let left = failure.pause.and_then(|pause| pause.checked_sub(failure.at.elapsed()));
            if shared || left.is_some() {
                return Err(KmsError { retry_after: left, ..failure.error.clone() });
            }
            pause = failure.pause.map_or(pause, longer);
        }
        let outcome = timeout_at(deadline, fetch).await.unwrap_or_else(|_| Err(timeout()));
        match outcome.map_err(KmsError::of_credential) {
            Ok(granted) => {
                *gate = None;
                self.begun.store(true, Ordering::Relaxed);
                Ok(self.slot.hold(granted))
            }
            Err(error) => {
                if error.class.verdict() == Verdict::Revoked {
                    self.slot.drop_held(instead_of);
                }
                let pause = is_refusal(error.class).then_some(pause);
                *gate = Some(Failure { at: Instant::now(), error: error.clone(), pause });
                Err(error)
            }
        }
    }

    fn live(&self, instead_of: Option<Generation>) -> Option<Generation> {
        let place = self.slot.lock();
        let held = place.held.as_ref()?;
        let lives = held.life.is_none_or(|(end, _)| Instant::now() + MARGIN < end);
        (lives && instead_of != Some(held.generation)).then_some(held.generation)
    }
}

impl Slot {
    fn hold(&self, Granted { credentials, until }: Granted) -> Generation {
        let now = Instant::now();
        let life = until.map(|end| (end, now + end.saturating_duration_since(now) / 3));
        let mut place = self.lock();
        place.generations += 1;
        let generation = Generation(place.generations);
        place.held = Some(Held { credentials, generation, life });
        generation
    }

    /// Of this generation only.
    fn drop_held(&self, generation: Option<Generation>) {
        let mut place = self.lock();
        if place.held.as_ref().is_some_and(|held| Some(held.generation) == generation) {
            place.held = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for Slot {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let held = self.lock().held.as_ref().map(|held| held.credentials.clone());
        future::ProvideCredentials::ready(held.ok_or_else(CredentialsError::not_loaded_no_source))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// Of the credential, or by who says who may have it, or for want of any; and not an outage.
fn is_refusal(class: KmsErrorClass) -> bool {
    !matches!(class, KmsErrorClass::Timeout) && !class.retryable()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LIFE: Duration = Duration::from_secs(900);

    fn granted() -> Granted {
        let credentials = Credentials::new("AKIA", "secret", None, None, "test");
        Granted { credentials, until: Some(Instant::now() + LIFE) }
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn refused() -> Result<Granted, KmsError> {
        Err(KmsError::local(KmsErrorClass::AccessDenied))
    }

    async fn class(session: &Session, outcome: Result<Granted, KmsError>) -> Option<KmsErrorClass> {
        session.ready(None, deadline(), async { outcome }).await.err().map(|error| error.class)
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_come_together_fetch_once() {
        let (session, fetched) = (Session::new(), AtomicUsize::new(0));
        let fetch = || async {
            fetched.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(granted())
        };
        let all =
            futures_util::future::join_all((0..100).map(|_| session.ready(None, deadline(), fetch()))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(fetched.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_not_told_that_the_time_of_another_is_up() {
        let session = Session::new();
        let hung = session.ready(None, deadline(), std::future::pending());
        let later = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            session.ready(None, deadline(), async { Ok(granted()) }).await
        };
        let (hung, later) = tokio::join!(hung, later);
        assert_eq!((hung.is_err(), later.is_ok()), (true, true));
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_due_after_a_third_of_their_life_if_used() {
        let session = Session::new();
        assert_eq!(class(&session, Ok(granted())).await, None);
        assert!(session.is_due().is_none());
        tokio::time::advance(LIFE / 3).await;
        let held = session.is_due().unwrap();
        session.renew(held, deadline(), async { Ok(granted()) }).await;
        tokio::time::advance(LIFE / 2).await;
        assert!(session.is_due().is_none(), "nobody used them since");
        assert_eq!(class(&session, refused()).await, None, "they live");
        assert!(session.is_due().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_what_lives_and_a_refusal_does_not() {
        let session = Session::new();
        assert_eq!(class(&session, Ok(granted())).await, None);
        tokio::time::advance(LIFE / 3).await;
        let held = session.is_due().unwrap();
        session.renew(held, deadline(), async { Err(KmsError::local(KmsErrorClass::Unreachable)) }).await;
        assert!(session.is_due().is_none(), "it is not tried again at once");
        assert_eq!(class(&session, refused()).await, None);
        tokio::time::advance(PAUSES.1).await;
        session.renew(session.is_due().unwrap(), deadline(), async { refused() }).await;
        assert_eq!(class(&session, Ok(granted())).await, Some(KmsErrorClass::AccessDenied));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_not_used() {
        let session = Session::new();
        assert_eq!(class(&session, Ok(granted())).await, None);
        tokio::time::advance(LIFE).await;
        let outage = Err(KmsError::local(KmsErrorClass::Unreachable));
        assert_eq!(class(&session, outage).await, Some(KmsErrorClass::Unreachable));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_asked_for_again_at_once() {
        let (session, asked) = (Session::new(), AtomicUsize::new(0));
        for _ in 0..600 {
            let fetch = async {
                asked.fetch_add(1, Ordering::Relaxed);
                refused()
            };
            assert!(session.ready(None, deadline(), fetch).await.is_err());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // After 1, 2, 4, … 32 s, and then each minute.
        assert!((12..=18).contains(&asked.load(Ordering::Relaxed)), "{asked:?}");
        tokio::time::advance(PAUSES.1).await;
        assert_eq!(class(&session, Ok(granted())).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_replaced_once_for_all_who_held_it() {
        let session = Session::new();
        let first = session.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        let second = session.ready(Some(first), deadline(), async { Ok(granted()) }).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(session.ready(Some(first), deadline(), async { refused() }).await, Ok(second));
    }

    #[tokio::test(start_paused = true)]
    async fn what_kms_refused_and_sts_refuses_to_replace_is_dropped() {
        let session = Session::new();
        let held = session.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        assert!(session.ready(Some(held), deadline(), async { refused() }).await.is_err());
        assert_eq!(class(&session, refused()).await, Some(KmsErrorClass::AccessDenied));
        let other = Session::new();
        let held = other.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        let outage = async { Err(KmsError::local(KmsErrorClass::Unreachable)) };
        assert!(other.ready(Some(held), deadline(), outage).await.is_err());
        assert_eq!(other.ready(None, deadline(), async { refused() }).await, Ok(held));
    }

    #[tokio::test(start_paused = true)]
    async fn what_kms_refuses_with_any_session_is_not_replaced_each_call() {
        let (session, asked) = (Session::new(), AtomicUsize::new(0));
        let mut held = session.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        for _ in 0..6000 {
            let fetch = async {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(granted())
            };
            held = session.ready(Some(held), deadline(), fetch).await.unwrap();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((12..=18).contains(&asked.load(Ordering::Relaxed)), "{asked:?}");
        tokio::time::advance(2 * PAUSES.1).await;
        let other = session.ready(Some(held), deadline(), async { Ok(granted()) }).await.unwrap();
        assert_ne!(other, held);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_refusal_is_not_taken_for_what_was_refused() {
        let session = Session::new();
        let first = session.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        session.renew(first, deadline(), async { refused() }).await;
        tokio::time::advance(PAUSES.1).await;
        let second = session.ready(None, deadline(), async { Ok(granted()) }).await.unwrap();
        assert_ne!(first, second);
    }
}
