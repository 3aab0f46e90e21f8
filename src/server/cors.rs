//! Which pages of other sites a browser lets read our answers (the Fetch standard, section 3.2: CORS). None, unless their origins
//! are configured. Not for credentials that a browser adds by itself: callers are recognised by a header that their own code sends.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;

/// What a page may send. Not the remote schema's secret: it is Hasura's, and must be in no page.
const ASKED_WITH: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, traceparent, tracestate, x-hasura-role, x-request-id",
);
/// What a page may read of an answer's head.
const SHOWN: HeaderValue = HeaderValue::from_static("location, retry-after, www-authenticate, x-request-id");
/// What is asked for with a method at all.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// For how long a browser need not ask again, in seconds: as long as any remembers it.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");
const PAGES: HeaderName = header::ACCESS_CONTROL_ALLOW_ORIGIN;

/// The origins whose pages may read answers.
pub(super) struct Cors {
    origins: Vec<HeaderValue>,
}

/// What a request is to this.
pub(super) struct Visit {
    /// The page's origin, if its pages may read the answer.
    origin: Option<HeaderValue>,
    /// Whether the answer depends on the origin.
    varies: bool,
    /// Whether it is the browser's question before the request itself.
    pub(super) is_preflight: bool,
}

impl Cors {
    /// Of these origins, each as a browser writes it.
    pub(super) fn new(origins: &[String]) -> Self {
        Self { origins: origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect() }
    }

    /// What a request for this address, with this head, is.
    pub(super) fn visit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Visit {
        let varies = !self.origins.is_empty() && is_interface(uri.path());
        let asks = headers.get(header::ORIGIN).filter(|origin| varies && self.origins.contains(origin));
        let is_preflight = asks.is_some()
            && method == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        Visit { origin: asks.cloned(), varies, is_preflight }
    }
}

impl Visit {
    /// The answer to a browser's question before the request itself: nothing of it is done.
    pub(super) fn preflight() -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ASKED_WITH);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        response
    }

    /// Says on an answer who may read it. On refusals too: else a page learns nothing but that something failed.
    pub(super) fn mark(self, headers: &mut HeaderMap) {
        if self.varies {
            // Caches keep what one origin is told from another.
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = self.origin {
            headers.insert(PAGES, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, SHOWN);
        }
    }
}

/// What pages call; addresses of it that there are not included.
fn is_interface(path: &str) -> bool {
    path == "/graphql" || path.starts_with("/byok/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "https://app.example.com";

    fn visit(cors: &Cors, method: Method, path: &str, lines: &[(HeaderName, &'static str)]) -> Visit {
        let headers =
            lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        cors.visit(&method, &path.parse().unwrap(), &headers)
    }

    fn is_allowed(origins: &[&str], path: &str, origin: &'static str) -> bool {
        let cors = Cors::new(&origins.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>());
        visit(&cors, Method::POST, path, &[(header::ORIGIN, origin)]).origin.is_some()
    }

    #[test]
    fn an_origin_is_allowed_as_it_stands_and_no_other() {
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
    fn a_question_before_the_request_names_a_method() {
        let cors = Cors::new(&[PAGE.to_owned()]);
        let asks = (header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
        let from = |origin| (header::ORIGIN, origin);
        let is = |method, lines: &[_]| visit(&cors, method, "/graphql", lines).is_preflight;
        assert!(is(Method::OPTIONS, &[from(PAGE), asks.clone()]));
        assert!(!is(Method::OPTIONS, &[from(PAGE)]));
        assert!(!is(Method::POST, &[from(PAGE), asks.clone()]));
        assert!(!is(Method::OPTIONS, &[from("https://evil.com"), asks]));
    }

    #[test]
    fn neither_browser_credentials_nor_hasuras_secret_is_let_in() {
        let mut response = Visit::preflight();
        let cors = Cors::new(&[PAGE.to_owned()]);
        visit(&cors, Method::OPTIONS, "/graphql", &[(header::ORIGIN, PAGE)]).mark(response.headers_mut());
        let headers = response.headers();
        assert_eq!(headers[PAGES], PAGE);
        assert_eq!(headers[header::VARY], "Origin");
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
        assert!(!headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("secret"));
    }
}
