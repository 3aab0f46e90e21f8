//! The meaning of AWS's error codes, of KMS and of STS (which do not contradict each other).
//!
//! The codes are those of the operations' own errors in the services' models, of
//! <https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html>, and of
//! <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>. Only an answer that
//! carries a code *and* AWS's request id counts as AWS's own; the answer of a proxy or a captive
//! portal is classified by its status alone, and is never a refusal. The message is neither read
//! nor passed on.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

use crate::kms::KmsError;
use crate::kms::KmsErrorClass::{self, *};

/// Every code that we know, and its class.
const CODES: &[(&str, KmsErrorClass)] = &[
    // The key's state.
    ("DisabledException", KeyDisabled),
    // Pending deletion; also pending import, or a custom key store that is disconnected: the
    // customer causes all of them.
    ("KMSInvalidStateException", KeyPendingDeletion),
    ("NotFoundException", KeyNotFound),
    // The policies of the key, or of the role that we take.
    ("AccessDenied", AccessDenied),
    ("AccessDeniedException", AccessDenied),
    ("NotAuthorized", AccessDenied),
    // This one wrapped DEK.
    ("IncorrectKeyException", InvalidWrappedDek),
    ("InvalidCiphertextException", InvalidWrappedDek),
    // Our identity.
    ("ExpiredToken", CredentialInvalid),
    ("ExpiredTokenException", CredentialInvalid),
    ("IDPRejectedClaim", CredentialInvalid),
    ("IncompleteSignature", CredentialInvalid),
    ("IncompleteSignatureException", CredentialInvalid),
    ("InvalidClientTokenId", CredentialInvalid),
    ("InvalidIdentityToken", CredentialInvalid),
    ("InvalidSignatureException", CredentialInvalid),
    ("MissingAuthenticationToken", CredentialInvalid),
    ("MissingAuthenticationTokenException", CredentialInvalid),
    ("SignatureDoesNotMatch", CredentialInvalid),
    ("UnrecognizedClientException", CredentialInvalid),
    // Too many calls.
    ("LimitExceededException", Throttled),
    ("RequestLimitExceeded", Throttled),
    ("RequestThrottled", Throttled),
    ("Throttling", Throttled),
    ("ThrottlingException", Throttled),
    ("TooManyRequestsException", Throttled),
    // Something behind the service is away; the documentation says to try again.
    ("DependencyTimeoutException", Unreachable),
    ("IDPCommunicationError", Unreachable),
    ("KeyUnavailableException", Unreachable),
    ("ServiceUnavailable", Unreachable),
    ("ServiceUnavailableException", Unreachable),
    // The service failed.
    ("InternalError", Internal),
    ("InternalFailure", Internal),
    ("InternalServerError", Internal),
    ("KMSInternalException", Internal),
    // Our configuration, or our clock.
    ("DryRunOperationException", Misconfigured),
    ("InvalidAction", Misconfigured),
    ("InvalidArnException", Misconfigured),
    ("InvalidGrantTokenException", Misconfigured),
    ("InvalidKeyUsageException", Misconfigured),
    ("InvalidParameterValue", Misconfigured),
    ("MalformedPolicyDocument", Misconfigured),
    ("OptInRequired", Misconfigured),
    ("PackedPolicyTooLarge", Misconfigured),
    ("RegionDisabledException", Misconfigured),
    ("RequestExpired", Misconfigured),
    ("RequestTimeTooSkewed", Misconfigured),
    ("SerializationException", Misconfigured),
    ("UnknownOperationException", Misconfigured),
    ("UnsupportedOperationException", Misconfigured),
    ("ValidationError", Misconfigured),
    ("ValidationException", Misconfigured),
];

/// The header that every answer of KMS and STS has.
const REQUEST_ID: &str = "x-amzn-requestid";
/// The codes for a request whose time AWS does not believe; the first two mean a wrong secret as
/// well.
const OF_THE_CLOCK: [&str; 4] =
    ["InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed"];
/// The largest difference of clocks that we take for harmless; AWS accepts five minutes.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(4 * 60);

