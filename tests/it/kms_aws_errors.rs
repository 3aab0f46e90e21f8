//! Every refusal of AWS KMS that fakecloud can give, with strict IAM and checked signatures: what
//! the customer changes, and how we classify the error.

use byok::config::{AwsCredentials, AwsKeyArn};
use byok::crypto::{Dek, SecretText};
use byok::kms::{AwsKms, DekBinding, Kms, KmsDiagnosis, KmsError, KmsErrorClass};
use byok::model::{KeyVersion, Wrapped};
use serde_json::json;

use crate::support::aws::{CANARY, Cloud, Fault, Front, Key, permissions};
use crate::support::calls::{binding, unwraps};

async fn wrapped(kms: &AwsKms) -> (DekBinding, Wrapped) {
    let binding = binding();
    (binding, kms.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped)
}

async fn rewraps(kms: &AwsKms, wrapped: &(DekBinding, Wrapped)) -> Option<KmsErrorClass> {
    let to = wrapped.1.key_version.clone();
    kms.rewrap(std::slice::from_ref(wrapped), &to).await.remove(0).err().map(|error| error.class)
}

async fn generates(kms: &AwsKms) -> Option<KmsErrorClass> {
    kms.generate(&[binding()]).await.remove(0).err().map(|error| error.class)
}

/// The outcome of each operation in turn.
async fn each(kms: &AwsKms, old: &(DekBinding, Wrapped)) -> [Option<KmsErrorClass>; 4] {
    let dek = Dek::generate();
    let wraps = kms.wrap(&[(binding(), &dek)]).await.remove(0).err().map(|error| error.class);
    [generates(kms).await, wraps, unwraps(kms, old).await, rewraps(kms, old).await]
}

#[tokio::test]
async fn a_users_policy_that_is_removed_and_put_back() {
    let key = Cloud::shared().key().await;
    let kms = key.kms();
    let old = wrapped(&kms).await;
    assert_eq!(each(&kms, &old).await, [None; 4]);
    key.allow(false).await;
    assert_eq!(each(&kms, &old).await, [Some(KmsErrorClass::AccessDenied); 4]);
    key.allow(true).await;
    assert_eq!(each(&kms, &old).await, [None; 4]);
}

#[tokio::test]
async fn a_key_that_is_disabled_and_enabled() {
    let key = Cloud::shared().key().await;
    let kms = key.kms();
    let old = wrapped(&kms).await;
    key.as_customer("DisableKey").await;
    assert_eq!(each(&kms, &old).await, [Some(KmsErrorClass::KeyDisabled); 4]);
    key.as_customer("EnableKey").await;
    assert_eq!(each(&kms, &old).await, [None; 4]);
}

#[tokio::test]
async fn a_deletion_that_is_scheduled_and_cancelled() {
    let key = Cloud::shared().key().await;
    let kms = key.kms();
    let old = wrapped(&kms).await;
    key.schedule_deletion().await;
    assert_eq!(each(&kms, &old).await, [Some(KmsErrorClass::KeyPendingDeletion); 4]);
    key.as_customer("CancelKeyDeletion").await;
    // A key is disabled after its deletion was cancelled.
    assert_eq!(each(&kms, &old).await, [Some(KmsErrorClass::KeyDisabled); 4]);
    key.as_customer("EnableKey").await;
    assert_eq!(each(&kms, &old).await, [None; 4]);
}

#[tokio::test]
async fn a_context_that_is_another_deks() {
    let kms = Cloud::shared().key().await.kms();
    let (_, theirs) = wrapped(&kms).await;
    let moved = (binding(), theirs);
    assert_eq!(unwraps(&kms, &moved).await, Some(KmsErrorClass::InvalidWrappedDek));
    assert_eq!(rewraps(&kms, &moved).await, Some(KmsErrorClass::InvalidWrappedDek));
}

#[tokio::test]
async fn a_wrapped_dek_that_was_altered() {
    let kms = Cloud::shared().key().await.kms();
    let mut old = wrapped(&kms).await;
    let last = old.1.bytes.len() - 1;
    old.1.bytes[last] ^= 1;
    assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::InvalidWrappedDek));
    for length in [0, 6145] {
        old.1.bytes = vec![1; length];
        assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::InvalidWrappedDek));
    }
}

#[tokio::test]
async fn a_wrapped_dek_of_another_key_of_the_customers() {
    let (one, other) = (Cloud::shared().key().await, Cloud::shared().key().await);
    let mut theirs = wrapped(&other.kms()).await;
    theirs.1.key_version = KeyVersion::new(one.id(), "1");
    one.user.permit(&permissions("*", &[])).await;
    assert_eq!(unwraps(&one.kms(), &theirs).await, Some(KmsErrorClass::InvalidWrappedDek));
}

