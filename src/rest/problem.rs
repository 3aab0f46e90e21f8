//! Refusals as problem documents (RFC 9457), made from the table of error codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::model::Refusal;

/// The response for a refusal. It carries the [`ErrorCode`](crate::model::ErrorCode) as an
/// extension, for the metrics.
pub fn problem(refusal: &Refusal) -> Response {
    let code = refusal.code;
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut document = json!({
        "type": format!("urn:byok:error:{}", code.as_str()),
        "title": code.message(),
        "status": code.http_status(),
        "code": code.as_str(),
        "detail": refusal.message,
        "retryable": code.retryable(),
    });
    if let Some(field) = refusal.field() {
        document["field"] = field.into();
    }
    let mut response = (status, document.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response.extensions_mut().insert(code);
    response
}
