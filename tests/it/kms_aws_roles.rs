//! The role that we assume, and its sessions: external id, trust, renewal, outage, end.

use std::time::{Duration, Instant};

use byok::config::{AwsCredentials, AwsSettings};
use byok::kms::{AwsKms, DekBinding, Kms, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};
use serde_json::json;

use crate::support::aws::{Cloud, Fault, Front, Key, Role, permissions};
use crate::support::calls::refused_within_the_bound;

const EXTERNAL_ID: &str = "byok-7f3a";
/// The delay of a late answer: far longer than every deadline here, also on a busy machine.
const LATE: Duration = Duration::from_secs(60);

async fn class(kms: &AwsKms) -> Option<KmsErrorClass> {
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    kms.generate(&[binding]).await.remove(0).err().map(|error| error.class)
}

/// A key, a role that may use it, and a front before STS and KMS.
async fn with_role() -> (Key, Role, Front) {
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    let role = key.role(EXTERNAL_ID).await;
    (key, role, Front::of(&cloud).await)
}

fn through(front: &Front, settings: &mut AwsSettings) {
    let address: reqwest::Url = front.address.parse().expect("an address");
    settings.endpoint = Some(address.clone());
    settings.sts_endpoint = Some(address);
}

fn us(key: &Key, role: &Role, front: &Front) -> AwsKms {
    key.kms_with(|settings| {
        settings.role = Some(role.settings(Some(EXTERNAL_ID)));
        through(front, settings);
    })
}

#[tokio::test]
async fn the_role_is_taken_once_and_its_session_used() {
    let (key, role, front) = with_role().await;
    assert_eq!(class(&key.kms()).await, Some(KmsErrorClass::AccessDenied), "the user alone may not");
    let kms = us(&key, &role, &front);
    let bindings =
        [DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }; 40];
    assert!(kms.generate(&bindings).await.iter().all(Result::is_ok));
    assert_eq!(class(&kms).await, None);
    assert_eq!(front.count("AssumeRole"), 1);
}

#[tokio::test]
async fn an_external_id_that_is_wrong_or_missing_is_a_denial() {
    let (key, role, _front) = with_role().await;
    for id in [Some("another-customers"), None] {
        let kms = key.kms_with(|settings| settings.role = Some(role.settings(id)));
        assert_eq!(class(&kms).await, Some(KmsErrorClass::AccessDenied));
    }
}

#[tokio::test]
async fn a_role_that_never_was_is_a_denial() {
    let (key, role, _front) = with_role().await;
    let mut unknown = role.settings(Some(EXTERNAL_ID));
    unknown.arn.push_str("-not");
    let kms = key.kms_with(|settings| settings.role = Some(unknown));
    assert_eq!(class(&kms).await, Some(KmsErrorClass::AccessDenied));
}

#[tokio::test]
async fn a_refused_role_is_not_asked_for_with_every_call() {
    let (key, role, front) = with_role().await;
    role.trust(None).await;
    let kms = us(&key, &role, &front);
    for _ in 0..50 {
        assert_eq!(class(&kms).await, Some(KmsErrorClass::AccessDenied));
    }
    // One request, and one more after each pause of 1, 2, 4 s if this machine is that slow.
    assert!(front.count("AssumeRole") <= 4, "{}", front.count("AssumeRole"));
    role.trust(Some(EXTERNAL_ID)).await;
    let began = Instant::now();
    while class(&kms).await.is_some() {
        assert!(began.elapsed() < Duration::from_secs(120), "it works again by itself");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_permission_taken_from_the_role_counts_for_live_sessions() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    role.allow(false).await;
    assert_eq!(class(&kms).await, Some(KmsErrorClass::AccessDenied));
    role.allow(true).await;
    assert_eq!(class(&kms).await, None);
    assert_eq!(front.count("AssumeRole"), 1, "a denial by KMS is no reason for another session");
}

#[tokio::test]
async fn a_session_that_was_issued_outlives_its_trust_policy() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    role.trust(None).await;
    assert_eq!(class(&kms).await, None, "for up to 900 s, which the documentation says");
    assert_eq!(class(&us(&key, &role, &front)).await, Some(KmsErrorClass::AccessDenied));
}

#[tokio::test]
async fn a_revoked_trust_ends_the_session_within_the_bound() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    role.trust(None).await;
    assert_eq!(refused_within_the_bound(&kms).await, KmsErrorClass::AccessDenied);
}

#[tokio::test]
async fn an_outage_of_sts_is_no_refusal_and_spares_live_sessions() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    front.fail("AssumeRole", 1000, Fault::Answer(503, "<html>"));
    assert_eq!(class(&kms).await, None);
    let late = us(&key, &role, &front);
    assert_eq!(class(&late).await, Some(KmsErrorClass::Unreachable));
    front.heal();
    assert_eq!(class(&late).await, None, "and it is over at once");
    front.fail("AssumeRole", 1000, Fault::Late(Duration::from_secs(30)));
    let hung = key.kms_with(|settings| {
        settings.role = Some(role.settings(Some(EXTERNAL_ID)));
        settings.timeout = Duration::from_millis(500);
        through(&front, settings);
    });
    assert_eq!(class(&hung).await, Some(KmsErrorClass::Timeout));
}