#[tokio::test]
async fn a_key_that_never_was() {
    let key = Cloud::shared().key().await;
    key.user.permit(&permissions("*", &[])).await;
    let unknown = key.arn.replace(key.id(), "00000000-0000-4000-8000-000000000000");
    let kms = key.kms_with(|settings| settings.key = AwsKeyArn::parse(&unknown).expect("an ARN"));
    assert_eq!(generates(&kms).await, Some(KmsErrorClass::KeyNotFound));
}

#[tokio::test]
async fn an_alias_that_never_was() {
    let key = Cloud::shared().key().await;
    key.user.permit(&permissions("*", &[])).await;
    let unknown = key.arn.replace(&format!("key/{}", key.id()), "alias/never-was");
    let kms = key.kms_with(|settings| settings.key = AwsKeyArn::parse(&unknown).expect("an ARN"));
    assert_eq!(generates(&kms).await, Some(KmsErrorClass::KeyNotFound));
}

#[tokio::test]
async fn a_key_without_its_imported_material() {
    let key = Cloud::shared().key_with(json!({ "Origin": "EXTERNAL" })).await;
    assert_eq!(generates(&key.kms()).await, Some(KmsErrorClass::KeyPendingDeletion));
    key.user.permit(&permissions(&key.arn, &["kms:DescribeKey"])).await;
    let found = key.kms().exposure().await;
    assert!(found.iter().any(|exposure| exposure.what.contains("imported key material is missing")));
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_or_deleted_access_key() {
    let key = Cloud::shared().key().await;
    let with = |id: &str, secret: &str| {
        let credentials = AwsCredentials::Keys {
            access_key_id: id.to_owned(),
            secret_access_key: SecretText::new(secret.to_owned()),
            session_token: None,
        };
        key.kms_with(|settings| settings.credentials = credentials)
    };
    let wrong = "x".repeat(40);
    assert_eq!(generates(&with(&key.user.id, &wrong)).await, Some(KmsErrorClass::CredentialInvalid));
    assert_eq!(
        generates(&with("AKIAIOSFODNN7EXAMPLE", &wrong)).await,
        Some(KmsErrorClass::CredentialInvalid)
    );
    let good = key.kms();
    assert_eq!(generates(&good).await, None);
    key.user.delete_access_key().await;
    assert_eq!(generates(&good).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn an_answer_that_names_another_key_is_not_used() {
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key_with(json!({ "MultiRegion": true })).await, Front::of(&cloud).await);
    let kms = key.kms_with(|settings| settings.endpoint = Some(front.address.parse().expect("an address")));
    let old = wrapped(&kms).await;
    let before = front.calls().len();
    for operation in ["GenerateDataKey", "Encrypt", "Decrypt", "ReEncrypt"] {
        front.fail(operation, 9, Fault::OtherKey);
    }
    assert_eq!(each(&kms, &old).await, [Some(KmsErrorClass::Misconfigured); 4]);
    assert_eq!(front.calls().len() - before, 4, "nothing is retried, and nothing is sent elsewhere");
}

#[tokio::test]
async fn an_alias_is_resolved_once_and_its_key_pinned() {
    let cloud = Cloud::shared();
    let (key, other) = (cloud.key().await, cloud.key().await);
    let alias = key.alias().await;
    let front = Front::of(&cloud).await;
    let kms = key.kms_with(|settings| {
        settings.key = AwsKeyArn::parse(&alias).expect("an ARN");
        settings.endpoint = Some(front.address.parse().expect("an address"));
    });
    let old = wrapped(&kms).await;
    assert_eq!(&*old.1.key_version.key, key.id());
    let name = format!("alias/{}", alias.rsplit('/').next().expect("a name"));
    cloud.kms("UpdateAlias", json!({ "AliasName": name, "TargetKeyId": other.id() })).await;
    key.user.permit(&permissions("*", &[])).await;
    assert_eq!(&*wrapped(&kms).await.1.key_version.key, key.id());
    assert_eq!(each(&kms, &old).await, [None; 4]);
    let under_alias = front.calls().iter().filter(|call| call.body["KeyId"] == json!(alias)).count();
    assert_eq!(under_alias, 1);
    // A process that starts now has another key, and reports that about what the first one wrapped.
    let later = key.kms_with(|settings| settings.key = AwsKeyArn::parse(&alias).expect("an ARN"));
    assert_eq!(unwraps(&later, &old).await, Some(KmsErrorClass::WrappedByAnotherKey));
}

#[tokio::test]
async fn an_alias_of_a_key_in_another_region_is_not_taken() {
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    front.fail("GenerateDataKey", 9, Fault::OtherKey);
    let alias = key.alias().await;
    let kms = key.kms_with(|settings| {
        settings.key = AwsKeyArn::parse(&alias).expect("an ARN");
        settings.endpoint = Some(front.address.parse().expect("an address"));
    });
    assert_eq!(generates(&kms).await, Some(KmsErrorClass::Misconfigured));
}

#[tokio::test]
async fn every_aws_code_follows_the_table_and_its_words_go_nowhere() {
    use KmsErrorClass::*;
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    for (status, code, class) in [
        (400, "AccessDeniedException", AccessDenied),
        (400, "DisabledException", KeyDisabled),
        (400, "KMSInvalidStateException", KeyPendingDeletion),
        (400, "NotFoundException", KeyNotFound),
        (400, "InvalidCiphertextException", InvalidWrappedDek),
        (400, "IncorrectKeyException", InvalidWrappedDek),
        (400, "ExpiredTokenException", CredentialInvalid),
        (400, "UnrecognizedClientException", CredentialInvalid),
        (403, "InvalidSignatureException", CredentialInvalid),
        (400, "ThrottlingException", Throttled),
        (400, "LimitExceededException", Throttled),
        (400, "KeyUnavailableException", Unreachable),
        (500, "DependencyTimeoutException", Unreachable),
        (503, "ServiceUnavailableException", Unreachable),
        (500, "KMSInternalException", Internal),
        (500, "ANewException", Internal),
        (400, "InvalidKeyUsageException", Misconfigured),
        (400, "ValidationException", Misconfigured),
        (400, "DryRunOperationException", Misconfigured),
        (400, "com.amazonaws.kms#DisabledException", KeyDisabled),
    ] {
        front.heal();
        front.fail("Decrypt", 9, Fault::Error(status, code));
        let kms =
            key.kms_with(|settings| settings.endpoint = Some(front.address.parse().expect("an address")));
        let error = answer(&kms, &wrapped(&kms).await).await;
        assert_eq!((error.class, error.http_status), (class, Some(status)), "{code}");
        assert!(error.request_id.is_some() && !format!("{error:?}").contains(CANARY));
    }
}

#[tokio::test]
async fn what_is_not_awss_is_never_a_refusal() {
    use KmsErrorClass::*;
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    for (status, text, class) in [
        (403, "<html>sign in</html>", Internal),
        // AWS's format, but without AWS's request id.
        (403, r#"{"__type":"AccessDeniedException"}"#, Internal),
        (400, r#"{"__type":"DisabledException"}"#, Internal),
        (302, "", Internal),
        (404, "nothing here", Internal),
        (407, "proxy", Internal),
        (429, "slow down", Throttled),
        (502, "<html>bad gateway</html>", Unreachable),
        (503, "", Unreachable),
        (504, "", Unreachable),
        (200, "<html>sign in</html>", Internal),
        (200, "{}", Internal),
        (200, r#"{"KeyId":"arn:aws:kms:eu-west-1:123456789012:key/x"}"#, Misconfigured),
    ] {
        front.heal();
        front.fail("Decrypt", 9, Fault::Answer(status, text));
        let kms =
            key.kms_with(|settings| settings.endpoint = Some(front.address.parse().expect("an address")));
        let error = answer(&kms, &wrapped(&kms).await).await;
        assert_eq!((error.class, error.http_status), (class, Some(status)), "{text}");
    }
}

async fn answer(kms: &AwsKms, wrapped: &(DekBinding, Wrapped)) -> KmsError {
    kms.unwrap(std::slice::from_ref(wrapped)).await.remove(0).err().expect("it is refused")
}

#[tokio::test]
async fn what_we_send_names_the_key_and_binds_the_dek() {
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    let kms = key.kms_with(|settings| settings.endpoint = Some(front.address.parse().expect("an address")));
    let old = wrapped(&kms).await;
    assert_eq!(each(&kms, &old).await, [None; 4]);
    let context = json!({ "byok:tenant": "07".repeat(16), "byok:dek": old.0.dek_id.to_string() });
    for call in front.calls() {
        match call.operation.as_str() {
            "Decrypt" => {
                assert_eq!(
                    (&call.body["KeyId"], &call.body["EncryptionContext"]),
                    (&json!(key.arn), &context)
                );
            }
            "ReEncrypt" => {
                assert_eq!([&call.body["SourceKeyId"], &call.body["DestinationKeyId"]], [&json!(key.arn); 2]);
                for side in ["SourceEncryptionContext", "DestinationEncryptionContext"] {
                    assert_eq!(call.body[side], context);
                }
            }
            "GenerateDataKey" | "Encrypt" => assert_eq!(call.body["KeyId"], json!(key.arn)),
            "ListKeyRotations" => {}
            other => panic!("{other} was not requested"),
        }
    }
}

#[tokio::test]
async fn doctor_is_told_what_a_state_means_where_we_may_look() {
    let key: Key = Cloud::shared().key_with(json!({ "MultiRegion": true })).await;
    key.user.permit(&permissions(&key.arn, &["kms:DescribeKey"])).await;
    let kms = key.kms();
    let what = |kms: AwsKms| async move {
        kms.exposure().await.into_iter().map(|open| open.what).collect::<Vec<_>>().join("\n")
    };
    key.schedule_deletion().await;
    let told = what(kms).await;
    for expected in ["scheduled for deletion", "multi-region", "never expires"] {
        assert!(told.contains(expected), "{told}");
    }
}
