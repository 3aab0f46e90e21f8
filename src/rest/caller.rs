//! Who calls: the first thing that a handler asks, before it reads a body.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;

use crate::model::{Caller, RequestId};

use super::Front;
use super::problem::problem;

/// The caller of a request; the request is refused where nobody is known.
pub(super) struct Authenticated(pub(super) Caller);

impl FromRequestParts<Front> for Authenticated {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Response> {
        let request_id = parts.extensions.get().cloned().unwrap_or_else(RequestId::fresh);
        front.app.authenticate(&parts.headers, request_id).map(Self).map_err(|refusal| problem(&refusal))
    }
}
