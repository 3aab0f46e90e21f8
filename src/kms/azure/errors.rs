//! The meaning of the errors of Key Vault, Managed HSM, Entra and the metadata service: by code, in
//! tables; never by text. Only an answer in the service's own format is taken for a refusal: a
//! proxy has a 403 of its own.
//!
//! Sources: Key Vault's "REST API error codes" and the troubleshooting pages of Microsoft's clients
//! for `error.code` and `innererror.code`; "Microsoft Entra authentication and authorization error
//! codes" and RFC 6749, 5.2 for Entra; "How to use managed identities … error handling" for the
//! metadata service.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderName;
use serde::Deserialize;

use crate::kms::call::Failed;
use crate::kms::http::Reply;
use crate::kms::{KmsError, KmsErrorClass};

/// The operation that was asked of the vault. One code has another meaning for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Wrap,
    Unwrap,
    /// Any other operation.
    Other,
}

/// The classes by `error.innererror.code`, where there is one that we know.
const INNER: &[(&str, KmsErrorClass)] = &[
    ("KeyDisabled", KmsErrorClass::KeyDisabled),
    // `key_ops` lacks the operation: as good a switch as any other.
    ("KeyOperationForbidden", KmsErrorClass::AccessDenied),
    ("AccessDenied", KmsErrorClass::AccessDenied),
    ("ForbiddenByRbac", KmsErrorClass::AccessDenied),
    ("ForbiddenByPolicy", KmsErrorClass::AccessDenied),
    ("ForbiddenByFirewall", KmsErrorClass::AccessDenied),
    ("ForbiddenByConnection", KmsErrorClass::AccessDenied),
    ("ObjectIsDeletedButRecoverable", KmsErrorClass::KeyPendingDeletion),
    ("ObjectIsBeingDeleted", KmsErrorClass::KeyPendingDeletion),
    ("ObjectIsBeingRecovered", KmsErrorClass::KeyPendingDeletion),
];

/// The classes by `error.code` otherwise; `BadParameter` is handled apart.
const OUTER: &[(&str, KmsErrorClass)] = &[
    // For any reason: for example a time outside `nbf` and `exp`, which has no documented inner
    // code.
    ("Forbidden", KmsErrorClass::AccessDenied),
    ("KeyNotFound", KmsErrorClass::KeyNotFound),
    ("Unauthorized", KmsErrorClass::CredentialInvalid),
    ("Throttled", KmsErrorClass::Throttled),
    ("TooManyRequests", KmsErrorClass::Throttled),
];

/// The AADSTS codes whose OAuth `error` does not say enough, or varies: 70021 came with
/// `invalid_request` and with `invalid_client`. Entra's page warns that codes change, so `error`
/// decides wherever it can.
const AADSTS: &[(&[u64], KmsErrorClass)] = &[
    // No federated identity credential matches the workload's token.
    (&[70021, 700_211, 700_212, 700_213, 7_002_138], KmsErrorClass::CredentialInvalid),
    // The tenant's policies block the application.
    (&[53003, 530_032, 530_035, 50105, 501_051], KmsErrorClass::AccessDenied),
    // No such tenant, or no such resource in it.
    (&[90002, 90019, 900_023, 50001, 500_011, 650_057], KmsErrorClass::Misconfigured),
    // The directory is busy or fails.
    (&[90055], KmsErrorClass::Throttled),
    (&[50033, 90006, 90012, 90024, 90033, 90090, 90091], KmsErrorClass::Internal),
];

/// The classes by OAuth `error`, of Entra and of the metadata service alike.
const OAUTH: &[(&str, KmsErrorClass)] = &[
    ("invalid_client", KmsErrorClass::CredentialInvalid),
    ("unauthorized_client", KmsErrorClass::CredentialInvalid),
    ("invalid_grant", KmsErrorClass::CredentialInvalid),
    ("access_denied", KmsErrorClass::AccessDenied),
    ("interaction_required", KmsErrorClass::AccessDenied),
    ("invalid_request", KmsErrorClass::Misconfigured),
    ("invalid_scope", KmsErrorClass::Misconfigured),
    ("invalid_resource", KmsErrorClass::Misconfigured),
    ("unsupported_grant_type", KmsErrorClass::Misconfigured),
    ("temporarily_unavailable", KmsErrorClass::Internal),
    ("server_error", KmsErrorClass::Internal),
];

