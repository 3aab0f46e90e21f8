//! A Vault that is unreachable, slow, busy, or not a Vault, and the requests that we send to one.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use byok::config::{VaultLogin, VaultSettings};
use byok::crypto::{Dek, SecretText};
use byok::kms::{Kms, KmsError, KmsErrorClass, VaultTransit};
use byok::model::{KeyVersion, Wrapped};
use serde_json::{Value, json};

use crate::support::calls::binding;
use crate::support::log::Log;
use crate::support::stub::{Seen, Stub, answer};
use crate::support::vault::{Vault, settings};

const TOKEN: &str = "hvs.canary-token";

fn us(address: &str, change: impl FnOnce(&mut VaultSettings)) -> VaultTransit {
    let mut settings = settings(address, VaultLogin::Token(SecretText::new(TOKEN.to_owned())));
    settings.timeout = Duration::from_millis(1500);
    change(&mut settings);
    VaultTransit::new(settings).expect("the settings are good")
}

async fn wraps(kms: &VaultTransit) -> Result<Wrapped, KmsError> {
    kms.wrap(&[(binding(), &Dek::generate())]).await.remove(0).map(|answer| answer.value)
}

async fn class(kms: &VaultTransit) -> Option<KmsErrorClass> {
    wraps(kms).await.err().map(|error| error.class)
}

/// The answer of a Vault to an encrypt.
fn wrapped_as_asked(seen: &Seen) -> axum::response::Response {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let items = body["batch_input"].as_array().map_or(0, Vec::len);
    let results = vec![json!({ "ciphertext": "vault:v1:c3R1Yg==", "key_version": 1 }); items];
    answer(200, json!({ "request_id": "r-1", "data": { "batch_results": results } }).to_string())
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable_within_the_deadline() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}", listener.local_addr().expect("an address"))
    };
    let deadline = Duration::from_secs(30);
    let began = Instant::now();
    let kms = us(&address, |settings| settings.timeout = deadline);
    assert_eq!(class(&kms).await, Some(KmsErrorClass::Unreachable));
    assert!(began.elapsed() < deadline);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_unreachable() {
    assert_eq!(class(&us("https://vault.invalid", |_| ())).await, Some(KmsErrorClass::Unreachable));
}

