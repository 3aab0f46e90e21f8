//! Finds out whether a tenant's key can be used now. The check is a real wrap and unwrap, at most
//! once in a few seconds, so that nobody can run up a bill. What the keyring's probes of the key
//! have shown takes precedence over a remembered result of the check. An unauthenticated caller
//! gets only what is known already, and causes no call.
//!
//! A process that serves the tenants of verified claims tells a tenant's health only to callers who
//! prove that they are that tenant's. Everybody else hears of the process: whether the database
//! answers. So one tenant's key or log makes no other tenant's health worse, and nobody learns of
//! it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Extensions, HeaderMap};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::auth::TenantClaim;
use crate::keyring::KeyStatus;
use crate::kms::{DekBinding, KmsError, KmsErrorClass, Purpose, Stage, Verdict, log_failure};
use crate::model::{BootTime, DekId, ErrorCode, Identity, KeyVersion, Peer, Posture, TenantUid, Timestamp};
use crate::tenancy::TenantRuntime;

use super::App;
use super::record::unusable_key_refusal;
use super::shared_check::SharedCheck;

/// How long a result of the KMS remains valid, and for an unauthenticated caller one of the
/// database.
const FRESH: Duration = Duration::from_secs(5);
/// How long a result of the database remains valid for an authenticated caller.
const FRESH_FOR_CALLERS: Duration = Duration::from_secs(1);
/// How long the proofs that other replicas recorded of the keys remain valid here. While DEKs are
/// in memory, the server reads them that often anyway.
const FRESH_PROOFS: Duration = Duration::from_millis(250);
/// How long a result of the database remains valid for a readiness check.
const FRESH_FOR_WATCHERS: Duration = Duration::from_millis(100);
/// The age from which on a check is ignored for callers that may not start a new one. A failure
/// must not be reported long after it may have ended.
const OF_INTEREST: Duration = Duration::from_secs(60);
/// How many tenants' results are remembered.
const TENANTS: u64 = 10_000;

/// The status of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// A DEK was wrapped and unwrapped.
    Ok,
    /// The KMS or the database is out of reach, or the audit log is behind a published checkpoint.
    Degraded,
    /// The KMS refuses the key.
    Revoked,
}

impl HealthStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Degraded, Self::Revoked];

    /// Returns the name of the status in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::Revoked => "REVOKED",
        }
    }
}

/// The reason why the server can answer no call now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Since the start, the database has not been reached, or does not have the schema that this
    /// binary needs.
    Starting,
    /// The database is out of reach, or does not accept writes.
    Database,
    /// JWTs are verified with keys of identity providers, and no provider has supplied any since
    /// the start.
    IdentityProvider,
}

impl Unready {
    /// Returns the name of the reason in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Database => "STORE_UNAVAILABLE",
            Self::IdentityProvider => "IDENTITY_PROVIDER",
        }
    }
}

/// The result of the health check, of a tenant or of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The overall status.
    pub status: HealthStatus,
    /// Whether the database answers.
    pub database: bool,
    /// Whether the tenant's audit log holds everything that was published of it. If not, the server
    /// answers nothing of the tenant. True of the process.
    pub audit_log: bool,
    /// The version that the key wraps under, if known.
    pub key_version: Option<KeyVersion>,
    /// The reason why the server can answer nothing, if it cannot.
    pub error: Option<ErrorCode>,
    /// How long the wrap and the unwrap took together, if the check passed.
    pub kms_latency: Option<Duration>,
    /// The posture of that version; `None` until a DEK of it has been used.
    pub posture: Option<Posture>,
    /// The worst posture among all watched versions.
    pub worst_posture: Option<Posture>,
    /// When the key was last shown to work, and how long ago that was.
    pub last_success: Option<(Timestamp, Duration)>,
    /// A: the largest age of the last proof under which the server may answer.
    pub bound: Duration,
    /// When the server next presents its credential to the KMS, if it was refused.
    pub next_login: Option<Timestamp>,
}

/// The version that the key wraps under and how long the check took, or the error of the check.
type KeyHealth = Result<(KeyVersion, Duration), KmsError>;

/// The last results of the database, and those of each tenant.
pub(super) struct Memory {
    database: SharedCheck<bool>,
    tenants: Cache<TenantUid, Arc<KeyMemory>>,
}

