//! Bytes that are altered between us and Google: each side notices them, and neither uses them.

use byok::crypto::Dek;
use byok::kms::{DekBinding, GcpKms, Kms, KmsError, KmsErrorClass};
use byok::model::Wrapped;
use serde_json::json;

use crate::support::calls::binding;
use crate::support::gcp::Google;

async fn wrapped(kms: &GcpKms, dek: &Dek) -> Result<(DekBinding, Wrapped), KmsError> {
    let binding = binding();
    kms.wrap(&[(binding, dek)]).await.remove(0).map(|answer| (binding, answer.value))
}

async fn unwrapped(kms: &GcpKms, wrapped: &(DekBinding, Wrapped)) -> Result<[u8; 32], KmsError> {
    kms.unwrap(std::slice::from_ref(wrapped)).await.remove(0).map(|answer| *answer.value.expose())
}

const OF_ENCRYPT: [&str; 6] = [
    "ciphertext",
    "ciphertextCrc32c",
    "verifiedPlaintextCrc32c",
    "verifiedAdditionalAuthenticatedDataCrc32c",
    "name",
    "version",
];
const OF_DECRYPT: [&str; 2] = ["plaintext", "plaintextCrc32c"];

#[tokio::test]
async fn an_answer_that_was_altered_once_is_asked_for_again() {
    let google = Google::start().await;
    let kms = google.kms(&[("BYOK_KEY_VERSION_STRATEGY", "1")]).await;
    let dek = Dek::generate();
    for altered in OF_ENCRYPT {
        google.fault("encrypt", json!({ "alter": altered })).await;
        let made = wrapped(&kms, &dek).await.expect("the second answer is good");
        assert_eq!(unwrapped(&kms, &made).await.as_ref(), Ok(dek.expose()), "{altered}");
    }
    let made = wrapped(&kms, &dek).await.expect("it wraps");
    for altered in OF_DECRYPT {
        google.fault("decrypt", json!({ "alter": altered })).await;
        assert_eq!(unwrapped(&kms, &made).await.as_ref(), Ok(dek.expose()), "{altered}");
    }
}

#[tokio::test]
async fn an_answer_that_is_altered_again_and_again_is_never_used() {
    let google = Google::start().await;
    let kms = google.kms(&[("BYOK_KEY_VERSION_STRATEGY", "1")]).await;
    let dek = Dek::generate();
    let made = wrapped(&kms, &dek).await.expect("it wraps");
    for altered in OF_ENCRYPT {
        google.fault("encrypt", json!({ "alter": altered, "times": 3 })).await;
        let error = wrapped(&kms, &dek).await.expect_err("it is not used");
        assert_eq!((error.class, error.http_status), (KmsErrorClass::Internal, Some(200)), "{altered}");
    }
    for altered in OF_DECRYPT {
        google.fault("decrypt", json!({ "alter": altered, "times": 3 })).await;
        let error = unwrapped(&kms, &made).await.expect_err("it is not used");
        assert_eq!((error.class, error.http_status), (KmsErrorClass::Internal, Some(200)), "{altered}");
    }
    assert_eq!(unwrapped(&kms, &made).await.as_ref(), Ok(dek.expose()));
}

#[tokio::test]
async fn a_request_altered_in_transit_is_sent_once_more() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let dek = Dek::generate();
    google.fault("encrypt", json!({ "alter_request": "plaintext" })).await;
    let made = wrapped(&kms, &dek).await.expect("the second request is good");
    google.fault("decrypt", json!({ "alter_request": "ciphertext" })).await;
    assert_eq!(unwrapped(&kms, &made).await.as_ref(), Ok(dek.expose()));
    assert_eq!((google.count("encrypt").await, google.count("decrypt").await), (2, 2));
}

#[tokio::test]
async fn a_version_is_only_looked_at_where_one_was_asked_for() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    google.fault("encrypt", json!({ "alter": "version" })).await;
    assert_eq!(wrapped(&kms, &Dek::generate()).await.expect("it wraps").1.key_version.to_string(), "byok/2");
}
