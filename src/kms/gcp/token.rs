//! The access token that every request carries, and how it stays alive.
//!
//! - One is asked for at a time; who waits gets what came of it, unless all that came is that the
//!   other's time was up. Who hangs up meanwhile takes nothing with it.
//! - It is replaced in the background after [`LONGEST_USE`], or in the last quarter of its time (at
//!   most 225 seconds: the metadata server has a new one from 300 seconds before the end on). While
//!   that fails the old one goes on being used, so an outage of the token endpoint shows only when
//!   the token ends. Where the credential is refused, which Google may do long before it refuses
//!   the token, the old one is dropped after [`REFUSALS`] refusals in a row.
//! - One that Cloud KMS refuses is replaced at once, and the call tried once more.
//! - A credential that is refused, by the token endpoint or by Cloud KMS with a token that was new,
//!   is not shown again at once: there is a pause that doubles from one second to sixty, unless the
//!   credential changes meanwhile.
//!
//! Tokens are never shown; what is logged is that one could not be had, and the class.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::kms::http::Http;
use crate::kms::pacing::{Fingerprint, PAUSES, longer};
use crate::kms::{KmsError, KmsErrorClass};

use super::login::{Credential, Granted, Login};

/// How long after a failed renewal the next one is tried, at least and at most.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a token is used before another one is asked for: a key that was deleted shows by then.
const LONGEST_USE: Duration = Duration::from_secs(900);
/// After so many refused renewals in a row the token in use is dropped: one may be an answer of a
/// part that lags.
const REFUSALS: u32 = 3;
/// How long before its end a token is replaced, at most.
const EARLY: Duration = Duration::from_secs(225);
/// How long a token counts at least and at most, whatever is said of it: one that ends before is
/// refused and replaced.
const LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(12 * 3600));
/// How long the keeper sleeps at most: another token may have come meanwhile.
const WATCH: Duration = Duration::from_secs(1);

/// The token in use and the way to another one.
pub(super) struct Tokens {
    login: Login,
    http: Arc<Http>,
    held: Mutex<Option<Held>>,
    /// One asks at a time; what the last one that failed leaves to those who waited.
    gate: Arc<tokio::sync::Mutex<Option<Failure>>>,
}

#[derive(Clone)]
struct Held {
    granted: Arc<Granted>,
    since: Instant,
    end: Instant,
    renew_at: Instant,
    /// Which credential gave it.
    fingerprint: Fingerprint,
    /// The pause before it, when that credential had just been refused.
    after: Option<Duration>,
    /// How often its renewal was refused in a row.
    refusals: u32,
}

impl Held {
    /// What is left of it when its renewal failed.
    fn after_failure(mut self, class: KmsErrorClass, now: Instant) -> Option<Self> {
        let pause = match class {
            KmsErrorClass::CredentialInvalid => {
                self.refusals += 1;
                // Twice the pause within which the credential is not shown again.
                PAUSES.0 * 2_u32.saturating_pow(self.refusals)
            }
            _ => self.end.saturating_duration_since(now) / 3,
        };
        self.renew_at = now + pause.clamp(RENEWAL_PAUSES.0, RENEWAL_PAUSES.1);
        (self.refusals < REFUSALS).then_some(self)
    }
}

struct Failure {
    at: Instant,
    error: KmsError,
    /// Of a refusal: which credential, and how long not to show it again.
    refused: Option<(Fingerprint, Duration)>,
}

impl Tokens {
    pub(super) fn new(login: Login, http: Arc<Http>) -> Self {
        Self { login, http, held: Mutex::new(None), gate: Arc::default() }
    }

