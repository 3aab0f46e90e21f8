//! Assembles the router, its layers and the listener, and stops them gracefully: what is in flight is finished, within
//! the drain time. Refuses what is more than the server can do; `docs/load.md` says by which rules.

mod activity;
mod arriving;
mod bounds;
mod cors;
mod crowd;
mod head;
mod leaving;
mod listen;
mod metrics_format;
mod metrics_page;
mod patient;
mod piece;
mod running;
mod shares;
mod strangers;
mod unsent;

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use futures_util::FutureExt as _;
use hyper::body::Body as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, error, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::app::{App, Arrival, Release};
use crate::model::{Caller, ErrorCode, Peer, Refusal, RequestId, TenantUid};
use crate::rest::{DatabaseState, problem};
use crate::telemetry::Metrics;
use crate::{config, console, graphql, rest};

use arriving::{Arriving, discard};
use bounds::{Bounds, Claim, Full, Stop};
use cors::{Cors, Visit};
use crowd::{Crowd, Places};
use leaving::is_watched;
use metrics_page::MetricsPage;
use running::Running;
use shares::Share;
use strangers::{Guest, Strangers};

pub use listen::serve;
pub use running::RequestRuntime;

const REQUEST_ID: &str = "x-request-id";
/// How long a client may take for the head of a request or for the TLS handshake, may send nothing of a body, or take
/// nothing of what is written to it.
const SLOW_CLIENT: Duration = Duration::from_secs(10);
/// When a refused client should come back. Places turn over many times in a second, unless what the calls wait for
/// hangs, and then no time is right.
const COME_BACK: Duration = Duration::from_secs(1);
/// How often the log says that the server is full.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// What is answered however full the server is: whoever watches it must see it. None of them holds a body.
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

/// What is the same for everybody, and is in memory once. Nobody is asked for an identity here.
const SHARED: [&str; 5] = ["/openapi.json", "/", "/graphiql", "/graphiql/", "/graphiql/{file}"];
/// What one poll of takes long: a request that holds more bytes.
const LONG: usize = 64 << 10;

/// What stands around every request.
struct Outside {
    app: Arc<App>,
    metrics: Metrics,
    bounds: Arc<Bounds>,
    strangers: Arc<Strangers>,
    running: Running,
    cors: Cors,
    timeout: Duration,
    /// When the log last said that the server is full.
    said: Mutex<Option<Instant>>,
}

impl Outside {
    /// A line now and then: one for each refusal would cost more than the refusal.
    fn say_full(&self, full: Full) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            *said = Some(Instant::now());
            match full {
                Full::Places | Full::Bytes => {
                    warn!(full = full.as_str(), "the server is full: requests are refused");
                }
                Full::Share => {
                    warn!("a caller is refused: one user, or one connection, holds its share of bytes")
                }
                Full::Strangers => warn!("callers without identity are refused: their part is used up"),
            }
        }
    }
}

/// What is served by one listener.
pub struct Served {
    router: Router,
    strangers: Arc<Strangers>,
    places: Arc<Places>,
}

/// The whole router with its layers, and that of the metrics where they have a listener of their own. `stop` is what ends
/// [`serve`]. To be called on the runtime that everything but connections and requests is on.
pub fn routers(
    app: Arc<App>,
    database: DatabaseState,
    settings: &config::Server,
    stop: CancellationToken,
) -> (Served, Option<Served>) {
    let outside = Arc::new(Outside {
        app: app.clone(),
        metrics: Metrics::default(),
        bounds: Arc::new(Bounds::new(settings, app.limits().body_bytes)),
        strangers: Arc::new(Strangers::new(settings.trusted_proxies.clone())),
        running: Running::beside(Handle::current()),
        cors: Cors::new(&settings.cors_origins),
        timeout: settings.request_timeout,
        said: Mutex::default(),
    });
    let page = Arc::new(MetricsPage::new(app.clone(), outside.clone()));
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
            let watched = metrics.merge(rest::watch_router(app, database, stop));
            let (callers, watchers) = Places::parted_within_file_limit();
            (outside.clone().around_all(router, callers), Some(outside.around_all(watched, watchers)))
        }
        None => (outside.around_all(router.merge(metrics), Places::within_file_limit()), None),
    }
}

