//! The output of `byok policy aws-kms` is what the role needs, and nothing more: fakecloud enforces
//! the identity policy and the trust policy. It does not know ReEncryptFrom and ReEncryptTo (see
//! `support::aws`), and does not enforce key policies.

use byok::crypto::Dek;
use byok::kms::{AwsKms, DekBinding, Kms, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};
use serde_json::{Value, json};

use crate::support::aws::{Cloud, Key, re_encrypt_of_fakecloud};
use crate::support::printed_policy;

/// The printed JSON documents, in order.
pub(crate) fn printed(variables: &[(&str, &str)]) -> Vec<Value> {
    let text = printed_policy("aws-kms", variables);
    let json: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    serde_json::Deserializer::from_str(&json).into_iter().map(|document| document.expect("JSON")).collect()
}

/// The outcomes of generate, wrap, unwrap and rewrap with a key.
async fn classes(kms: &AwsKms, key: &Key) -> [Option<KmsErrorClass>; 4] {
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    // The DEK is made by a user who may.
    let made = key.kms().generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped;
    let to = made.key_version.clone();
    [
        kms.generate(&[binding]).await.remove(0).err().map(|error| error.class),
        kms.wrap(&[(binding, &Dek::generate())]).await.remove(0).err().map(|error| error.class),
        kms.unwrap(&[(binding, made.clone())]).await.remove(0).err().map(|error| error.class),
        kms.rewrap(&[(binding, made)], &to).await.remove(0).err().map(|error| error.class),
    ]
}

#[tokio::test]
async fn it_grants_wrap_unwrap_and_rewrap_on_this_key_alone() {
    let cloud = Cloud::shared();
    let (ours, other) = (cloud.key().await, cloud.key().await);
    let mut permissions = printed(&[("BYOK_AWS_KEY_ARN", &ours.arn)]).remove(0);
    permissions["Statement"].as_array_mut().expect("a list").push(re_encrypt_of_fakecloud());
    let user = cloud.user().await;
    user.permit(&permissions).await;
    let us = |key: &Key| key.kms_with(|settings| settings.credentials = user.credentials());
    assert_eq!(classes(&us(&ours), &ours).await, [None; 4]);
    assert_eq!(classes(&us(&other), &other).await[..3], [Some(KmsErrorClass::AccessDenied); 3]);
}

#[tokio::test]
async fn each_of_the_actions_that_serving_needs_is_needed() {
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    let permissions = printed(&[("BYOK_AWS_KEY_ARN", &key.arn)]).remove(0);
    for (action, lost) in [("kms:GenerateDataKey", 0), ("kms:Encrypt", 1), ("kms:Decrypt", 2)] {
        let mut less = permissions.clone();
        let actions = less["Statement"][0]["Action"].as_array_mut().expect("a list");
        actions.retain(|listed| listed != action);
        less["Statement"].as_array_mut().expect("a list").push(re_encrypt_of_fakecloud());
        let user = cloud.user().await;
        user.permit(&less).await;
        let kms = key.kms_with(|settings| settings.credentials = user.credentials());
        let mut expected = [None; 4];
        expected[lost] = Some(KmsErrorClass::AccessDenied);
        assert_eq!(classes(&kms, &key).await, expected, "{action}");
    }
}

#[tokio::test]
async fn its_trust_policy_requires_the_external_id_to_take_the_role() {
    let key = Cloud::shared().key().await;
    let role = key.role("another").await;
    let variables = [
        ("BYOK_AWS_KEY_ARN", key.arn.as_str()),
        ("BYOK_AWS_ROLE_ARN", &role.arn),
        ("BYOK_AWS_EXTERNAL_ID", "byok-7f3a"),
    ];
    let documents = printed(&variables);
    assert_eq!(documents[1]["Statement"][0]["Principal"]["AWS"], role.arn);
    let mut trust = documents[2].clone();
    // The only value that the customer fills in: our principal.
    trust["Statement"][0]["Principal"] = json!({ "AWS": key.user.arn });
    role.trust_by(&trust).await;
    for (id, class) in [("byok-7f3a", None), ("another", Some(KmsErrorClass::AccessDenied))] {
        let kms = key.kms_with(|settings| settings.role = Some(role.settings(Some(id))));
        let binding =
            DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
        assert_eq!(kms.generate(&[binding]).await.remove(0).err().map(|error| error.class), class);
    }
}

#[tokio::test]
async fn its_optional_rights_are_apart() {
    let key = Cloud::shared().key().await;
    let documents = printed(&[("BYOK_AWS_KEY_ARN", &key.arn)]);
    for right in ["kms:ListKeyRotations", "kms:DescribeKey"] {
        let grants: Vec<_> = documents.iter().map(|document| document.to_string().contains(right)).collect();
        assert_eq!(grants, [false, false, false, true, false], "{right}");
    }
}
