//! No message of a provider, and nothing secret that is exchanged with it, is in a log, an answer,
//! a table or the output of `doctor`. Each provider answers with canaries for every status, in its
//! own error format, while the real binary serves.

use axum::http::HeaderValue;
use axum::response::Response;
use reqwest::Method;
use serde_json::json;

use crate::support::provider::Provided;
use crate::support::server::TestServer;
use crate::support::stub::answer;

const SAID: &str = "CANARY-said-51c0";

fn speaking(status: u16, body: &str) -> Box<dyn Fn() -> Response + Send> {
    let body = body.to_owned();
    Box::new(move || {
        let mut response = answer(status, body.clone());
        for name in [
            "content-type",
            "x-amzn-requestid",
            "x-amzn-errortype",
            "x-ms-request-id",
            "retry-after",
            "www-authenticate",
            "location",
        ] {
            let value = if name == "content-type" { "application/json" } else { SAID };
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })
}

async fn what_a_provider_says_gets_nowhere(mut provider: Provided) {
    let relays = provider.relayed().await;
    let mut environment = provider.environment();
    environment.extend([
        ("BYOK_LOG", "trace"),
        ("BYOK_DEK_CACHE_SECONDS", "0"),
        ("BYOK_KMS_TIMEOUT_MS", "1000"),
    ]);
    let server = TestServer::with(&environment).await;
    let mut answers = String::new();
    let token = server.encrypt("hello", "r").await;
    let body = json!({ "ciphertext": token, "context": { "record_id": "r" } });
    assert_eq!(server.post("/byok/decrypt", body.clone()).await.status, 200);
    let mut number = 0;
    for code in provider.codes {
        let body_of = (provider.error)(code, SAID);
        for status in [200, 307, 400, 401, 403, 404, 409, 429, 500, 503] {
            for relay in &relays {
                relay.say(Some(speaking(status, &body_of)));
            }
            number += 1;
            let encrypt = json!({ "plaintext": "x", "context": { "record_id": format!("n{number}") } });
            let refused = [
                server.post("/byok/encrypt", encrypt).await,
                server.post("/byok/decrypt", body.clone()).await,
            ];
            for refused in refused {
                assert!(
                    refused.status.is_client_error() || refused.status.is_server_error(),
                    "{status} {code}"
                );
                assert_ne!(refused.status, 500, "{status} {code}: {}", refused.body);
                answers.push_str(&format!("{} {:?}", refused.body, refused.headers));
            }
        }
    }
    (provider.rotate)().await;
    answers.push_str(&server.post("/byok/rotate", json!({})).await.body.to_string());
    answers.push_str(
        &server.call(Method::GET, "/byok/health", &server.jwt("admin", "a"), None).await.body.to_string(),
    );
    answers.push_str(&server.doctor().await);
    for relay in &relays {
        relay.say(None);
    }

    let mut secrets = provider.secrets.clone();
    for relay in &relays {
        secrets.extend(relay.strings_under(provider.plain));
    }
    assert!(secrets.len() > 2, "plain DEKs were seen on the way");
    secrets.push("CANARY".to_owned());
    let (logs, dump) = (server.logged(), crate::canary::dump(&server.database().await).await);
    assert!(logs.contains("a request to the KMS failed"), "the provider's errors were met");
    for secret in &secrets {
        assert!(!answers.contains(secret.as_str()), "an answer contains {secret}: {answers}");
        assert!(!logs.contains(secret.as_str()), "the log holds {secret}");
        assert!(!dump.contains(secret.as_str()), "a table holds {secret}");
    }
}

#[tokio::test]
async fn of_aws() {
    what_a_provider_says_gets_nowhere(Provided::aws().await).await;
}

#[tokio::test]
async fn of_gcp() {
    what_a_provider_says_gets_nowhere(Provided::gcp().await).await;
}

#[tokio::test]
async fn of_vault() {
    what_a_provider_says_gets_nowhere(Provided::vault().await).await;
}

#[tokio::test]
async fn of_azure() {
    what_a_provider_says_gets_nowhere(Provided::azure().await).await;
}
