//! The listener and its connections: accepted, spoken with in whichever HTTP they speak, dropped where their client is
//! too slow, ended gracefully.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::config;
use crate::model::Peer;

use super::leaving::Untaken;
use super::patient::Patient;
use super::strangers::{Guest, Strangers};
use super::{SLOW_CLIENT, Served};

/// How many connections are open at once; one more is closed at once.
const CONNECTIONS: usize = 16_384;
/// What a connection may buffer by HTTP/1.1 of what is read and written, heads included; each of them has this, and
/// nothing else bounds their sum. By HTTP/2 a stream's windows bound it, and this what is written.
const BUFFER: usize = 64 << 10;

/// Serves until `stop` is cancelled, then finishes what is in flight, for at most the drain time. While it does, it takes
/// new connections too: who watches must see that the server is not ready, and a load balancer takes a while to hear it.
///
/// # Errors
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    served: Served,
    settings: config::Server,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SLOW_CLIENT).max_buf_size(BUFFER);
    let keep_alive = Some(Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(keep_alive).max_send_buf_size(BUFFER);
    let door = Door {
        listener,
        tls,
        router: served.router,
        strangers: served.strangers,
        builder: Arc::new(builder),
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        patience: settings.request_timeout,
    };
    let (graceful, late) = (GracefulShutdown::new(), GracefulShutdown::new());
    tokio::select! {
        () = stop.cancelled() => {}
        () = door.keep_open(&graceful) => {}
    }
    info!("stopping: finishing what is in flight");
    let finished = async {
        tokio::select! {
            () = graceful.shutdown() => {}
            () = door.keep_open(&late) => {}
        }
        drop(door);
        late.shutdown().await;
    };
    if tokio::time::timeout(settings.drain, finished).await.is_err() {
        warn!("the drain time is over: what is still in flight is dropped");
    }
    Ok(())
}

/// What a connection comes in by.
struct Door {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    strangers: Arc<Strangers>,
    builder: Arc<Builder<TokioExecutor>>,
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Door {
    /// Accepts connections for as long as it is polled; each is ended gracefully with the others of its kind.
    async fn keep_open(&self, graceful: &GracefulShutdown) {
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
            let Ok(place) = self.places.clone().try_acquire_owned() else { continue };
            let Some(guest) = self.strangers.connect(peer.ip()).map(Arc::new) else { continue };
            let (tls, router, builder) = (self.tls.clone(), self.router.clone(), self.builder.clone());
            let (watcher, patience) = (graceful.watcher(), self.patience);
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                let stream = Patient::new(stream);
                match tls {
                    None => converse(stream, guest, router, &builder, watcher, patience).await,
                    Some(tls) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(SLOW_CLIENT, tls.accept(stream)).await {
                            converse(stream, guest, router, &builder, watcher, patience).await;
                        }
                    }
                }
            });
        }
    }
}

/// Speaks with one client, until it hangs up or has not taken an answer within `patience`.
async fn converse<S>(
    stream: S,
    guest: Arc<Guest>,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
    patience: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The builder's own timer starts only once it knows which HTTP is spoken: until a first request has come, a client
    // has no more time than this, whatever it sends.
    let spoken = Arc::new(Notify::new());
    let first = spoken.clone();
    let untaken = Untaken::default();
    let (answers, peer) = (untaken.clone(), Peer::default());
    let service = TowerToHyperService::new(router.map_request(move |request: http::Request<Incoming>| {
        first.notify_one();
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(answers.clone());
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(guest.clone());
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
    let too_long = async {
        while untaken.oldest().is_none_or(|since| since.elapsed() < patience) {
            tokio::time::sleep(patience / 4).await;
        }
    };
    tokio::select! {
        _ = connection => {}
        () = too_long => debug!("a client did not take its answer in time: its connection is dropped"),
    }
}
