//! Refusals that the server makes itself, in the form of the front that was called.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::graphql;
use crate::model::{ErrorCode, Refusal, RequestId};
use crate::rest::problem;

/// When a client refused for load should try again. Permits are released many times a second,
/// unless the database or the KMS hangs, and then no time is right.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a refusal needs to know of its request.
#[derive(Clone, Copy)]
pub(super) struct RefusalContext<'a> {
    /// The template of the route.
    pub(super) route: &'a str,
    pub(super) request_id: &'a RequestId,
    /// The media type that the caller accepts from GraphQL.
    pub(super) media: graphql::Media,
}

impl RefusalContext<'_> {
    /// A refusal in the form of the front that was called.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response {
        match self.route {
            "/graphql" => graphql::refused(self.media, refusal, self.request_id),
            _ => problem(refusal),
        }
    }

    /// The answer to a request head that no front accepts. It has the HTTP status of the code on
    /// every front.
    pub(super) fn malformed(&self, refusal: &Refusal) -> Response {
        let mut response = self.refuse(refusal);
        let status = StatusCode::from_u16(refusal.code.http_status());
        *response.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
        if refusal.code == ErrorCode::MediaTypeUnsupported {
            // The codings that would have been accepted (RFC 9110, section 15.5.16).
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }

    /// The answer to a client that should try again later. It has the HTTP status and header on
    /// every front: Hasura reads only the body, proxies read only these.
    pub(super) fn unavailable(&self) -> Response {
        let mut response = self.refuse(&Refusal::from(ErrorCode::Unavailable).after(RETRY_AFTER));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        response
    }
}
