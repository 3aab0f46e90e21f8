//! The listener and its connections: accepted, spoken with in whichever HTTP they speak, dropped where their client is
//! too slow, ended gracefully.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::config;
use crate::model::Peer;

use super::activity::{Activity, Held, Wait};
use super::crowd::{Crowd, Place, Places};
use super::leaving::{Leaving, Outlet};
use super::patient::Patient;
use super::strangers::{Guest, Strangers};
use super::{SLOW_CLIENT, Served};

/// What a connection may buffer by HTTP/1.1 of what is read and written, heads included; each of them has this, and
/// nothing else bounds their sum. By HTTP/2 a stream's windows bound it, and this what is written.
const BUFFER: usize = 64 << 10;
/// How many requests an HTTP/2 client may have on one connection, and how many that it took back before they were begun:
/// more of those are an attack (CVE-2023-44487). Load balancers send about a hundred.
const STREAMS: u32 = 128;
const TAKEN_BACK: usize = 20;
/// How much an HTTP/2 client may send of one request, and of all on its connection, before it was read: nothing else bounds
/// the sum over all connections. In a data centre (1 ms) that lets through some 250 MB/s of one, and twice that of all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// The heads of an HTTP/2 request, as its client counts them.
const HEAD: u32 = 16 << 10;
/// How often an HTTP/2 client is asked whether it is there, and how long it may take to say so: it answers behind what it
/// reads slowly.
const ASKED_EVERY: Duration = Duration::from_secs(30);
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// How long a connection that is being closed may be without a request: by HTTP/2 the time in which a client hears that it
/// should send no more.
const CLOSING: Duration = Duration::from_secs(1);
/// The send buffer that is set for each connection (`SO_SNDBUF`); the kernel allows itself twice as much (socket(7)). When a
/// key is turned off, what the kernel holds is all that can still arrive: docs/kill-switch.md states the bound.
const SEND_BUFFER: usize = 64 << 10;

/// Serves until `stop` is cancelled, then finishes what is in flight, for at most the drain time. While it does, it takes
/// new connections too: who watches must see that the server is not ready, and a load balancer takes a while to hear it.
///
/// # Errors
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    served: Served,
    settings: config::Server,
    stop: CancellationToken,
) -> io::Result<()> {
    let door = Door {
        listener,
        tls,
        router: served.router,
        strangers: served.strangers,
        builder: Arc::new(protocols()),
        places: served.places,
        idle: settings.idle,
        patience: settings.request_timeout,
    };
    info!(connections = door.places.most(), "taking connections");
    let (usual, late) = (Connections::default(), Connections::default());
    tokio::select! {
        () = stop.cancelled() => {}
        () = door.keep_open(&usual) => {}
    }
    info!("stopping: finishing what is in flight");
    let finished = async {
        tokio::select! {
            () = usual.end() => {}
            () = door.keep_open(&late) => {}
        }
        drop(door);
        late.end().await;
    };
    if tokio::time::timeout(settings.drain, finished).await.is_err() {
        warn!("the drain time is over: what is still in flight is dropped");
    }
    Ok(())
}

/// What is spoken on a connection, and within which bounds.
fn protocols() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // Its timeout for heads would count from the end of the request before: it would close what is idle.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(ASKED_EVERY)
        .keep_alive_timeout(ANSWERS_WITHIN)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(TAKEN_BACK)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buf_size(BUFFER);
    builder
}

