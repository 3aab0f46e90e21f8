//! The listener and its connections: they are accepted, served over HTTP/1.1 or HTTP/2, dropped
//! when their client is too slow, and ended gracefully.

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

use super::activity::{Activity, TrackedBody, Wait};
use super::anonymous::{AnonymousCallers, PeerConnection};
use super::connection_permits::{ConnectionPermit, ConnectionPermits, Occupancy};
use super::response_body::{ConnectionOutput, ResponseBody};
use super::write_timeout::WriteTimeout;
use super::{SLOW_CLIENT, Served};

/// The bytes that a connection may buffer: over HTTP/1.1 of what is read and written, heads
/// included; over HTTP/2 of what is written, while the windows limit what is read. Nothing else
/// limits the sum over all connections.
const BUFFER: usize = 64 << 10;
/// The most concurrent requests on one HTTP/2 connection. Load balancers send about a hundred.
const STREAMS: u32 = 128;
/// The most requests on one HTTP/2 connection that the client has reset before they began: more are
/// an attack (CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// The bytes that an HTTP/2 client may send of one request, and of all on its connection, before
/// they are read: nothing else limits the sum over all connections. In a data centre (1 ms) this
/// allows some 250 MB/s for one request, and twice that for all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// The size of the header list of an HTTP/2 request.
const HEADER_LIST: u32 = 16 << 10;
/// The interval of HTTP/2 pings, and how long a client may take to answer one: its answer can be
/// queued behind data that it reads slowly.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a closing connection may be without a request: over HTTP/2, the time for the client to
/// receive GOAWAY.
const CLOSING: Duration = Duration::from_secs(1);
/// The send buffer of each connection (`SO_SNDBUF`); the kernel doubles it (socket(7)). When a key
/// is turned off, only what the kernel has buffered can still reach the client: docs/kill-switch.md
/// states the bound.
const SEND_BUFFER: usize = 64 << 10;

/// Serves until `stop` is cancelled, then finishes the requests in progress, for at most the drain
/// time. Meanwhile it still accepts connections: monitoring must see that the server is not ready,
/// and a load balancer takes a while to notice.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    served: Served,
    settings: config::Server,
    stop: CancellationToken,
) -> io::Result<()> {
    let acceptor = Acceptor {
        listener,
        tls,
        router: served.router,
        anonymous: served.anonymous,
        builder: Arc::new(protocols()),
        permits: served.permits,
        idle: settings.idle,
        delivery: settings.request_timeout,
    };
    info!(connections = acceptor.permits.max(), "accepting connections");
    let (before_stop, during_drain) = (Connections::default(), Connections::default());
    tokio::select! {
        () = stop.cancelled() => {}
        () = acceptor.accept(&before_stop) => {}
    }
    info!("stopping: finishing the requests in progress");
    let finished = async {
        tokio::select! {
            () = before_stop.end() => {}
            () = acceptor.accept(&during_drain) => {}
        }
        drop(acceptor);
        during_drain.end().await;
    };
    if tokio::time::timeout(settings.drain, finished).await.is_err() {
        warn!("the drain time is over: the requests still in progress are dropped");
    }
    Ok(())
}

/// The HTTP protocols, with their limits.
fn protocols() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper's timeout for heads starts at the end of the previous request, so it would close idle
    // connections.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
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

/// The listener, and what each accepted connection needs.
struct Acceptor {
    listener: TcpListener,
    /// The current TLS configuration; a connection keeps the one that it began with.
    tls: Option<watch::Receiver<TlsAcceptor>>,
    router: Router,
    anonymous: Arc<AnonymousCallers>,
    builder: Arc<Builder<TokioExecutor>>,
    permits: Arc<ConnectionPermits>,
    idle: Duration,
    delivery: Duration,
}

