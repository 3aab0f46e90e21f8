//! The clients: each decrypts hot records over REST, one after the other, and tells of every answer when it has arrived.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::seen::Seen;
use crate::support::server::TestServer;

const CLIENTS: usize = 32;
pub(crate) const RECORDS: usize = 64;
/// Between two calls of a client, while another provider's server is under load.
const PACE: Duration = Duration::from_millis(100);
/// After a refusal, as a client would that is told to come back.
const REFUSED: Duration = Duration::from_millis(20);

/// Goes on until it is stopped.
pub(crate) struct Load {
    pub(crate) seen: Arc<Seen>,
    clients: JoinSet<()>,
}

/// A request, and the body of its answer.
struct Call {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Load {
    /// Encrypts the records and sets the clients on them.
    pub(crate) async fn start(server: &TestServer) -> Self {
        let address: SocketAddr = server.base.trim_start_matches("http://").parse().expect("an address");
        let jwt = server.jwt("admin", "the-admin");
        let mut calls = Vec::new();
        for number in 0..RECORDS {
            let (record, plaintext) = (hot(number), format!("text of {}", hot(number)));
            let ciphertext = server.encrypt(&plaintext, &record).await;
            let body = json!({ "ciphertext": ciphertext, "context": { "record_id": record } }).to_string();
            let request = format!(
                "POST /byok/decrypt HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {jwt}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let answer = json!({ "plaintext": plaintext }).to_string().into_bytes();
            calls.push(Call { request: request.into_bytes(), answer });
        }
        let (calls, seen) = (Arc::new(calls), Arc::new(Seen::new()));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(converse(client, address, calls.clone(), seen.clone()));
        }
        Self { seen, clients }
    }

    /// Ends when every client has.
    pub(crate) async fn stop(mut self) {
        self.seen.stop();
        while self.clients.join_next().await.is_some() {}
    }
}

/// The name of a hot record.
pub(crate) fn hot(number: usize) -> String {
    format!("hot-{}", number % RECORDS)
}

async fn converse(client: usize, address: SocketAddr, calls: Arc<Vec<Call>>, seen: Arc<Seen>) {
    if let Err(problem) = talk(client, address, &calls, &seen).await {
        seen.wrong(format!("a client's connection: {problem}"));
    }
}

async fn talk(client: usize, address: SocketAddr, calls: &[Call], seen: &Seen) -> std::io::Result<()> {
    let mut connection = Connection::open(address).await?;
    for call in calls.iter().cycle().skip(client * calls.len() / CLIENTS) {
        if seen.is_stopped() {
            break;
        }
        let (status, body) = connection.exchange(&call.request).await?;
        let plaintext = seen.take(status, body, &call.answer);
        if !seen.is_full() {
            sleep(PACE).await;
        } else if !plaintext {
            sleep(REFUSED).await;
        }
    }
    Ok(())
}