    /// The token to send.
    pub(super) async fn token(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Granted>, KmsError> {
        match self.live() {
            Some(held) => Ok(held.granted),
            None => self.ask(None, deadline).await,
        }
    }

    /// Another one than this, which Cloud KMS refused.
    pub(super) async fn another(
        self: &Arc<Self>,
        refused: &Arc<Granted>,
        deadline: Instant,
    ) -> Result<Arc<Granted>, KmsError> {
        self.ask(Some(refused), deadline).await
    }

    /// Cloud KMS refused this one too, which was new: it is the credential that it does not take.
    pub(super) async fn refused(&self, new: &Arc<Granted>, error: &KmsError, deadline: Instant) {
        // While another asks there is nothing to keep from being asked.
        let Ok(mut gate) = timeout_at(deadline, self.gate.lock()).await else { return };
        let Some(held) = self.held().take_if(|held| Arc::ptr_eq(&held.granted, new)) else { return };
        let pause = held.after.map_or(PAUSES.0, longer);
        let refused = Some((held.fingerprint, pause));
        *gate = Some(Failure { at: Instant::now(), error: error.clone(), refused });
    }

    /// Replaces the token if that is due, and says when to look again. Called again and again in
    /// the background, so that a server without traffic keeps its token.
    pub(super) async fn keep(self: &Arc<Self>, deadline: impl Fn() -> Instant) -> Duration {
        let Some(held) = self.held().clone() else { return WATCH };
        if Instant::now() >= held.renew_at
            && let Err(error) = self.ask(Some(&held.granted), deadline()).await
        {
            let mut slot = self.held();
            if let Some(still) = slot.take_if(|still| Arc::ptr_eq(&still.granted, &held.granted)) {
                *slot = still.after_failure(error.class, Instant::now());
            }
        }
        let due = self.held().as_ref().map(|held| held.renew_at.saturating_duration_since(Instant::now()));
        due.unwrap_or(WATCH).min(WATCH)
    }

    /// A token that is not `instead_of`: one that came just now, or a new one.
    async fn ask(
        self: &Arc<Self>,
        instead_of: Option<&Arc<Granted>>,
        deadline: Instant,
    ) -> Result<Arc<Granted>, KmsError> {
        let began = Instant::now();
        let Ok(gate) = timeout_at(deadline, Arc::clone(&self.gate).lock_owned()).await else {
            return Err(KmsError::local(KmsErrorClass::Timeout));
        };
        let other = |held: &Held| instead_of.is_none_or(|old| !Arc::ptr_eq(old, &held.granted));
        if let Some(held) = self.live().filter(other) {
            return Ok(held.granted);
        }
        let credential = self.login.credential()?;
        let mut after = self.just_refused(&credential);
        if let Some(failure) = &*gate {
            let same = failure.refused.filter(|(before, _)| *before == credential.fingerprint);
            let shared = failure.at >= began && failure.error.class != KmsErrorClass::Timeout;
            let left = same.and_then(|(_, pause)| pause.checked_sub(failure.at.elapsed()));
            if shared || left.is_some() {
                return Err(KmsError { retry_after: left, ..failure.error.clone() });
            }
            after = same.map(|(_, pause)| pause);
        }
        let asking = Arc::clone(self).ask_with(credential, after, gate, deadline);
        // In a task of its own: a caller that hangs up takes nothing with it.
        tokio::spawn(asking).await.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Internal)))
    }

    async fn ask_with(
        self: Arc<Self>,
        credential: Credential,
        after: Option<Duration>,
        mut gate: OwnedMutexGuard<Option<Failure>>,
        deadline: Instant,
    ) -> Result<Arc<Granted>, KmsError> {
        match self.login.ask(&credential, &self.http, deadline).await {
            Ok(granted) => {
                *gate = None;
                let now = Instant::now();
                let lasts = granted.lasts.clamp(LIFE.0, LIFE.1);
                let early = (lasts / 4).min(EARLY);
                let renew_at = now + (lasts - early).clamp(RENEWAL_PAUSES.0, LONGEST_USE);
                let granted = Arc::new(granted);
                let held = Held {
                    granted: Arc::clone(&granted),
                    since: now,
                    end: now + lasts,
                    renew_at,
                    fingerprint: credential.fingerprint,
                    after,
                    refusals: 0,
                };
                *self.held() = Some(held);
                Ok(granted)
            }
            Err(error) => {
                tracing::warn!(class = ?error.class, http_status = error.http_status, "no Google access token was to be had");
                let refused = (error.class == KmsErrorClass::CredentialInvalid)
                    .then(|| (credential.fingerprint, after.map_or(PAUSES.0, longer)));
                *gate = Some(Failure { at: Instant::now(), error: error.clone(), refused });
                Err(error)
            }
        }
    }

    /// The pause before the token that is held, where that one, too, is replaced soon after it
    /// came.
    fn just_refused(&self, credential: &Credential) -> Option<Duration> {
        let held = self.held();
        let young = held.as_ref().filter(|held| held.since.elapsed() < PAUSES.1)?;
        young.after.filter(|_| young.fingerprint == credential.fingerprint)
    }

    fn live(&self) -> Option<Held> {
        self.held().clone().filter(|held| Instant::now() < held.end)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(now: Instant) -> Held {
        let bearer = http::HeaderValue::from_static("Bearer x");
        let lasts = Duration::from_secs(3600);
        let granted = Arc::new(Granted { bearer, lasts, quota_project: None });
        let (end, renew_at) = (now + lasts, now + LONGEST_USE);
        Held { granted, since: now, end, renew_at, fingerprint: [0; 32], after: None, refusals: 0 }
    }

    #[test]
    fn a_token_outlasts_an_outage_of_its_endpoint() {
        let now = Instant::now();
        let left =
            (0..100).try_fold(held(now), |held, _| held.after_failure(KmsErrorClass::Unreachable, now));
        assert!(left.is_some_and(|held| held.renew_at == now + RENEWAL_PAUSES.1));
    }

    #[test]
    fn a_token_whose_credential_is_refused_again_and_again_is_dropped() {
        let now = Instant::now();
        let refused = |held: Held| held.after_failure(KmsErrorClass::CredentialInvalid, now);
        let once = refused(held(now)).unwrap();
        assert_eq!(once.renew_at, now + Duration::from_secs(2));
        let twice = refused(once).unwrap();
        assert_eq!(twice.renew_at, now + Duration::from_secs(4));
        assert!(refused(twice).is_none());
    }
}
