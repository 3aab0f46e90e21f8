//! `byok serve`: the server, until SIGTERM or SIGINT.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::assemble::{Assembled, assemble};
use super::{Failure, memory};
use crate::config::{Config, Defaults, Env, Mistake, Tls};
use crate::server::RequestRuntime;
use crate::{server, telemetry, worker};

/// How long the end waits for the last entries, after the drain time.
const LAST_ENTRIES: Duration = Duration::from_secs(5);

pub(super) async fn run() -> Result<(), Failure> {
    let config = Config::read(&Env::of_process(), &Defaults::serve()).map_err(Failure::Configuration)?;
    serve(config, |_, _| std::future::ready(Ok(()))).await
}

/// Serves until a signal comes. The address is answered at once, and calls as soon as the database was reached; then `ready` is
/// called with the address that is bound.
pub(super) async fn serve<F, R>(config: Config, ready: F) -> Result<(), Failure>
where
    F: FnOnce(Arc<crate::app::App>, SocketAddr) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let _telemetry = telemetry::start(&config.telemetry).map_err(Failure::Running)?;
    memory::lock();
    let stop = stop_on_signals()?;
    let tls = config.server.tls.as_ref().map(acceptor).transpose()?;
    let (listener, address) = bind("BYOK_LISTEN", config.server.listen).await?;
    let metrics_listener = match config.server.metrics_listen {
        Some(address) => Some(bind("BYOK_METRICS_LISTEN", address).await?),
        None => None,
    };
    let requests = RequestRuntime::start()
        .map_err(|error| Failure::Running(format!("the runtime of requests did not start: {error}")))?;

    let Assembled { app, database, server: settings, opening, refresh } =
        assemble(config, requests.handle(), stop.clone()).await?;
    let (served, metrics) = server::routers(app.clone(), database, &settings, stop.clone());
    if let (Some(served), Some((listener, address))) = (metrics, metrics_listener) {
        info!(%address, "metrics are listening");
        let (tls, settings, stop) = (tls.clone(), settings.clone(), stop.clone());
        tokio::spawn(async move {
            server::serve(TcpListener::from_std(listener)?, tls, served, settings, stop).await
        });
    }
    info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    let stopping = stop.clone();
    let serving = requests.spawn(async move {
        server::serve(TcpListener::from_std(listener)?, tls, served, settings, stopping).await
    });
    let opened = tokio::select! {
        opened = opening.open(stop.clone()) => Some(opened),
        () = stop.cancelled() => None,
    };
    let (mut upkeep, mut worker) = (None, None);
    let begun = match opened {
        Some(Ok(keeping)) => {
            info!("ready");
            upkeep = Some(keeping);
            worker = Some(worker::start(app.clone(), stop.clone()));
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
        warn!("of some answers that were not given the log says that they were: the database took too long");
    }
    if let Some(worker) = worker {
        let _ = worker.await;
    }
    upkeep.iter().chain([&refresh]).for_each(JoinHandle::abort);
    begun?;
    match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Running(format!("the listener broke: {error}"))),
        Err(_) => Err(Failure::Running("the server panicked".to_owned())),
    }
}

/// Binds an address, for whichever runtime will accept there.
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

fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals =
            signal(kind).map_err(|error| Failure::Running(format!("signals cannot be had: {error}")))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Failure> {
    let mistake = |variable: &str, problem: &str| {
        Failure::Configuration(vec![Mistake { variable: variable.to_owned(), problem: problem.to_owned() }])
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&tls.certificates).and_then(Iterator::collect);
    let chain = chain.map_err(|_| mistake("BYOK_TLS_CERT_FILE", "holds no PEM certificates"))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|_| mistake("BYOK_TLS_KEY_FILE", "holds no PEM private key"))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|_| mistake("BYOK_TLS_KEY_FILE", "does not belong to the certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