#[tokio::test]
async fn every_refusal_of_sts_has_its_class() {
    use KmsErrorClass::*;
    let (key, role, front) = with_role().await;
    for (status, code, class_of_it) in [
        (403, "AccessDenied", AccessDenied),
        (403, "ExpiredToken", CredentialInvalid),
        (403, "InvalidClientTokenId", CredentialInvalid),
        (403, "SignatureDoesNotMatch", CredentialInvalid),
        (403, "RegionDisabledException", Misconfigured),
        (400, "ValidationError", Misconfigured),
        (400, "Throttling", Throttled),
        (500, "InternalFailure", Internal),
        (503, "ServiceUnavailable", Unreachable),
    ] {
        front.heal();
        front.fail("AssumeRole", 9, Fault::Error(status, code));
        assert_eq!(class(&us(&key, &role, &front)).await, Some(class_of_it), "{code}");
    }
    for text in
        ["<html>sign in</html>", "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"]
    {
        front.heal();
        front.fail("AssumeRole", 9, Fault::Answer(403, text));
        assert_eq!(class(&us(&key, &role, &front)).await, Some(Internal), "{text}");
    }
}

#[tokio::test]
async fn a_session_that_kms_calls_expired_is_replaced_once() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    front.fail("GenerateDataKey", 1, Fault::Error(400, "ExpiredTokenException"));
    assert_eq!(class(&kms).await, None);
    assert_eq!(front.count("AssumeRole"), 2);
    front.fail("GenerateDataKey", 9, Fault::Error(400, "ExpiredTokenException"));
    assert_eq!(class(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    assert!(front.count("AssumeRole") <= 3, "it is not tried again and again");
}

#[tokio::test]
async fn faults_towards_sts_end_within_the_deadline_and_leave_nothing() {
    let (key, role, front) = with_role().await;
    for fault in [Fault::Truncated, Fault::Corrupted, Fault::Answer(200, "<html>"), Fault::Late(LATE)] {
        front.fail("AssumeRole", 9, fault);
        let kms = key.kms_with(|settings| {
            settings.role = Some(role.settings(Some(EXTERNAL_ID)));
            settings.timeout = Duration::from_secs(3);
            through(&front, settings);
        });
        let began = Instant::now();
        let failed = class(&kms).await.expect("it fails");
        assert_eq!(failed.verdict(), byok::kms::Verdict::Outage, "{failed:?}");
        assert!(began.elapsed() < LATE);
        front.heal();
        assert_eq!(class(&kms).await, None);
    }
}

#[tokio::test]
async fn a_pods_token_is_exchanged_and_read_again() {
    let (key, role, front) = with_role().await;
    let (provider, issuer) = key.cloud().issuer().await;
    let host = issuer.trim_start_matches("https://");
    let jwt = |subject: &str| {
        let claims =
            json!({ "iss": issuer, "aud": "sts.amazonaws.com", "sub": subject, "exp": 4_000_000_000_u64 });
        crate::support::jwt("not checked by fakecloud", &claims)
    };
    role.trust_by(&json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "Federated": provider }, "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": { "StringEquals": { format!("{host}:sub"): "system:serviceaccount:byok:byok" } },
    }] }))
    .await;
    role.permit(&permissions(&key.arn, &[])).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), jwt("system:serviceaccount:byok:byok")).expect("it is written");
    let pod = || {
        key.kms_with(|settings| {
            settings.credentials = AwsCredentials::WebIdentity {
                token_file: file.path().to_owned(),
                role_arn: role.arn.clone(),
            };
            through(&front, settings);
        })
    };
    let kms = pod();
    assert_eq!(class(&kms).await, None);
    assert_eq!(front.count("AssumeRoleWithWebIdentity"), 1);
    std::fs::write(file.path(), jwt("system:serviceaccount:byok:another")).expect("it is written");
    assert_eq!(class(&pod()).await, Some(KmsErrorClass::AccessDenied));
    assert_eq!(class(&kms).await, None, "the session lives");
    front.fail("GenerateDataKey", 1, Fault::Error(400, "ExpiredTokenException"));
    assert_eq!(
        class(&kms).await,
        Some(KmsErrorClass::AccessDenied),
        "the next session uses the current token"
    );
    assert_eq!(class(&kms).await, Some(KmsErrorClass::AccessDenied), "and the first is not used again");
}

#[tokio::test]
async fn a_credential_that_kms_keeps_refusing_brings_no_session_storm() {
    let (key, role, front) = with_role().await;
    let kms = us(&key, &role, &front);
    assert_eq!(class(&kms).await, None);
    front.fail("GenerateDataKey", 100_000, Fault::Error(400, "ExpiredTokenException"));
    let bindings =
        [DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record }; 300];
    assert!(kms.generate(&bindings).await.iter().all(Result::is_err));
    for _ in 0..50 {
        assert_eq!(class(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    // The first request, its replacement, and one more after each pause of 1, 2, 4 s if this
    // machine is that slow.
    assert!(front.count("AssumeRole") <= 5, "{}", front.count("AssumeRole"));
}
