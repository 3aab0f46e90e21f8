//! A TCP proxy that cuts a connection when the client sends certain bytes.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What happens to a chunk from the client that contains the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server does not receive it, and the connection ends.
    Before,
    /// The server receives it and answers; the answer is dropped, and the connection ends.
    Answer,
    /// The server does not receive it, and nothing more is forwarded in either direction.
    Silence,
}

type Plan = Arc<Mutex<Option<(Vec<u8>, Cut)>>>;

/// The address for new connections, and a token that ends the connections made before.
type Target = Arc<Mutex<(String, CancellationToken)>>;

/// A proxy in front of a server, which stops with its runtime.
pub(crate) struct Proxy {
    port: u16,
    plan: Plan,
    target: Target,
}

impl Proxy {
    /// Starts one in front of the server of that URL. Returns it, and the URL that leads through
    /// it.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let target = address_of(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let plan = Plan::default();
        let leads_to = Arc::new(Mutex::new((target.clone(), CancellationToken::new())));
        let proxy = Self { port, plan: plan.clone(), target: leads_to.clone() };
        let proxied = url.replace(&target, &format!("127.0.0.1:{}", proxy.port));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, ended) = leads_to.lock().expect("a lock").clone();
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                tokio::spawn(ended.run_until_cancelled_owned(forward(client, server, plan.clone())));
            }
        });
        (proxy, proxied)
    }

    /// Cuts the next connection whose client sends `bytes`, and no later one.
    pub(crate) fn cut(&self, bytes: &[u8], how: Cut) {
        *self.plan.lock().expect("a lock") = Some((bytes.to_vec(), how));
    }

    /// Directs new connections to the server of this URL; existing ones continue.
    pub(crate) fn lead_to(&self, url: &str) {
        self.target.lock().expect("a lock").0 = address_of(url);
    }

    /// Ends every connection.
    pub(crate) fn end_all(&self) {
        std::mem::take(&mut self.target.lock().expect("a lock").1).cancel();
    }

    /// Whether the cut has happened.
    pub(crate) fn is_done(&self) -> bool {
        self.plan.lock().expect("a lock").is_none()
    }
}

fn address_of(url: &str) -> String {
    let host = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    host.split('/').next().expect("a host").to_owned()
}

async fn forward(mut client: TcpStream, mut server: TcpStream, plan: Plan) -> std::io::Result<()> {
    let (mut from_client, mut from_server) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let chunk = &from_client[..read?];
                if chunk.is_empty() {
                    return Ok(());
                }
                match take_if_it_is_time(&plan, chunk) {
                    None => server.write_all(chunk).await?,
                    Some(Cut::Before) => return Ok(()),
                    Some(Cut::Answer) => {
                        server.write_all(chunk).await?;
                        let _answer = server.read(&mut from_server).await?;
                        return Ok(());
                    }
                    Some(Cut::Silence) => std::future::pending().await,
                }
            }
            read = server.read(&mut from_server) => {
                let chunk = &from_server[..read?];
                if chunk.is_empty() {
                    return Ok(());
                }
                client.write_all(chunk).await?;
            }
        }
    }
}

fn take_if_it_is_time(plan: &Plan, chunk: &[u8]) -> Option<Cut> {
    let mut plan = plan.lock().expect("a lock");
    let (bytes, how) = plan.as_ref()?;
    let how = *how;
    chunk.windows(bytes.len()).any(|window| window == bytes).then(|| {
        *plan = None;
        how
    })
}
