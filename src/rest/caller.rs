//! The caller of a request, extracted before the body is read.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::response::Response;

use crate::app::{Arrival, Room};
use crate::model::{ErrorCode, Refusal};
use crate::tenancy::Caller;

use super::Front;
use super::problem::problem;

/// The caller of a request, and the room for its answer. A request without a verified identity is
/// refused.
pub(super) struct Authenticated(pub(super) Caller, pub(super) Arc<dyn Room>);

impl FromRequestParts<Front> for Authenticated {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &Front) -> Result<Self, Response> {
        if may_be_cross_site(parts) {
            let why = "A request that authenticates by cookie must be sent as application/json.";
            return Err(problem(&Refusal::because(ErrorCode::RequestMalformed, why)));
        }
        let Arrival { caller, room } = Arrival::take(&mut parts.extensions);
        caller.map(|caller| Self(caller, room)).map_err(|refusal| problem(&refusal))
    }
}

/// Whether a page of another site may have caused the request. A browser adds a cookie, which may
/// hold the JWT, to a form of any page; only before a request with the JSON content type does it
/// send a preflight.
fn may_be_cross_site(parts: &Parts) -> bool {
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
