//! Can the key be used now: a real wrap and unwrap, at most once in a few seconds, so that nobody can run up a bill.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::kms::{DekBinding, KmsError, KmsErrorClass, Purpose, Verdict};
use crate::model::{DekId, ErrorCode, KeyVersion};

use super::App;
use super::record::log_kms;

/// How long an answer of the KMS stands.
const FRESH: Duration = Duration::from_secs(5);

/// How the key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// A DEK was wrapped and unwrapped.
    Ok,
    /// The KMS, or the database, is out of reach.
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

/// What the health check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// All in all.
    pub status: HealthStatus,
    /// Whether the database answers.
    pub database: bool,
    /// The version that the key wraps under, where the check passed.
    pub key_version: Option<KeyVersion>,
    /// Why the key cannot be used, where it cannot.
    pub error: Option<ErrorCode>,
    /// How long the wrap and the unwrap took together.
    pub kms_latency: Option<Duration>,
}

/// The version that the key wraps under and how long that took, or why it does not.
type KeyHealth = Result<(KeyVersion, Duration), KmsError>;

/// The last answer of the KMS.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<(Instant, KeyHealth)>>);

impl App {
    /// Checks key and database. Needs no caller: it says nothing that a caller could not see by calling.
    pub async fn health(self: &Arc<Self>) -> Health {
        let (database, key) = tokio::join!(self.store.ping(), self.key_health());
        let database = database.is_ok();
        let (key_version, kms_latency, error) = match key {
            Ok((version, latency)) => (Some(version), Some(latency), None),
            Err(error) => (None, None, Some(error.class)),
        };
        let status = match error.map(KmsErrorClass::verdict) {
            Some(Verdict::Revoked) => HealthStatus::Revoked,
            Some(Verdict::Outage | Verdict::Item | Verdict::Misconfigured | Verdict::Unasked) => {
                HealthStatus::Degraded
            }
            None if !database => HealthStatus::Degraded,
            None => HealthStatus::Ok,
        };
        Health { status, database, key_version, error: error.map(KmsErrorClass::code), kms_latency }
    }

    /// Whether the database answers: what a load balancer asks.
    pub async fn ready(&self) -> bool {
        self.store.ping().await.is_ok()
    }

    /// Runs to its end whatever becomes of the client: else one who hangs up early could have the KMS asked again and
    /// again.
    async fn key_health(self: &Arc<Self>) -> KeyHealth {
        let app = self.clone();
        let checked = tokio::spawn(async move { app.remembered_key_health().await });
        checked.await.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Internal)))
    }

    async fn remembered_key_health(&self) -> KeyHealth {
        // Whoever waits here while another checks gets that answer.
        let mut last = self.health.0.lock().await;
        if let Some((when, answer)) = last.as_ref()
            && when.elapsed() < FRESH
        {
            return answer.clone();
        }
        let began = Instant::now();
        let answer = self.try_key().await.map(|version| (version, began.elapsed()));
        if let Err(error) = &answer {
            log_kms(error, None);
        }
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn try_key(&self) -> Result<KeyVersion, KmsError> {
        let internal = || KmsError::local(KmsErrorClass::Internal);
        let binding = DekBinding { tenant: self.tenant.uid, dek_id: DekId::new(), purpose: Purpose::Probe };
        let made = self.kms.generate(&[binding]).await.pop().ok_or_else(internal)??.value;
        let version = made.wrapped.key_version.clone();
        let opened = self.kms.unwrap(&[(binding, made.wrapped)]).await.pop().ok_or_else(internal)??.value;
        match opened.expose() == made.dek.expose() {
            true => Ok(version),
            false => Err(internal()),
        }
    }
}
