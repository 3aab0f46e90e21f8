//! Refusals as problem documents (RFC 9457), made from the table of error codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::model::{ErrorCode, Refusal};

use super::schema::promises;

/// A problem document.
#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&["type", "title", "status", "code", "retryable"]))]
pub(super) struct Problem<'a> {
    #[schemars(with = "ErrorCode")]
    code: &'static str,
    detail: &'a str,
    /// The wrong part of the request, if it can be named: a path of the names in this description
    /// and of indexes in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("examples" = ["items[3].context"]))]
    field: Option<&'a str>,
    retryable: bool,
    #[schemars(with = "u64")]
    status: u16,
    title: &'static str,
    #[serde(rename = "type")]
    kind: String,
}

/// The response for a refusal. It carries the [`ErrorCode`] as an extension, for the metrics.
pub fn problem(refusal: &Refusal) -> Response {
    let code = refusal.code;
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let document = Problem {
        code: code.as_str(),
        detail: &refusal.message,
        field: refusal.field(),
        retryable: code.retryable(),
        status: code.http_status(),
        title: code.message(),
        kind: format!("urn:byok:error:{}", code.as_str()),
    };
    let document = serde_json::to_string(&document).unwrap_or_default();
    let mut response = (status, document).into_response();
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
