//! Faults of a vault, an authority or something in their place: redirection, throttling, wrong
//! answers, broken connections. Each call ends in time with the right class, its error contains
//! nothing of their messages, and the next call succeeds.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use byok::crypto::Dek;
use byok::kms::{Kms, KmsErrorClass, Verdict};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::azure::{Azure, SECRET};
use crate::support::calls::{binding, made, unwraps, wraps};
use crate::support::log::Log;
use crate::support::stub::{Stub, answer};

/// The timeout of the calls that a fault delays.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How late a busy machine may notice that the deadline has passed.
const LATE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_challenge_that_points_elsewhere_is_refused_without_a_token() {
    for elsewhere in [
        json!({ "authority": "https://login.microsoftonline.com" }),
        json!({ "authority": "http://evil.example" }),
        json!({ "challengeTenant": "11111111-1111-1111-1111-111111111111" }),
        json!({ "challengeTenant": "common" }),
        json!({ "challengeResource": "https://management.azure.com" }),
        json!({ "challengeResource": "https://managedhsm.azure.net" }),
        json!({ "challengeResource": "https://vault.azure.net.evil.example" }),
    ] {
        let azure = Azure::start().await;
        azure.change_vault(elsewhere.clone()).await;
        assert_eq!(wraps(&azure.kms()).await, Some(KmsErrorClass::Misconfigured), "{elsewhere}");
        assert_eq!(azure.count("authority", "token").await, 0, "{elsewhere}");
        assert_eq!(azure.count("vault", "wrapKey").await, 0, "{elsewhere}");
    }
}

/// The fault comes when a token is already known, and that token is refused.
#[tokio::test]
async fn a_later_challenge_that_points_elsewhere_is_refused_too() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    let challenge = format!(
        r#"Bearer authorization="https://evil.example/{}", resource="https://vault.azure.net""#,
        azure.tenant
    );
    let headers = json!({ "WWW-Authenticate": challenge });
    azure
        .fault(json!({ "target": "vault", "operation": "wrapKey", "status": 401, "headers": headers }))
        .await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
    assert_eq!(azure.count("authority", "token").await, 1);
    assert_eq!(wraps(&kms).await, None);
}

/// Microsoft's client takes the first scope or resource that it finds, and keeps it.
#[tokio::test]
async fn a_challenge_that_names_two_resources_spoils_no_later_call() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let challenge = format!(
        r#"Bearer scope="https://evil.example/.default", authorization="{}/{}", resource="https://vault.azure.net""#,
        azure.authority, azure.tenant
    );
    let headers = json!({ "WWW-Authenticate": challenge });
    azure
        .fault(json!({ "target": "vault", "operation": "challenge", "status": 401, "headers": headers }))
        .await;
    wraps(&kms).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn an_answer_to_a_request_without_a_token_is_not_used() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let answer = json!({
        "kid": format!("{}/keys/byok/{}", azure.vault, azure.versions().await[0]),
        "value": URL_SAFE_NO_PAD.encode([7; 256]),
    });
    azure
        .fault(json!({ "target": "vault", "operation": "challenge", "times": 100, "status": 200, "body": answer }))
        .await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Internal));
    azure.mend().await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Stub::start(|_, _| answer(200, "{}")).await;
    let azure = Azure::start().await;
    for (target, operation) in [("vault", "challenge"), ("authority", "token"), ("vault", "wrapKey")] {
        let kms = azure.kms();
        for status in [301, 302, 307, 308] {
            let headers = json!({ "Location": format!("{}/keys/byok//wrapkey", elsewhere.address) });
            let fault =
                json!({ "target": target, "operation": operation, "status": status, "headers": headers });
            azure.fault(fault).await;
            assert_eq!(
                wraps(&kms).await,
                Some(KmsErrorClass::Misconfigured),
                "{target} {operation} {status}"
            );
            azure.mend().await;
            // After a refused login there may be a short pause.
            tokio::time::sleep(Duration::from_millis(if target == "authority" { 1_100 } else { 0 })).await;
            if operation != "wrapKey" {
                break;
            }
        }
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn throttling_slows_us_down_and_does_not_multiply_calls() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    azure.forget_counts().await;
    let body = json!({ "error": { "code": "Throttled", "message": "canary" } });
    let fault = json!({
        "target": "vault", "operation": "wrapKey", "status": 429, "times": 1000, "body": body,
        "headers": { "Retry-After": "1" },
    });
    azure.fault(fault).await;
    let began = Instant::now();
    let deks: Vec<_> = (0..100).map(|_| Dek::generate()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
    let answers = kms.wrap(&items).await;
    assert!(
        answers
            .iter()
            .all(|answer| { answer.as_ref().is_err_and(|error| error.class == KmsErrorClass::Throttled) })
    );
    assert!(began.elapsed() >= Duration::from_secs(1), "a requested wait is respected");
    let sent = azure.count("vault", "wrapKey").await;
    // The requests that were in flight together, and one a second until the deadline.
    assert!(sent <= 16 + 5, "{sent} requests for 100 items");
    azure.mend().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_pause_past_the_deadline_is_not_waited_for() {
    let azure = Azure::start().await;
    let deadline = Duration::from_secs(30);
    let kms = azure.kms_with(|settings| settings.timeout = deadline);
    assert_eq!(wraps(&kms).await, None);
    let headers = json!({ "Retry-After": "60" });
    azure.fault(json!({ "target": "vault", "times": 100, "status": 429, "headers": headers })).await;
    let began = Instant::now();
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Throttled));
    assert!(began.elapsed() < deadline);
}

