//! GraphQL over HTTP, POST and JSON only: anything else could be sent by a page of another site, or
//! be stored by a cache.
//!
//! A request that is malformed (method, content type, size, JSON) is refused with an HTTP status of
//! its own. Everything else is answered with 200, as Hasura does, which reads only the body. A
//! client that accepts `application/graphql-response+json` also learns from the status whether the
//! request ran. Every answer, refusals included, has the shape of GraphQL.

use std::sync::Arc;

use async_graphql::Pos;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::app::{App, Arrival, no_room};
use crate::model::{ErrorCode, Operation, Refusal, RequestId};
use crate::tenancy::Caller;

use super::call::Call;
use super::cost::{Budget, OverBudget};
use super::error::{self, Written};
use super::execution::{NotRun, Runner};
use super::media::{Media, status_of};

/// The most that is read for a caller who has no identity or whose role may do nothing: many times
/// Hasura's introspection.
const MAX_UNPRIVILEGED_BYTES: usize = 64 << 10;
/// Every operation that a role may be permitted here.
const OPERATIONS: [Operation; 5] =
    [Operation::Encrypt, Operation::Decrypt, Operation::Reveal, Operation::Rotate, Operation::Audit];

struct Front {
    app: Arc<App>,
    runner: Runner,
}

/// The router of `/graphql`.
pub fn router(app: Arc<App>) -> Router {
    let front = Arc::new(Front { app, runner: Runner::new() });
    Router::new().route("/graphql", post(handle).fallback(refuse_method)).with_state(front)
}

/// A refusal by the server itself on this route, in the shape of GraphQL, the only one that Hasura
/// reads.
pub fn refused(media: Media, refusal: &Refusal, request_id: &RequestId) -> Response {
    answer(media, error::refused(refusal, &[], request_id))
}

async fn handle(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let request_id = request_id(&head.extensions);
    let Arrival { caller, room } = Arrival::take(&mut head.extensions);
    let limits = front.app.limits();
    let media = Media::asked_for(&head.headers);
    if !is_json(&head.headers) {
        let why = "The body must be sent as application/json.";
        return refuse(media, &Refusal::because(ErrorCode::MediaTypeUnsupported, why), &request_id);
    }
    let may_do_anything = caller
        .as_ref()
        .is_ok_and(|caller| OPERATIONS.into_iter().any(|operation| front.app.may_ever(caller, operation)));
    let limit =
        if may_do_anything { limits.body_bytes } else { limits.body_bytes.min(MAX_UNPRIVILEGED_BYTES) };
    let bytes = match (read(body, limit).await, &caller) {
        (Ok(bytes), _) => bytes,
        // What it asks for is in the part that was not read. A body this long is that of a join.
        (Err(refusal), Ok(caller)) if refusal.code == ErrorCode::BodyTooLarge && !may_do_anything => {
            let denied = ErrorCode::PermissionDenied.into();
            let denied = front.app.refuse(caller, Operation::Reveal, denied).await;
            return answer(media, error::refused(&denied, &[], &request_id));
        }
        (Err(refusal), Err(anonymous)) if refusal.code == ErrorCode::BodyTooLarge => {
            return answer(media, error::refused(anonymous, &[], &request_id));
        }
        (Err(refusal), _) => return refuse(media, &refusal, &request_id),
    };
    let budget = match &caller {
        Ok(_) => Budget::authenticated(limits.items, limits.body_bytes),
        Err(_) => Budget::ANONYMOUS,
    };
    let may_ever = |caller: &Caller, operation| front.app.may_ever(caller, operation);
    let refused =
        |refusal: &Refusal, locations: &[Pos]| answer(media, error::refused(refusal, locations, &request_id));
    match front.runner.prepare(&bytes, &budget, &caller, may_ever) {
        Ok(ready) if !room.hold(ready.bytes.max(bytes.len())) => refused(&no_room(), &[]),
        Ok(ready) => {
            if ready.bytes > MAX_UNPRIVILEGED_BYTES {
                // A small body has become a large request: poll it again, so that other requests do
                // not wait behind it.
                tokio::task::yield_now().await;
            }
            drop(bytes);
            let operation = ready.operation;
            let call = Call::new(front.app.clone(), caller, room.clone());
            let (written, call) = front.runner.run(ready, &request_id, &*room, call).await;
            let written = match written {
                Ok(written) => written,
                Err(refusal) => return refused(&call.refuse(operation, refusal).await, &[]),
            };
            let mut response = answer(media, written);
            if let Some(release) = call.release() {
                response.extensions_mut().insert(release);
            }
            response
        }
        Err(NotRun::Malformed(refusal)) => refuse(media, &refusal, &request_id),
        Err(NotRun::Refused(refusal, location)) => refused(&refusal, location.as_slice()),
        Err(NotRun::Invalid(faults)) => answer(media, error::invalid(&faults, &request_id)),
        Err(NotRun::OverBudget(OverBudget { refusal, operation })) => match (&caller, operation) {
            (Ok(caller), Some(operation)) => {
                refused(&front.app.refuse(caller, operation, refusal).await, &[])
            }
            _ => refused(&refusal, &[]),
        },
    }
}

async fn refuse_method(method: Method, request: Request) -> Response {
    let request_id = request_id(request.extensions());
    let media = Media::asked_for(request.headers());
    let mut response = refuse(media, &ErrorCode::MethodNotAllowed.into(), &request_id);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn read(body: Body, limit: usize) -> Result<axum::body::Bytes, Refusal> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ErrorCode::BodyTooLarge.into()),
        Err(_) => {
            Err(Refusal::because(ErrorCode::RequestMalformed, "The body ended before it was complete."))
        }
    }
}

fn request_id(extensions: &http::Extensions) -> RequestId {
    extensions.get().cloned().unwrap_or_else(RequestId::fresh)
}

/// A browser sends `application/json` to another site only after that site has allowed it.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Refuses a malformed request.
fn refuse(media: Media, refusal: &Refusal, request_id: &RequestId) -> Response {
    let mut response = answer(media, error::refused(refusal, &[], request_id));
    *response.status_mut() = status_of(refusal.code);
    response
}

/// Makes the HTTP response. The code is added as an extension for the server's metrics.
fn answer(media: Media, Written { body, code, has_run }: Written) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = media.status(code.filter(|_| !has_run));
    if let Some(code) = code {
        response.extensions_mut().insert(code);
    }
    let is_unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let is = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(is("application/json") && is("Application/JSON; charset=utf-8"));
        assert!(
            !is("text/plain")
                && !is("multipart/form-data; boundary=application/json")
                && !is("application/jsonp")
        );
        assert!(!is_json(&HeaderMap::new()));
    }
}
