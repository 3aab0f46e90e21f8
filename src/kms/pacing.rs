//! The times at which a credential that was refused may be presented again.
//!
//! | refusal | the same credential | another one |
//! |---|---|---|
//! | not counted towards a lockout | after a pause that doubles from one second to sixty | at once |
//! | counted towards a lockout by the other side | after [`QUIET`] | at once, but at most [`MOST_COUNTED`] times in a row; then after [`QUIET`] |
//!
//! Vault and OpenBao lock out an AppRole for 15 minutes at the fifth wrong secret id, and reset the
//! count after 15 minutes without one, or at a login that succeeds
//! (<https://developer.hashicorp.com/vault/docs/concepts/user-lockout>). So one process never
//! causes a lockout, however many of its parts ask for a login. Several processes share one count
//! without coordination: docs/kms/vault.md says how many are safe.
//!
//! During the pause after a counted refusal, that refusal may be 20 minutes old, so the error is
//! [`KmsErrorClass::LoginPaused`](super::KmsErrorClass::LoginPaused). A refusal that is not counted
//! is at most a minute old, so its own error is repeated.

use std::time::Duration;

use tokio::time::Instant;

use super::KmsError;

/// The pause after a refusal that is not counted: the first, and the longest.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The pause before the next login that may be counted. It is longer than the 15 minutes after
/// which the count is reset, by more than the time between the replicas of one deployment that get
/// the same refusal.
const QUIET: Duration = Duration::from_secs(20 * 60);
/// The most counted refusals in a row of one process: two below the five that lock out, one of them
/// for `byok doctor`.
const MOST_COUNTED: u32 = 3;

/// The identity of a credential, as a hash.
pub(super) type Fingerprint = [u8; 32];

/// The pause after the next refusal in a row.
pub(super) fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSES.1)
}

/// The past refusals of one identity that matter for its next login.
#[derive(Default)]
pub(super) struct Pacing {
    last: Option<Refused>,
    counted: u32,
    counted_at: Option<Instant>,
}

struct Refused {
    credential: Fingerprint,
    error: KmsError,
    until: Instant,
    /// The pause after a refusal that is not counted.
    pause: Duration,
    is_counted: bool,
}