/// The error of a failed answer of the vault.
pub(super) fn of_vault(reply: &Reply, asked: Asked) -> Failed {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Outer<'a>,
    }
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        code: Cow<'a, str>,
        /// The inner error in any format: only its code is looked for, and without one the outer
        /// code decides.
        #[serde(default, alias = "innerError")]
        innererror: serde_json::Value,
    }

    let outer = serde_json::from_slice::<Body<'_>>(&reply.body).ok().map(|body| body.error);
    let known = outer.as_ref().and_then(|error| {
        let inner = error.innererror.get("code").and_then(serde_json::Value::as_str);
        inner.and_then(|code| find(INNER, code)).or_else(|| match (&*error.code, asked) {
            // Unwraps differ only in the wrapped DEK. In a wrap, only our configuration can be bad.
            ("BadParameter", Asked::Unwrap) => Some(KmsErrorClass::InvalidWrappedDek),
            ("BadParameter", Asked::Wrap | Asked::Other) => Some(KmsErrorClass::Misconfigured),
            (code, _) => find(OUTER, code),
        })
    });
    failed(reply, known)
}

/// The error of an answer of Entra's token endpoint.
pub(super) fn of_authority(reply: &Reply) -> Failed {
    let refusal = serde_json::from_slice::<OAuth<'_>>(&reply.body).ok();
    let known = refusal.and_then(|refusal| {
        let by_code = |code: &u64| AADSTS.iter().find(|(codes, _)| codes.contains(code));
        let by_code = refusal.error_codes.iter().find_map(by_code).map(|(_, class)| *class);
        by_code.or_else(|| find(OAUTH, &refusal.error))
    });
    failed(reply, known)
}

/// The error of an answer of the metadata service. It answers 404 and 410 while it is being
/// updated, and `invalid_request` where the identity is not, or no longer, assigned to this
/// machine.
pub(super) fn of_identity(reply: &Reply) -> Failed {
    let refusal = serde_json::from_slice::<OAuth<'_>>(&reply.body).ok();
    let known = match (reply.status, refusal) {
        (404 | 410, _) => Some(KmsErrorClass::Unreachable),
        (400, Some(refusal)) if refusal.error == "invalid_request" => Some(KmsErrorClass::CredentialInvalid),
        (_, Some(refusal)) => find(OAUTH, &refusal.error),
        (_, None) => None,
    };
    failed(reply, known)
}

/// An error answer as of RFC 6749, 5.2, with Entra's own codes.
#[derive(Deserialize)]
struct OAuth<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
    #[serde(default)]
    error_codes: Vec<u64>,
}

/// The header in which a request carries an id of ours. The vault's log has that id as
/// `correlationId` ("Azure Key Vault logging"), but not the id in the vault's answer.
pub(super) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// The id that we sent (`transport` overwrites the one in the answer). `None` if the answer has no
/// id from the vault: then it comes from something in front of the vault, whose log has no such
/// call.
pub(super) fn request_id(reply: &Reply) -> Option<Arc<str>> {
    reply.headers.get("x-ms-request-id")?;
    reply.headers.get(CLIENT_REQUEST_ID)?.to_str().ok().map(Into::into)
}

/// The error of the class that the service's answer gave, or else of the status alone.
fn failed(reply: &Reply, known: Option<KmsErrorClass>) -> Failed {
    let class = match (reply.status, known) {
        (429, _) => KmsErrorClass::Throttled,
        // A proxy in front of the service does not reach it, whatever the body says.
        (502..=504, _) => KmsErrorClass::Unreachable,
        (_, Some(class)) => class,
        // Redirects are not followed; the others mean a wrong address.
        (300..=399 | 404 | 405 | 413, None) => KmsErrorClass::Misconfigured,
        (_, None) => KmsErrorClass::Internal,
    };
    Failed { error: error(class, reply), wait: reply.retry_after() }
}

/// The error of this class, with the answer's status and id.
pub(super) fn error(class: KmsErrorClass, reply: &Reply) -> KmsError {
    KmsError::answered(class, reply.status, request_id(reply))
}

