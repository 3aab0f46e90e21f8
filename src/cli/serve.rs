//! `byok serve`: runs the server until SIGTERM or SIGINT.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::assemble::{Assembled, assemble};
use super::{Failure, memory, reload};
use crate::config::{Config, Defaults, Env, Tls};
use crate::server::RequestRuntime;
use crate::{server, telemetry};

/// The time that the shutdown waits for the last entries, after the drain time.
const LAST_ENTRIES: Duration = Duration::from_secs(5);

pub(super) async fn run() -> Result<(), Failure> {
    let env = Env::of_process();
    let config = Config::read(&env, &Defaults::serve()).map_err(Failure::Configuration)?;
    serve(config, env, OnHangup::ReadAgain, |_, _| std::future::ready(Ok(()))).await
}

/// The effect of SIGHUP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnHangup {
    /// Read files again, as daemons do.
    ReadAgain,
    /// Stop, because the terminal is gone.
    Stop,
}

/// Serves until a signal comes. `env` is the environment that `config` was read from. The server
/// listens at once, and answers calls as soon as the database has been reached; then it calls
/// `ready` with the bound address.
pub(super) async fn serve<F, R>(
    mut config: Config,
    env: Env,
    on_hangup: OnHangup,
    ready: F,
) -> Result<(), Failure>
where
    F: FnOnce(Arc<crate::app::App>, SocketAddr) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let _telemetry = telemetry::start(&config.telemetry).map_err(Failure::Running)?;
    memory::lock();
    let stop = stop_on_signals(on_hangup)?;
    let hangups = (on_hangup == OnHangup::ReadAgain).then(|| listen_to(SignalKind::hangup())).transpose()?;
    let files = std::mem::take(&mut config.files);
    let (tls, tls_now) = config.server.tls.as_ref().map(acceptor).transpose()?.unzip();
    let (listener, address) = bind("BYOK_LISTEN", config.server.listen).await?;
    let metrics_listener = match config.server.metrics_listen {
        Some(address) => Some(bind("BYOK_METRICS_LISTEN", address).await?),
        None => None,
    };
    let requests = RequestRuntime::start()
        .map_err(|error| Failure::Running(format!("the runtime of requests did not start: {error}")))?;

    let Assembled { app, jobs, state, database, server: settings, opening, refresh } =
        assemble(config, requests.handle(), stop.clone()).await?;
    let (served, metrics) = server::routers(app.clone(), state, &settings, stop.clone());
    if let (Some(served), Some((listener, address))) = (metrics, metrics_listener) {
        info!(%address, "metrics are listening");
        let (tls, settings, stop) = (tls_now.clone(), settings.clone(), stop.clone());
        tokio::spawn(async move {
            server::serve(TcpListener::from_std(listener)?, tls, served, settings, stop).await
        });
    }
    info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    let running = reload::Running { app: app.clone(), jobs: jobs.clone(), database, tls };
    tokio::spawn(reload::run(running, env, files, hangups, stop.clone()));
    let stopping = stop.clone();
    let serving = requests.spawn(async move {
        server::serve(TcpListener::from_std(listener)?, tls_now, served, settings, stopping).await
    });
    let opened = tokio::select! {
        opened = opening.open(stop.clone()) => Some(opened),
        () = stop.cancelled() => None,
    };
    let (mut upkeep, mut working) = (None, None);
    let begun = match opened {
        Some(Ok(task)) => {
            info!("ready");
            upkeep = Some(task);
            working = Some(jobs.start(stop.clone()));
            ready(app.clone(), address).await
        }
        Some(Err(failure)) => Err(failure),
        None => Ok(()),
    };
    if begun.is_err() {
        stop.cancel();
    }
    let served = serving.await;
    stop.cancel();
    requests.end().await;
    if tokio::time::timeout(LAST_ENTRIES, app.settled()).await.is_err() {
        warn!(
            "some answers were not given, and the log does not say so: the database took too long to record it"
        );
    }
    if let Some(working) = working {
        let _ = working.await;
    }
    upkeep.iter().chain([&refresh]).for_each(JoinHandle::abort);
    begun?;
    match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Running(format!("the listener failed: {error}"))),
        Err(_) => Err(Failure::Running("the server panicked".to_owned())),
    }
}

/// Binds an address, independently of the runtime that will accept connections there.
async fn bind(variable: &str, address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), Failure> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener.into_std()?, address))
    };
    bound.await.map_err(|error: io::Error| {
        Failure::Running(format!("{variable}: {address} cannot be bound: {error}"))
    })
}

fn stop_on_signals(on_hangup: OnHangup) -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let hangup = (on_hangup == OnHangup::Stop).then(SignalKind::hangup);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()].into_iter().chain(hangup) {
        let mut signals = listen_to(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

fn listen_to(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::Running(format!("signals cannot be received: {error}")))
}

/// Builds the acceptor, in a channel through which it can be replaced.
fn acceptor(tls: &Tls) -> Result<(watch::Sender<TlsAcceptor>, watch::Receiver<TlsAcceptor>), Failure> {
    let config = reload::server_config(tls).map_err(|error| Failure::Configuration(vec![error]))?;
    Ok(watch::channel(TlsAcceptor::from(Arc::new(config))))
}
