//! Can the key be used now: a real wrap and unwrap, at most once in a few seconds, so that nobody can run up a bill; and
//! what the watch over the key knows, which goes before an answer that is only remembered. Who has not said who they are
//! hears what is known already, and causes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::keyring::Standing;
use crate::kms::{DekBinding, KmsError, KmsErrorClass, Purpose, Stage, Verdict, log_failure};
use crate::model::{BootTime, DekId, ErrorCode, KeyVersion, Posture, Timestamp};

use super::App;
use super::inquiry::Inquiry;
use super::record::dark_refusal;

/// How long an answer of the KMS stands, and to a stranger one of the database.
const FRESH: Duration = Duration::from_secs(5);
/// How long one of the database stands to a caller.
const FRESH_FOR_CALLERS: Duration = Duration::from_secs(1);
/// How long what other replicas wrote down of the keys stands; where DEKs are in memory it is read as often anyway.
const FRESH_PROOFS: Duration = Duration::from_millis(250);
/// How long an answer of the database stands to who asks whether the server is ready.
const FRESH_FOR_WATCHERS: Duration = Duration::from_millis(100);
/// How long a check is of any interest to who causes none: a failure must not outlast all who could find out its end.
const OF_INTEREST: Duration = Duration::from_secs(60);

/// How the key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// A DEK was wrapped and unwrapped.
    Ok,
    /// The KMS, or the database, is out of reach; or the audit log is behind what was published of it.
    Degraded,
    /// The KMS says no.
    Revoked,
}

impl HealthStatus {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::Revoked => "REVOKED",
        }
    }
}

/// Why no call can be answered now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Since the start the database was not reached, or not brought to what this binary needs.
    Starting,
    /// The database is out of reach, or takes no writes.
    Database,
    /// JWTs are verified with keys of identity providers, none of which has given any since the start.
    IdentityProvider,
}

impl Unready {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Database => "STORE_UNAVAILABLE",
            Self::IdentityProvider => "IDENTITY_PROVIDER",
        }
    }
}

/// What the health check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// All in all.
    pub status: HealthStatus,
    /// Whether the database answers.
    pub database: bool,
    /// Whether the audit log holds all that was published of it; without that nothing is answered.
    pub audit_log: bool,
    /// The version that the key wraps under, as far as is known.
    pub key_version: Option<KeyVersion>,
    /// Why nothing can be answered, where nothing can.
    pub error: Option<ErrorCode>,
    /// How long the wrap and the unwrap took together, where the check passed.
    pub kms_latency: Option<Duration>,
    /// The posture of that version; `None` while no DEK of it was used.
    pub posture: Option<Posture>,
    /// The worst posture of all versions that are watched.
    pub worst_posture: Option<Posture>,
    /// When the key was last shown to work, and how long ago that is.
    pub last_success: Option<(Timestamp, Duration)>,
    /// A: how old the last proof may be when something is answered.
    pub bound: Duration,
    /// When our credential is shown to the KMS again, where it was refused.
    pub next_login: Option<Timestamp>,
}

/// The version that the key wraps under and how long that took, or why it does not.
type KeyHealth = Result<(KeyVersion, Duration), KmsError>;

/// The last answers of KMS and database, and what is kept of those of the KMS for longer.
#[derive(Default)]
pub(super) struct Memory {
    key: Inquiry<KeyHealth>,
    database: Inquiry<bool>,
    /// Whether what other replicas wrote down of the keys was read; it goes into the keyring's own memory.
    proofs: Inquiry<()>,
    remembered: Mutex<Remembered>,
}

#[derive(Clone, Default)]
struct Remembered {
    /// The version that worked last, and when its check was begun.
    worked: Option<(KeyVersion, BootTime)>,
    next_login: Option<Timestamp>,
}

