//! Assembles the router, its layers and the listener, and stops them gracefully: what is in flight is finished, within
//! the drain time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{Instrument as _, debug, debug_span, error, info, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::app::App;
use crate::model::{ErrorCode, RequestId};
use crate::rest::{DatabaseState, problem};
use crate::telemetry::Metrics;
use crate::{config, console, graphql, rest};

const REQUEST_ID: &str = "x-request-id";
/// How long a client may take for the head of a request, or for the TLS handshake.
const SLOW_CLIENT: Duration = Duration::from_secs(10);
/// How many connections are open at once; one more is closed at once.
const CONNECTIONS: usize = 16_384;

/// The whole router, with its layers.
pub fn router(app: Arc<App>, database: DatabaseState, settings: &config::Server) -> Router {
    let metrics = Arc::new(Metrics::default());
    let shown = { (metrics.clone(), app.clone()) };
    let show_metrics = move || {
        let (metrics, app) = &shown;
        metrics.set_cached_deks(app.cached_deks());
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        std::future::ready(([(header::CONTENT_TYPE, kind)], metrics.text()))
    };
    let mut router = Router::new()
        .merge(rest::router(app.clone(), database))
        .merge(graphql::router(app))
        .route("/metrics", get(show_metrics));
    if settings.console {
        router = router.merge(console::router());
    }
    let timeout = settings.request_timeout;
    router
        .fallback(|| std::future::ready(problem(&ErrorCode::NotFound.into())))
        .layer(middleware::from_fn(move |request, next| around(metrics.clone(), timeout, request, next)))
}

/// What stands around every request: its id, its span, its metrics, a bound on its time, and a net under a panic.
async fn around(metrics: Arc<Metrics>, timeout: Duration, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let request_id = given.and_then(RequestId::accept).unwrap_or_else(RequestId::fresh);
    let method = method_of(&request);
    // A route's template: a path can be anything that a stranger types.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    // For traces, and for logs that are asked to say much: it costs a twentieth of a call.
    let span = debug_span!("request", request_id = request_id.as_str(), method, route);
    if !span.is_disabled() {
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(request.headers())));
    }
    request.extensions_mut().insert(request_id.clone());

    metrics.began();
    let in_flight = InFlight(&metrics);
    let answered = std::panic::AssertUnwindSafe(tokio::time::timeout(timeout, next.run(request)));
    let mut response = match answered.catch_unwind().instrument(span.clone()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => refuse(route, ErrorCode::Unavailable, &request_id),
        Err(_) => {
            error!(request_id = request_id.as_str(), route, "a request panicked");
            refuse(route, ErrorCode::Internal, &request_id)
        }
    };
    drop(in_flight);

    let elapsed = began.elapsed();
    let code = response.extensions().get::<ErrorCode>().map(|code| code.as_str());
    let status = response.status().as_u16();
    metrics.answered(route, method, status, code, elapsed.as_secs_f64());
    let ms = elapsed.as_secs_f64() * 1_000.0;
    span.in_scope(|| match status {
        500.. => warn!(request_id = request_id.as_str(), method, route, status, code, ms, "answered"),
        _ => debug!(status, code, ms, "answered"),
    });
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// A method of a closed set: a client may send any token as its method, and each label lives for ever.
fn method_of(request: &Request) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let method = request.method().as_str();
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// A refusal of the server's own, in the form of the front that was called.
fn refuse(route: &str, code: ErrorCode, request_id: &RequestId) -> Response {
    match route {
        "/graphql" => graphql::refused(&code.into(), request_id),
        _ => problem(&code.into()),
    }
}

/// Counts down whatever becomes of the request, a client that hangs up included.
struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

struct Headers<'a>(&'a axum::http::HeaderMap);

impl opentelemetry::propagation::Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(header::HeaderName::as_str).collect()
    }
}

/// Serves until `stop` is cancelled, then finishes what is in flight, for at most `drain`.
///
/// # Errors
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    drain: Duration,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SLOW_CLIENT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file handles, most likely: give others time to end.
                    warn!(kind = ?error.kind(), "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (tls, router, builder) = (tls.clone(), router.clone(), builder.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match tls {
                None => converse(stream, router, &builder, watcher).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(SLOW_CLIENT, tls.accept(stream)).await {
                        converse(stream, router, &builder, watcher).await;
                    }
                }
            }
        });
    }
    drop(listener);
    info!("stopping: finishing what is in flight");
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        warn!("the drain time is over: what is still in flight is dropped");
    }
    Ok(())
}

async fn converse<S>(
    stream: S,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: hyper_util::server::graceful::Watcher,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // The builder's own timer starts only once it knows which HTTP is spoken: until a first request has come, a client
    // has no more time than this, whatever it sends.
    let spoken = Arc::new(Notify::new());
    let first = spoken.clone();
    let service = TowerToHyperService::new(router.map_request(move |request: http::Request<Incoming>| {
        first.notify_one();
        request
    }));
    let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A client that breaks off is its own affair.
        _ = &mut connection => return,
        () = spoken.notified() => {}
        () = tokio::time::sleep(SLOW_CLIENT) => return,
    }
    let _ = connection.await;
}
