//! The meaning of Google's errors: the canonical code, and the detail that distinguishes its
//! causes, in one table. The texts are never read. <https://cloud.google.com/apis/design/errors>
//!
//! Only an answer in Google's own format, whose code equals the HTTP status, counts as a refusal of
//! the key: a proxy in front of Google has a 403 of its own.

use serde::Deserialize;

use crate::kms::KmsErrorClass::{self, *};
use crate::kms::http::Reply;
use crate::kms::{KmsError, KmsErrorClass as Class};

/// The operation that was asked for. The same answer can mean something else for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Encryption under the primary version.
    Encrypt,
    /// Encryption under a given version.
    EncryptUnder,
    /// Decryption.
    Decrypt,
    /// A question about our rights.
    Look,
}

impl Asked {
    /// The operation as every provider has it.
    pub(super) fn of_any(self) -> crate::kms::Asked {
        match self {
            Self::Encrypt | Self::EncryptUnder => crate::kms::Asked::Wrap,
            Self::Decrypt => crate::kms::Asked::Unwrap,
            Self::Look => crate::kms::Asked::Describe,
        }
    }
}

/// The detail that a row of the table requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Any,
    /// A `google.rpc.ErrorInfo.reason`.
    Reason(&'static str),
    /// The type of a violation in `google.rpc.PreconditionFailure`.
    Violation(&'static str),
    /// The beginning of such a type.
    Violations(&'static str),
}

use Detail::{Any, Reason, Violation, Violations};

/// The table of errors; the first row that fits counts. `Reason`s are those of
/// `google/api/error_reason.proto`; `KEY_*` is what Cloud KMS says of a version's state,
/// `EXTERNAL_*` of an external key manager
/// (<https://cloud.google.com/kms/docs/reference/ekm_errors>).
const TABLE: &[(&str, Detail, KmsErrorClass)] = &[
    // Our identity.
    ("UNAUTHENTICATED", Any, CredentialInvalid),
    ("PERMISSION_DENIED", Reason("ACCOUNT_STATE_INVALID"), CredentialInvalid),
    ("PERMISSION_DENIED", Reason("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), Misconfigured),
    // The project that the calls are counted to: a quota project that a user's credential names.
    ("PERMISSION_DENIED", Reason("USER_PROJECT_DENIED"), Misconfigured),
    // The customer has turned Cloud KMS off in the project, or its billing, or the project itself.
    ("PERMISSION_DENIED", Reason("SERVICE_DISABLED"), KeyDisabled),
    ("PERMISSION_DENIED", Reason("BILLING_DISABLED"), KeyDisabled),
    ("PERMISSION_DENIED", Reason("CONSUMER_SUSPENDED"), KeyDisabled),
    ("PERMISSION_DENIED", Reason("CONSUMER_INVALID"), KeyNotFound),
    ("PERMISSION_DENIED", Reason("RESOURCE_PROJECT_INVALID"), KeyNotFound),
    ("FAILED_PRECONDITION", Reason("SERVICE_DISABLED"), KeyDisabled),
    ("FAILED_PRECONDITION", Reason("BILLING_DISABLED"), KeyDisabled),
    // IAM, VPC Service Controls, organisation policies; also for what does not exist.
    ("PERMISSION_DENIED", Any, AccessDenied),
    // The key and its versions. A key has no state of its own: its versions do.
    ("NOT_FOUND", Any, KeyNotFound),
    ("FAILED_PRECONDITION", Violation("KEY_DISABLED"), KeyDisabled),
    ("FAILED_PRECONDITION", Violation("KEY_DESTROY_SCHEDULED"), KeyPendingDeletion),
    ("FAILED_PRECONDITION", Violation("EXTERNAL_PERMISSION_DENIED"), AccessDenied),
    ("FAILED_PRECONDITION", Violation("EXTERNAL_NOT_FOUND"), KeyNotFound),
    ("FAILED_PRECONDITION", Violations("EXTERNAL_"), Unreachable),
    // `KEY_DESTROYED`, `KEY_PENDING_GENERATION`, no primary version, and what this table does not
    // know: the customer's side has to change before the call can succeed.
    ("FAILED_PRECONDITION", Any, KeyVersionUnavailable),
    // Google itself.
    ("RESOURCE_EXHAUSTED", Any, Throttled),
    ("UNAVAILABLE", Any, Unreachable),
    ("DEADLINE_EXCEEDED", Any, Unreachable),
    ("UNIMPLEMENTED", Any, Misconfigured),
    ("ABORTED", Any, Internal),
    ("CANCELLED", Any, Internal),
    ("INTERNAL", Any, Internal),
    ("UNKNOWN", Any, Internal),
    ("DATA_LOSS", Any, Internal),
];

/// The error of an answer that is not 200.
pub(super) fn of_reply(asked: Asked, reply: &Reply) -> KmsError {
    let Some(status) = Status::read(reply) else { return with_status(of_status(reply.status), reply) };
    let error = with_status(status.class(asked), reply);
    // A token without the scope, or of a person without a quota project: nothing is wrong with the
    // key.
    match (error.class, status.error.status.as_str()) {
        (Misconfigured, "PERMISSION_DENIED") => error.of_credential(),
        _ => error,
    }
}

/// The error of an answer of IAM credentials. Every refusal means that we cannot get the identity
/// that we need.
pub(super) fn of_impersonation(reply: &Reply) -> KmsError {
    let class = match Status::read(reply) {
        Some(status) if status.error.status == "INVALID_ARGUMENT" => CredentialInvalid,
        Some(status) if status.has(Reason("SERVICE_DISABLED")) => Misconfigured,
        Some(status) => match status.class(Asked::Look) {
            AccessDenied
            | CredentialInvalid
            | KeyDisabled
            | KeyNotFound
            | KeyPendingDeletion
            | KeyVersionUnavailable
            | InvalidWrappedDek => CredentialInvalid,
            class @ (Class::Internal
            | BudgetSpent
            | LoginPaused
            | Misconfigured
            | Sealed
            | Throttled
            | Timeout
            | Unreachable
            | WrappedByAnotherKey) => class,
        },
        None => of_status(reply.status),
    };
    with_status(class, reply)
}

/// The error of an answer of the token endpoint (RFC 6749, 5.2).
pub(super) fn of_token(reply: &Reply) -> KmsError {
    #[derive(Deserialize)]
    struct Refusal<'a> {
        error: &'a str,
    }

    let class = match serde_json::from_slice::<Refusal<'_>>(&reply.body) {
        // The statuses of section 5.2, and Google's for a policy. Another one comes from a proxy in
        // front of it.
        Ok(Refusal { error }) if matches!(reply.status, 400 | 401 | 403) => match error {
            "invalid_scope" | "unsupported_grant_type" | "invalid_request" => Misconfigured,
            "internal_failure" | "server_error" | "temporarily_unavailable" => Unreachable,
            // `invalid_grant`, `invalid_client`, `unauthorized_client`, `access_denied`,
            // `deleted_client`, …
            _ => CredentialInvalid,
        },
        Ok(_) | Err(_) => of_status(reply.status),
    };
    with_status(class, reply)
}

/// The error of an answer of the metadata server, which is recognised by a header and answers
/// without JSON. 404: the machine has no account. 403: on GKE, it may not act as the account that
/// is bound to the workload.
pub(super) fn of_metadata(reply: &Reply) -> KmsError {
    let class = match (is_metadata(reply), reply.status) {
        (true, 404) => Misconfigured,
        (true, 401 | 403) => CredentialInvalid,
        (true, 500) => Unreachable,
        (_, status) => of_status(status),
    };
    with_status(class, reply)
}

/// Whether a metadata server answered, and not another server at its address.
pub(super) fn is_metadata(reply: &Reply) -> bool {
    reply.headers.get("Metadata-Flavor").is_some_and(|flavor| flavor == "Google")
}

/// Whether Google itself gave this status.
pub(super) fn has_status(reply: &Reply, status: &str) -> bool {
    Status::read(reply).is_some_and(|answered| answered.error.status == status)
}

/// The error of an answer that its documentation does not describe.
pub(super) fn internal(reply: &Reply) -> KmsError {
    with_status(Class::Internal, reply)
}

/// The error of an answer; Cloud KMS gives no id of the request.
fn with_status(class: KmsErrorClass, reply: &Reply) -> KmsError {
    KmsError::answered(class, reply.status, None)
}

/// The error of an answer that is not in Google's format.
fn of_status(status: u16) -> KmsErrorClass {
    match status {
        429 => Throttled,
        // Redirects are not followed; a page that is not found is a wrong address.
        300..=399 | 404 | 405 | 413 => Misconfigured,
        502..=504 => Unreachable,
        _ => Class::Internal,
    }
}

/// A `google.rpc.Status` in JSON.
#[derive(Deserialize)]
struct Status {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: u16,
    status: String,
    #[serde(default)]
    details: Vec<ErrorDetail>,
}

/// A detail of any type, with the fields that are read.
#[derive(Deserialize)]
struct ErrorDetail {
    reason: Option<String>,
    #[serde(default)]
    violations: Vec<Violated>,
}

#[derive(Deserialize)]
struct Violated {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Status {
    fn read(reply: &Reply) -> Option<Self> {
        serde_json::from_slice::<Self>(&reply.body).ok().filter(|status| status.error.code == reply.status)
    }

    fn class(&self, asked: Asked) -> KmsErrorClass {
        let status = self.error.status.as_str();
        match (status, asked) {
            // The ciphertext was not made by the key, or is bound to something else.
            ("INVALID_ARGUMENT", Asked::Decrypt) => return InvalidWrappedDek,
            // Our requests are well-formed, so the key has another purpose or a lower limit.
            ("INVALID_ARGUMENT", _) => return Misconfigured,
            // The version is missing, or the whole key.
            ("NOT_FOUND", Asked::EncryptUnder) => return KeyVersionUnavailable,
            _ => {}
        }
        let row = TABLE.iter().find(|(code, detail, _)| *code == status && self.has(*detail));
        row.map_or(Class::Internal, |(_, _, class)| *class)
    }

    fn has(&self, detail: Detail) -> bool {
        let details = &self.error.details;
        let violates = |fits: &dyn Fn(&str) -> bool| {
            details.iter().flat_map(|detail| &detail.violations).any(|violated| fits(&violated.kind))
        };
        match detail {
            Any => true,
            Reason(reason) => details.iter().any(|detail| detail.reason.as_deref() == Some(reason)),
            Violation(kind) => violates(&|it| it == kind),
            Violations(start) => violates(&|it| it.starts_with(start)),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use serde_json::{Value, json};
    use zeroize::Zeroizing;

    use super::*;

    fn reply(status: u16, body: impl ToString) -> Reply {
        Reply { status, headers: HeaderMap::new(), body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    fn google(code: u16, status: &str, details: Value) -> Reply {
        reply(
            code,
            json!({ "error": { "code": code, "message": "canary", "status": status, "details": details } }),
        )
    }

    #[test]
    fn every_row_of_the_table_is_reached_by_what_it_describes() {
        for (status, detail, class) in TABLE {
            let details = match detail {
                Any => json!([]),
                Reason(reason) => json!([{ "@type": "x", "reason": reason }, { "@type": "y" }]),
                Violation(kind) => {
                    json!([{ "violations": [{ "type": "other" }, { "type": kind, "subject": "s" }] }])
                }
                Violations(start) => json!([{ "violations": [{ "type": format!("{start}X") }] }]),
            };
            let error = of_reply(Asked::Encrypt, &google(400, status, details));
            assert_eq!((error.class, error.http_status), (*class, Some(400)), "{status} {detail:?}");
        }
    }

    #[test]
    fn what_an_argument_means_depends_on_what_was_asked() {
        let invalid = google(400, "INVALID_ARGUMENT", json!([]));
        assert_eq!(of_reply(Asked::Decrypt, &invalid).class, InvalidWrappedDek);
        assert_eq!(of_reply(Asked::Encrypt, &invalid).class, Misconfigured);
        let missing = google(404, "NOT_FOUND", json!([]));
        assert_eq!(of_reply(Asked::Decrypt, &missing).class, KeyNotFound);
        assert_eq!(of_reply(Asked::EncryptUnder, &missing).class, KeyVersionUnavailable);
    }

    #[test]
    fn what_is_not_googles_is_no_refusal_of_the_key() {
        let status = |status: u16, body: &str| of_reply(Asked::Decrypt, &reply(status, body)).class;
        for body in ["<html>Forbidden</html>", "{}", r#"{"error":"denied"}"#, r#"{"error":{"code":403}}"#] {
            assert_eq!(status(403, body), Class::Internal, "{body}");
            assert_eq!(status(401, body), Class::Internal, "{body}");
        }
        let other = google(404, "PERMISSION_DENIED", json!([]));
        let other = Reply { status: 403, ..other };
        assert_eq!(of_reply(Asked::Decrypt, &other).class, Class::Internal);
        assert_eq!(status(503, "<html>"), Unreachable);
        assert_eq!(status(429, ""), Throttled);
        assert_eq!(status(302, ""), Misconfigured);
        assert_eq!(status(404, "<!DOCTYPE html>"), Misconfigured);
        assert_eq!(status(418, ""), Class::Internal);
    }

    #[test]
    fn a_status_that_is_not_known_is_a_failure_inside() {
        assert_eq!(of_reply(Asked::Encrypt, &google(499, "NEW", json!([]))).class, Class::Internal);
    }

    #[test]
    fn the_token_endpoints_refusal_and_outage_have_different_classes() {
        let class = |status, error: &str| of_token(&reply(status, json!({ "error": error }))).class;
        for refused in ["invalid_grant", "invalid_client", "unauthorized_client", "access_denied", "new_one"]
        {
            assert_eq!(class(400, refused), CredentialInvalid, "{refused}");
            assert_eq!(class(401, refused), CredentialInvalid, "{refused}");
        }
        assert_eq!(class(400, "invalid_scope"), Misconfigured);
        assert_eq!(class(400, "temporarily_unavailable"), Unreachable);
        assert_eq!(class(429, "rate_limited"), Throttled);
        assert_eq!(class(503, "invalid_grant"), Unreachable);
        assert_eq!(of_token(&reply(403, "<html>")).class, Class::Internal);
        assert_eq!(of_token(&reply(307, "")).class, Misconfigured);
    }

    #[test]
    fn a_refused_impersonation_is_an_invalid_credential() {
        let class = |code, status, reason: &str| {
            of_impersonation(&google(code, status, json!([{ "reason": reason }]))).class
        };
        assert_eq!(class(403, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED"), CredentialInvalid);
        assert_eq!(class(404, "NOT_FOUND", ""), CredentialInvalid);
        assert_eq!(class(400, "FAILED_PRECONDITION", ""), CredentialInvalid);
        assert_eq!(class(400, "INVALID_ARGUMENT", ""), CredentialInvalid);
        assert_eq!(class(403, "PERMISSION_DENIED", "SERVICE_DISABLED"), Misconfigured);
        assert_eq!(class(503, "UNAVAILABLE", ""), Unreachable);
        assert_eq!(of_impersonation(&reply(403, "<html>")).class, Class::Internal);
    }

    #[test]
    fn only_a_metadata_server_can_refuse_for_one() {
        let of = |status, flavor: Option<&'static str>| {
            let mut reply = reply(status, "");
            if let Some(flavor) = flavor {
                reply.headers.insert("Metadata-Flavor", http::HeaderValue::from_static(flavor));
            }
            of_metadata(&reply).class
        };
        assert_eq!(of(403, Some("Google")), CredentialInvalid);
        assert_eq!(of(404, Some("Google")), Misconfigured);
        assert_eq!(of(500, Some("Google")), Unreachable);
        assert_eq!(of(503, Some("Google")), Unreachable);
        assert_eq!(of(403, None), Class::Internal);
    }
}