/// Connections that are ended together.
#[derive(Default)]
struct Connections {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Connections {
    /// Ends them gracefully, and waits until they have.
    async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What a connection comes in by.
struct Door {
    listener: TcpListener,
    /// That of the moment: connections keep the one that they began with.
    tls: Option<watch::Receiver<TlsAcceptor>>,
    router: Router,
    strangers: Arc<Strangers>,
    builder: Arc<Builder<TokioExecutor>>,
    places: Arc<Places>,
    idle: Duration,
    patience: Duration,
}

impl Door {
    /// Accepts connections for as long as it is polled; each is ended gracefully with the others of its kind.
    async fn keep_open(&self, connections: &Connections) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file handles, most likely: give others time to end.
                    warn!(kind = ?error.kind(), "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = self.places.take() else { continue };
            let Some(guest) = self.strangers.connect(peer.ip()).map(Arc::new) else { continue };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
            let builder = self.builder.clone();
            let connection = Connection {
                router: self.router.clone(),
                place,
                guest,
                stop: connections.stop.clone(),
                idle: self.idle,
                patience: self.patience,
            };
            connections.tasks.spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Err(error) = set_socket_send_buffer_size(&stream, SEND_BUFFER) {
                    warn!(kind = ?error.kind(), "the send buffer of a connection cannot be bounded: it is closed");
                    return;
                }
                let outlet = Outlet::default();
                let stream = Patient::new(stream, outlet.unsent.clone());
                match tls {
                    None => connection.converse(stream, outlet, &builder).await,
                    Some(tls) => {
                        let patience = connection.place.places().crowd().patience(SLOW_CLIENT, false);
                        if let Ok(Ok(stream)) = tokio::time::timeout(patience, tls.accept(stream)).await {
                            connection.converse(stream, outlet, &builder).await;
                        }
                    }
                }
            });
        }
    }
}

/// One connection.
struct Connection {
    guest: Arc<Guest>,
    router: Router,
    place: Place,
    stop: CancellationToken,
    idle: Duration,
    patience: Duration,
}

impl Connection {
    /// Speaks with the client until it hangs up, is idle or slow for too long, has not taken an answer within `patience`, or
    /// the server stops.
    async fn converse<S>(self, stream: S, outlet: Outlet, builder: &Builder<TokioExecutor>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { guest, router, place, stop, idle, patience } = self;
        let (activity, untaken, peer) = (Activity::new(), outlet.untaken.clone(), Peer::default());
        let places = place.places();
        let mut crowd = places.crowds();
        let read = activity.clone();
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            if !bytes.is_empty() {
                read.read();
            }
        });
        let service = service_fn(|request: Request<Incoming>| {
            let (version, on_connection) = (request.version(), activity.begin(request.version()));
            let body = |body| Body::new(Held { body, _request: on_connection.clone() });
            let mut request = request.map(body);
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(guest.clone());
            request.extensions_mut().insert(places.clone());
            let (router, peer, places) = (router.clone(), peer.clone(), places.clone());
            let outlet = outlet.clone();
            async move {
                let Ok(answer) = router.oneshot(request).await;
                let mut response = Leaving::by(&outlet, version, answer);
                if version < Version::HTTP_2 && !peer.has_authenticated() && places.crowd() != Crowd::Few {
                    // It would be closed soon: better that its client knows.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Held { body, _request: on_connection }))
            }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let too_long = async {
            while untaken.oldest().is_none_or(|since| since.elapsed() < patience) {
                tokio::time::sleep(patience / 4).await;
            }
            debug!("a client did not take its answer in time: its connection is dropped");
        };
        let mut too_long = std::pin::pin!(too_long);
        let overdue = loop {
            let is_full = *crowd.borrow_and_update();
            let allowed = |wait| {
                let usually = match wait {
                    Wait::FirstRequest | Wait::RestOfHead => SLOW_CLIENT,
                    Wait::NextRequest => idle,
                    Wait::RestOfRequest => return is_full.patience_with_request(peer.has_authenticated()),
                };
                Some(is_full.patience(usually, peer.has_authenticated()))
            };
            tokio::select! {
                biased;
                // A client that breaks off is its own affair.
                _ = connection.as_mut() => return,
                () = too_long.as_mut() => return,
                () = stop.cancelled() => break None,
                wait = activity.overdue(allowed) => break Some(wait),
                _ = crowd.changed() => {}
            }
        };
        if matches!(overdue, Some(Wait::FirstRequest | Wait::RestOfHead | Wait::RestOfRequest)) {
            return;
        }
        connection.as_mut().graceful_shutdown();
        activity.wait_anew();
        tokio::select! {
            biased;
            _ = connection => {}
            () = too_long => {}
            _ = activity.overdue(|wait| (wait != Wait::RestOfRequest).then_some(CLOSING)) => {}
        }
    }
}