/// The last result of a tenant's KMS, and the facts about the KMS that are kept for longer.
#[derive(Default)]
struct KeyMemory {
    key: SharedCheck<KeyHealth>,
    /// Whether the proofs that other replicas recorded were read. The proofs themselves go into the
    /// keyring's own memory.
    proofs: SharedCheck<()>,
    remembered: Mutex<Remembered>,
}

#[derive(Clone, Default)]
struct Remembered {
    /// The version that worked last, and when its check began.
    worked: Option<(KeyVersion, BootTime)>,
    next_login: Option<Timestamp>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { database: SharedCheck::default(), tenants: Cache::new(TENANTS) }
    }
}

impl Memory {
    fn of(&self, runtime: &TenantRuntime) -> Arc<KeyMemory> {
        self.tenants.get_with(runtime.tenant.uid, Arc::default)
    }
}

impl KeyMemory {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// Identifies the sender of these headers, whatever the tenant. Unlike [`Self::admit`], this
    /// never waits. The [`Peer`] in the extensions, if there is one, is marked as authenticated.
    pub fn identified(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<Identity> {
        let identity = self.authenticator().authenticate(headers).ok()?;
        if let Some(peer) = extensions.get::<Peer>() {
            peer.set_authenticated();
        }
        Some(identity)
    }

    /// Returns the health that a caller may hear: the one of the tenant that the identity claims. A
    /// caller without identity, or without a tenant that is served, gets [`Self::known_health`].
    pub async fn health_for(self: &Arc<Self>, identity: Option<Identity>) -> Health {
        let Some(identity) = identity else { return self.known_health().await };
        match self.tenants.of(TenantClaim::of(&identity)).await {
            Ok(runtime) => {
                if !self.checkpoints.is_checked(runtime.tenant.uid) {
                    // A log that cannot be read now is checked by the first call that is admitted.
                    let _ = self.checkpoints.of(&runtime.tenant).check().await;
                }
                self.health(&runtime).await
            }
            Err(_) => self.known_health().await,
        }
    }

    /// Checks a tenant's key and the database for an authenticated caller of the tenant. However
    /// many callers ask, the server calls the KMS once in five seconds, the database once a second,
    /// and reads the proofs of the keys four times a second.
    pub async fn health(self: &Arc<Self>, runtime: &Arc<TenantRuntime>) -> Health {
        let memory = self.health.of(runtime);
        let (app, of, kept) = (self.clone(), runtime.clone(), memory.clone());
        let check = || async move { app.check_key(&of, &kept).await };
        let (database, key) =
            tokio::join!(self.remembered_database(FRESH_FOR_CALLERS), memory.key.answer(FRESH, check));
        // Read after the check, so that it takes into account a posture that changed at another
        // replica meanwhile.
        if database {
            let (keyring, tenant) = (self.keyring.clone(), runtime.tenant.clone());
            let read = || async move { drop(keyring.reread_key_statuses(&tenant).await) };
            memory.proofs.answer(FRESH_PROOFS, read).await;
        }
        let statuses = self.keyring.key_statuses(runtime.tenant.uid);
        self.health_of_tenant(runtime, &memory, database, key, &statuses)
    }

    /// Returns what is known of the key and the database, for anybody. It makes no call to the KMS,
    /// and at most one ping of the database in five seconds. It leaves out the key version if the
    /// configuration reserves that for the metrics listener.
    pub async fn known_health(&self) -> Health {
        let health = self.watched_health().await;
        if self.limits.hides_key_versions { Health { key_version: None, ..health } } else { health }
    }

    /// Does the same as [`Self::known_health`], but always with the key version, for monitoring.
    pub async fn watched_health(&self) -> Health {
        let database = self.remembered_database(FRESH).await;
        let Ok(runtime) = self.tenants.primary() else { return self.health_of_process(database) };
        let memory = self.health.of(&runtime);
        let statuses = self.keyring.key_statuses(runtime.tenant.uid);
        let remembered = memory.key.last();
        let of_interest = |(when, answer): (Instant, KeyHealth)| {
            let age = when.elapsed();
            // A proof that is newer than the failed check overrides it.
            let has_worked = statuses.iter().any(|one| one.proof_age.is_some_and(|proof| proof < age));
            (age < OF_INTEREST && !(answer.is_err() && has_worked)).then_some(answer)
        };
        let key = remembered.and_then(of_interest);
        let health = self.health_of_tenant(&runtime, &memory, database, key, &statuses);
        Health { kms_latency: None, next_login: None, ..health }
    }

    /// Returns the health that is no tenant's: whether the database answers.
    fn health_of_process(&self, database: bool) -> Health {
        Health {
            status: status_of(None, None, database),
            database,
            audit_log: true,
            key_version: None,
            error: None,
            kms_latency: None,
            posture: None,
            worst_posture: None,
            last_success: None,
            bound: self.keyring.guard().bound(),
            next_login: None,
        }
    }

    /// Combines the result of the check, if there is one, with what the keyring's
    /// probes of the key have shown.
    fn health_of_tenant(
        &self,
        runtime: &TenantRuntime,
        memory: &KeyMemory,
        database: bool,
        key: Option<KeyHealth>,
        statuses: &[KeyStatus],
    ) -> Health {
        let tenant = runtime.tenant.uid;
        let Remembered { worked, next_login, .. } = memory.remembered().clone();
        let made = self.keyring.current_version(tenant);
        let checked = key.as_ref().and_then(|key| key.as_ref().ok());
        let known = checked.map(|(version, _)| version.clone());
        let known = known.or(made).or_else(|| worked.as_ref().map(|(version, _)| version.clone()));
        let key_version = known.or_else(|| last_shown(statuses));
        let posture = key_version.as_ref().and_then(|version| {
            statuses.iter().find(|one| one.key_version == *version).map(|one| one.posture)
        });
        let class = key.as_ref().and_then(|key| key.as_ref().err()).map(|error| error.class);
        let audit_log = !self.checkpoints.is_behind(tenant);
        let status = status_of(class, posture, database && audit_log);
        let error = class.map(KmsErrorClass::code).or_else(|| {
            posture
                .filter(|posture| *posture != Posture::Active)
                .map(|unusable| unusable_key_refusal(unusable).code)
        });
        let error = error.or_else(|| (!audit_log).then_some(ErrorCode::AuditLogBehind));
        let since_check = worked.map(|(_, began)| self.clock.boot().since(began));
        let age = statuses.iter().filter_map(|one| one.proof_age).chain(since_check).min();
        Health {
            status,
            database,
            audit_log,
            key_version,
            error,
            kms_latency: checked.map(|(_, latency)| *latency),
            posture,
            worst_posture: statuses.iter().map(|one| one.posture).max(),
            last_success: age.map(|age| (self.clock.now().minus(age), age)),
            bound: self.keyring.guard().bound(),
            next_login,
        }
    }

    /// Returns whether the server can answer calls; a load balancer asks this. However many ask,
    /// the server pings the database at most ten times a second, and never calls the identity
    /// provider.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub async fn ready(&self) -> Result<(), Unready> {
        if !self.tenants.is_open() {
            return Err(Unready::Starting);
        }
        if !self.authenticator().knows_keys() {
            return Err(Unready::IdentityProvider);
        }
        if self.remembered_database(FRESH_FOR_WATCHERS).await { Ok(()) } else { Err(Unready::Database) }
    }