impl Acceptor {
    /// Accepts connections while it is polled. `connections` ends them together.
    async fn accept(&self, connections: &Connections) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most likely no file handles are left: give other connections time to end.
                    warn!(kind = ?error.kind(), "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(permit) = self.permits.try_acquire() else { continue };
            let Some(peer) = self.anonymous.connect(peer.ip()).map(Arc::new) else { continue };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
            let builder = self.builder.clone();
            let connection = Connection {
                router: self.router.clone(),
                permit,
                connection: peer,
                stop: connections.stop.clone(),
                idle: self.idle,
                delivery: self.delivery,
            };
            connections.tasks.spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Err(error) = set_socket_send_buffer_size(&stream, SEND_BUFFER) {
                    warn!(kind = ?error.kind(), "the send buffer of a connection could not be limited; the connection is closed");
                    return;
                }
                let output = ConnectionOutput::default();
                let stream = WriteTimeout::new(stream, output.buffered.clone());
                match tls {
                    None => connection.serve(stream, output, &builder).await,
                    Some(tls) => {
                        let limit = connection.permit.permits().occupancy().idle_limit(SLOW_CLIENT, false);
                        if let Ok(Ok(stream)) = tokio::time::timeout(limit, tls.accept(stream)).await {
                            connection.serve(stream, output, &builder).await;
                        }
                    }
                }
            });
        }
    }
}

/// One connection.
struct Connection {
    connection: Arc<PeerConnection>,
    router: Router,
    permit: ConnectionPermit,
    stop: CancellationToken,
    idle: Duration,
    /// How long the client may take to read an answer.
    delivery: Duration,
}

impl Connection {
    /// Serves the client until it hangs up, is idle or slow for too long, has not read an answer in
    /// time, or the server stops.
    async fn serve<S>(self, stream: S, output: ConnectionOutput, builder: &Builder<TokioExecutor>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { connection: peer_connection, router, permit, stop, idle, delivery } = self;
        let (activity, undelivered, peer) = (Activity::new(), output.undelivered.clone(), Peer::default());
        let permits = permit.permits();
        let mut occupancy = permits.occupancy_changes();
        let read = activity.clone();
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            if !bytes.is_empty() {
                read.record_read();
            }
        });
        let service = service_fn(|request: Request<Incoming>| {
            let (version, on_connection) = (request.version(), activity.begin(request.version()));
            let body = |body| Body::new(TrackedBody { body, _request: on_connection.clone() });
            let mut request = request.map(body);
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(peer_connection.clone());
            request.extensions_mut().insert(permits.clone());
            let (router, peer, permits) = (router.clone(), peer.clone(), permits.clone());
            let output = output.clone();
            async move {
                let Ok(answer) = router.oneshot(request).await;
                let mut response = ResponseBody::over(&output, version, answer);
                if version < Version::HTTP_2
                    && !peer.has_authenticated()
                    && permits.occupancy() != Occupancy::Normal
                {
                    // The connection would be closed soon, so announce it.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| TrackedBody { body, _request: on_connection }))
            }
        });
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let too_long = async {
            while undelivered.oldest().is_none_or(|since| since.elapsed() < delivery) {
                tokio::time::sleep(delivery / 4).await;
            }
            debug!("a client did not read its answer in time; its connection is dropped");
        };
        let mut too_long = std::pin::pin!(too_long);
        let overdue = loop {
            let now = *occupancy.borrow_and_update();
            let allowed = |wait| {
                let usual = match wait {
                    Wait::FirstRequest | Wait::RestOfHead => SLOW_CLIENT,
                    Wait::NextRequest => idle,
                    Wait::RestOfRequest => return now.request_limit(peer.has_authenticated()),
                };
                Some(now.idle_limit(usual, peer.has_authenticated()))
            };
            tokio::select! {
                biased;
                // A client that hangs up is no error.
                _ = connection.as_mut() => return,
                () = too_long.as_mut() => return,
                () = stop.cancelled() => break None,
                wait = activity.overdue(allowed) => break Some(wait),
                _ = occupancy.changed() => {}
            }
        };
        if matches!(overdue, Some(Wait::FirstRequest | Wait::RestOfHead | Wait::RestOfRequest)) {
            return;
        }
        connection.as_mut().graceful_shutdown();
        activity.restart_wait();
        tokio::select! {
            biased;
            _ = connection => {}
            () = too_long => {}
            _ = activity.overdue(|wait| (wait != Wait::RestOfRequest).then_some(CLOSING)) => {}
        }
    }
}
