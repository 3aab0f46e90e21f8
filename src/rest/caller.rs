//! Who calls: the first thing that a handler asks, before it reads a body.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::response::Response;

use crate::app::{Arrival, Room};
use crate::model::{Caller, ErrorCode, Refusal};

use super::Front;
use super::problem::problem;

/// The caller of a request, and what its answer is held in; the request is refused where nobody is known.
pub(super) struct Authenticated(pub(super) Caller, pub(super) Arc<dyn Room>);

impl FromRequestParts<Front> for Authenticated {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &Front) -> Result<Self, Response> {
        if rides_on_a_cookie(parts) {
            let why = "A request that authenticates by cookie must be sent as application/json.";
            return Err(problem(&Refusal::because(ErrorCode::RequestMalformed, why)));
        }
        let Arrival { caller, room } = Arrival::take(&mut parts.extensions);
        caller.map(|caller| Self(caller, room)).map_err(|refusal| problem(&refusal))
    }
}

/// Where a JWT comes in a cookie, a browser sends it along with a foreign page's form; only with a JSON content type does
/// it ask first.
fn rides_on_a_cookie(parts: &Parts) -> bool {
    let headers = &parts.headers;
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"));
    parts.method == Method::POST
        && headers.contains_key(header::COOKIE)
        && !headers.contains_key(header::AUTHORIZATION)
        && !json
}