impl Outside {
    fn around_all(self: Arc<Self>, router: Router, places: Arc<Places>) -> Served {
        let strangers = self.strangers.clone();
        let layer = middleware::from_fn(move |request, next| around(self.clone(), request, next));
        let refusal = |code: ErrorCode| move || std::future::ready(problem(&code.into()));
        let router = router
            .fallback(refusal(ErrorCode::NotFound))
            .method_not_allowed_fallback(refusal(ErrorCode::MethodNotAllowed))
            .layer(layer);
        Served { router, strangers, places }
    }
}

/// How a request came to its end, before it is answered.
enum End {
    Answered(Response),
    Malformed(Refusal),
    Shed(Full),
    SlowBody,
    TimedOut,
    Panicked,
}

/// What stands around every request: its id, its span, its metrics, bounds on its time and on all requests together, and
/// a net under a panic.
async fn around(outside: Arc<Outside>, mut request: Request, next: Next) -> Response {
    let metrics = &outside.metrics;
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
    let version = request.version();
    let visit = outside.cors.visit(request.method(), request.uri(), request.headers());
    let asked = Asked { route, request_id: &request_id, media: graphql::Media::asked_for(request.headers()) };

    metrics.began();
    let in_flight = InFlight(metrics);
    let fault = head::fault_in(version, request.headers());
    let (end, claim) = match (fault, NEVER_SHED.contains(&route)) {
        (Some(refusal), _) => {
            turn_away(request, outside.bounds.body_bytes);
            (End::Malformed(refusal), None)
        }
        (None, true) => {
            let mut answering = std::pin::pin!(next.run(request));
            let mut running = outside.running.request();
            let answered = std::future::poll_fn(|context| {
                running.poll(context, false, |context| answering.as_mut().poll(context))
            });
            let answered = within(outside.timeout, &span, answered).await;
            (answered.map_or_else(|end| end, End::Answered), None)
        }
        (None, false) => bounded(&outside, &span, asked, &visit, request, next).await,
    };
    drop(in_flight);

    let shed = matches!(end, End::Shed(_));
    let mut response = match end {
        End::Answered(response) => response,
        End::Malformed(refusal) => asked.malformed(&refusal),
        End::Shed(full) => {
            metrics.shed(full.as_str());
            outside.say_full(full);
            asked.unavailable()
        }
        End::TimedOut => asked.unavailable(),
        End::SlowBody => {
            let why = "The body did not arrive in time.";
            asked.refuse(&Refusal::because(ErrorCode::RequestMalformed, why))
        }
        End::Panicked => {
            error!(request_id = request_id.as_str(), route, "a request panicked");
            asked.refuse(&ErrorCode::Internal.into())
        }
    };

    let elapsed = began.elapsed();
    let code = response.extensions().get::<ErrorCode>().map(|code| code.as_str());
    let status = response.status().as_u16();
    metrics.answered(route, method, status, code, elapsed.as_secs_f64());
    let ms = elapsed.as_secs_f64() * 1_000.0;
    span.in_scope(|| match status {
        500.. if !shed => {
            warn!(request_id = request_id.as_str(), method, route, status, code, ms, "answered")
        }
        _ => debug!(status, code, ms, "answered"),
    });
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    visit.mark(response.headers_mut());
    // An answer that is watched holds its bytes until it was taken.
    if let Some(claim) = claim
        && is_watched(version, response.body())
    {
        response.extensions_mut().insert(claim);
    }
    response
}

