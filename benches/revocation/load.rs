//! The clients: each decrypts hot records over REST, one after the other, and records when each
//! answer arrives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::observations::Observations;
use crate::support::server::TestServer;

const CLIENTS: usize = 32;
pub(crate) const RECORDS: usize = 64;
/// The pause between two calls of a client while another provider's server is under full load.
const PACE: Duration = Duration::from_millis(100);
/// The pause after a refusal, as a client makes that retries.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The clients of one server, which call until they are stopped.
pub(crate) struct Load {
    pub(crate) observations: Arc<Observations>,
    clients: JoinSet<()>,
}

/// A request, and the body of its answer.
struct Call {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Load {
    /// Encrypts the records and starts the clients.
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
        let (calls, observations) = (Arc::new(calls), Arc::new(Observations::new()));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(run_client(client, address, calls.clone(), observations.clone()));
        }
        Self { observations, clients }
    }

    /// Stops the clients, and returns when all have ended.
    pub(crate) async fn stop(mut self) {
        self.observations.stop();
        while self.clients.join_next().await.is_some() {}
    }
}

/// The name of a hot record.
pub(crate) fn hot(number: usize) -> String {
    format!("hot-{}", number % RECORDS)
}

async fn run_client(
    client: usize,
    address: SocketAddr,
    calls: Arc<Vec<Call>>,
    observations: Arc<Observations>,
) {
    if let Err(problem) = call_until_stopped(client, address, &calls, &observations).await {
        observations.report(format!("a client's connection: {problem}"));
    }
}

async fn call_until_stopped(
    client: usize,
    address: SocketAddr,
    calls: &[Call],
    observations: &Observations,
) -> std::io::Result<()> {
    let mut connection = Connection::open(address).await?;
    for call in calls.iter().cycle().skip(client * calls.len() / CLIENTS) {
        if observations.is_stopped() {
            break;
        }
        let (status, body) = connection.exchange(&call.request).await?;
        let plaintext = observations.record(status, body, &call.answer);
        if !observations.is_full_load() {
            sleep(PACE).await;
        } else if !plaintext {
            sleep(RETRY_PAUSE).await;
        }
    }
    Ok(())
}
