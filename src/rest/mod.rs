//! The REST front: translates between HTTP and the use cases, nothing else. Errors are problem
//! documents (RFC 9457). A body is parsed as JSON whatever its content type, since callers
//! authenticate by the `Authorization` header. A POST that authenticates by cookie must have the
//! JSON content type, so that no page of another site can send it (`caller`).

mod audit;
mod body;
mod caller;
mod checkpoint;
mod crypt;
mod crypt_json;
mod health;
mod openapi;
mod problem;
mod rotate;
mod schema;

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodRouter, get, post};
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
    let router = Router::new();
    let router = routes().into_iter().fold(router, |router, (_, path, handler)| router.route(path, handler));
    router.with_state(Front { app, database, stop })
}

/// The routes for monitoring on the listener of the metrics, apart from the metrics.
pub fn watch_router(app: Arc<App>, database: DatabaseState, stop: CancellationToken) -> Router {
    Router::new()
        .route("/byok/health", get(health::watched))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .with_state(Front { app, database, stop })
}

/// One method of one path, and what answers it.
type Route = (Method, &'static str, MethodRouter<Front>);

fn on_get<H: Handler<T, Front>, T: 'static>(path: &'static str, handler: H) -> Route {
    (Method::GET, path, get(handler))
}

fn on_post<H: Handler<T, Front>, T: 'static>(path: &'static str, handler: H) -> Route {
    (Method::POST, path, post(handler))
}

/// Every route, as a list, so that a test can compare it with the description in `openapi`.
fn routes() -> Vec<Route> {
    vec![
        on_post("/byok/encrypt", crypt::encrypt),
        on_post("/byok/encrypt/many", crypt::encrypt_many),
        on_post("/byok/decrypt", crypt::decrypt),
        on_post("/byok/decrypt/many", crypt::decrypt_many),
        on_post("/byok/rotate", rotate::start),
        on_get("/byok/rotate/{id}", rotate::show),
        on_post("/byok/rotate/{id}/pause", rotate::pause),
        on_post("/byok/rotate/{id}/resume", rotate::resume),
        on_post("/byok/rotate/{id}/cancel", rotate::cancel),
        on_get("/byok/audit", audit::page),
        on_get("/byok/audit/checkpoint", checkpoint::note),
        on_get("/byok/audit/keys", checkpoint::keys),
        on_get("/byok/health", health::health),
        on_get("/health", health::serves),
        on_get("/healthz", health::serves),
        on_get("/ready", health::ready),
        on_get("/readyz", health::ready),
        on_get("/live", health::live),
        on_get("/livez", health::live),
        on_get("/version", health::version),
        on_get("/capabilities", health::capabilities),
        on_get("/openapi.json", openapi::serve),
    ]
}