impl Memory {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// Checks key and database, for a caller. However many ask, the KMS is asked once in five seconds, the database once in
    /// one, and for the proofs of the keys four times.
    pub async fn health(self: &Arc<Self>) -> Health {
        let (database, key) = tokio::join!(self.remembered_database(FRESH_FOR_CALLERS), self.key_health());
        // After the check, so that a posture that turned at another replica meanwhile counts.
        if let (true, Ok(tenant)) = (database, self.tenant.get()) {
            let (keyring, tenant) = (self.keyring.clone(), tenant.clone());
            let read = || async move { drop(keyring.standing_of_all(&tenant).await) };
            self.health.proofs.answer(FRESH_PROOFS, read).await;
        }
        self.health_of(database, key, &self.key_standing())
    }

    /// What is known of key and database, for anybody: no call to the KMS, and of the database at most the question whether
    /// it is there, once in five seconds. Without the key version where that is for the metrics' listener alone.
    pub async fn known_health(&self) -> Health {
        let health = self.watched_health().await;
        match self.limits.hides_key_versions {
            true => Health { key_version: None, ..health },
            false => health,
        }
    }

    /// The same with the key version, for whoever watches the server.
    pub async fn watched_health(&self) -> Health {
        let database = self.remembered_database(FRESH).await;
        let standing = self.key_standing();
        let remembered = self.health.key.last();
        let of_interest = |(when, answer): (Instant, KeyHealth)| {
            let age = when.elapsed();
            // What has worked since then says more.
            let has_worked = standing.iter().any(|one| one.proof_age.is_some_and(|proof| proof < age));
            (age < OF_INTEREST && !(answer.is_err() && has_worked)).then_some(answer)
        };
        let health = self.health_of(database, remembered.and_then(of_interest), &standing);
        Health { kms_latency: None, next_login: None, ..health }
    }

    /// Health by what the check has met, where one was made, and what the watch over the key knows.
    fn health_of(&self, database: bool, key: Option<KeyHealth>, standing: &[Standing]) -> Health {
        let Remembered { worked, next_login, .. } = self.health.remembered().clone();
        let made = self.tenant.uid().ok().and_then(|tenant| self.keyring.current_version(tenant));
        let checked = key.as_ref().and_then(|key| key.as_ref().ok());
        let known = checked.map(|(version, _)| version.clone());
        let known = known.or(made).or_else(|| worked.as_ref().map(|(version, _)| version.clone()));
        let key_version = known.or_else(|| last_shown(standing));
        let posture = key_version.as_ref().and_then(|version| {
            standing.iter().find(|one| one.key_version == *version).map(|one| one.posture)
        });
        let class = key.as_ref().and_then(|key| key.as_ref().err()).map(|error| error.class);
        let audit_log = !self.checkpoints.is_behind();
        let status = status_of(class, posture, database && audit_log);
        let error = class.map(KmsErrorClass::code).or_else(|| {
            posture.filter(|posture| *posture != Posture::Active).map(|dark| dark_refusal(dark).code)
        });
        let error = error.or_else(|| (!audit_log).then_some(ErrorCode::AuditLogBehind));
        let since_check = worked.map(|(_, began)| self.clock.boot().since(began));
        let age = standing.iter().filter_map(|one| one.proof_age).chain(since_check).min();
        Health {
            status,
            database,
            audit_log,
            key_version,
            error,
            kms_latency: checked.map(|(_, latency)| *latency),
            posture,
            worst_posture: standing.iter().map(|one| one.posture).max(),
            last_success: age.map(|age| (self.clock.now().minus(age), age)),
            bound: self.keyring.guard().bound(),
            next_login,
        }
    }

