//! Assembles the router, its layers and the listener, and stops them gracefully: requests in
//! progress are finished within the drain time. Refuses what exceeds the server's limits;
//! `docs/load.md` has the rules.

mod activity;
mod anonymous;
mod bounds;
mod buffered;
mod chunk;
mod connection_permits;
mod cors;
mod header_checks;
mod layer;
mod listen;
mod metrics_format;
mod metrics_page;
mod refusal;
mod request_body;
mod request_runtime;
mod response_body;
mod shares;
mod write_timeout;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::middleware;
use axum::routing::get;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::model::ErrorCode;
use crate::rest::{DatabaseState, problem};
use crate::telemetry::Metrics;
use crate::{config, console, graphql, rest};

use anonymous::AnonymousCallers;
use bounds::Bounds;
use connection_permits::ConnectionPermits;
use cors::Cors;
use layer::Layer;
use metrics_page::MetricsPage;
use request_runtime::RequestPoller;

pub use listen::serve;
pub use request_runtime::RequestRuntime;

/// The longest that a client may take to send the head of a request or to complete the TLS
/// handshake, may send nothing of a body, or may read nothing of what is written to it.
const SLOW_CLIENT: Duration = Duration::from_secs(10);

/// The router of one listener, with the state of its connections.
pub struct Served {
    router: Router,
    anonymous: Arc<AnonymousCallers>,
    permits: Arc<ConnectionPermits>,
}

/// The router with all layers, and the router of the metrics if they have a listener of their own.
/// `stop` ends [`serve`]. Must be called on the main runtime.
pub fn routers(
    app: Arc<App>,
    database: DatabaseState,
    settings: &config::Server,
    stop: CancellationToken,
) -> (Served, Option<Served>) {
    let layer = Arc::new(Layer {
        app: app.clone(),
        metrics: Metrics::default(),
        bounds: Arc::new(Bounds::new(settings, app.limits().body_bytes)),
        anonymous: Arc::new(AnonymousCallers::new(settings.trusted_proxies.clone())),
        poller: RequestPoller::new(Handle::current()),
        cors: Cors::new(&settings.cors_origins),
        timeout: settings.request_timeout,
        last_limit_log: Mutex::default(),
    });
    let page = Arc::new(MetricsPage::new(app.clone(), layer.clone()));
    let metrics = Router::new()
        .route("/metrics", get(move |headers: HeaderMap| std::future::ready(page.show(&headers))));
    let mut router = Router::new()
        .merge(rest::router(app.clone(), database.clone(), stop.clone()))
        .merge(graphql::router(app.clone()));
    if settings.console {
        router = router.merge(console::router(problem));
    }
    match settings.metrics_listen {
        Some(_) => {
            let monitoring = metrics.merge(rest::watch_router(app, database, stop));
            let (caller_permits, monitoring_permits) = ConnectionPermits::split_within_file_limit();
            (
                wrapped(layer.clone(), router, caller_permits),
                Some(wrapped(layer, monitoring, monitoring_permits)),
            )
        }
        None => (wrapped(layer, router.merge(metrics), ConnectionPermits::within_file_limit()), None),
    }
}

/// The router within `layer`, with fallbacks for unknown paths and methods.
fn wrapped(layer: Arc<Layer>, router: Router, permits: Arc<ConnectionPermits>) -> Served {
    let anonymous = layer.anonymous.clone();
    let handle = middleware::from_fn(move |request, next| layer::handle(layer.clone(), request, next));
    let refusal = |code: ErrorCode| move || std::future::ready(problem(&code.into()));
    let router = router
        .fallback(refusal(ErrorCode::NotFound))
        .method_not_allowed_fallback(refusal(ErrorCode::MethodNotAllowed))
        .layer(handle);
    Served { router, anonymous, permits }
}