#[tokio::test]
async fn a_throttled_authority_is_not_asked_before_its_wait_ends() {
    let azure = Azure::start().await;
    let headers = json!({ "Retry-After": "30" });
    azure.fault(json!({ "target": "authority", "times": 100, "status": 429, "headers": headers })).await;
    let kms = azure.kms();
    for _ in 0..5 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Throttled));
    }
    assert_eq!(azure.count("authority", "token").await, 1);
}

#[tokio::test]
async fn requests_under_way_stay_within_their_bound() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    azure.forget_counts().await;
    azure.fault(json!({ "target": "vault", "operation": "wrapKey", "times": 1000, "delay": 20 })).await;
    let deks: Vec<_> = (0..100).map(|_| Dek::generate()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
    assert!(kms.wrap(&items).await.iter().all(Result::is_ok));
    let counters = azure.control(reqwest::Method::GET, "counters", json!({})).await;
    assert_eq!(counters["vault"]["wrapKey"], 100);
    assert!(counters["mostUnderWay"].as_u64().is_some_and(|most| most <= 16), "{counters}");
}

/// Faults inside TLS, where no proxy reaches: an answer that is late, missing, truncated or
/// garbled.
#[tokio::test]
async fn every_operation_survives_an_answer_that_is_none() {
    let azure = Azure::start().await;
    let kms = azure.kms_with(|settings| settings.timeout = TIMEOUT);
    let wrapped = made(&kms).await;
    for (fault, class) in [
        (json!({ "reset": true }), KmsErrorClass::Unreachable),
        (json!({ "cut": true }), KmsErrorClass::Unreachable),
        (json!({ "corrupt": true }), KmsErrorClass::Internal),
        (json!({ "delay": 60_000 }), KmsErrorClass::Timeout),
    ] {
        for operation in ["wrapKey", "unwrapKey"] {
            let mut fault = fault.clone();
            fault["target"] = json!("vault");
            fault["operation"] = json!(operation);
            fault["times"] = json!(100);
            azure.fault(fault.clone()).await;
            let began = Instant::now();
            let to = &wrapped.1.key_version;
            let rewrapped = kms.rewrap(std::slice::from_ref(&wrapped), to).await.remove(0);
            let classes = [
                if operation == "wrapKey" { wraps(&kms).await } else { unwraps(&kms, &wrapped).await },
                rewrapped.err().map(|error| error.class),
            ];
            assert_eq!(classes, [Some(class); 2], "{fault}");
            assert!(began.elapsed() < 2 * (TIMEOUT + LATE), "{fault}");
            azure.mend().await;
            assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2], "after {fault}");
        }
    }
}

