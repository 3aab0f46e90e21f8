//! An HTTP server in Vault's place, for answers that no real Vault gives on demand.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request that the stub received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A server with scripted answers that records its requests. It stops when it is dropped.
pub(crate) struct Stub {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    server: JoinHandle<()>,
}

impl Stub {
    /// Starts one. `answer` gets each request and the number of earlier ones, except for requests
    /// about the token: it is renewed in the background, which tests do not count.
    pub(crate) async fn start(answer: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static) -> Self {
        Self::listen(answer, false).await
    }

    /// Starts one whose `answer` gets requests about the token too.
    pub(crate) async fn start_with_tokens(
        answer: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::listen(answer, true).await
    }

    async fn listen(answer: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static, tokens: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&seen), Arc::new(answer));
        let router = Router::new().fallback(move |request: Request| {
            let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, 64 << 20).await.expect("a body");
                if !tokens && parts.uri.path().contains("/auth/token/") {
                    return self::answer(400, r#"{"errors":["lease is not renewable"]}"#);
                }
                let one = Seen { path: parts.uri.path().to_owned(), headers: parts.headers, body };
                let before = {
                    let mut kept = kept.lock().expect("a lock");
                    kept.push(one.clone());
                    kept.len() - 1
                };
                answer(&one, before)
            }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, seen, server }
    }

    /// The requests received so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("a lock").clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer with this status and body.
pub(crate) fn answer(status: u16, body: impl Into<String>) -> Response {
    Response::builder().status(status).body(body.into().into()).expect("an answer")
}
