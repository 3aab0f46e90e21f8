//! Every refusal that the stand-in for Google knows, provoked there, every other one that Google
//! documents, injected there, and how we classify them.

use byok::crypto::Dek;
use byok::kms::KmsErrorClass::{self, *};
use byok::kms::{DekBinding, GcpKms, Kms, KmsDiagnosis};
use byok::model::{KeyVersion, TenantUid, Wrapped};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::calls::{binding, unwraps, wraps};
use crate::support::gcp::{ACCOUNT, Google, KEY, RING, ROLE};
use crate::support::printed_policy;

async fn rewraps(kms: &GcpKms, wrapped: &(DekBinding, Wrapped), to: &str) -> Option<KmsErrorClass> {
    let answers = kms.rewrap(std::slice::from_ref(wrapped), &KeyVersion::new("byok", to)).await;
    answers.into_iter().next().and_then(Result::err).map(|error| error.class)
}

async fn wrapped(kms: &GcpKms) -> (DekBinding, Wrapped) {
    let binding = binding();
    (binding, kms.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped)
}

#[tokio::test]
async fn a_disabled_version_refuses_what_it_made_and_the_other_serves() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    google.rotate().await;
    for (state, class) in [
        ("DISABLED", KeyDisabled),
        ("DESTROY_SCHEDULED", KeyPendingDeletion),
        ("PENDING_GENERATION", KeyVersionUnavailable),
    ] {
        google.state(1, state).await;
        assert_eq!(unwraps(&kms, &old).await, Some(class), "{state}");
        assert_eq!(rewraps(&kms, &old, "2").await, Some(class), "{state}");
        assert_eq!(wraps(&kms).await, None, "{state}");
        google.state(1, "ENABLED").await;
        assert_eq!(unwraps(&kms, &old).await, None, "{state}");
    }
    google.state(1, "DESTROYED").await;
    assert_eq!(unwraps(&kms, &old).await, Some(KeyVersionUnavailable));
}

#[tokio::test]
async fn a_disabled_primary_version_keeps_the_key_from_encrypting() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    google.rotate().await;
    google.state(2, "DISABLED").await;
    assert_eq!(wraps(&kms).await, Some(KeyDisabled));
    assert_eq!(kms.current_version().await.err().map(|error| error.class), Some(KeyDisabled));
    assert_eq!(unwraps(&kms, &old).await, None);
}

#[tokio::test]
async fn a_pinned_version_wraps_whatever_is_newer() {
    let google = Google::start().await;
    google.rotate().await;
    let named = format!("{KEY}/cryptoKeyVersions/1");
    for pinned in [("BYOK_KEY_VERSION_STRATEGY", "1"), ("BYOK_GCP_KEY_NAME", &named)] {
        let kms = google.kms(&[pinned]).await;
        assert_eq!(wrapped(&kms).await.1.key_version, KeyVersion::new("byok", "1"));
        assert_eq!(kms.current_version().await, Ok(KeyVersion::new("byok", "1")));
    }
    google.state(1, "DISABLED").await;
    assert_eq!(wraps(&google.kms(&[("BYOK_KEY_VERSION_STRATEGY", "1")]).await).await, Some(KeyDisabled));
}

#[tokio::test]
async fn a_version_that_is_not_there_is_unavailable() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    assert_eq!(
        wraps(&google.kms(&[("BYOK_KEY_VERSION_STRATEGY", "7")]).await).await,
        Some(KeyVersionUnavailable)
    );
    assert_eq!(rewraps(&kms, &old, "7").await, Some(KeyVersionUnavailable));
    for bad in ["0", "+1", "1:destroy", "../../x", ""] {
        assert_eq!(rewraps(&kms, &old, bad).await, Some(Misconfigured), "{bad}");
    }
}

#[tokio::test]
async fn a_role_that_may_only_encrypt_or_only_decrypt_does_that() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    google.bind(KEY, &[("roles/cloudkms.cryptoKeyEncrypter", ACCOUNT)]).await;
    assert_eq!((wraps(&kms).await, unwraps(&kms, &old).await), (None, Some(AccessDenied)));
    google.bind(KEY, &[("roles/cloudkms.cryptoKeyDecrypter", ACCOUNT)]).await;
    assert_eq!((wraps(&kms).await, unwraps(&kms, &old).await), (Some(AccessDenied), None));
    assert_eq!(rewraps(&kms, &old, "1").await, Some(AccessDenied));
    google.bind(KEY, &[]).await;
    assert_eq!((wraps(&kms).await, unwraps(&kms, &old).await), (Some(AccessDenied), Some(AccessDenied)));
}

