//! The keys of an identity provider (`jwk_url`): not fetched yet, changed early, unreachable.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::guarded::until;
use crate::support::server::TestServer;
use crate::support::stub::{self, Stub};

/// The provider's key with this number.
fn key(number: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap()
}

fn jwk(number: u8) -> Value {
    let x = URL_SAFE_NO_PAD.encode(key(number).public_key().as_ref());
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": format!("key-{number}"), "x": x })
}

/// A token for the role `admin`, signed with that key.
fn token(number: u8, kid: &str) -> String {
    let header = json!({ "alg": "EdDSA", "kid": kid }).to_string();
    let claims = json!({
        "exp": 4_000_000_000_u64,
        "https://hasura.io/jwt/claims": {
            "x-hasura-default-role": "admin", "x-hasura-allowed-roles": ["admin"], "x-hasura-user-id": "1",
        },
    });
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(key(number).sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// An identity provider whose `answer` gets the number of the request, from 0.
async fn provider(
    answer: impl Fn(usize) -> (u16, Value) + Send + Sync + 'static,
) -> (Stub, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let stub = Stub::start(move |_, _| {
        let (status, body) = answer(counter.fetch_add(1, Ordering::SeqCst));
        stub::answer(status, body.to_string())
    })
    .await;
    (stub, requests)
}

fn configured(url: &str) -> String {
    json!({ "jwk_url": format!("{url}/jwks") }).to_string()
}

async fn status(server: &TestServer, token: &str) -> (u16, Value) {
    let body = json!({ "plaintext": "p", "context": { "record_id": "7" } });
    let answer = server.call(reqwest::Method::POST, "/byok/encrypt", token, Some(body)).await;
    (answer.status.as_u16(), answer.body)
}

#[tokio::test]
async fn while_no_keys_are_known_jwts_get_503_and_not_ready() {
    let up = Arc::new(AtomicUsize::new(0));
    let is_up = up.clone();
    let (provider, _) = provider(move |_| match is_up.load(Ordering::SeqCst) {
        0 => (503, json!({})),
        _ => (200, json!({ "keys": [jwk(1)] })),
    })
    .await;
    let server = TestServer::with(&[("HASURA_GRAPHQL_JWT_SECRET", &configured(&provider.address))]).await;
    let good = token(1, "key-1");
    let (code, body) = status(&server, &good).await;
    assert_eq!(
        (code, &body["code"], &body["retryable"]),
        (503, &json!("UNAVAILABLE"), &json!(true)),
        "{body}"
    );
    let asked = server.graphql(&good, "{ byokAuditCheckpoint { note } }", json!({})).await;
    let asked = &asked["errors"][0]["extensions"];
    assert_eq!((&asked["code"], &asked["retryable"]), (&json!("UNAVAILABLE"), &json!(true)), "{asked}");
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.body["reason"]), (503, &json!("IDENTITY_PROVIDER")));
    assert_eq!(server.get("/livez").await.status, 200);
    let doctor = server.doctor().await;
    assert!(doctor.contains("FAIL  identity: the keys of jwk_url cannot be fetched"), "{doctor}");

    up.store(1, Ordering::SeqCst);
    until("it is ready", async || server.get("/readyz").await.status == 200).await;
    assert_eq!(status(&server, &good).await.0, 200);

    // Fetched keys remain valid during an outage.
    up.store(0, Ordering::SeqCst);
    assert_eq!(status(&server, &good).await.0, 200);
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_new_key_counts_at_once_and_strangers_cause_few_fetches() {
    let (provider, requests) = provider(|request| match request {
        0 => (200, json!({ "keys": [jwk(1), { "kid": "for-encryption", "kty": "RSA", "use": "enc" }] })),
        _ => (200, json!({ "keys": [jwk(1), jwk(2)] })),
    })
    .await;
    let server = TestServer::with(&[("HASURA_GRAPHQL_JWT_SECRET", &configured(&provider.address))]).await;
    until("the keys are there", async || server.get("/readyz").await.status == 200).await;
    assert!(server.logged().contains(r#"\"for-encryption\": its `use` is not `sig`"#), "{}", server.logged());
    assert_eq!(requests.load(Ordering::SeqCst), 1, "an answer without an age remains valid");
    let began = Instant::now();
    assert_eq!(status(&server, &token(2, "key-2")).await.0, 200, "though nobody has fetched it yet");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    let strangers = (0..200).map(|number| {
        let (server, token) = (&server, token(9, &format!("stranger-{number}")));
        async move { status(server, &token).await.0 }
    });
    let codes = futures_util::future::join_all(strangers).await;
    assert!(codes.iter().all(|code| *code == 401 || *code == 503), "{codes:?}");
    let most = 2 + usize::try_from(began.elapsed().as_secs()).unwrap() / 10;
    assert!(requests.load(Ordering::SeqCst) <= most, "one was made a moment ago");
    assert_eq!(status(&server, &token(1, "key-1")).await.0, 200);
}

#[tokio::test]
async fn a_new_key_while_the_provider_is_down_gets_503() {
    let (provider, _) = provider(|request| match request {
        0 => (200, json!({ "keys": [jwk(1)] })),
        _ => (502, json!({})),
    })
    .await;
    let server = TestServer::with(&[("HASURA_GRAPHQL_JWT_SECRET", &configured(&provider.address))]).await;
    until("the keys are there", async || server.get("/readyz").await.status == 200).await;
    let (code, body) = status(&server, &token(2, "key-2")).await;
    assert_eq!((code, &body["code"]), (503, &json!("UNAVAILABLE")), "{body}");
    assert_eq!(status(&server, &token(1, "key-1")).await.0, 200);
    assert_eq!(status(&server, &token(2, "key-1")).await.0, 401, "a forged one stays what it is");
}

#[tokio::test]
async fn doctor_counts_the_keys_and_names_the_unused_ones() {
    let (provider, _) =
        provider(|_| (200, json!({ "keys": [jwk(1), { "kid": "old", "kty": "oct" }] }))).await;
    let server = TestServer::with(&[("HASURA_GRAPHQL_JWT_SECRET", &configured(&provider.address))]).await;
    let doctor = server.doctor().await;
    assert!(doctor.contains("ok    identity: 127.0.0.1 has 1 keys"), "{doctor}");
    assert!(
        doctor.contains(r#"warn  identity: a key of 127.0.0.1 is not used: "old": it is a shared secret"#),
        "{doctor}"
    );
}