    /// Whether calls can be answered: what a load balancer asks. The database is asked ten times a second at most, however
    /// many ask here, the identity provider never.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), Unready> {
        if self.tenant.get().is_err() {
            return Err(Unready::Starting);
        }
        if !self.authenticator().knows_keys() {
            return Err(Unready::IdentityProvider);
        }
        match self.remembered_database(FRESH_FOR_WATCHERS).await {
            true => Ok(()),
            false => Err(Unready::Database),
        }
    }

    async fn key_health(self: &Arc<Self>) -> Option<KeyHealth> {
        let app = self.clone();
        self.health.key.answer(FRESH, || async move { app.check_key().await }).await
    }

    async fn check_key(&self) -> KeyHealth {
        let (began, sent) = (Instant::now(), self.clock.boot());
        let answer = self.try_key().await.map(|version| (version, began.elapsed()));
        let mut remembered = self.health.remembered();
        match &answer {
            Ok((version, _)) => remembered.worked = Some((version.clone(), sent)),
            Err(error) => log_failure(error, None),
        }
        let refused = answer.as_ref().err().filter(|error| error.stage == Stage::Credential);
        remembered.next_login =
            refused.and_then(|error| error.retry_after).map(|wait| self.clock.now().plus(wait));
        answer
    }

    async fn remembered_database(&self, fresh: Duration) -> bool {
        let store = self.store.clone();
        self.health
            .database
            .answer(fresh, || async move { store.ping().await.is_ok() })
            .await
            .unwrap_or(false)
    }

    async fn try_key(&self) -> Result<KeyVersion, KmsError> {
        let internal = || KmsError::local(KmsErrorClass::Internal);
        let tenant = self.tenant.uid().map_err(|_| internal())?;
        let binding = DekBinding { tenant, dek_id: DekId::new(), purpose: Purpose::Probe };
        let made = self.kms.generate(&[binding]).await.pop().ok_or_else(internal)??.value;
        let version = made.wrapped.key_version.clone();
        let opened = self.kms.unwrap(&[(binding, made.wrapped)]).await.pop().ok_or_else(internal)??.value;
        match opened.expose() == made.dek.expose() {
            true => Ok(version),
            false => Err(internal()),
        }
    }
}

/// The version that was shown to work last.
fn last_shown(standing: &[Standing]) -> Option<KeyVersion> {
    let latest = standing.iter().min_by_key(|one| one.proof_age.unwrap_or(Duration::MAX));
    latest.map(|one| one.key_version.clone())
}

/// The worst of what the check met, what the watch over the key says, and the database and its log.
fn status_of(met: Option<KmsErrorClass>, posture: Option<Posture>, database: bool) -> HealthStatus {
    match (met.map(KmsErrorClass::verdict), posture) {
        (Some(Verdict::Revoked), _) | (_, Some(Posture::Revoked)) => HealthStatus::Revoked,
        (Some(Verdict::Outage | Verdict::Item | Verdict::Misconfigured | Verdict::Unasked), _)
        | (_, Some(Posture::Degraded)) => HealthStatus::Degraded,
        (None, Some(Posture::Active) | None) if !database => HealthStatus::Degraded,
        (None, Some(Posture::Active) | None) => HealthStatus::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_passed_says_nothing_against_a_posture_that_is_dark() {
        for (posture, status) in [
            (None, HealthStatus::Ok),
            (Some(Posture::Active), HealthStatus::Ok),
            (Some(Posture::Degraded), HealthStatus::Degraded),
            (Some(Posture::Revoked), HealthStatus::Revoked),
        ] {
            assert_eq!(status_of(None, posture, true), status, "{posture:?}");
        }
        assert_eq!(status_of(None, Some(Posture::Active), false), HealthStatus::Degraded);
    }

    #[test]
    fn an_active_posture_says_nothing_against_a_check_that_failed() {
        let active = Some(Posture::Active);
        assert_eq!(status_of(Some(KmsErrorClass::KeyDisabled), active, true), HealthStatus::Revoked);
        assert_eq!(status_of(Some(KmsErrorClass::Timeout), active, true), HealthStatus::Degraded);
        let revoked = Some(Posture::Revoked);
        assert_eq!(status_of(Some(KmsErrorClass::Timeout), revoked, true), HealthStatus::Revoked);
    }
}