/// Runs a request within the server's bounds, or those of a caller who is not recognised.
/// What is returned beside its end holds the bytes of its answer.
async fn bounded(
    outside: &Outside,
    span: &tracing::Span,
    asked: Asked<'_>,
    visit: &Visit,
    mut request: Request,
    next: Next,
) -> (End, Option<Arc<Claim>>) {
    let route = asked.route;
    let announced =
        request.body().size_hint().exact().map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    // What is hopeless is refused before anything is verified.
    let admitted = match outside.bounds.look(announced) {
        Ok(()) => outside.admit(route, visit, announced, &mut request).await,
        Err(full) => Err(full),
    };
    let Admitted { caller, bounds, held_by } = match admitted {
        Ok(admitted) => admitted,
        Err(full) => {
            turn_away(request, outside.bounds.body_bytes);
            return (End::Shed(full), None);
        }
    };
    let (claim, listens) = (Arc::new(Claim::of(bounds, held_by)), listens(&request));
    request.extensions_mut().insert(Arrival { caller, room: claim.clone() });
    let (head, body) = request.into_parts();
    // Nobody but a POST's front reads a body to its end, where the place would be taken.
    let entered = if head.method == Method::POST { Ok(()) } else { claim.enter() };
    let body = match entered.and_then(|()| Arriving::new(body, claim.clone(), listens)) {
        Ok(body) => Body::new(body),
        Err(full) => return (End::Shed(full), None),
    };
    let mut answering = std::pin::pin!(released(asked, visit, Request::from_parts(head, body), next));
    let (kept, mut running) = (claim.clone(), outside.running.request());
    // A body that is given up is waited for in vain by whoever reads it, in this very task.
    let answered = std::future::poll_fn(|context| {
        let polled = running.poll(context, kept.bytes() > LONG, |context| answering.as_mut().poll(context));
        match polled {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => kept.stopped().map_or(Poll::Pending, |stop| Poll::Ready(Err(stop))),
        }
    });
    let end = match within(outside.timeout, span, answered).await {
        Ok(Ok(response)) => End::Answered(response),
        Ok(Err(Stop::Full(full))) => End::Shed(full),
        Ok(Err(Stop::Slow)) => End::SlowBody,
        // It has a place only once all of it is there.
        Err(End::TimedOut) if !claim.has_place() => End::SlowBody,
        Err(end) => end,
    };
    claim.leave();
    if let End::Answered(response) = &end
        && !SHARED.contains(&route)
    {
        let bytes = response.body().size_hint().lower();
        claim.hold_answer(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    (end, Some(claim))
}

/// Takes what is still to come of a request that is refused by its head.
fn turn_away(request: Request, most: usize) {
    // Who waits for a word before sending a body (RFC 9110, section 10.1.1) must not be told to go on.
    if !request.headers().contains_key(header::EXPECT) && listens(&request) {
        discard(request.into_body(), most);
    }
}

/// Whether a client that is refused is listened to for a while: where there are many connections, a stranger's is closed.
fn listens(request: &Request) -> bool {
    let is_known = request.extensions().get::<Peer>().is_none_or(Peer::has_authenticated);
    is_known || request.extensions().get::<Arc<Places>>().is_none_or(|places| places.crowd() == Crowd::Few)
}

/// Runs a request; an answer that came too late after a key was last shown to work is withheld, and refused instead.
async fn released(asked: Asked<'_>, visit: &Visit, request: Request, next: Next) -> Response {
    if visit.is_preflight {
        return Visit::preflight();
    }
    let response = next.run(request).await;
    let Some(release) = response.extensions().get::<Arc<Release>>().cloned() else { return response };
    match release.confirm().await {
        Ok(()) => response,
        Err(refusal) => asked.refuse(&refusal),
    }
}

/// A request that may be worked on.
struct Admitted {
    /// Who calls, or why nobody was recognised.
    caller: Result<Caller, Refusal>,
    /// What it is worked on within.
    bounds: Arc<Bounds>,
    /// Whose shares of the bytes it counts for.
    held_by: Vec<Share>,
}

impl Outside {
    /// Recognises the caller, and finds the bounds that the request counts for.
    async fn admit(
        &self,
        route: &str,
        visit: &Visit,
        announced: usize,
        request: &mut Request,
    ) -> Result<Admitted, Full> {
        let guest = request.extensions_mut().remove::<Arc<Guest>>();
        let request_id = request.extensions().get().cloned().unwrap_or_else(RequestId::fresh);
        let caller = match visit.is_preflight || SHARED.contains(&route) {
            true => Err(ErrorCode::InvalidHeaders.into()),
            false => {
                // Apart from the body, which threads cannot share.
                let headers = std::mem::take(request.headers_mut());
                let extensions = std::mem::take(request.extensions_mut());
                let caller = self.app.recognise(&headers, &extensions, request_id).await;
                *request.headers_mut() = headers;
                *request.extensions_mut() = extensions;
                caller
            }
        };
        let (bounds, held_by) = match &caller {
            Ok(caller) => {
                guest.iter().for_each(|guest| guest.leave());
                let connection = guest.as_ref().map(|guest| self.bounds.shares.share(Arc::as_ptr(guest)));
                let user = self.bounds.shares.share(user_of(caller));
                (self.bounds.clone(), connection.into_iter().chain([user]).collect())
            }
            Err(_) => {
                let address = self.strangers.address(guest.as_deref(), request.headers());
                // Everything else that a stranger asks for is refused without work.
                if route == "/graphql" && !visit.is_preflight && !self.strangers.may_run(&address) {
                    return Err(Full::Strangers);
                }
                address.bounds.look(announced)?;
                (address.bounds.clone(), Vec::new())
            }
        };
        Ok(Admitted { caller, bounds, held_by })
    }
}

/// Who calls; without a user, whoever has that role is one.
fn user_of(caller: &Caller) -> (TenantUid, bool, &str) {
    let identity = &caller.identity;
    match &identity.user {
        Some(user) => (caller.tenant.uid, true, user),
        None => (caller.tenant.uid, false, &identity.role),
    }
}

/// Runs something for at most this long; a panic in it ends here.
async fn within<T>(timeout: Duration, span: &tracing::Span, work: impl Future<Output = T>) -> Result<T, End> {
    let work = std::panic::AssertUnwindSafe(tokio::time::timeout(timeout, work));
    match work.catch_unwind().instrument(span.clone()).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(End::TimedOut),
        Err(_) => Err(End::Panicked),
    }
}

/// A method of a closed set: a client may send any token as its method, and each label lives for ever.
fn method_of(request: &Request) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let method = request.method().as_str();
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// What a refusal of the server's own is made for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// The front that was called, by its route's template.
    route: &'a str,
    request_id: &'a RequestId,
    /// What the caller takes from GraphQL.
    media: graphql::Media,
}

impl Asked<'_> {
    /// A refusal in the form of the front that was called.
    fn refuse(&self, refusal: &Refusal) -> Response {
        match self.route {
            "/graphql" => graphql::refused(self.media, refusal, self.request_id),
            _ => problem(refusal),
        }
    }

    /// What is answered to a head that no front takes: it is no request of theirs, so that its status is HTTP's.
    fn malformed(&self, refusal: &Refusal) -> Response {
        let mut response = self.refuse(refusal);
        let status = StatusCode::from_u16(refusal.code.http_status());
        *response.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
        if refusal.code == ErrorCode::MediaTypeUnsupported {
            // What would have been taken (RFC 9110, section 15.5.16).
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }

    /// What is answered to who should come back later. It says so by HTTP too, whichever front was called: Hasura reads the
    /// body alone, what stands between reads only this.
    fn unavailable(&self) -> Response {
        let mut response = self.refuse(&Refusal::from(ErrorCode::Unavailable).after(COME_BACK));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(COME_BACK.as_secs()));
        response
    }
}

/// Counts down whatever becomes of the request, a client that hangs up included.
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
