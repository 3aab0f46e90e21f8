//! Every refusal that Key Vault documents, provoked at the stand-in, and how we classify it.

use byok::config::AzureAlgorithm;
use byok::crypto::Dek;
use byok::kms::{Kms, KmsErrorClass, Verdict};
use byok::model::KeyVersion;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::azure::Azure;
use crate::support::calls::{binding, made, unwraps, wraps};

/// The outcomes of a wrap and an unwrap: before a change, after it, and after its undo.
async fn both(azure: &Azure, change: Value, undo: Value) -> [Option<KmsErrorClass>; 2] {
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2]);
    azure.change_vault(change).await;
    let classes = [wraps(&kms).await, unwraps(&kms, &wrapped).await];
    azure.change_vault(undo).await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2]);
    classes
}

#[tokio::test]
async fn a_version_is_disabled_by_itself() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let old = made(&kms).await;
    azure.control(Method::POST, "keys/byok", json!({})).await;
    let new = made(&kms).await;
    azure.attributes(Some(&old.1.key_version.version), json!({ "enabled": false })).await;
    assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::KeyDisabled));
    assert_eq!([wraps(&kms).await, unwraps(&kms, &new).await], [None; 2]);
    let rewrapped = kms.rewrap(std::slice::from_ref(&old), &new.1.key_version).await.remove(0);
    assert_eq!(rewrapped.err().map(|error| error.class), Some(KmsErrorClass::KeyDisabled));
    azure.attributes(Some(&old.1.key_version.version), json!({ "enabled": true })).await;
    assert_eq!(unwraps(&kms, &old).await, None);
}

/// Reported once of a live vault: wrap needs only the public half, so it may go on. The switch
/// still works.
#[tokio::test]
async fn a_disabled_version_that_goes_on_wrapping_does_not_unwrap() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    azure.change_vault(json!({ "disabledWraps": true })).await;
    azure.attributes(None, json!({ "enabled": false })).await;
    let wrapped = made(&kms).await;
    assert_eq!(unwraps(&kms, &wrapped).await, Some(KmsErrorClass::KeyDisabled));
}

#[tokio::test]
async fn outside_its_validity_a_key_unwraps_and_does_not_wrap() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    for window in [json!({ "nbf": 4_000_000_000_u64 }), json!({ "nbf": 0, "exp": 1 })] {
        azure.attributes(None, window).await;
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::AccessDenied));
        assert_eq!(unwraps(&kms, &wrapped).await, None);
    }
}

#[tokio::test]
async fn an_operation_that_the_key_does_not_list_is_denied() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    azure.control(Method::POST, "keys/byok/attributes", json!({ "key_ops": ["wrapKey"] })).await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None, Some(KmsErrorClass::AccessDenied)]);
}

#[tokio::test]
async fn a_role_that_is_taken_away_is_denied() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    azure.forbid().await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [Some(KmsErrorClass::AccessDenied); 2]);
    azure.allow(&azure.oid, "/keys/byok").await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2]);
}

#[tokio::test]
async fn a_vault_with_access_policies_denies_whoever_has_none() {
    let azure = Azure::start().await;
    let denied = [Some(KmsErrorClass::AccessDenied); 2];
    assert_eq!(both(&azure, json!({ "mode": "policy" }), json!({ "mode": "rbac" })).await, denied);
    let permissions = json!({ "oid": azure.oid, "permissions": ["wrapKey", "unwrapKey"] });
    azure.control(Method::POST, "policies", permissions).await;
    assert_eq!(both(&azure, json!({ "mode": "policy" }), json!({ "mode": "rbac" })).await, [None; 2]);
}

#[tokio::test]
async fn a_vault_that_is_closed_to_our_network_denies() {
    let azure = Azure::start().await;
    for closed in ["ForbiddenByFirewall", "ForbiddenByConnection"] {
        let classes = both(&azure, json!({ "closedBy": closed }), json!({ "closedBy": null })).await;
        assert_eq!(classes, [Some(KmsErrorClass::AccessDenied); 2]);
    }
}

#[tokio::test]
async fn a_soft_deleted_key_is_not_found_until_it_is_recovered() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let wrapped = made(&kms).await;
    azure.control(Method::DELETE, "keys/byok", json!({})).await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [Some(KmsErrorClass::KeyNotFound); 2]);
    azure.control(Method::POST, "keys/byok/recover", json!({})).await;
    assert_eq!([wraps(&kms).await, unwraps(&kms, &wrapped).await], [None; 2]);
}

