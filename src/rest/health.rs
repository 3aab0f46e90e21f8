//! Health, under all the names that its askers use. None of it needs a caller, and none says more than calling would. The
//! key is asked for a caller alone: to anybody else `/byok/health` says what is known.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::json;

use crate::app::{Health, HealthStatus};
use crate::model::{ErrorCode, Posture, RequestId};

use super::Front;
use super::body::answer;

/// What was found of the database at the start; nothing while it was not reached. nSelf's tools wait for the migrations.
#[derive(Clone, Debug)]
pub struct DatabaseState {
    /// Migrations known to this binary.
    expected: u32,
    found: Arc<OnceLock<DatabaseFound>>,
}

impl DatabaseState {
    /// Of a database that was not reached yet.
    pub fn unknown(expected: u32) -> Self {
        Self { expected, found: Arc::default() }
    }

    /// What was found.
    pub fn is(&self, found: DatabaseFound) {
        let _ = self.found.set(found);
    }

    fn get(&self) -> DatabaseFound {
        self.found.get().copied().unwrap_or_default()
    }
}

/// A database, as it was found at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseFound {
    /// Migrations applied.
    pub applied: u32,
    /// Whether the serving role can neither change nor drop entries; `doctor` says what is open.
    pub audit_protected: bool,
}

/// Whether the server serves: what has nothing to do with anybody's key, so that no customer's switch looks like a server
/// that has to be replaced. nSelf's tools look at nothing but the status and the migrations.
pub(super) async fn serves(State(front): State<Front>) -> Response {
    answer(200, &json!({ "status": "OK", "migrations": migrations(&front.database) }))
}

fn migrations(database: &DatabaseState) -> serde_json::Value {
    json!({ "applied": database.get().applied, "expected": database.expected })
}

/// Whether the key works: 200 when it does, 503 when not. A real wrap and unwrap for a caller, what is known for a stranger.
/// Takes the head alone: a body would be held while the key is asked, and counts against no bound here.
pub(super) async fn health(State(front): State<Front>, head: Parts) -> Response {
    let request_id = head.extensions.get().cloned().unwrap_or_else(RequestId::fresh);
    let is_known = front.app.authenticate(&head.headers, &head.extensions, request_id).is_ok();
    drop(head);
    let health = match is_known {
        true => front.app.health().await,
        false => front.app.known_health().await,
    };
    shown(&front, health)
}

/// The same for whoever watches the server, at the metrics' listener: what is known, with the key version.
pub(super) async fn watched(State(front): State<Front>) -> Response {
    let health = front.app.watched_health().await;
    shown(&front, health)
}

fn shown(front: &Front, health: Health) -> Response {
    let status = match health.status {
        HealthStatus::Ok => 200,
        HealthStatus::Degraded | HealthStatus::Revoked => 503,
    };
    answer(
        status,
        &json!({
            "status": health.status.as_str(),
            "database": if health.database { "OK" } else { "UNAVAILABLE" },
            "audit_log": if health.audit_log { "OK" } else { "BEHIND" },
            "key_version": health.key_version.map(|version| version.to_string()),
            "error": health.error.map(ErrorCode::as_str),
            "kms_latency_ms": health.kms_latency.map(|latency| latency.as_secs_f64() * 1_000.0),
            "posture": health.posture.map(Posture::as_str),
            "worst_posture": health.worst_posture.map(Posture::as_str),
            "last_success": health.last_success.map(|(at, _)| at.to_string()),
            "last_success_seconds_ago": health.last_success.map(|(_, age)| age.as_secs_f64()),
            "bound_seconds": health.bound.as_secs_f64(),
            "next_login": health.next_login.map(|at| at.to_string()),
            "audit_protected": front.database.get().audit_protected,
            "migrations": migrations(&front.database),
        }),
    )
}

/// Whether calls may be sent here: the server is not stopping, the database answers and takes writes, and the keys of an
/// identity provider are known, where there is one. A key that is turned off does not
/// make the server unready: other tenants' calls, and refusals that are recorded, are its work too.
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