#[tokio::test]
async fn a_missing_key_looks_like_a_missing_right_unless_visible() {
    let google = Google::start().await;
    let missing = format!("{RING}/cryptoKeys/none");
    let kms = google.kms(&[("BYOK_GCP_KEY_NAME", &missing)]).await;
    assert_eq!(wraps(&kms).await, Some(AccessDenied));
    google.bind(RING, &[(ROLE, ACCOUNT)]).await;
    assert_eq!(wraps(&kms).await, Some(KeyNotFound));
    let keys = google.as_customer(Method::GET, KEY, json!({})).await;
    assert_eq!(keys["name"], KEY, "and none was made: there is only ours");
}

#[tokio::test]
async fn a_ciphertext_of_another_key_or_another_binding_is_invalid() {
    let google = Google::start().await;
    google.make_key("other").await;
    let other = format!("{RING}/cryptoKeys/other");
    google.bind(&other, &[(ROLE, ACCOUNT)]).await;
    let (kms, theirs) = (google.kms(&[]).await, google.kms(&[("BYOK_GCP_KEY_NAME", &other)]).await);
    let (binding_of_it, mut foreign) = wrapped(&theirs).await;
    foreign.key_version = KeyVersion::new("byok", "1");
    assert_eq!(unwraps(&kms, &(binding_of_it, foreign)).await, Some(InvalidWrappedDek));
    let (ours, wrapped) = wrapped(&kms).await;
    let of_another_tenant = DekBinding { tenant: TenantUid([8; 16]), ..ours };
    for elsewhere in [binding(), of_another_tenant] {
        assert_eq!(unwraps(&kms, &(elsewhere, wrapped.clone())).await, Some(InvalidWrappedDek));
    }
    assert_eq!(unwraps(&kms, &(ours, wrapped)).await, None);
}

#[tokio::test]
async fn a_key_for_another_purpose_is_no_key_for_us() {
    let google = Google::start().await;
    google
        .as_customer(Method::POST, &format!("{RING}/cryptoKeys?cryptoKeyId=mac"), json!({ "purpose": "MAC" }))
        .await;
    let mac = format!("{RING}/cryptoKeys/mac");
    google.bind(&mac, &[(ROLE, ACCOUNT)]).await;
    assert_eq!(wraps(&google.kms(&[("BYOK_GCP_KEY_NAME", &mac)]).await).await, Some(KeyVersionUnavailable));
}

#[tokio::test]
async fn an_hsm_key_takes_what_we_send() {
    let google = Google::start().await;
    let hsm = json!({ "purpose": "ENCRYPT_DECRYPT", "versionTemplate": { "protectionLevel": "HSM" } });
    google.as_customer(Method::POST, &format!("{RING}/cryptoKeys?cryptoKeyId=hsm"), hsm).await;
    let hsm = format!("{RING}/cryptoKeys/hsm");
    google.bind(&hsm, &[(ROLE, ACCOUNT)]).await;
    let kms = google.kms(&[("BYOK_GCP_KEY_NAME", &hsm)]).await;
    let made = wrapped(&kms).await;
    assert_eq!(unwraps(&kms, &made).await, None);
}

#[tokio::test]
async fn each_refusal_that_google_documents_has_its_class() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    let reason =
        |status: &str, reason: &str| json!({ "status": status, "reason": reason, "message": "canary" });
    let external = |kind: &str| json!({ "status": "FAILED_PRECONDITION", "details": [{ "violations": [{ "type": kind }] }] });
    for (refusal, class) in [
        (reason("PERMISSION_DENIED", "SERVICE_DISABLED"), KeyDisabled),
        (reason("PERMISSION_DENIED", "BILLING_DISABLED"), KeyDisabled),
        (reason("PERMISSION_DENIED", "CONSUMER_SUSPENDED"), KeyDisabled),
        (reason("PERMISSION_DENIED", "CONSUMER_INVALID"), KeyNotFound),
        (reason("PERMISSION_DENIED", "USER_PROJECT_DENIED"), Misconfigured),
        (reason("PERMISSION_DENIED", "SECURITY_POLICY_VIOLATED"), AccessDenied),
        (reason("PERMISSION_DENIED", "RESOURCE_USAGE_RESTRICTION_VIOLATED"), AccessDenied),
        (reason("PERMISSION_DENIED", ""), AccessDenied),
        (external("EXTERNAL_PERMISSION_DENIED"), AccessDenied),
        (external("EXTERNAL_NOT_FOUND"), KeyNotFound),
        (external("EXTERNAL_UNREACHABLE"), Unreachable),
        (reason("UNAVAILABLE", ""), Unreachable),
        (reason("DEADLINE_EXCEEDED", ""), Unreachable),
        (reason("ABORTED", ""), Internal),
        (reason("INTERNAL", ""), Internal),
    ] {
        for method in ["encrypt", "decrypt"] {
            google.fault(method, json!({ "times": 3, "refuse": refusal })).await;
        }
        assert_eq!((wraps(&kms).await, unwraps(&kms, &old).await), (Some(class), Some(class)), "{refusal}");
        google.control("calm", json!({})).await;
        assert_eq!((wraps(&kms).await, unwraps(&kms, &old).await), (None, None), "{refusal}");
    }
}

