//! Health, under all the paths that monitoring tools use. None of them needs an identity, and none
//! reveals more than a call would. Only for a caller with an identity does `/byok/health` ask the
//! KMS; for others it returns the last known health.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::request::Parts;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::app::{self, HealthStatus};
use crate::model::{ErrorCode, Posture};

use super::Front;
use super::body::answer;
use super::schema::promises;

/// The state of the database found at start-up; unknown until it is reached. nSelf's tools wait for
/// the migrations.
#[derive(Clone, Debug)]
pub struct DatabaseState {
    /// The number of migrations known to this binary.
    expected: u32,
    found: Arc<OnceLock<DatabaseFound>>,
}

impl DatabaseState {
    /// The state of a database that was not reached yet.
    pub fn unknown(expected: u32) -> Self {
        Self { expected, found: Arc::default() }
    }

    /// Sets what was found.
    pub fn set(&self, found: DatabaseFound) {
        let _ = self.found.set(found);
    }

    fn get(&self) -> DatabaseFound {
        self.found.get().copied().unwrap_or_default()
    }
}

/// The database as found at start-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseFound {
    /// The number of migrations applied.
    pub applied: u32,
    /// Whether the serving role can neither change nor delete entries; `doctor` reports what it can
    /// do.
    pub audit_protected: bool,
}

#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&[]))]
pub(super) struct Serving {
    migrations: Migrations,
    status: ServingStatus,
}

#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
enum ServingStatus {
    #[serde(rename = "OK")]
    Ok,
}

#[derive(JsonSchema, Serialize)]
#[schemars(inline, transform = promises(&[]))]
struct Migrations {
    applied: u32,
    expected: u32,
}

#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&[]))]
pub(super) struct Health {
    /// BEHIND if the database was restored or rewritten, so that the log is older than its
    /// published checkpoint; no call is answered then.
    audit_log: AuditLogStatus,
    /// Whether the serving role can neither change nor delete entries.
    audit_protected: bool,
    /// The greatest age of the last proof that the key works at which a call is still answered.
    bound_seconds: f64,
    database: DatabaseStatus,
    error: Option<&'static str>,
    key_version: Option<String>,
    /// How long the wrap and the unwrap took; null if the KMS was not asked.
    kms_latency_ms: Option<f64>,
    /// When the key was last shown to work.
    #[schemars(extend("format" = "date-time"))]
    last_success: Option<String>,
    last_success_seconds_ago: Option<f64>,
    migrations: Migrations,
    /// When the server tries again to log in to the KMS, which refused its credential; a new
    /// credential is tried at once. Null otherwise.
    #[schemars(extend("format" = "date-time"))]
    next_login: Option<String>,
    /// The posture of this key version; null until one of its data keys is used.
    #[schemars(with = "Option<Posture>")]
    posture: Option<&'static str>,
    #[schemars(with = "HealthStatus")]
    status: &'static str,
    /// The worst posture of all key versions that are probed.
    #[schemars(with = "Option<Posture>")]
    worst_posture: Option<&'static str>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
enum AuditLogStatus {
    Ok,
    Behind,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
enum DatabaseStatus {
    Ok,
    Unavailable,
}

/// Whether the server serves. Independent of all keys, so that a key turned off by a customer does
/// not look like a server that must be replaced. nSelf's tools read only the status and the
/// migrations.
pub(super) async fn serves(State(front): State<Front>) -> Response {
    answer(200, &Serving { migrations: Migrations::of(&front.database), status: ServingStatus::Ok })
}

impl Migrations {
    fn of(database: &DatabaseState) -> Self {
        Self { applied: database.get().applied, expected: database.expected }
    }
}

/// Whether the key works: 200 if it does, otherwise 503. Wraps and unwraps a DEK for a caller with
/// an identity; for others it returns the last known health. Takes the head alone: a body would be
/// held while the KMS is asked, without counting against any limit.
pub(super) async fn health(State(front): State<Front>, head: Parts) -> Response {
    let identity = front.app.identified(&head.headers, &head.extensions);
    drop(head);
    let health = front.app.health_for(identity).await;
    health_answer(&front, health)
}

/// The last known health with the key version, for monitoring on the listener of the metrics.
pub(super) async fn watched(State(front): State<Front>) -> Response {
    let health = front.app.watched_health().await;
    health_answer(&front, health)
}

fn health_answer(front: &Front, health: app::Health) -> Response {
    let status = match health.status {
        HealthStatus::Ok => 200,
        HealthStatus::Degraded | HealthStatus::Revoked => 503,
    };
    let body = Health {
        audit_log: if health.audit_log { AuditLogStatus::Ok } else { AuditLogStatus::Behind },
        audit_protected: front.database.get().audit_protected,
        bound_seconds: health.bound.as_secs_f64(),
        database: if health.database { DatabaseStatus::Ok } else { DatabaseStatus::Unavailable },
        error: health.error.map(ErrorCode::as_str),
        key_version: health.key_version.map(|version| version.to_string()),
        kms_latency_ms: health.kms_latency.map(|latency| latency.as_secs_f64() * 1_000.0),
        last_success: health.last_success.map(|(at, _)| at.to_string()),
        last_success_seconds_ago: health.last_success.map(|(_, age)| age.as_secs_f64()),
        migrations: Migrations::of(&front.database),
        next_login: health.next_login.map(|at| at.to_string()),
        posture: health.posture.map(Posture::as_str),
        status: health.status.as_str(),
        worst_posture: health.worst_posture.map(Posture::as_str),
    };
    answer(status, &body)
}

/// Whether calls may be sent here: the server is not stopping, the database answers and accepts
/// writes, and the keys of the identity provider, if there is one, are known. A customer's key that
/// is turned off does not make the server unready: it still serves other tenants, and records
/// refusals.
pub(super) async fn ready(State(front): State<Front>) -> Response {
    let unready = |reason: &str| answer(503, &json!({ "status": "UNREADY", "reason": reason }));
    if front.stop.is_cancelled() {
        return unready("STOPPING");
    }
    match front.app.ready().await {
        Ok(()) => answer(200, &json!({ "status": "READY" })),
        Err(why) => unready(why.as_str()),
    }
}

/// Whether the process runs.
pub(super) async fn live() -> Response {
    answer(200, &json!({ "status": "LIVE" }))
}

pub(super) async fn version() -> Response {
    answer(200, &json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") }))
}

pub(super) async fn capabilities() -> Response {
    answer(200, &json!({ "capabilities": ["encrypt", "decrypt", "reveal", "rotate", "audit", "health"] }))
}
