//! The access token that every request carries, and how it stays alive.
//!
//! - One is asked for at a time; who waits gets what came of it, unless all that came is that the other's time was up.
//!   Who hangs up meanwhile takes nothing with it.
//! - It is replaced in the background before its end: the last quarter of its time, at most 225 seconds (the metadata
//!   server has a new one from 300 seconds before the end on). While that fails the old one goes on being used, so an
//!   outage of the token endpoint shows only when the token ends.
//! - One that Cloud KMS refuses is replaced at once, and the call tried once more.
//! - A credential that is refused, by the token endpoint or by Cloud KMS with a token that was new, is not shown again at
//!   once: there is a pause that doubles from one second to sixty, unless the credential changes meanwhile.
//!
//! Tokens are never shown; what is logged is that one could not be had, and the class.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::kms::http::Http;
use crate::kms::{KmsError, KmsErrorClass};

use super::login::{Credential, Granted, Login};

/// The pause after a refusal: the first, and the longest.
const REFUSAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long after a failed renewal the next one is tried, at least and at most.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long before its end a token is replaced, at most.
const EARLY: Duration = Duration::from_secs(225);
/// How long a token counts at least and at most, whatever is said of it: one that ends before is refused and replaced.
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
    fingerprint: [u8; 32],
    /// The pause before it, when that credential had just been refused.
    after: Option<Duration>,
}

struct Failure {
    at: Instant,
    error: KmsError,
    /// Of a refusal: which credential, and how long not to show it again.
    refused: Option<([u8; 32], Duration)>,
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
        let pause = held.after.map_or(REFUSAL_PAUSES.0, longer);
        let refused = Some((held.fingerprint, pause));
        *gate = Some(Failure { at: Instant::now(), error: error.clone(), refused });
    }

    /// Replaces the token if that is due, and says when to look again. Called again and again in the background, so that a
    /// server without traffic keeps its token.
    pub(super) async fn keep(self: &Arc<Self>, deadline: impl Fn() -> Instant) -> Duration {
        let Some(held) = self.held().clone() else { return WATCH };
        let now = Instant::now();
        if now >= held.renew_at && self.ask(Some(&held.granted), deadline()).await.is_err() {
            let rest = held.end.saturating_duration_since(now);
            let again = Instant::now() + (rest / 3).clamp(RENEWAL_PAUSES.0, RENEWAL_PAUSES.1);
            if let Some(now) = self.held().as_mut().filter(|now| Arc::ptr_eq(&now.granted, &held.granted)) {
                now.renew_at = again;
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
            if shared || same.is_some_and(|(_, pause)| failure.at.elapsed() < pause) {
                return Err(failure.error.clone());
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
                let renew_at = now + (lasts - early).max(RENEWAL_PAUSES.0);
                let granted = Arc::new(granted);
                let held = Held {
                    granted: Arc::clone(&granted),
                    since: now,
                    end: now + lasts,
                    renew_at,
                    fingerprint: credential.fingerprint,
                    after,
                };
                *self.held() = Some(held);
                Ok(granted)
            }
            Err(error) => {
                tracing::warn!(class = ?error.class, http_status = error.http_status, "no Google access token was to be had");
                let refused = (error.class == KmsErrorClass::CredentialInvalid)
                    .then(|| (credential.fingerprint, after.map_or(REFUSAL_PAUSES.0, longer)));
                *gate = Some(Failure { at: Instant::now(), error: error.clone(), refused });
                Err(error)
            }
        }
    }

    /// The pause before the token that is held, where that one, too, is replaced soon after it came.
    fn just_refused(&self, credential: &Credential) -> Option<Duration> {
        let held = self.held();
        let young = held.as_ref().filter(|held| held.since.elapsed() < REFUSAL_PAUSES.1)?;
        young.after.filter(|_| young.fingerprint == credential.fingerprint)
    }

    fn live(&self) -> Option<Held> {
        self.held().clone().filter(|held| Instant::now() < held.end)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(REFUSAL_PAUSES.1)
}