/// The error of an SDK call, without any of its text.
pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> KmsError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let Some(response) = error.raw_response() else {
        return KmsError::local(match error {
            SdkError::DispatchFailure(failure) if !failure.is_user() => Unreachable,
            // A host that takes no connection in a fraction of the deadline.
            SdkError::TimeoutError(_) => Unreachable,
            // No endpoint for the region, or nothing to sign with.
            _ => Misconfigured,
        });
    };
    let status = response.status().as_u16();
    let request_id = request_id(response);
    let class = match error {
        SdkError::ServiceError(service) if response.headers().contains_key(REQUEST_ID) => {
            match service.err().code() {
                // The SDK signs the next request by AWS's clock.
                Some(code) if OF_THE_CLOCK.contains(&code) && clocks_differ(response) => Internal,
                Some(code) => of_code(code, status),
                None => of_status(status),
            }
        }
        SdkError::ResponseError(_) if broke_off(error) => Unreachable,
        _ => of_status(status),
    };
    KmsError::answered(class, status, request_id)
}

/// The pause that `Retry-After` asks for in seconds, where something on the way sends it; AWS does
/// not.
pub(super) fn retry_after<E>(error: &SdkError<E, HttpResponse>) -> Option<Duration> {
    let seconds = error.raw_response()?.headers().get("retry-after")?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

/// AWS's id of the request that was answered.
fn request_id(response: &HttpResponse) -> Option<Arc<str>> {
    plain_id(response.headers().get(REQUEST_ID)?)
}

/// The request id, which goes into logs and so must look like the UUID that it is.
pub(super) fn plain_id(text: &str) -> Option<Arc<str>> {
    let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (plain && text.len() == 36).then(|| text.into())
}

fn of_code(code: &str, status: u16) -> KmsErrorClass {
    CODES.iter().find(|(known, _)| *known == code).map_or_else(|| of_status(status), |(_, class)| *class)
}

fn of_status(status: u16) -> KmsErrorClass {
    match status {
        429 => Throttled,
        502..=504 => Unreachable,
        _ => Internal,
    }
}

/// Whether our clock is so far from that of the answer that it, and no credential, is what was
/// refused.
fn clocks_differ(response: &HttpResponse) -> bool {
    let theirs = response.headers().get("date").and_then(|date| httpdate::parse_http_date(date).ok());
    #[expect(clippy::disallowed_methods, reason = "it is compared with the other side's wall clock")]
    let ours = SystemTime::now();
    let apart = |theirs: SystemTime| match ours.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    theirs.is_some_and(|theirs| apart(theirs) > CLOCK_TOLERANCE)
}

/// Whether the answer ended before its end.
fn broke_off(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|error| error.is::<hyper::Error>() || error.is::<std::io::Error>())
}

/// An error and its causes.
pub(super) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // Not that of `&dyn Error`, which borrows from the closure's argument.
    std::iter::successors(Some(error), |error| StdError::source(*error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Verdict;

    #[test]
    fn no_code_stands_twice() {
        let mut codes: Vec<_> = CODES.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
    }

    #[test]
    fn the_customers_switch_is_a_revocation_an_aws_failure_not() {
        for code in
            ["DisabledException", "KMSInvalidStateException", "NotFoundException", "AccessDeniedException"]
        {
            assert_eq!(of_code(code, 400).verdict(), Verdict::Revoked, "{code}");
        }
        for code in ["ThrottlingException", "KMSInternalException", "KeyUnavailableException", "NewException"]
        {
            assert_eq!(of_code(code, 400).verdict(), Verdict::Outage, "{code}");
        }
    }

    #[test]
    fn a_status_alone_is_never_a_refusal() {
        for status in 300..600 {
            assert_eq!(of_status(status).verdict(), Verdict::Outage);
        }
    }

    #[test]
    fn a_request_id_that_could_forge_log_lines_is_omitted() {
        assert!(plain_id("770a33fe-bf97-495e-ac67-b75b42f2d74a").is_some());
        for bad in [
            "770a33fe\nbf97-495e-ac67-b75b42f2d74a",
            "a",
            &"a".repeat(37),
            "canary-in-the-place-of-a-request-id-",
        ] {
            assert!(plain_id(bad).is_none());
        }
    }
}
