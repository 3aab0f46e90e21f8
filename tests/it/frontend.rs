//! Pages of other sites that call the server from a browser: allowed for configured origins only.

use reqwest::header::HeaderMap;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::support::server::TestServer;

const PAGE: &str = "https://app.example.com";
const OTHER: &str = "https://evil.example.com";

async fn serving_pages() -> TestServer {
    TestServer::with(&[("BYOK_CORS_ORIGINS", "http://localhost:3000, https://app.example.com")]).await
}

/// The preflight request that a browser sends before a page's request.
async fn preflight(client: &Client, base: &str, path: &str, origin: &str) -> (u16, HeaderMap) {
    let asked = client.request(Method::OPTIONS, format!("{base}{path}")).header("origin", origin);
    let asked = asked.header("access-control-request-method", "POST");
    let asked = asked.header("access-control-request-headers", "authorization,content-type");
    let answer = asked.send().await.unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

#[tokio::test]
async fn a_page_whose_origin_is_configured_may_call() {
    let server = serving_pages().await;
    for path in ["/graphql", "/byok/encrypt", "/byok/nothing"] {
        let (status, headers) = preflight(&server.client, &server.base, path, PAGE).await;
        assert_eq!(
            (status, &headers["access-control-allow-origin"]),
            (204, &PAGE.parse().unwrap()),
            "{path}"
        );
        assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
        assert_eq!(headers["vary"], "Origin");
        assert!(!headers.contains_key("access-control-allow-credentials"));
    }
    let query =
        json!({ "query": "mutation { byokEncrypt(plaintext: \"p\", recordId: \"r\") { ciphertext } }" });
    let called = server.client.post(format!("{}/graphql", server.base)).header("origin", PAGE).json(&query);
    let answer = called.bearer_auth(server.jwt("admin", "a")).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], PAGE);
    let shown = answer.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    assert!(shown.contains("retry-after") && shown.contains("x-request-id"), "{shown}");
    let answer: Value = answer.json().await.unwrap();
    assert!(answer["data"]["byokEncrypt"]["ciphertext"].is_string(), "{answer}");
}

#[tokio::test]
async fn a_page_can_read_why_it_was_refused() {
    let server = serving_pages().await;
    let get = |path: &str| server.client.get(format!("{}{path}", server.base)).header("origin", PAGE);
    let post = |path: &str| server.client.post(format!("{}{path}", server.base)).header("origin", PAGE);
    for (request, status) in [
        (get("/byok/audit"), 401),
        (get("/byok/nothing"), 404),
        (get("/byok/encrypt"), 405),
        (get("/graphql"), 405),
        (post("/byok/encrypt").header("content-encoding", "gzip").body("x"), 415),
        (post("/graphql").body("x"), 415),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["access-control-allow-origin"], PAGE, "{status}");
        assert_eq!(answer.headers()["vary"], "Origin", "{status}");
    }
}

#[tokio::test]
async fn a_page_of_any_other_origin_is_told_nothing() {
    let (with, without) = (serving_pages().await, TestServer::start().await);
    for (server, origin) in [(&with, OTHER), (&with, "null"), (&without, PAGE)] {
        let (status, headers) = preflight(&server.client, &server.base, "/graphql", origin).await;
        assert_eq!(status, 405, "{origin}");
        assert!(!headers.keys().any(|name| name.as_str().starts_with("access-control")), "{headers:?}");
        let called = server.client.post(format!("{}/byok/encrypt", server.base)).header("origin", origin);
        let answer = called.bearer_auth(server.jwt("admin", "a")).body("{}").send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
    // A route that no page calls has no CORS headers at all.
    let metrics = with.client.get(format!("{}/metrics", with.base)).header("origin", PAGE);
    assert!(!metrics.send().await.unwrap().headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_flood_of_preflights_takes_nothing_from_callers() {
    let server = serving_pages().await;
    let flood: Vec<_> = (0..32)
        .map(|_| {
            let (client, base) = (Client::new(), server.base.clone());
            tokio::spawn(async move {
                for _ in 0..100 {
                    let (status, _) = preflight(&client, &base, "/graphql", PAGE).await;
                    assert!(status == 204 || status == 503, "{status}");
                }
            })
        })
        .collect();
    let token = server.encrypt("kept", "r").await;
    for _ in 0..20 {
        assert_eq!(server.decrypt(&token, "r").await.body["plaintext"], "kept");
    }
    for one in flood {
        one.await.unwrap();
    }
}
