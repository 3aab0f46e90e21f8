//! Checks of a request's head that hold for every route, made before the caller is authenticated
//! and before the body is read.

use axum::http::{HeaderMap, Version, header};

use crate::model::{ErrorCode, Refusal};

/// The refusal of a request with this head, if it is refused.
pub(super) fn refusal_of(version: Version, headers: &HeaderMap) -> Option<Refusal> {
    if !has_valid_host(version, headers) {
        let why = "A request over HTTP/1.1 must have exactly one Host header, and no request may have two.";
        return Some(Refusal::because(ErrorCode::RequestMalformed, why));
    }
    if is_encoded(headers) {
        let why = "The body must be sent without a Content-Encoding.";
        return Some(Refusal::because(ErrorCode::MediaTypeUnsupported, why));
    }
    None
}

/// RFC 9112, section 3.2. With two `Host` headers, a proxy may have routed the request by the other
/// one.
fn has_valid_host(version: Version, headers: &HeaderMap) -> bool {
    match headers.get_all(header::HOST).iter().count() {
        0 => version != Version::HTTP_11,
        1 => true,
        _ => false,
    }
}

/// Whether the body has a content coding. `identity` means none (RFC 9110, section 8.4).
fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|line| {
        line.to_str().map_or(true, |codings| {
            let mut codings = codings.split(',').map(str::trim).filter(|coding| !coding.is_empty());
            codings.any(|coding| !coding.eq_ignore_ascii_case("identity"))
        })
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn fault(version: Version, lines: &[(HeaderName, &'static str)]) -> Option<ErrorCode> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        refusal_of(version, &headers).map(|refusal| refusal.code)
    }

    #[test]
    fn a_request_names_one_host() {
        let host = |value| (header::HOST, value);
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(fault(version, &[host("a")]), None);
            assert_eq!(fault(version, &[host("a"), host("a")]), Some(ErrorCode::RequestMalformed));
        }
        assert_eq!(fault(Version::HTTP_11, &[]), Some(ErrorCode::RequestMalformed));
        // HTTP/1.0 has no host, HTTP/2 names it in `:authority`.
        assert_eq!((fault(Version::HTTP_10, &[]), fault(Version::HTTP_2, &[])), (None, None));
    }

    #[test]
    fn an_encoded_body_is_refused() {
        let encoded = |codings| fault(Version::HTTP_2, &[(header::CONTENT_ENCODING, codings)]);
        for none in ["", "identity", "Identity", ", identity"] {
            assert_eq!(encoded(none), None, "{none}");
        }
        for some in ["gzip", "identity, gzip", "br", "x-unknown"] {
            assert_eq!(encoded(some), Some(ErrorCode::MediaTypeUnsupported), "{some}");
        }
        let lines = ["identity", "gzip"].map(|coding| (header::CONTENT_ENCODING, coding));
        assert_eq!(fault(Version::HTTP_2, &lines), Some(ErrorCode::MediaTypeUnsupported));
    }
}
