//! The GraphiQL page, served from files embedded in the binary. Speaks only to the public API.
//!
//! `build.rs` makes the table of files from `web/`. The page loads nothing from another host, runs
//! no inline script or style, and may connect only to this server; the content security policy
//! makes the browser enforce this. This module does not depend on the GraphQL front and does not
//! serve `/graphql`.

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, StatusCode};

use crate::model::{ErrorCode, Refusal};

include!(concat!(env!("OUT_DIR"), "/console_files.rs"));

/// The page's content security policy: this server's own files and its own API, nothing else.
///
/// GraphiQL's dialogs and menus try to add one inline style, which stops the page behind them from
/// scrolling. The browser refuses and logs it; nothing is lost, since that page does not scroll.
pub const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One embedded file.
struct File {
    /// The last part of the path, `/graphiql/{name}`.
    name: &'static str,
    content_type: &'static str,
    /// A quoted hash of the content.
    etag: &'static str,
    bytes: &'static [u8],
}

/// Whether this binary was built with GraphiQL. Without it, `/graphiql` explains how to get it.
#[must_use]
pub const fn has_graphiql() -> bool {
    GRAPHIQL
}

/// `GET /graphiql` (the page), `GET /graphiql/{file}` (its files) and `GET /` (a redirect to the
/// page).
///
/// Each answer carries a validator and `no-cache`, so that a browser asks again after an upgrade
/// and gets a 304 otherwise (RFC 9110, section 13.1.2). `refuse` makes the answer for an unknown
/// file.
pub fn router<S: Clone + Send + Sync + 'static>(refuse: fn(&Refusal) -> Response) -> Router<S> {
    let page = get(move |headers: HeaderMap| async move { serve("index.html", &headers, refuse) });
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/graphiql") }))
        .route("/graphiql", page.clone())
        .route("/graphiql/", page)
        .route(
            "/graphiql/{file}",
            get(move |file: Result<Path<String>, PathRejection>, headers: HeaderMap| async move {
                // A name that is not UTF-8 matches no file.
                serve(file.as_ref().map_or("", |Path(name)| name), &headers, refuse)
            }),
        )
}

fn serve(name: &str, request: &HeaderMap, refuse: fn(&Refusal) -> Response) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return (security_headers(), refuse(&ErrorCode::NotFound.into())).into_response();
    };
    let validator = [(ETAG, file.etag), (CACHE_CONTROL, "no-cache")];
    if is_cached_by_client(request, file.etag) {
        return (StatusCode::NOT_MODIFIED, security_headers(), validator).into_response();
    }
    (security_headers(), validator, [(CONTENT_TYPE, file.content_type)], file.bytes).into_response()
}

/// The security headers of every answer.
fn security_headers() -> [(HeaderName, &'static str); 6] {
    [
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ]
}

fn is_cached_by_client(request: &HeaderMap, etag: &str) -> bool {
    request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn ask(request: Request<Body>) -> Response {
        let refuse = |refusal: &Refusal| {
            let status = StatusCode::from_u16(refusal.code.http_status()).unwrap();
            (status, refusal.code.as_str()).into_response()
        };
        router::<()>(refuse).oneshot(request).await.unwrap()
    }

    async fn get_path(path: &str) -> Response {
        ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn text(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    fn ours() -> impl Iterator<Item = &'static File> {
        FILES
            .iter()
            .filter(|file| ["index.html", "console.js", "console.css", "icon.svg"].contains(&file.name))
    }

    #[tokio::test]
    async fn the_page_is_html() {
        let response = get_path("/graphiql").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(text(response).await.starts_with("<!doctype html>"));
    }

    #[tokio::test]
    async fn every_answer_carries_the_content_security_policy() {
        for path in ["/graphiql", "/graphiql/", "/graphiql/console.css", "/graphiql/nothing.js"] {
            let response = get_path(path).await;
            assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], CONTENT_POLICY, "{path}");
            assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
            assert_eq!(response.headers()[REFERRER_POLICY], "no-referrer", "{path}");
            assert_eq!(response.headers()[X_FRAME_OPTIONS], "DENY", "{path}");
            assert_eq!(response.headers()["cross-origin-opener-policy"], "same-origin", "{path}");
        }
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_no_other_host() {
        for word in ["unsafe", "data:", "blob:", "*", "http", "nonce"] {
            assert!(!CONTENT_POLICY.contains(word), "{word}");
        }
    }

    #[tokio::test]
    async fn the_root_leads_to_the_page() {
        let response = get_path("/").await;
        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(response.headers()["location"], "/graphiql");
    }

    #[tokio::test]
    async fn an_unknown_file_is_not_found() {
        for path in ["/graphiql/other.js", "/graphiql/%ff"] {
            let response = get_path(path).await;
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
            assert_eq!(text(response).await, "NOT_FOUND", "{path}");
        }
    }

    #[tokio::test]
    async fn a_path_that_climbs_out_is_not_found() {
        for path in [
            "/graphiql/..%2FCargo.toml",
            "/graphiql/../Cargo.toml",
            "/graphiql/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        ] {
            assert_eq!(get_path(path).await.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[tokio::test]
    async fn only_reading_is_allowed() {
        let response = ask(Request::post("/graphiql").body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn a_browser_that_has_the_file_gets_no_body() {
        let first = get_path("/graphiql/console.css").await;
        let etag = first.headers()[ETAG].to_str().unwrap().to_owned();
        let request =
            Request::get("/graphiql/console.css").header(IF_NONE_MATCH, format!("\"old\", W/{etag}"));
        let second = ask(request.body(Body::empty()).unwrap()).await;
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(text(second).await, "");
    }

    #[test]
    fn our_files_name_no_other_host() {
        for file in ours() {
            let content = std::str::from_utf8(file.bytes).unwrap().replace("http://www.w3.org/2000/svg", "");
            for sign in ["http://", "https://", "\"//", "'//", "(//"] {
                assert!(!content.contains(sign), "{} holds {sign}", file.name);
            }
        }
    }

    #[test]
    fn our_page_has_no_inline_script_or_style() {
        let page = FILES.iter().find(|file| file.name == "index.html").unwrap();
        let page = std::str::from_utf8(page.bytes).unwrap();
        for sign in ["<style", " style=", "<script>", " onclick", " onload", "javascript:"] {
            assert!(!page.contains(sign), "{sign}");
        }
    }

    #[test]
    fn everything_the_page_loads_is_embedded() {
        let page = FILES.iter().find(|file| file.name == "index.html").unwrap();
        let page = std::str::from_utf8(page.bytes).unwrap();
        for name in page.split("\"/graphiql/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(FILES.iter().any(|file| file.name == name), "{name}");
        }
    }

    #[test]
    fn no_style_sheet_holds_a_font_or_an_image() {
        for file in FILES.iter().filter(|file| file.name.ends_with(".css")) {
            let content = std::str::from_utf8(file.bytes).unwrap();
            assert!(!content.contains("url(") && !content.contains("@import"), "{}", file.name);
        }
    }
}
