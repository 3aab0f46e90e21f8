//! Answers and their errors as JSON. async-graphql's own errors quote values of the request, so
//! only their locations are passed on.

use async_graphql::indexmap::IndexMap;
use async_graphql::{ErrorExtensionValues, Name, PathSegment, Pos, Response, SimpleObject, Value};
use serde::Serialize;

use crate::app::{Room, write_json};
use crate::model::{ErrorCode, Refusal, RequestId};

use super::enums::EnumValue;
use super::validity::Fault;

/// The most errors of async-graphql's own in an answer, and the most locations of each.
const MAX_ERRORS: usize = 16;
const MAX_LOCATIONS: usize = 4;

/// Why one item was refused.
#[derive(SimpleObject)]
#[graphql(name = "ByokError")]
pub(super) struct ItemError {
    /// The error code.
    code: EnumValue<ErrorCode>,
    /// One sentence that contains nothing of the request.
    message: String,
    /// Whether the same call may succeed later without a change by the caller.
    retryable: bool,
    /// The wrong field of the item, if one can be named.
    field: Option<String>,
}

impl From<Refusal> for ItemError {
    fn from(refusal: Refusal) -> Self {
        Self {
            field: field_of(&refusal).map(str::to_owned),
            code: EnumValue(refusal.code),
            message: refusal.message.into_owned(),
            retryable: refusal.code.retryable(),
        }
    }
}

/// Written by hand: `Refusal` has no `Display`, so that no other error type becomes the error of a
/// field by `?`. The refusal is the error's source, by which `answer` recognises it.
impl From<Refusal> for async_graphql::Error {
    fn from(refusal: Refusal) -> Self {
        Self {
            message: refusal.message.clone().into_owned(),
            extensions: Some(ErrorExtensionValues::default()),
            source: Some(std::sync::Arc::new(refusal)),
        }
    }
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorJson<'a>>,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    message: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    locations: &'a [Pos],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    path: &'a [PathSegment],
    extensions: Extensions<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Extensions<'a> {
    code: &'static str,
    /// Whether the same call may succeed later without a change by the caller.
    retryable: bool,
    /// The wrong argument or variable, or the path to the wrong part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    /// Written with Hasura's own codes, as Hasura does.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
    /// Hasura does not pass on the header, so users of Hasura find the id here.
    request_id: &'a str,
}

/// A serialised answer.
pub(super) struct Written {
    /// JSON.
    pub(super) body: Vec<u8>,
    /// The code of the first error.
    pub(super) code: Option<ErrorCode>,
    /// Whether the request ran, so that there is data.
    pub(super) has_run: bool,
}

/// Whether all errors are refusals by our fields, so that the request ran.
fn has_run(response: &Response) -> bool {
    response.errors.iter().all(|error| error.source::<Refusal>().is_some())
}

/// The answer to a request that ran, or that async-graphql refused although it is valid.
///
/// # Errors
/// The refusals of [`write_json`].
pub(super) fn answer(
    mut response: Response,
    request_id: &RequestId,
    room: &dyn Room,
) -> Result<Written, Refusal> {
    let data = data_of(&mut response);
    let (ours, others): (Vec<_>, Vec<_>) =
        response.errors.iter().partition(|error| error.source::<Refusal>().is_some());
    let mut code = None;
    let mut errors = Vec::new();
    for error in ours {
        if let Some(refusal) = error.source::<Refusal>() {
            code = code.or(Some(refusal.code));
            errors.push(error_json(refusal, &error.locations, &error.path, request_id));
        }
    }
    let invalid = Refusal::from(ErrorCode::QueryInvalid);
    for error in others.into_iter().take(MAX_ERRORS) {
        code = code.or(Some(invalid.code));
        let locations = error.locations.get(..MAX_LOCATIONS).unwrap_or(&error.locations);
        errors.push(error_json(&invalid, locations, &[], request_id));
    }
    let answer = AnswerJson { data: data.as_ref(), errors };
    let body = write_json(&answer, room)?;
    Ok(Written { body, code, has_run: data.is_some() })
}

/// The data of a request that ran; `None` for one that did not. async-graphql leaves out a refused
/// root, for which GraphQL has `null` (October 2021, section 6.4.4: all roots are nullable), and
/// writes `null` for an object without fields.
fn data_of(response: &mut Response) -> Option<Value> {
    let has_run = !matches!(response.data, Value::Null) || has_run(response);
    let mut data = match std::mem::take(&mut response.data) {
        Value::Null => Value::Object(IndexMap::new()),
        data => data,
    };
    if let Value::Object(roots) = &mut data {
        for error in &response.errors {
            if let [PathSegment::Field(root)] = error.path.as_slice() {
                roots.entry(Name::new(root)).or_insert(Value::Null);
            }
        }
    }
    has_run.then_some(data)
}

/// Refuses a request that did not run.
pub(super) fn refused(refusal: &Refusal, locations: &[Pos], request_id: &RequestId) -> Written {
    let errors = vec![error_json(refusal, locations, &[], request_id)];
    Written { body: json(&AnswerJson { data: None, errors }), code: Some(refusal.code), has_run: false }
}