impl Pacing {
    /// Whether this credential may be presented now; the error is the answer to give instead, with
    /// the time until it may be.
    pub(super) fn may_present(&self, credential: &Fingerprint) -> Result<(), KmsError> {
        let left = |until: Instant| {
            let left = until.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left)
        };
        let last = self.last.as_ref().filter(|last| last.credential == *credential);
        if let Some(last) = last
            && let Some(left) = left(last.until)
        {
            return Err(if last.is_counted {
                KmsError::login_paused(left)
            } else {
                KmsError { retry_after: Some(left), ..last.error.clone() }
            });
        }
        match self.counted_at.filter(|_| self.counted >= MOST_COUNTED).and_then(|at| left(at + QUIET)) {
            Some(left) => Err(KmsError::login_paused(left)),
            None => Ok(()),
        }
    }

    /// Notes a refusal that is not counted, and returns the time for which the credential is not
    /// presented again.
    pub(super) fn refused(&mut self, credential: Fingerprint, error: &KmsError) -> Duration {
        let last = self.last.as_ref().filter(|last| last.credential == credential && !last.is_counted);
        let pause = last.map_or(PAUSES.0, |last| longer(last.pause));
        self.note(credential, error, pause, false);
        pause
    }

    /// Notes that the credential is not to be presented again for a while, and returns the time:
    /// the one that was asked for, up to a minute, or else the pause of [`Self::refused`].
    pub(super) fn deferred(
        &mut self,
        credential: Fingerprint,
        error: &KmsError,
        wait: Option<Duration>,
    ) -> Duration {
        let Some(wait) = wait else { return self.refused(credential, error) };
        let pause = wait.min(PAUSES.1);
        self.note(credential, error, pause, false);
        pause
    }

    /// Notes a refusal that the other side may count towards a lockout, and returns the time for
    /// which the credential is not presented again.
    pub(super) fn refused_and_counted(&mut self, credential: Fingerprint, error: &KmsError) -> Duration {
        let now = Instant::now();
        let in_a_row = self.counted_at.is_some_and(|at| now.duration_since(at) < QUIET);
        self.counted = if in_a_row { self.counted + 1 } else { 1 };
        self.counted_at = Some(now);
        self.note(credential, error, QUIET, true);
        QUIET
    }

    /// Notes a login without an answer. If this credential was refused before, it may have been
    /// refused once more.
    pub(super) fn unanswered(&mut self, credential: Fingerprint) {
        let before = self.last.as_ref().filter(|last| last.credential == credential && last.is_counted);
        if let Some(error) = before.map(|last| last.error.clone()) {
            self.refused_and_counted(credential, &error);
        }
    }

    /// Notes a login that succeeded.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn note(&mut self, credential: Fingerprint, error: &KmsError, pause: Duration, is_counted: bool) {
        let until = Instant::now() + pause;
        self.last = Some(Refused { credential, error: error.clone(), until, pause, is_counted });
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::kms::{KmsErrorClass, Verdict};

    const MINUTE: Duration = Duration::from_secs(60);

    fn refusal() -> KmsError {
        KmsError::answered(KmsErrorClass::CredentialInvalid, 400, None)
    }

    /// The lockout of Vault and OpenBao with its defaults: `failedUserLoginProcess` and
    /// `isUserLocked` in vault/request_handling.go.
    #[derive(Default)]
    struct Lockout {
        count: u32,
        last: Option<Instant>,
    }

    impl Lockout {
        fn wrong_login(&mut self) {
            let forgotten = self.last.is_some_and(|last| last.elapsed() > 15 * MINUTE);
            self.count = if forgotten { 1 } else { self.count + 1 };
            self.last = Some(Instant::now());
            assert!(self.count < 5, "the role is locked out");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_credential_asked_for_each_second_never_locks_out() {
        let (mut pacing, mut lockout, mut presented) = (Pacing::default(), Lockout::default(), 0);
        for _ in 0..24 * 3600 {
            if pacing.may_present(&[1; 32]).is_ok() {
                lockout.wrong_login();
                pacing.refused_and_counted([1; 32], &refusal());
                presented += 1;
            }
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(presented, 24 * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_credential_that_changes_at_every_moment_never_locks_out() {
        for every in [1, 60, 840, 899, 901, 1_201] {
            let (mut pacing, mut lockout) = (Pacing::default(), Lockout::default());
            for n in 0_u32..2_000 {
                let credential = [n.to_be_bytes()[3] % 7; 32];
                if pacing.may_present(&credential).is_ok() {
                    lockout.wrong_login();
                    pacing.refused_and_counted(credential, &refusal());
                }
                advance(Duration::from_secs(every)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_replicas_refused_within_five_minutes_never_lock_out() {
        let (mut one, mut other, mut lockout) = (Pacing::default(), Pacing::default(), Lockout::default());
        for second in 0..12 * 3600 {
            for (pacing, since) in [(&mut one, 0), (&mut other, 290)] {
                if second >= since && pacing.may_present(&[1; 32]).is_ok() {
                    lockout.wrong_login();
                    pacing.refused_and_counted([1; 32], &refusal());
                }
            }
            advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_credential_is_tried_at_once_within_a_limit() {
        let mut pacing = Pacing::default();
        for credential in 1..=3 {
            assert_eq!(pacing.may_present(&[credential; 32]), Ok(()));
            pacing.refused_and_counted([credential; 32], &refusal());
        }
        let paused = pacing.may_present(&[4; 32]).unwrap_err();
        assert_eq!((paused.class, paused.class.verdict()), (KmsErrorClass::LoginPaused, Verdict::Outage));
        assert_eq!(paused.retry_after, Some(QUIET));
        advance(QUIET).await;
        assert_eq!(pacing.may_present(&[4; 32]), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_succeeds_begins_anew() {
        let mut pacing = Pacing::default();
        for credential in 1..=3 {
            pacing.refused_and_counted([credential; 32], &refusal());
        }
        pacing.succeeded();
        assert_eq!(pacing.may_present(&[1; 32]), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_login_counts_if_the_credential_was_refused_before() {
        let mut pacing = Pacing::default();
        pacing.unanswered([1; 32]);
        assert_eq!(pacing.may_present(&[1; 32]), Ok(()), "an outage is no refusal");
        pacing.refused_and_counted([1; 32], &refusal());
        advance(QUIET).await;
        assert_eq!(pacing.may_present(&[1; 32]), Ok(()));
        pacing.unanswered([1; 32]);
        assert_eq!(pacing.may_present(&[1; 32]).unwrap_err().class, KmsErrorClass::LoginPaused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_a_day_is_shortened_to_a_minute() {
        for asked in [Duration::from_secs(86_400), Duration::MAX] {
            let mut pacing = Pacing::default();
            assert_eq!(pacing.deferred([1; 32], &refusal(), Some(asked)), PAUSES.1);
            advance(PAUSES.1).await;
            assert_eq!(pacing.may_present(&[1; 32]), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_nobody_counts_is_repeated_while_its_pause_doubles() {
        let mut pacing = Pacing::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = pacing.refused([1; 32], &refusal());
            let held = pacing.may_present(&[1; 32]).unwrap_err();
            assert_eq!((held.class, held.retry_after), (KmsErrorClass::CredentialInvalid, Some(pause)));
            assert_eq!(pacing.may_present(&[2; 32]), Ok(()), "another one is presented at once");
            pauses.push(pause.as_secs());
            advance(pause).await;
            assert_eq!(pacing.may_present(&[1; 32]), Ok(()));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