#[tokio::test]
async fn a_key_being_deleted_or_recovered_counts_as_pending_deletion() {
    let azure = Azure::start().await;
    for inner in ["ObjectIsBeingDeleted", "ObjectIsDeletedButRecoverable", "ObjectIsBeingRecovered"] {
        let body =
            json!({ "error": { "code": "Conflict", "message": "x", "innererror": { "code": inner } } });
        azure.fault(json!({ "target": "vault", "operation": "wrapKey", "status": 409, "body": body })).await;
        assert_eq!(wraps(&azure.kms()).await, Some(KmsErrorClass::KeyPendingDeletion));
    }
}

#[tokio::test]
async fn a_version_that_the_key_never_had_is_not_found() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let mut wrapped = made(&kms).await;
    wrapped.1.key_version = KeyVersion::new("byok", "0".repeat(32));
    assert_eq!(unwraps(&kms, &wrapped).await, Some(KmsErrorClass::KeyNotFound));
    let (binding, wrapped) = made(&kms).await;
    let to = KeyVersion::new("byok", "0".repeat(32));
    let answer = kms.rewrap(&[(binding, wrapped)], &to).await.remove(0);
    assert_eq!(answer.err().map(|error| error.class), Some(KmsErrorClass::KeyNotFound));
}

#[tokio::test]
async fn an_algorithm_that_the_key_has_not_is_our_error() {
    let azure = Azure::start().await;
    assert_eq!(
        wraps(&azure.hsm_kms("byok", AzureAlgorithm::A256Kw)).await,
        Some(KmsErrorClass::Misconfigured)
    );
    assert_eq!(
        wraps(&azure.hsm_kms("aes", AzureAlgorithm::RsaOaep256)).await,
        Some(KmsErrorClass::Misconfigured)
    );
}

#[tokio::test]
async fn a_pinned_version_wraps_whatever_the_current_one_is() {
    let azure = Azure::start().await;
    azure.control(Method::POST, "keys/byok", json!({})).await;
    let versions = azure.versions().await;
    let pinned = azure.kms_with(|settings| settings.key.version = Some(versions[0].clone()));
    let wrapped = made(&pinned).await;
    assert_eq!(&*wrapped.1.key_version.version, versions[0].as_str());
    assert_eq!(pinned.current_version().await.expect("a version"), wrapped.1.key_version);
    assert_eq!(unwraps(&pinned, &wrapped).await, None);
    azure.attributes(Some(&versions[0]), json!({ "enabled": false })).await;
    assert_eq!(
        [wraps(&pinned).await, unwraps(&pinned, &wrapped).await],
        [Some(KmsErrorClass::KeyDisabled); 2]
    );
    assert_eq!(wraps(&azure.kms()).await, None);
}

#[tokio::test]
async fn what_fails_inside_the_vault_or_before_it_is_an_outage() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let answers = [
        (500, r#"{"error":{"code":"InternalServerError"}}"#, KmsErrorClass::Internal),
        (503, "", KmsErrorClass::Unreachable),
        (502, "<html>", KmsErrorClass::Unreachable),
        (403, "<html>Forbidden</html>", KmsErrorClass::Internal),
        (401, "", KmsErrorClass::Internal),
        (200, "<html>Welcome</html>", KmsErrorClass::Internal),
        (200, "", KmsErrorClass::Internal),
    ];
    for (status, body, class) in answers {
        azure.fault(json!({ "target": "vault", "times": 100, "status": status, "body": body })).await;
        assert_eq!(wraps(&kms).await, Some(class), "{status}");
        assert_eq!(class.verdict(), Verdict::Outage);
        azure.mend().await;
        assert_eq!(wraps(&kms).await, None);
    }
}

#[tokio::test]
async fn an_error_has_the_status_and_the_vaults_own_request_id() {
    let azure = Azure::start().await;
    azure.forbid().await;
    let error = azure.kms().wrap(&[(binding(), &Dek::generate())]).await.remove(0).expect_err("denied");
    assert_eq!(error.http_status, Some(403));
    let log = azure.control(Method::GET, "audit", json!({})).await;
    let record = log.as_array().expect("records").last().expect("one").clone();
    assert_eq!(record["correlationId"].as_str(), error.request_id.as_deref());
    assert_eq!(
        (&record["operationName"], &record["properties"]["httpStatusCode"]),
        (&json!("KeyWrap"), &json!(403))
    );

    // Requests that are refused before they reach the vault are not in its log, and a token request
    // is not a call of the key.
    azure.fault(json!({ "target": "authority", "times": 100, "aadsts": 7000215 })).await;
    let error = azure.kms().wrap(&[(binding(), &Dek::generate())]).await.remove(0).expect_err("no token");
    assert_eq!(error.request_id, None);
}