#[tokio::test]
async fn what_stands_before_google_does_not_refuse_for_it() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let old = wrapped(&kms).await;
    for (status, class) in
        [(403, Internal), (401, Internal), (302, Misconfigured), (404, Misconfigured), (502, Unreachable)]
    {
        let fault = json!({ "times": 3, "status": status, "body": "<html>canary</html>" });
        google.fault("decrypt", fault).await;
        assert_eq!(unwraps(&kms, &old).await, Some(class), "{status}");
        google.control("calm", json!({})).await;
    }
}

#[tokio::test]
async fn no_key_is_read_whatever_we_do() {
    let google = Google::start().await;
    google.control("quota", json!({ "reads": 0 })).await;
    let kms = google.kms(&[]).await;
    let made = wrapped(&kms).await;
    assert_eq!(
        (wraps(&kms).await, unwraps(&kms, &made).await, rewraps(&kms, &made, "1").await),
        (None, None, None)
    );
    assert!(kms.current_version().await.is_ok());
    let calls: Value = google.control("counters", json!({})).await;
    // `encrypt` is called for generate, wrap, the version and half of the rewrap; `decrypt` for
    // unwrap and the other half.
    assert_eq!(calls, json!({ "token": 1, "encrypt": 4, "decrypt": 2 }));
}

#[tokio::test]
async fn too_many_calls_are_throttled_and_not_multiplied() {
    for retry_after in [json!(null), json!(1)] {
        let google = Google::start().await;
        let kms = google.kms(&[("BYOK_KMS_TIMEOUT_MS", "3000")]).await;
        wrapped(&kms).await;
        google.control("quota", json!({ "crypto": 0, "retry_after": retry_after })).await;
        let deks: Vec<_> = (0..200).map(|_| Dek::generate()).collect();
        let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
        let answers = kms.wrap(&items).await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.class == Throttled)));
        let calls = google.count("encrypt").await;
        assert!(calls < 60, "{calls} calls for 200 items");
        google.control("quota", json!({ "crypto": 60_000 })).await;
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        assert_eq!(wraps(&kms).await, None);
    }
}

#[tokio::test]
async fn a_quota_that_comes_back_within_the_deadline_is_waited_for() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    google.control("quota", json!({ "crypto": 20, "window_ms": 400 })).await;
    let deks: Vec<_> = (0..60).map(|_| Dek::generate()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
    let done = kms.wrap(&items).await.iter().filter(|answer| answer.is_ok()).count();
    assert!(done > 20, "{done}");
}

#[tokio::test]
async fn the_printed_policy_grants_encrypt_and_decrypt_on_this_key_alone() {
    let google = Google::start().await;
    let printed = printed_policy("gcp-kms", &[("BYOK_GCP_KEY_NAME", KEY)]);
    let command: String = printed.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" ");
    let word = |flag: &str| {
        let (_, rest) = command.split_once(&format!("{flag}='")).expect("the flag");
        rest.split_once('\'').expect("a quote").0.to_owned()
    };
    let (_, rest) = command.split_once("gcloud kms keys add-iam-policy-binding '").expect("the command");
    let key = rest.split_once('\'').expect("a quote").0;
    let resource = format!(
        "projects/{}/locations/{}/keyRings/{}/cryptoKeys/{key}",
        word("--project"),
        word("--location"),
        word("--keyring")
    );
    assert_eq!(command.matches("gcloud").count(), 1, "nothing else is asked for");
    google.make_key("other").await;
    google.bind(KEY, &[]).await;
    let kms = google.kms(&[]).await;
    assert_eq!(wraps(&kms).await, Some(AccessDenied));
    google
        .bind(&resource, &[(&word("--role"), word("--member").strip_prefix("serviceAccount:").unwrap())])
        .await;
    let made = wrapped(&kms).await;
    assert_eq!((unwraps(&kms, &made).await, rewraps(&kms, &made, "1").await), (None, None));
    assert!(kms.exposure().await.is_empty());
    let other = format!("{RING}/cryptoKeys/other");
    assert_eq!(wraps(&google.kms(&[("BYOK_GCP_KEY_NAME", &other)]).await).await, Some(AccessDenied));
}

#[tokio::test]
async fn a_role_that_may_change_the_key_is_warned_of() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    google.bind(KEY, &[(ROLE, ACCOUNT), ("roles/cloudkms.admin", ACCOUNT)]).await;
    assert!(kms.exposure().await[0].what.contains("may change the key"));
}

#[tokio::test]
async fn googles_own_client_finds_the_stand_in_as_it_finds_google() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/gcp/vendor_check.py");
    let python = crate::support::needed("BYOK_TEST_PYTHON");
    let output = std::process::Command::new(python).arg(program).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
