//! The one who writes meanwhile. While records are hot it encrypts known ones, which asks nothing of the KMS; while the key
//! is off and coming back, new ones. What was acknowledged has to be there in the end.

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
    fresh: AtomicBool,
    stop: AtomicBool,
}

/// An encryption that was acknowledged.
pub(crate) struct Written {
    pub(crate) record: String,
    pub(crate) plaintext: String,
    pub(crate) ciphertext: String,
    /// Whether nobody else ever named the record.
    pub(crate) fresh: bool,
}

impl Writer {
    pub(crate) fn start(server: &Arc<TestServer>) -> Self {
        let state = Arc::new(State::default());
        let task = tokio::spawn(write(Arc::clone(server), Arc::clone(&state)));
        Self { state, task }
    }

    /// Whether it encrypts new records from now on.
    pub(crate) fn fresh(&self, fresh: bool) {
        self.state.fresh.store(fresh, Relaxed);
    }

    /// All that was acknowledged.
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
        let fresh = state.fresh.load(Relaxed);
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
