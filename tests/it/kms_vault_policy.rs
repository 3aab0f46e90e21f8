//! The output of `byok policy vault-transit` is what byok needs, and nothing more: a real Vault
//! enforces it.

use byok::crypto::Dek;
use byok::kms::{DekBinding, Kms, KmsDiagnosis, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};
use serde_json::json;

use crate::support::printed_policy;
use crate::support::vault::{Transit, Vault};

/// The outcomes of wrap, unwrap and rewrap with a token that has only this policy.
async fn classes(transit: &Transit, policy: &str) -> [Option<KmsErrorClass>; 3] {
    let name = format!("{}-printed", transit.policy);
    transit.vault.write(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    let kms = transit.kms_as(&transit.vault.token(&[&name], json!({})).await);
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    // The DEK is made with a token that may.
    let made = transit.kms().await.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped;
    let to = made.key_version.clone();
    [
        kms.wrap(&[(binding, &Dek::generate())]).await.remove(0).err().map(|error| error.class),
        kms.unwrap(&[(binding, made.clone())]).await.remove(0).err().map(|error| error.class),
        kms.rewrap(&[(binding, made)], &to).await.remove(0).err().map(|error| error.class),
    ]
}

#[tokio::test]
async fn it_grants_wrap_unwrap_and_rewrap_on_this_key_alone() {
    let (ours, other) = (Vault::shared().transit().await, Vault::shared().transit().await);
    let policy = |transit: &Transit| {
        printed_policy(
            "vault-transit",
            &[("BYOK_VAULT_TRANSIT_KEY", "byok"), ("BYOK_VAULT_MOUNT", &transit.mount)],
        )
    };
    assert_eq!(classes(&ours, &policy(&ours)).await, [None; 3]);
    assert_eq!(classes(&ours, &policy(&other)).await, [Some(KmsErrorClass::AccessDenied); 3]);
}

#[tokio::test]
async fn without_the_part_for_rotation_all_but_rotation_works() {
    let transit = Vault::shared().transit().await;
    let policy = printed_policy(
        "vault-transit",
        &[("BYOK_VAULT_TRANSIT_KEY", "byok"), ("BYOK_VAULT_MOUNT", &transit.mount)],
    );
    let serving: String =
        policy.lines().filter(|line| !line.contains("/rewrap/")).map(|line| format!("{line}\n")).collect();
    assert_eq!(classes(&transit, &serving).await, [None, None, Some(KmsErrorClass::AccessDenied)]);
}

#[tokio::test]
async fn it_lets_nobody_make_a_key() {
    let transit = Vault::shared().transit().await;
    let policy = printed_policy(
        "vault-transit",
        &[("BYOK_VAULT_TRANSIT_KEY", "not-there"), ("BYOK_VAULT_MOUNT", &transit.mount)],
    );
    let name = format!("{}-printed", transit.policy);
    transit.vault.write(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    let token = transit.vault.token(&[&name], json!({})).await;
    // A direct request, without the checks of our client.
    let path = format!("{}/encrypt/not-there", transit.mount);
    let body = json!({ "plaintext": "AAAA" });
    assert_eq!(transit.vault.answer_to(&token, reqwest::Method::POST, &path, body).await.0, 403);
}

#[tokio::test]
async fn it_keeps_a_token_alive_that_lacks_the_policy_default() {
    let transit = Vault::shared().transit().await;
    let policy = printed_policy(
        "vault-transit",
        &[("BYOK_VAULT_TRANSIT_KEY", "byok"), ("BYOK_VAULT_MOUNT", &transit.mount)],
    );
    let name = format!("{}-printed", transit.policy);
    transit.vault.write(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    let token = transit.vault.token(&[&name], json!({ "period": "4s", "no_default_policy": true })).await;
    let kms = transit.kms_as(&token);
    assert_eq!(kms.knows_credential().await, Some(true));
    // Longer than the token lives without a renewal.
    tokio::time::sleep(std::time::Duration::from_secs(9)).await;
    assert_eq!(crate::support::calls::wraps(&kms).await, None);
}

#[tokio::test]
async fn with_optional_rights_doctor_says_how_a_key_was_made() {
    let transit = Vault::shared().transit().await;
    for (key, made, wanted) in [
        ("weak", json!({ "type": "aes128-gcm96" }), "weaker than the DEKs"),
        ("bound", json!({ "derived": true }), "`derived=true`"),
        ("lent", json!({ "exportable": true }), "take it out of Vault"),
        ("good", json!({}), ""),
    ] {
        transit.write(&format!("keys/{key}"), made).await;
        let policy = printed_policy(
            "vault-transit",
            &[("BYOK_VAULT_TRANSIT_KEY", key), ("BYOK_VAULT_MOUNT", &transit.mount)],
        );
        let optional = policy.replace("# path", "path");
        let name = format!("{}-{key}", transit.policy);
        transit.vault.write(&format!("sys/policies/acl/{name}"), json!({ "policy": optional })).await;
        let token = transit.vault.token(&[&name], json!({ "no_default_policy": true })).await;
        let kms = transit.kms_with(&token, |settings| settings.key = key.to_owned());
        let found: Vec<_> = kms.exposure().await.iter().map(|exposure| exposure.what).collect();
        match wanted {
            "" => assert!(found.is_empty(), "{found:?}"),
            wanted => assert!(matches!(found[..], [what] if what.contains(wanted)), "{found:?}"),
        }
        let without = transit.vault.token(&[&transit.policy], json!({})).await;
        let kms = transit.kms_with(&without, |settings| settings.key = key.to_owned());
        assert!(kms.exposure().await.is_empty(), "it reports nothing about what it may not read");
    }
}
