//! The writer, which encrypts during the trials. While the key is on it encrypts known records,
//! which need no KMS; while the key is off or coming back it encrypts new ones. Everything that was
//! acknowledged must exist at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::load::hot;
use crate::support::server::TestServer;

const PACE: Duration = Duration::from_millis(100);

pub(crate) struct Writer {
    state: Arc<State>,
    task: JoinHandle<Vec<Written>>,
}

#[derive(Default)]
struct State {
    new_records: AtomicBool,
    stop: AtomicBool,
}

/// An encryption that was acknowledged.
pub(crate) struct Written {
    pub(crate) record: String,
    pub(crate) plaintext: String,
    pub(crate) ciphertext: String,
    /// Whether the record is new, not one of the hot records.
    pub(crate) fresh: bool,
}

impl Writer {
    pub(crate) fn start(server: &Arc<TestServer>) -> Self {
        let state = Arc::new(State::default());
        let task = tokio::spawn(write(Arc::clone(server), Arc::clone(&state)));
        Self { state, task }
    }

    /// Sets whether it encrypts new records from now on.
    pub(crate) fn set_new_records(&self, new_records: bool) {
        self.state.new_records.store(new_records, Relaxed);
    }

    /// Stops the writer and gives all acknowledged encryptions.
    pub(crate) async fn stop(self) -> Vec<Written> {
        self.state.stop.store(true, Relaxed);
        self.task.await.expect("it does not panic")
    }
}

async fn write(server: Arc<TestServer>, state: Arc<State>) -> Vec<Written> {
    let jwt = server.jwt("admin", "the-admin");
    let mut written = Vec::new();
    for number in 0.. {
        if state.stop.load(Relaxed) {
            break;
        }
        let fresh = state.new_records.load(Relaxed);
        let record = if fresh { format!("new-{number}") } else { hot(number) };
        let plaintext = format!("number {number}");
        let body = json!({ "plaintext": plaintext, "context": { "record_id": record } });
        let answer = server.call(Method::POST, "/byok/encrypt", &jwt, Some(body)).await;
        if answer.status == 200 {
            let ciphertext = answer.body["ciphertext"].as_str().expect("a token").to_owned();
            written.push(Written { record, plaintext, ciphertext, fresh });
        }
        sleep(PACE).await;
    }
    written
}
