//! The layer around every request: its id and trace span, its metrics, who calls, limits on its
//! time and on all requests together, and a catch for panics.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt as _;
use hyper::body::Body as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument as _, debug, debug_span, error, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::app::{App, Arrival, Release};
use crate::graphql;
use crate::model::{ErrorCode, Peer, Refusal, RequestId, TenantUid};
use crate::telemetry::Metrics;
use crate::tenancy::Caller;

use super::anonymous::{AnonymousCallers, PeerConnection};
use super::bounds::{Abort, Bounds, Claim, LimitReached};
use super::connection_permits::{ConnectionPermits, Occupancy};
use super::cors::{Cors, CorsRequest};
use super::header_checks;
use super::refusal::RefusalContext;
use super::request_body::{RequestBody, discard};
use super::request_runtime::RequestPoller;
use super::response_body::is_delivery_watched;
use super::shares::Share;

const REQUEST_ID: &str = "x-request-id";
/// How often the log reports that a limit is reached.
const LIMIT_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Routes that are answered at any load, so that monitoring works. None of them reads a body.
const NEVER_SHED: [&str; 10] = [
    "/byok/health",
    "/health",
    "/healthz",
    "/ready",
    "/readyz",
    "/live",
    "/livez",
    "/metrics",
    "/version",
    "/capabilities",
];
/// Routes whose answer is the same for everybody and held in memory once. They need no identity.
const STATIC: [&str; 5] = ["/openapi.json", "/", "/graphiql", "/graphiql/", "/graphiql/{file}"];
/// A request that holds more bytes than this may take long to poll.
const LONG_POLL_BYTES: usize = 64 << 10;

/// The state that all requests share.
pub(super) struct Layer {
    pub(super) app: Arc<App>,
    pub(super) metrics: Metrics,
    pub(super) bounds: Arc<Bounds>,
    pub(super) anonymous: Arc<AnonymousCallers>,
    pub(super) poller: RequestPoller,
    pub(super) cors: Cors,
    pub(super) timeout: Duration,
    /// When the log last reported that a limit is reached.
    pub(super) last_limit_log: Mutex<Option<Instant>>,
}

/// How a request ended, before its answer is made.
enum Outcome {
    Answered(Response),
    Malformed(Refusal),
    Shed(LimitReached),
    SlowBody,
    TimedOut,
    Panicked,
}

/// Handles one request; `next` is the router inside the layer.
pub(super) async fn handle(layer: Arc<Layer>, mut request: Request, next: Next) -> Response {
    let metrics = &layer.metrics;
    let began = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let request_id = given.and_then(RequestId::accept).unwrap_or_else(RequestId::fresh);
    let method = method_of(&request);
    // The template of the route, since a path can be anything that a client types.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    // At debug level only: a span costs a twentieth of a call.
    let span = debug_span!("request", request_id = request_id.as_str(), method, route);
    if !span.is_disabled() {
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(request.headers())));
    }
    request.extensions_mut().insert(request_id.clone());
    let version = request.version();
    let cors = layer.cors.request(request.method(), request.uri(), request.headers());
    let media = graphql::Media::asked_for(request.headers());
    let context = RefusalContext { route, request_id: &request_id, media };

    metrics.began();
    let in_flight = InFlight(metrics);
    let (outcome, claim) = if let Some(refusal) = header_checks::refusal_of(version, request.headers()) {
        discard_body(request, layer.bounds.body_bytes);
        (Outcome::Malformed(refusal), None)
    } else if NEVER_SHED.contains(&route) {
        let mut answering = std::pin::pin!(next.run(request));
        let mut polling = layer.poller.request();
        let answered = std::future::poll_fn(|context| {
            polling.poll(context, false, |context| answering.as_mut().poll(context))
        });
        let answered = within(layer.timeout, &span, answered).await;
        (answered.map_or_else(|outcome| outcome, Outcome::Answered), None)
    } else {
        run_within_bounds(&layer, &span, context, &cors, request, next).await
    };
    drop(in_flight);

    let is_shed = matches!(outcome, Outcome::Shed(_));
    let mut response = match outcome {
        Outcome::Answered(response) => response,
        Outcome::Malformed(refusal) => context.malformed(&refusal),
        Outcome::Shed(limit) => {
            metrics.shed(limit.as_str());
            layer.log_limit(limit);
            context.unavailable()
        }
        Outcome::TimedOut => context.unavailable(),
        Outcome::SlowBody => {
            let why = "The body did not arrive in time.";
            context.refuse(&Refusal::because(ErrorCode::RequestMalformed, why))
        }
        Outcome::Panicked => {
            error!(request_id = request_id.as_str(), route, "a request panicked; it is answered INTERNAL");
            context.refuse(&ErrorCode::Internal.into())
        }
    };

    let elapsed = began.elapsed();
    let code = response.extensions().get::<ErrorCode>().map(|code| code.as_str());
    let status = response.status().as_u16();
    metrics.answered(route, method, status, code, elapsed.as_secs_f64());
    let ms = elapsed.as_secs_f64() * 1_000.0;
    span.in_scope(|| match status {
        500.. if !is_shed => {
            warn!(request_id = request_id.as_str(), method, route, status, code, ms, "answered")
        }
        _ => debug!(status, code, ms, "answered"),
    });
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    cors.set_headers(response.headers_mut());
    // An answer whose delivery is watched holds its bytes until it is delivered.
    if let Some(claim) = claim
        && is_delivery_watched(version, response.body())
    {
        response.extensions_mut().insert(claim);
    }
    response
}