/// Refuses a request that is not valid.
pub(super) fn invalid(faults: &[Fault], request_id: &RequestId) -> Written {
    let code = ErrorCode::QueryInvalid;
    let refusal = |fault: &Fault| {
        let named = Refusal::because(code, format!("{} {}.", code.message(), fault.what));
        Refusal { field: fault.field.clone(), ..named }
    };
    let refusals: Vec<Refusal> = faults.iter().map(refusal).collect();
    let errors = refusals.iter().zip(faults).map(|(refusal, fault)| {
        let locations = if fault.at.line == 0 { &[][..] } else { std::slice::from_ref(&fault.at) };
        error_json(refusal, locations, &[], request_id)
    });
    Written {
        body: json(&AnswerJson { data: None, errors: errors.collect() }),
        code: Some(code),
        has_run: false,
    }
}

fn error_json<'a>(
    refusal: &'a Refusal,
    locations: &'a [Pos],
    path: &'a [PathSegment],
    request_id: &'a RequestId,
) -> ErrorJson<'a> {
    let extensions = Extensions {
        code: refusal.code.as_str(),
        retryable: refusal.code.retryable(),
        field: field_of(refusal),
        path: refusal.code.is_hasuras_own().then_some("$"),
        retry_after_seconds: refusal.retry_after_seconds(),
        request_id: request_id.as_str(),
    };
    ErrorJson { message: &refusal.message, locations, path, extensions }
}

/// The wrong field, by its name in GraphQL.
fn field_of(refusal: &Refusal) -> Option<&str> {
    refusal.field().map(|field| if field == "record_id" { "recordId" } else { field })
}

fn json(answer: &AnswerJson<'_>) -> Vec<u8> {
    serde_json::to_vec(answer).expect("text, numbers and maps with text keys are always JSON")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_graphql::ServerError;
    use serde_json::json;

    use crate::app::Unbounded;

    use super::*;

    fn read(written: &Written) -> serde_json::Value {
        serde_json::from_slice(&written.body).unwrap()
    }

    fn answered(response: Response) -> Written {
        answer(response, &request_id(), &Unbounded).unwrap()
    }

    fn request_id() -> RequestId {
        RequestId::accept("r-1").unwrap()
    }

    #[test]
    fn a_refusal_has_its_code_and_when_to_retry() {
        let refusal = Refusal::from(ErrorCode::RateLimited).after(Duration::from_millis(1_200));
        let body = read(&refused(&refusal, &[], &request_id()));
        assert_eq!(
            body,
            json!({"errors": [{
                "message": ErrorCode::RateLimited.message(),
                "extensions": {"code": "RATE_LIMITED", "retryable": true, "retryAfterSeconds": 2, "requestId": "r-1"},
            }]})
        );
    }

    #[test]
    fn a_refusal_of_identity_looks_as_hasuras_own() {
        let body = read(&refused(&ErrorCode::InvalidJwt.into(), &[], &request_id()));
        assert_eq!(body["errors"][0]["extensions"]["code"], "invalid-jwt");
        assert_eq!(body["errors"][0]["extensions"]["path"], "$");
    }

    #[test]
    fn only_the_location_of_an_error_of_async_graphql_is_shown() {
        let canary = |n| {
            ServerError::new("canary", Some(Pos { line: 1, column: n }))
                .with_path(vec![PathSegment::Field("canary".into())])
        };
        let written = answered(Response::from_errors((1..100).map(canary).collect()));
        let body = read(&written);
        assert!(!body.to_string().contains("canary"));
        assert_eq!(body.get("data"), None, "it did not run");
        assert_eq!(written.code, Some(ErrorCode::QueryInvalid));
        assert_eq!(body["errors"].as_array().unwrap().len(), MAX_ERRORS);
        assert_eq!(body["errors"][0]["extensions"]["code"], "QUERY_INVALID");
        assert_eq!(body["errors"][1]["locations"], json!([{"line": 1, "column": 2}]));
    }

    #[test]
    fn a_refusal_in_a_field_keeps_its_path() {
        let error: async_graphql::Error = Refusal::from(ErrorCode::DecryptFailed).into();
        let error = error
            .into_server_error(Pos { line: 2, column: 3 })
            .with_path(vec![PathSegment::Field("x".into())]);
        let body = read(&answered(Response::from_errors(vec![error])));
        assert_eq!(body["errors"][0]["path"], json!(["x"]));
        assert_eq!(body["errors"][0]["locations"], json!([{"line": 2, "column": 3}]));
        assert_eq!(body["errors"][0]["extensions"]["code"], "DECRYPT_FAILED");
    }

    #[test]
    fn a_refused_root_is_null_beside_those_that_were_answered() {
        let refused = |root: &str| {
            let error: async_graphql::Error = Refusal::from(ErrorCode::DecryptFailed).into();
            error.into_server_error(Pos::default()).with_path(vec![PathSegment::Field(root.into())])
        };
        let mut response = Response::new(Value::from_json(json!({"a": {"plaintext": "x"}})).unwrap());
        response.errors = vec![refused("b")];
        let body = read(&answered(response));
        assert_eq!(body["data"], json!({"a": {"plaintext": "x"}, "b": null}));
        let body = read(&answered(Response::from_errors(vec![refused("b")])));
        assert_eq!(body["data"], json!({"b": null}));
        let body = read(&answered(Response::new(Value::Null)));
        assert_eq!(body, json!({"data": {}}), "all roots were skipped");
    }
}