    async fn check_key(&self, runtime: &TenantRuntime, memory: &KeyMemory) -> KeyHealth {
        let (began, sent) = (Instant::now(), self.clock.boot());
        let answer = try_key(runtime).await.map(|version| (version, began.elapsed()));
        let mut remembered = memory.remembered();
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
}

/// Wraps and unwraps a DEK that is kept nowhere, and returns the version that it was wrapped under.
async fn try_key(runtime: &TenantRuntime) -> Result<KeyVersion, KmsError> {
    let internal = || KmsError::local(KmsErrorClass::Internal);
    let binding = DekBinding { tenant: runtime.tenant.uid, dek_id: DekId::new(), purpose: Purpose::Probe };
    let made = runtime.keys.generate(&[binding]).await.pop().ok_or_else(internal)??.value;
    let version = made.wrapped.key_version.clone();
    let opened = runtime.keys.unwrap(&[(binding, made.wrapped)]).await.pop().ok_or_else(internal)??.value;
    if opened.expose() == made.dek.expose() { Ok(version) } else { Err(internal()) }
}

/// Returns the version that was most recently shown to work.
fn last_shown(statuses: &[KeyStatus]) -> Option<KeyVersion> {
    let latest = statuses.iter().min_by_key(|one| one.proof_age.unwrap_or(Duration::MAX));
    latest.map(|one| one.key_version.clone())
}

/// Returns the worst status among the result of the check, the watched posture, and the state of
/// the database and its log.
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
    fn a_passed_check_does_not_override_a_dark_posture() {
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