/// Runs a request within the server's limits, or those of callers without identity. Returns its
/// outcome, and the claim that holds the bytes of its answer.
async fn run_within_bounds(
    layer: &Layer,
    span: &tracing::Span,
    context: RefusalContext<'_>,
    cors: &CorsRequest,
    mut request: Request,
    next: Next,
) -> (Outcome, Option<Arc<Claim>>) {
    let route = context.route;
    let announced =
        request.body().size_hint().exact().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    // A request that cannot be accepted is refused before anything is verified.
    let admitted = match layer.bounds.check(announced) {
        Ok(()) => layer.admit(route, cors, announced, &mut request).await,
        Err(limit) => Err(limit),
    };
    let Admitted { caller, bounds, shares } = match admitted {
        Ok(admitted) => admitted,
        Err(limit) => {
            discard_body(request, layer.bounds.body_bytes);
            return (Outcome::Shed(limit), None);
        }
    };
    let (claim, drains) = (Arc::new(Claim::of(bounds, shares)), drains_when_refused(&request));
    request.extensions_mut().insert(Arrival { caller, room: claim.clone() });
    let (head, body) = request.into_parts();
    // Only the front of a POST reads the body to its end, where the permit would be acquired.
    let permit = if head.method == Method::POST { Ok(()) } else { claim.acquire_permit() };
    let body = match permit.and_then(|()| RequestBody::new(body, claim.clone(), drains)) {
        Ok(body) => Body::new(body),
        Err(limit) => return (Outcome::Shed(limit), None),
    };
    let mut answering = std::pin::pin!(released(context, cors, Request::from_parts(head, body), next));
    let (kept, mut polling) = (claim.clone(), layer.poller.request());
    // The reader of an aborted body waits in this very task and is never woken, so check for it
    // here.
    let answered = std::future::poll_fn(|context| {
        let takes_long = kept.bytes() > LONG_POLL_BYTES;
        match polling.poll(context, takes_long, |context| answering.as_mut().poll(context)) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => kept.aborted().map_or(Poll::Pending, |abort| Poll::Ready(Err(abort))),
        }
    });
    let outcome = match within(layer.timeout, span, answered).await {
        Ok(Ok(response)) => Outcome::Answered(response),
        Ok(Err(Abort::LimitReached(limit))) => Outcome::Shed(limit),
        Ok(Err(Abort::Slow)) => Outcome::SlowBody,
        // It acquires its permit only once the whole body has arrived.
        Err(Outcome::TimedOut) if !claim.has_permit() => Outcome::SlowBody,
        Err(outcome) => outcome,
    };
    claim.release_permit();
    if let Outcome::Answered(response) = &outcome
        && !STATIC.contains(&route)
    {
        let bytes = response.body().size_hint().lower();
        claim.hold_answer(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    (outcome, Some(claim))
}

/// Discards the rest of a request that is refused by its head.
fn discard_body(request: Request, max: usize) {
    // A client that waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)
    // must not be invited to send it.
    if !request.headers().contains_key(header::EXPECT) && drains_when_refused(&request) {
        discard(request.into_body(), max);
    }
}

/// Whether the rest of a refused request is read for a while. When many connections are open, one
/// without identity is closed instead.
fn drains_when_refused(request: &Request) -> bool {
    let has_authenticated = request.extensions().get::<Peer>().is_none_or(Peer::has_authenticated);
    has_authenticated
        || request
            .extensions()
            .get::<Arc<ConnectionPermits>>()
            .is_none_or(|permits| permits.occupancy() == Occupancy::Normal)
}

/// Runs a request. If its answer depends on a key that was last shown to work too long ago, the
/// answer is withheld and a refusal returned instead.
async fn released(context: RefusalContext<'_>, cors: &CorsRequest, request: Request, next: Next) -> Response {
    if cors.is_preflight {
        return CorsRequest::preflight_response();
    }
    let response = next.run(request).await;
    let Some(release) = response.extensions().get::<Arc<Release>>().cloned() else { return response };
    match release.confirm().await {
        Ok(()) => response,
        Err(refusal) => context.refuse(&refusal),
    }
}

/// A request that may run.
struct Admitted {
    /// The caller, or why none was recognised.
    caller: Result<Caller, Refusal>,
    /// The limits that the request runs within.
    bounds: Arc<Bounds>,
    /// The shares that its bytes count against.
    shares: Vec<Share>,
}

impl Layer {
    /// Authenticates the caller, and finds the limits that the request counts against.
    async fn admit(
        &self,
        route: &str,
        cors: &CorsRequest,
        announced: usize,
        request: &mut Request,
    ) -> Result<Admitted, LimitReached> {
        let connection = request.extensions_mut().remove::<Arc<PeerConnection>>();
        let request_id = request.extensions().get().cloned().unwrap_or_else(RequestId::fresh);
        let caller = if cors.is_preflight || STATIC.contains(&route) {
            Err(ErrorCode::InvalidHeaders.into())
        } else {
            // Separated from the body, which is not `Sync`.
            let headers = std::mem::take(request.headers_mut());
            let extensions = std::mem::take(request.extensions_mut());
            let caller = self.app.admit(&headers, &extensions, request_id).await;
            *request.headers_mut() = headers;
            *request.extensions_mut() = extensions;
            caller
        };
        let (bounds, shares) = match &caller {
            Ok(caller) => {
                connection.iter().for_each(|connection| connection.set_authenticated());
                let connection = connection.as_ref().map(Arc::as_ptr);
                let connection = connection.map(|address| self.bounds.shares.share(address));
                let user = self.bounds.shares.share(user_of(caller));
                (self.bounds.clone(), connection.into_iter().chain([user]).collect())
            }
            Err(_) => {
                let address = self.anonymous.address(connection.as_deref(), request.headers());
                // Every other request without identity is refused without work.
                if route == "/graphql" && !cors.is_preflight && !self.anonymous.may_run(&address) {
                    return Err(LimitReached::Anonymous);
                }
                address.bounds.check(announced)?;
                (address.bounds.clone(), Vec::new())
            }
        };
        Ok(Admitted { caller, bounds, shares })
    }

    /// Logs that a limit is reached, at most once in [`LIMIT_LOG_INTERVAL`]: a line for each
    /// refusal would cost more than the refusal.
    fn log_limit(&self, limit: LimitReached) {
        let mut last = self.last_limit_log.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < LIMIT_LOG_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        match limit {
            LimitReached::Requests | LimitReached::Bytes => {
                warn!(full = limit.as_str(), "the server is full: requests are refused");
            }
            LimitReached::Share => {
                warn!("requests of one user or one connection are refused: it holds its share of the bytes");
            }
            LimitReached::Anonymous => {
                warn!("requests without identity are refused: they have reached their limits");
            }
        }
    }
}

/// The identity that shares are counted by: the user, or the role of a caller without a user.
fn user_of(caller: &Caller) -> (TenantUid, bool, &str) {
    let identity = &caller.identity;
    match &identity.user {
        Some(user) => (caller.tenant().uid, true, user),
        None => (caller.tenant().uid, false, &identity.role),
    }
}

/// Runs `work` for at most this long, and catches its panics.
async fn within<T>(
    timeout: Duration,
    span: &tracing::Span,
    work: impl Future<Output = T>,
) -> Result<T, Outcome> {
    let work = std::panic::AssertUnwindSafe(tokio::time::timeout(timeout, work));
    match work.catch_unwind().instrument(span.clone()).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(Outcome::TimedOut),
        Err(_) => Err(Outcome::Panicked),
    }
}

/// A method of a closed set: a client may send any token as its method, and metrics keep each label
/// for good.
fn method_of(request: &Request) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let method = request.method().as_str();
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// Counts the request as ended when dropped, also when the client hangs up.
struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

struct Headers<'a>(&'a HeaderMap);

impl opentelemetry::propagation::Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(header::HeaderName::as_str).collect()
    }
}
