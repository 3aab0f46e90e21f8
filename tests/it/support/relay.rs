//! A relay in front of a server. It counts requests in total and at a time, and can delay answers
//! or answer in the server's place. It uses TLS if the server does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use axum::serve::{Listener, ListenerExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::pki::Files;

/// A running relay, which stops when it is dropped.
pub(crate) struct Relay {
    /// The relay's URL, with the path of the server's.
    pub(crate) url: String,
    pub(crate) state: Arc<State>,
    server: JoinHandle<()>,
}

/// The name under which a request is counted, from method, path, query and headers.
pub(crate) type Name = fn(&Request) -> String;

pub(crate) struct State {
    upstream: String,
    client: reqwest::Client,
    name: Name,
    /// The number of requests of each name.
    pub(crate) counts: Mutex<BTreeMap<String, usize>>,
    now: AtomicUsize,
    /// The largest number of requests at a time.
    pub(crate) most: AtomicUsize,
    says: Mutex<Option<Box<dyn Fn() -> Response + Send>>>,
    /// The delay of each answer in milliseconds, so that calls overlap.
    pub(crate) slow: AtomicUsize,
    bodies: Mutex<Vec<Bytes>>,
}

impl Relay {
    /// Starts one in front of a server that speaks plain HTTP.
    pub(crate) async fn before(url: &str, name: Name) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::serve(
            url,
            super::http(),
            name,
            listener.tap_io(|io| drop(io.set_nodelay(true))),
            "http",
            address,
        )
    }

    /// Starts one in front of a server with a certificate of the authority in `trusted`. It
    /// presents these files itself.
    pub(crate) async fn before_tls(url: &str, trusted: &Path, files: &Files, name: Name) -> Self {
        let client = super::pki::client(trusted, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::serve(url, client, name, Tls { listener, acceptor: acceptor(files) }, "https", address)
    }

    /// Starts one in front of a server that speaks plain HTTP. It speaks TLS itself, with these
    /// files.
    pub(crate) async fn ending_tls(url: &str, files: &Files, name: Name) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut relay = Self::serve(
            url,
            super::http(),
            name,
            Tls { listener, acceptor: acceptor(files) },
            "http",
            address,
        );
        relay.url = relay.url.replacen("http", "https", 1);
        relay
    }

    fn serve<L: Listener<Addr = SocketAddr>>(
        url: &str,
        client: reqwest::Client,
        name: Name,
        listener: L,
        scheme: &str,
        address: SocketAddr,
    ) -> Self {
        let rest = url.split_once("://").expect("a URL").1;
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        let state = Arc::new(State {
            upstream: format!("{scheme}://{host}"),
            client,
            name,
            counts: Mutex::default(),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            says: Mutex::default(),
            slow: AtomicUsize::new(0),
            bodies: Mutex::default(),
        });
        let kept = Arc::clone(&state);
        let router = Router::new().fallback(move |request: Request| {
            let state = Arc::clone(&kept);
            async move { state.relay(request).await }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        let slash = if path.is_empty() { "" } else { "/" };
        Self { url: format!("{scheme}://{address}{slash}{path}"), state, server }
    }

    /// Answers in the server's place from now on; with `None` the server answers again.
    pub(crate) fn say(&self, answer: Option<Box<dyn Fn() -> Response + Send>>) {
        *self.state.says.lock().expect("a lock") = answer;
    }
}

impl Relay {
    /// The strings under these names in all requests and answers so far: plain DEKs among them.
    pub(crate) fn strings_under(&self, names: &[&str]) -> Vec<String> {
        fn walk(value: &Value, names: &[&str], found: &mut Vec<String>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(name, value)| match value {
                    Value::String(text) if names.contains(&name.as_str()) => found.push(text.clone()),
                    other => walk(other, names, found),
                }),
                Value::Array(list) => list.iter().for_each(|value| walk(value, names, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for body in self.state.bodies.lock().expect("a lock").iter() {
            walk(&serde_json::from_slice(body).unwrap_or_default(), names, &mut found);
        }
        found
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl State {
    async fn relay(&self, request: Request) -> Response {
        *self.counts.lock().expect("a lock").entry((self.name)(&request)).or_default() += 1;
        if let Some(say) = &*self.says.lock().expect("a lock") {
            return say();
        }
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        let answer = self.pass(request).await;
        tokio::time::sleep(Duration::from_millis(self.slow.load(Ordering::Relaxed) as u64)).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    async fn pass(&self, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        // HTTP/2 has `:authority` instead of this header.
        if let (Some(authority), false) = (parts.uri.authority(), parts.headers.contains_key("host")) {
            parts.headers.insert("host", authority.as_str().parse().expect("a header"));
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", self.upstream);
        let body = to_bytes(body, 64 << 20).await.expect("a body");
        // The client's own Host is kept, since a signature may cover it.
        self.bodies.lock().expect("a lock").push(body.clone());
        let sent = self.client.request(parts.method, url).headers(parts.headers).body(body).send().await;
        let Ok(answer) = sent else {
            return Response::builder().status(502).body(Body::empty()).expect("an answer");
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.unwrap_or_default();
        self.bodies.lock().expect("a lock").push(body.clone());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().remove("transfer-encoding");
        response
    }
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            // A connection that does not complete its handshake would hold up the others.
            let shaken = tokio::time::timeout(Duration::from_secs(2), self.acceptor.accept(stream)).await;
            if let Ok(Ok(stream)) = shaken {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// An acceptor that presents these files, for HTTP/1.1 and HTTP/2.
pub(crate) fn acceptor(files: &Files) -> TlsAcceptor {
    let certificates = CertificateDer::pem_file_iter(&files.certificate).expect("a file");
    let certificates = certificates.map(|certificate| certificate.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