fn find(table: &[(&str, KmsErrorClass)], code: &str) -> Option<KmsErrorClass> {
    table.iter().find(|(known, _)| *known == code).map(|(_, class)| *class)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use zeroize::Zeroizing;

    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, headers: HeaderMap::new(), body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    fn vault(status: u16, body: &str, asked: Asked) -> KmsErrorClass {
        of_vault(&reply(status, body), asked).error.class
    }

    #[test]
    fn every_inner_code_decides() {
        for (code, class) in INNER {
            let body = format!(r#"{{"error":{{"code":"Forbidden","innererror":{{"code":"{code}"}}}}}}"#);
            assert_eq!(vault(403, &body, Asked::Unwrap), *class, "{code}");
        }
    }

    #[test]
    fn every_outer_code_decides_where_no_inner_one_is_known() {
        for (code, class) in OUTER {
            let body = format!(r#"{{"error":{{"code":"{code}","innererror":{{"code":"New"}}}}}}"#);
            assert_eq!(vault(403, &body, Asked::Unwrap), *class, "{code}");
            let body = format!(r#"{{"error":{{"code":"{code}","message":"\"quoted\""}}}}"#);
            assert_eq!(vault(403, &body, Asked::Wrap), *class, "{code}");
        }
    }

    #[test]
    fn an_inner_error_without_a_code_keeps_the_outer_one() {
        for inner in ["{}", "null", r#"{"code":null}"#, r#"{"code":7}"#, r#""text""#] {
            let body = format!(r#"{{"error":{{"code":"Forbidden","innererror":{inner}}}}}"#);
            assert_eq!(vault(403, &body, Asked::Unwrap), KmsErrorClass::AccessDenied, "{inner}");
        }
    }

    #[test]
    fn a_bad_parameter_is_the_wrapped_deks_fault_or_ours() {
        let body = r#"{"error":{"code":"BadParameter","message":"x"}}"#;
        assert_eq!(vault(400, body, Asked::Unwrap), KmsErrorClass::InvalidWrappedDek);
        assert_eq!(vault(400, body, Asked::Wrap), KmsErrorClass::Misconfigured);
    }

    #[test]
    fn a_proxys_answer_is_not_the_vaults() {
        for asked in [Asked::Wrap, Asked::Unwrap] {
            assert_eq!(vault(403, "<html>Forbidden</html>", asked), KmsErrorClass::Internal);
            assert_eq!(vault(401, "", asked), KmsErrorClass::Internal);
            assert_eq!(vault(400, "{}", asked), KmsErrorClass::Internal);
            assert_eq!(
                vault(500, r#"{"error":{"code":"InternalServerError"}}"#, asked),
                KmsErrorClass::Internal
            );
            assert_eq!(vault(503, "", asked), KmsErrorClass::Unreachable);
            assert_eq!(vault(307, "", asked), KmsErrorClass::Misconfigured);
            assert_eq!(vault(429, "", asked), KmsErrorClass::Throttled);
        }
    }

    #[test]
    fn every_aadsts_code_of_the_table_outweighs_the_oauth_error() {
        for (codes, class) in AADSTS {
            for code in *codes {
                let body = format!(r#"{{"error":"invalid_request","error_codes":[{code}]}}"#);
                assert_eq!(of_authority(&reply(400, &body)).error.class, *class, "{code}");
            }
        }
    }

    #[test]
    fn every_oauth_error_decides_where_the_code_does_not() {
        for (error, class) in OAUTH {
            let body = format!(r#"{{"error":"{error}","error_codes":[7000215]}}"#);
            assert_eq!(of_authority(&reply(401, &body)).error.class, *class, "{error}");
        }
        assert_eq!(of_authority(&reply(401, "<html>")).error.class, KmsErrorClass::Internal);
        assert_eq!(of_authority(&reply(503, r#"{"error":"x"}"#)).error.class, KmsErrorClass::Unreachable);
    }

    #[test]
    fn the_metadata_service_may_not_know_the_identity_or_be_updating() {
        let class = |status, body| of_identity(&reply(status, body)).error.class;
        let unknown = r#"{"error":"invalid_request","error_description":"Identity not found"}"#;
        assert_eq!(class(400, unknown), KmsErrorClass::CredentialInvalid);
        assert_eq!(class(400, r#"{"error":"invalid_resource"}"#), KmsErrorClass::Misconfigured);
        assert_eq!(class(410, ""), KmsErrorClass::Unreachable);
        assert_eq!(class(429, ""), KmsErrorClass::Throttled);
        assert_eq!(class(400, "<html>"), KmsErrorClass::Internal);
    }

    #[test]
    fn the_id_that_we_sent_counts_where_the_vault_answered() {
        let mut reply = reply(200, "");
        reply.headers.insert(CLIENT_REQUEST_ID, HeaderValue::from_static("ours"));
        assert_eq!(request_id(&reply), None);
        reply.headers.insert("x-ms-request-id", HeaderValue::from_static("canary"));
        assert_eq!(request_id(&reply).as_deref(), Some("ours"));
        reply.headers.remove(CLIENT_REQUEST_ID);
        assert_eq!(request_id(&reply), None);
    }
}
