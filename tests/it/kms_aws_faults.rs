//! How our client handles a busy or misbehaving AWS KMS, and how it behaves towards it. Network
//! faults are tested in `kms_faults`.

use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use byok::config::AwsSettings;
use byok::kms::{AwsKms, Kms, KmsErrorClass};
use byok::model::Wrapped;

use crate::support::aws::{Cloud, Fault, Front, Key};
use crate::support::calls::binding;
use crate::support::stub::{Stub, answer};

async fn through_front(change: impl FnOnce(&mut AwsSettings)) -> (Key, Front, AwsKms) {
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    let kms = key.kms_with(|settings| {
        settings.endpoint = Some(front.address.parse().expect("an address"));
        change(settings);
    });
    (key, front, kms)
}

/// The delay of a late answer: far longer than every deadline here, also on a busy machine.
const LATE: Duration = Duration::from_secs(60);

async fn generates(kms: &AwsKms) -> Option<KmsErrorClass> {
    kms.generate(&[binding()]).await.remove(0).err().map(|error| error.class)
}

#[tokio::test]
async fn throttling_slows_us_down_and_multiplies_no_calls() {
    let (_key, front, kms) = through_front(|settings| settings.timeout = Duration::from_secs(2)).await;
    assert_eq!(generates(&kms).await, None);
    let before = front.count("GenerateDataKey");
    front.fail("GenerateDataKey", 100_000, Fault::Error(400, "ThrottlingException"));
    let bindings: Vec<_> = (0..300).map(|_| binding()).collect();
    let answers = kms.generate(&bindings).await;
    let throttled = |item: &Result<_, byok::kms::KmsError>| {
        item.as_ref().is_err_and(|error| error.class == KmsErrorClass::Throttled)
    };
    assert!(answers.iter().all(throttled));
    let calls = front.count("GenerateDataKey") - before;
    assert!(calls < 60, "{calls} calls for 300 DEKs");
    front.heal();
    let began = Instant::now();
    while generates(&kms).await.is_some() {
        assert!(began.elapsed() < Duration::from_secs(120), "it goes on when the throttling is over");
    }
}

#[tokio::test]
async fn a_fault_that_passes_is_tried_again_twice_and_no_more() {
    let (_key, front, kms) = through_front(|_| ()).await;
    assert_eq!(generates(&kms).await, None);
    for (times, class) in [(1, None), (2, None), (9, Some(KmsErrorClass::Internal))] {
        let before = front.count("GenerateDataKey");
        front.fail("GenerateDataKey", times, Fault::Error(500, "KMSInternalException"));
        assert_eq!(generates(&kms).await, class);
        assert_eq!(
            front.count("GenerateDataKey") - before,
            (times + 1).min(3),
            "the SDK adds none of its own"
        );
        front.heal();
    }
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let (_key, front, kms) = through_front(|_| ()).await;
    for code in
        ["AccessDeniedException", "DisabledException", "KMSInvalidStateException", "NotFoundException"]
    {
        let before = front.count("GenerateDataKey");
        front.fail("GenerateDataKey", 9, Fault::Error(400, code));
        assert!(generates(&kms).await.is_some());
        assert_eq!(front.count("GenerateDataKey") - before, 1, "{code}");
        front.heal();
    }
}

#[tokio::test]
async fn every_faulty_answer_ends_in_time_and_leaves_nothing_behind() {
    let (_key, front, kms) = through_front(|settings| settings.timeout = Duration::from_secs(3)).await;
    let bound = binding();
    let wrapped: Wrapped = kms.generate(&[bound]).await.remove(0).expect("a DEK").value.wrapped;
    for operation in ["GenerateDataKey", "Encrypt", "Decrypt", "ReEncrypt"] {
        for fault in [
            Fault::Truncated,
            Fault::Corrupted,
            Fault::Late(LATE),
            Fault::Answer(200, ""),
            Fault::Answer(503, "<html>"),
        ] {
            front.fail(operation, 9, fault);
            let one = async || match operation {
                "GenerateDataKey" => generates(&kms).await,
                "Encrypt" => {
                    let dek = byok::crypto::Dek::generate();
                    kms.wrap(&[(bound, &dek)]).await.remove(0).err().map(|error| error.class)
                }
                "Decrypt" => {
                    kms.unwrap(&[(bound, wrapped.clone())]).await.remove(0).err().map(|error| error.class)
                }
                _ => {
                    let to = wrapped.key_version.clone();
                    kms.rewrap(&[(bound, wrapped.clone())], &to)
                        .await
                        .remove(0)
                        .err()
                        .map(|error| error.class)
                }
            };
            let began = Instant::now();
            let class = one().await.expect("it fails");
            assert_eq!(class.verdict(), byok::kms::Verdict::Outage, "{operation}: {class:?}");
            assert!(began.elapsed() < LATE, "{operation}");
            front.heal();
            assert_eq!(one().await, None, "{operation}: the next call succeeds");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Stub::start(|_, _| answer(200, "{}")).await;
    let target = elsewhere.address.clone();
    let stub = Stub::start(move |_, _| {
        let mut response = answer(307, "");
        response.headers_mut().insert("Location", HeaderValue::from_str(&target).expect("an address"));
        response
    })
    .await;
    let key = Cloud::shared().key().await;
    let kms = key.kms_with(|settings| settings.endpoint = Some(stub.address.parse().expect("an address")));
    assert_eq!(generates(&kms).await, Some(KmsErrorClass::Internal));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn nothing_is_sent_before_the_first_call() {
    let stub = Stub::start(|_, _| answer(500, "")).await;
    let key = Cloud::shared().key().await;
    let role = key.role("byok-7f3a").await;
    let address: reqwest::Url = stub.address.parse().expect("an address");
    let _kms = key.kms_with(|settings| {
        settings.role = Some(role.settings(Some("byok-7f3a")));
        settings.endpoint = Some(address.clone());
        settings.sts_endpoint = Some(address);
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(stub.seen().is_empty());
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_no_refusal_of_the_credential() {
    let stub = Stub::start(|_, _| {
        let mut response =
            answer(403, r#"{"__type":"InvalidSignatureException","message":"Signature expired"}"#);
        for (name, value) in [
            ("x-amzn-requestid", "00000000-0000-4000-8000-000000000001"),
            ("date", "Mon, 23 Nov 2020 04:00:00 GMT"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })
    .await;
    let key = Cloud::shared().key().await;
    let kms = key.kms_with(|settings| settings.endpoint = Some(stub.address.parse().expect("an address")));
    assert_eq!(generates(&kms).await, Some(KmsErrorClass::Internal));
    // From the second request on, signatures use the server's clock.
    let signed: Vec<_> = stub.seen().iter().map(|seen| seen.headers["x-amz-date"].clone()).collect();
    assert!(!signed[0].to_str().expect("text").starts_with("2020"));
    assert!(signed[1].to_str().expect("text").starts_with("20201123T04"), "{signed:?}");
}