#[tokio::test]
async fn a_token_that_does_not_come_is_an_outage() {
    let azure = Azure::start().await;
    for (fault, class) in [
        (json!({ "reset": true }), KmsErrorClass::Unreachable),
        (json!({ "cut": true }), KmsErrorClass::Unreachable),
        (json!({ "corrupt": true }), KmsErrorClass::Internal),
        (json!({ "replace": { "access_token": "" } }), KmsErrorClass::Internal),
        (json!({ "replace": { "expires_in": 0 } }), KmsErrorClass::Internal),
        (json!({ "status": 200, "body": "<html>" }), KmsErrorClass::Internal),
        (json!({ "status": 403, "body": "<html>" }), KmsErrorClass::Internal),
        (json!({ "delay": 60_000 }), KmsErrorClass::Timeout),
    ] {
        let kms = azure.kms_with(|settings| settings.timeout = TIMEOUT);
        let mut fault = fault;
        fault["target"] = json!("authority");
        fault["times"] = json!(100);
        azure.fault(fault.clone()).await;
        let began = Instant::now();
        assert_eq!(wraps(&kms).await, Some(class), "{fault}");
        assert_eq!(class.verdict(), Verdict::Outage);
        assert!(began.elapsed() < TIMEOUT + LATE, "{fault}");
        azure.mend().await;
        assert_eq!(wraps(&kms).await, None, "after {fault}");
    }
}

#[tokio::test]
async fn an_answer_that_lies_is_not_used() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    let version = &wrapped.1.key_version.version;
    let of_another_vault = format!("https://evil.vault.azure.net/keys/byok/{version}");
    let of_another_key = format!("{}/keys/other/{version}", azure.vault);
    let of_another_version = format!("{}/keys/byok/{}", azure.vault, "0".repeat(32));
    let lies = |more: Vec<Value>| {
        let kids = [of_another_vault.clone(), of_another_key.clone(), "x".to_owned()];
        kids.map(|kid| json!({ "kid": kid })).into_iter().chain(more).collect::<Vec<_>>()
    };
    let short = URL_SAFE_NO_PAD.encode([7; 31]);
    for (operation, lies) in [
        ("wrapKey", lies(vec![json!({ "value": short }), json!({ "value": 7 }), json!({ "value": "?" })])),
        ("unwrapKey", lies(vec![json!({ "value": short }), json!({ "kid": of_another_version })])),
    ] {
        for lie in lies {
            let fault = json!({ "target": "vault", "operation": operation, "times": 100, "replace": lie });
            azure.fault(fault).await;
            let class =
                if operation == "wrapKey" { wraps(&kms).await } else { unwraps(&kms, &wrapped).await };
            assert_eq!(class, Some(KmsErrorClass::Internal), "{operation} {lie}");
            azure.mend().await;
        }
    }
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2]);
}

#[tokio::test]
async fn azures_words_and_our_secrets_stay_out_of_errors_and_logs() {
    let log = Log::capture();
    let azure = Azure::start().await;
    let dek = Dek::generate();
    let mut errors = String::new();
    let key_error = json!({ "error": { "code": "Forbidden", "message": "canary said", "innererror": { "code": "canary" } } });
    let oauth = json!({ "error": "invalid_client", "error_description": "canary said", "error_codes": [1] });
    for (target, status, body) in [
        ("vault", 400, &key_error),
        ("vault", 401, &key_error),
        ("vault", 403, &key_error),
        ("vault", 404, &key_error),
        ("vault", 409, &key_error),
        ("vault", 500, &key_error),
        ("authority", 400, &oauth),
        ("authority", 401, &oauth),
        ("authority", 500, &oauth),
    ] {
        let kms = azure.kms();
        azure.fault(json!({ "target": target, "times": 10, "status": status, "body": body })).await;
        let outcome = kms.wrap(&[(binding(), &dek)]).await.remove(0);
        errors.push_str(&format!("{:?}", outcome.expect_err("a failure")));
        azure.mend().await;
    }
    let wrong = azure.kms_with(|settings| settings.tenant = Some("canary".to_owned()));
    errors.push_str(&format!("{:?}", wrong.current_version().await));
    // A call that succeeds and returns the plaintext.
    let kms = azure.kms();
    let wrapped = kms.wrap(&[(binding(), &dek)]).await.remove(0).expect("it wraps").value;
    assert!(kms.unwrap(&[(binding(), wrapped)]).await.remove(0).is_ok());

    let logged = log.text();
    assert!(log.ours().contains("a request to the KMS failed"), "the log was captured");
    assert!(logged.contains("azure"), "that of Microsoft's clients too");
    for secret in
        ["canary", SECRET, "eyJ", &STANDARD.encode(dek.expose()), &URL_SAFE_NO_PAD.encode(dek.expose())]
    {
        assert!(!errors.contains(secret), "{secret} in {errors}");
        let line = logged.lines().find(|line| line.contains(secret) && !line.contains("/control/"));
        assert!(line.is_none(), "{secret} in {line:?}");
    }
}