#[tokio::test]
async fn a_vault_that_hangs_is_a_timeout_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let kms = us(&format!("http://{}", listener.local_addr().expect("an address")), |_| ());
    let began = Instant::now();
    let deks: Vec<_> = (0..kms.profile().batch_limit * 9).map(|_| Dek::generate()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
    let answers = kms.wrap(&items).await;
    assert!(
        answers.iter().all(|item| item.as_ref().is_err_and(|error| error.class == KmsErrorClass::Timeout))
    );
    // In sequence, the nine requests would take 13.5 s.
    assert!((1_500..10_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_fault_that_passes_is_tried_again() {
    let stub = Stub::start(|seen, before| match before {
        0 => answer(500, r#"{"errors":["storage"]}"#),
        1 => answer(502, "<html>"),
        _ => wrapped_as_asked(seen),
    })
    .await;
    assert_eq!(class(&us(&stub.address, |_| ())).await, None);
}

#[tokio::test]
async fn it_is_tried_again_twice_and_no_more() {
    let stub = Stub::start(|_, _| answer(500, r#"{"errors":["storage"]}"#)).await;
    let error = wraps(&us(&stub.address, |_| ())).await.expect_err("it fails");
    assert_eq!((error.class, error.http_status), (KmsErrorClass::Internal, Some(500)));
    assert_eq!(stub.seen().len(), 3);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    for body in ["1 error occurred:\\n\\t* permission denied\\n\\n", "Vault is sealed"] {
        let status = if body == "Vault is sealed" { 503 } else { 403 };
        let stub = Stub::start(move |_, _| answer(status, format!(r#"{{"errors":["{body}"]}}"#))).await;
        assert!(class(&us(&stub.address, |_| ())).await.is_some());
        assert_eq!(stub.seen().len(), 1, "{body}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_within_the_deadline() {
    let throttled = |seconds: &'static str| {
        move |seen: &Seen, before: usize| {
            if before > 0 {
                return wrapped_as_asked(seen);
            }
            let mut response = answer(429, r#"{"errors":["rate limit quota exceeded"]}"#);
            response.headers_mut().insert("Retry-After", HeaderValue::from_static(seconds));
            response
        }
    };
    let stub = Stub::start(throttled("1")).await;
    let deadline = Duration::from_secs(30);
    let kms = us(&stub.address, |settings| settings.timeout = deadline);
    let began = Instant::now();
    assert_eq!(class(&kms).await, None);
    assert!(began.elapsed() >= Duration::from_secs(1));

    let stub = Stub::start(throttled("60")).await;
    let kms = us(&stub.address, |settings| settings.timeout = deadline);
    let began = Instant::now();
    assert_eq!(class(&kms).await, Some(KmsErrorClass::Throttled));
    assert!(began.elapsed() < deadline, "waiting past the deadline is of no use");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Stub::start(|seen, _| wrapped_as_asked(seen)).await;
    let target = elsewhere.address.clone();
    let stub = Stub::start(move |seen, _| {
        let mut response = answer(307, "");
        let location = format!("{target}{}", seen.path);
        response.headers_mut().insert("Location", HeaderValue::from_str(&location).expect("an address"));
        response
    })
    .await;
    assert_eq!(class(&us(&stub.address, |_| ())).await, Some(KmsErrorClass::Misconfigured));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn what_is_not_vaults_answer_is_an_internal_error() {
    let long = "x".repeat(5 << 20);
    let bodies = ["", "<html>", "{}", r#"{"data":null}"#, r#"{"data":{"batch_results":[]}}"#, &long];
    for body in bodies.map(str::to_owned) {
        let stub = Stub::start(move |_, _| answer(200, body.clone())).await;
        assert_eq!(class(&us(&stub.address, |_| ())).await, Some(KmsErrorClass::Internal));
    }
}

#[tokio::test]
async fn every_request_has_the_namespace_token_and_request_header() {
    let stub = Stub::start(|seen, _| wrapped_as_asked(seen)).await;
    let kms = us(&format!("{}/proxied/", stub.address), |settings| {
        settings.namespace = Some("admin/team-a".to_owned());
        settings.mount = "deep/transit".to_owned();
    });
    assert_eq!(class(&kms).await, None);
    let seen = &stub.seen()[0];
    assert_eq!(seen.path, "/proxied/v1/deep/transit/encrypt/byok");
    assert_eq!(seen.headers["X-Vault-Namespace"], "admin/team-a");
    assert_eq!(seen.headers["X-Vault-Token"], TOKEN);
    assert_eq!(seen.headers["X-Vault-Request"], "true");
}

#[tokio::test]
async fn a_batch_is_as_many_requests_as_the_forecast_says() {
    let transit = Vault::shared().transit().await;
    let kms = transit.kms().await;
    let made = kms.generate(&vec![binding(); kms.profile().batch_limit + 1]).await;
    let ids: std::collections::BTreeSet<_> = made
        .iter()
        .map(|item| item.as_ref().ok().and_then(|item| item.request_id.clone()).expect("an id"))
        .collect();
    assert_eq!(ids.len() as u64, kms.profile().rewrap_cost.calls(made.len() as u64));
}

#[tokio::test]
async fn vaults_words_and_our_secrets_stay_out_of_errors_and_logs() {
    let log = Log::capture();
    let dek = Dek::generate();
    let plain = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, dek.expose());
    let mut errors = String::new();
    let items = r#"{"request_id":"bad\nid","data":{"batch_results":[{"error":"canary said"}]}}"#;
    let whole = r#"{"errors":["canary said"]}"#;
    for (status, body) in [
        (200, items),
        (400, items),
        (400, whole),
        (403, whole),
        (500, whole),
        (503, whole),
        (307, "canary said"),
    ] {
        let stub = Stub::start(move |_, _| answer(status, body)).await;
        let kms = us(&stub.address, |_| ());
        let old = Wrapped {
            bytes: b"vault:v1:AAAA".to_vec(),
            key_version: KeyVersion::new("byok", "1"),
            scheme: 1,
        };
        let outcome = kms.wrap(&[(binding(), &dek)]).await;
        errors.push_str(&format!("{outcome:?}"));
        let outcome = kms.unwrap(&[(binding(), old)]).await;
        errors.push_str(&format!("{:?}", outcome[0].as_ref().err()));
    }
    // A call that succeeds and returns the plaintext.
    let transit = Vault::shared().transit().await;
    let token = transit.token().await;
    let kms = transit.kms_as(&token);
    let wrapped = kms.wrap(&[(binding(), &dek)]).await.remove(0).expect("it wraps").value;
    assert!(kms.unwrap(&[(binding(), wrapped)]).await.remove(0).is_ok());

    let logged = log.text();
    assert!(!log.ours().is_empty(), "the log was captured");
    for secret in ["canary", &plain, &token] {
        assert!(!errors.contains(secret) && !logged.contains(secret), "{secret} got out");
    }
}
