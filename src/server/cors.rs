//! CORS (the Fetch standard, section 3.2): the pages of other origins that a browser lets read the
//! answers. None, unless their origins are configured. Credentials that a browser adds by itself
//! are not allowed: callers authenticate by a header that their own code sends.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;

/// The headers that a page may send. Not the remote schema's secret: it is Hasura's and must not be
/// in any page.
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, traceparent, tracestate, x-hasura-role, x-request-id",
);
/// The headers of an answer that a page may read.
const EXPOSED_HEADERS: HeaderValue =
    HeaderValue::from_static("location, retry-after, www-authenticate, x-request-id");
/// The methods that routes have.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// How long a browser may cache a preflight, in seconds: no browser caches it longer.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const ALLOWED_ORIGIN: HeaderName = header::ACCESS_CONTROL_ALLOW_ORIGIN;

/// The origins whose pages may read answers.
pub(super) struct Cors {
    origins: Vec<HeaderValue>,
}

/// What CORS says of one request.
pub(super) struct CorsRequest {
    /// The origin of the calling page, if it may read the answer.
    origin: Option<HeaderValue>,
    /// Whether the answer depends on the origin.
    varies: bool,
    /// Whether the request is a preflight.
    pub(super) is_preflight: bool,
}

impl Cors {
    /// Allows these origins, each as a browser writes it.
    pub(super) fn new(origins: &[String]) -> Self {
        Self { origins: origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect() }
    }

    /// Classifies a request by its head.
    pub(super) fn request(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> CorsRequest {
        let varies = !self.origins.is_empty() && is_api(uri.path());
        let asks = headers.get(header::ORIGIN).filter(|origin| varies && self.origins.contains(origin));
        let is_preflight = asks.is_some()
            && method == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        CorsRequest { origin: asks.cloned(), varies, is_preflight }
    }
}

impl CorsRequest {
    /// The answer to a preflight.
    pub(super) fn preflight_response() -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        response
    }

    /// Adds the CORS headers to an answer. Refusals get them too, or the page could not read why it
    /// was refused.
    pub(super) fn set_headers(self, headers: &mut HeaderMap) {
        if self.varies {
            // Caches must keep the answers to different origins apart.
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = self.origin {
            headers.insert(ALLOWED_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        }
    }
}

/// Whether pages may call this path. Unknown paths below `/byok/` count too.
fn is_api(path: &str) -> bool {
    path == "/graphql" || path.starts_with("/byok/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "https://app.example.com";

    fn request(cors: &Cors, method: Method, path: &str, lines: &[(HeaderName, &'static str)]) -> CorsRequest {
        let headers =
            lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        cors.request(&method, &path.parse().unwrap(), &headers)
    }

    fn is_allowed(origins: &[&str], path: &str, origin: &'static str) -> bool {
        let cors = Cors::new(&origins.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>());
        request(&cors, Method::POST, path, &[(header::ORIGIN, origin)]).origin.is_some()
    }

    #[test]
    fn an_origin_is_allowed_exactly_as_configured() {
        assert!(is_allowed(&["https://other.example.com", PAGE], "/graphql", PAGE));
        assert!(is_allowed(&[PAGE], "/byok/nothing", PAGE));
        for origin in [
            "null",
            "*",
            "https://app.example.com:8443",
            "http://app.example.com",
            "https://app.example.com.evil.com",
            "https://APP.example.com",
            "https://app.example.com/",
            "https://evil.com, https://app.example.com",
        ] {
            assert!(!is_allowed(&[PAGE], "/graphql", origin), "{origin}");
        }
        assert!(!is_allowed(&[], "/graphql", PAGE), "there are none unless configured");
        assert!(!is_allowed(&[PAGE], "/metrics", PAGE) && !is_allowed(&[PAGE], "/graphiql", PAGE));
    }

    #[test]
    fn a_preflight_names_a_method_and_an_allowed_origin() {
        let cors = Cors::new(&[PAGE.to_owned()]);
        let asks = (header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
        let from = |origin| (header::ORIGIN, origin);
        let is = |method, lines: &[_]| request(&cors, method, "/graphql", lines).is_preflight;
        assert!(is(Method::OPTIONS, &[from(PAGE), asks.clone()]));
        assert!(!is(Method::OPTIONS, &[from(PAGE)]));
        assert!(!is(Method::POST, &[from(PAGE), asks.clone()]));
        assert!(!is(Method::OPTIONS, &[from("https://evil.com"), asks]));
    }

    #[test]
    fn neither_browser_credentials_nor_hasuras_secret_are_allowed() {
        let mut response = CorsRequest::preflight_response();
        let cors = Cors::new(&[PAGE.to_owned()]);
        request(&cors, Method::OPTIONS, "/graphql", &[(header::ORIGIN, PAGE)])
            .set_headers(response.headers_mut());
        let headers = response.headers();
        assert_eq!(headers[ALLOWED_ORIGIN], PAGE);
        assert_eq!(headers[header::VARY], "Origin");
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
        assert!(!headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("secret"));
    }
}
