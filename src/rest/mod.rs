//! The REST front: translates between HTTP and the use cases, nothing else. Errors are problem
//! documents (RFC 9457). A body is parsed as JSON whatever its content type, since callers
//! authenticate by the `Authorization` header. A POST that authenticates by cookie must have the
//! JSON content type, so that no page of another site can send it (`caller`).

mod audit;
mod body;
mod caller;
mod checkpoint;
mod crypt;
mod health;
mod openapi;
mod problem;
mod rotate;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

use crate::app::App;

pub use health::{DatabaseFound, DatabaseState};
pub use openapi::document;
pub use problem::problem;

/// The state of the handlers.
#[derive(Clone)]
struct Front {
    app: Arc<App>,
    database: DatabaseState,
    stop: CancellationToken,
}

/// The routes of the REST front. Once `stop` is cancelled, `/ready` answers 503.
pub fn router(app: Arc<App>, database: DatabaseState, stop: CancellationToken) -> Router {
    Router::new()
        .route("/byok/encrypt", post(crypt::encrypt))
        .route("/byok/encrypt/many", post(crypt::encrypt_many))
        .route("/byok/decrypt", post(crypt::decrypt))
        .route("/byok/decrypt/many", post(crypt::decrypt_many))
        .route("/byok/rotate", post(rotate::start))
        .route("/byok/rotate/{id}", get(rotate::show))
        .route("/byok/rotate/{id}/pause", post(rotate::pause))
        .route("/byok/rotate/{id}/resume", post(rotate::resume))
        .route("/byok/rotate/{id}/cancel", post(rotate::cancel))
        .route("/byok/audit", get(audit::page))
        .route("/byok/audit/checkpoint", get(checkpoint::note))
        .route("/byok/audit/keys", get(checkpoint::keys))
        .route("/byok/health", get(health::health))
        .route("/health", get(health::serves))
        .route("/healthz", get(health::serves))
        .route("/ready", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/live", get(health::live))
        .route("/livez", get(health::live))
        .route("/version", get(health::version))
        .route("/capabilities", get(health::capabilities))
        .route("/openapi.json", get(openapi::serve))
        .with_state(Front { app, database, stop })
}

/// The routes for monitoring on the listener of the metrics, apart from the metrics.
pub fn watch_router(app: Arc<App>, database: DatabaseState, stop: CancellationToken) -> Router {
    Router::new()
        .route("/byok/health", get(health::watched))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .with_state(Front { app, database, stop })
}
