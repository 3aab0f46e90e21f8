//! The checkpoint of the audit log, as signed text, and the public keys that verify it.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use super::Front;
use super::caller::Authenticated;
use super::problem::problem;

/// The signed note (c2sp.org/tlog-checkpoint) for the current log.
pub(super) async fn note(State(front): State<Front>, Authenticated(caller, _): Authenticated) -> Response {
    match front.app.checkpoint(&caller).await {
        Ok(checkpoint) => text(checkpoint.note),
        Err(refusal) => problem(&refusal),
    }
}

/// The public keys that verify the note, one per line in the form of c2sp.org/signed-note, the
/// current one first. For information only: an auditor pins the key that `byok audit key` printed.
pub(super) async fn keys(State(front): State<Front>, Authenticated(caller, _): Authenticated) -> Response {
    match front.app.checkpoint(&caller).await {
        Ok(checkpoint) => text(checkpoint.keys.iter().map(|key| format!("{key}\n")).collect()),
        Err(refusal) => problem(&refusal),
    }
}

fn text(body: String) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
