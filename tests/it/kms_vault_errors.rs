//! Every error of Vault's that we know, provoked at a real Vault: first Vault's exact text, then
//! our classification. A text that a later Vault changes fails here.

use std::num::NonZeroU64;

use byok::config::KeyVersionStrategy;
use byok::kms::{DekBinding, Kms, KmsErrorClass, VaultTransit};
use byok::model::{KeyVersion, Wrapped};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::calls::{binding, unwraps, wraps};
use crate::support::vault::{OwnServer, Transit, Vault};

fn named(text: &str) -> (DekBinding, Wrapped) {
    let wrapped =
        Wrapped { bytes: text.as_bytes().to_vec(), key_version: KeyVersion::new("byok", "1"), scheme: 1 };
    (binding(), wrapped)
}

fn pinned(transit: &Transit, version: u64) -> impl Future<Output = VaultTransit> {
    let transit = transit.clone();
    async move {
        transit.kms_with(&transit.token().await, |settings| {
            settings.version = KeyVersionStrategy::Pinned(NonZeroU64::new(version).expect("not zero"));
        })
    }
}

async fn rewraps(kms: &VaultTransit, wrapped: &(DekBinding, Wrapped), to: &str) -> Option<KmsErrorClass> {
    let answers = kms.rewrap(std::slice::from_ref(wrapped), &KeyVersion::new("byok", to)).await;
    answers.into_iter().next().and_then(Result::err).map(|error| error.class)
}

async fn wrapped(kms: &VaultTransit) -> (DekBinding, Wrapped) {
    let binding = binding();
    let made = kms.generate(&[binding]).await.remove(0).expect("a DEK");
    (binding, made.value.wrapped)
}

fn text_of(answer: &Value) -> &str {
    answer["errors"][0].as_str().or(answer["data"]["batch_results"][0]["error"].as_str()).unwrap_or_default()
}

/// The answer of Vault itself to the holder of the root token.
async fn vault_answer(transit: &Transit, path: &str, body: Value) -> (u16, String) {
    let (status, answer) =
        transit.vault.answer(Method::POST, &format!("{}/{path}", transit.mount), body).await;
    (status, text_of(&answer).to_owned())
}

fn plaintext(more: Value) -> Value {
    let mut item = json!({ "plaintext": "AAAA" });
    item.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({ "batch_input": [item] })
}

fn ciphertext(text: &str) -> Value {
    json!({ "batch_input": [{ "ciphertext": text }] })
}

#[tokio::test]
async fn a_token_that_never_was() {
    let transit = Vault::shared().transit().await;
    let path = format!("{}/encrypt/byok", transit.mount);
    let (status, answer) =
        transit.vault.answer_to("hvs.never", Method::POST, &path, plaintext(json!({}))).await;
    assert_eq!(
        (status, text_of(&answer)),
        (403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
    );
    assert_eq!(wraps(&transit.kms_as("hvs.never")).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn a_token_that_was_revoked() {
    let transit = Vault::shared().transit().await;
    let token = transit.token().await;
    let kms = transit.kms_as(&token);
    assert_eq!(wraps(&kms).await, None);
    transit.vault.write("auth/token/revoke", json!({ "token": token })).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn a_policy_that_does_not_let_us() {
    let transit = Vault::shared().transit().await;
    let (token, path) = (transit.token().await, format!("{}/encrypt/byok", transit.mount));
    transit.allow(false).await;
    let (status, answer) = transit.vault.answer_to(&token, Method::POST, &path, plaintext(json!({}))).await;
    assert_eq!((status, text_of(&answer)), (403, "1 error occurred:\n\t* permission denied\n\n"));
    assert_eq!(wraps(&transit.kms_as(&token)).await, Some(KmsErrorClass::AccessDenied));
}

#[tokio::test]
async fn a_key_that_is_missing() {
    let transit = Vault::shared().transit().await;
    let text_at = async |path: &str, body| vault_answer(&transit, path, body).await.1;
    let refused = "key type ecdsa-p256 not supported for this operation";
    let mut body = plaintext(json!({}));
    body["type"] = "ecdsa-p256".into();
    assert_eq!(text_at("encrypt/missing", body).await, refused);
    assert_eq!(text_at("decrypt/missing", ciphertext("vault:v1:AAAA")).await, "encryption key not found");
    assert_eq!(text_at("rewrap/missing", ciphertext("vault:v1:AAAA")).await, "encryption key not found");
    let root = transit.kms_with(&transit.vault.root, |settings| settings.key = "missing".to_owned());
    let mut old = named("vault:v1:AAAA");
    old.1.key_version = KeyVersion::new("missing", "1");
    assert_eq!(wraps(&root).await, Some(KmsErrorClass::KeyNotFound));
    assert_eq!(unwraps(&root, &old).await, Some(KmsErrorClass::KeyNotFound));
    let again = root.rewrap(&[old.clone()], &old.1.key_version).await.remove(0);
    assert_eq!(again.err().map(|error| error.class), Some(KmsErrorClass::KeyNotFound));
    assert_eq!(transit.keys().await, json!(["byok"]));
}

#[tokio::test]
async fn an_ordinary_encrypt_would_have_created_the_missing_key() {
    let transit = Vault::shared().transit().await;
    assert_eq!(vault_answer(&transit, "encrypt/missing", plaintext(json!({}))).await.0, 200);
    assert_eq!(transit.keys().await, json!(["byok", "missing"]));
}

#[tokio::test]
async fn whether_an_ordinary_encrypt_would_create_a_key_can_be_asked() {
    let transit = Vault::shared().transit().await;
    assert_eq!(transit.kms().await.upsert_possible().await, Some(false));
    let root = transit.kms_as(&transit.vault.root);
    assert_eq!(root.upsert_possible().await, Some(true));
    transit.write("config/keys", json!({ "disable_upsert": true })).await;
    assert_eq!(root.upsert_possible().await, Some(false));
    assert_eq!(transit.kms_as("hvs.never").upsert_possible().await, None);
}

#[tokio::test]
async fn a_wrapped_dek_that_was_altered() {
    let transit = Vault::shared().transit().await;
    let kms = transit.kms().await;
    let good = String::from_utf8(wrapped(&kms).await.1.bytes).expect("text");
    let flipped = if good.as_bytes()[30] == b'A' { "B" } else { "A" };
    let cases = [
        (format!("{}{flipped}{}", &good[..30], &good[31..]), "cipher: message authentication failed"),
        ("vault:v1:AAAA".to_owned(), "invalid ciphertext length"),
        ("vault:v1:!!!!".to_owned(), "invalid ciphertext: could not decode base64"),
        (good.replace("vault:v1:", "vault:v9:"), "invalid ciphertext: version is too new"),
    ];
    for (bad, text) in cases {
        assert_eq!(vault_answer(&transit, "decrypt/byok", ciphertext(&bad)).await, (400, text.to_owned()));
        assert_eq!(vault_answer(&transit, "rewrap/byok", ciphertext(&bad)).await, (200, text.to_owned()));
        assert_eq!(unwraps(&kms, &named(&bad)).await, Some(KmsErrorClass::InvalidWrappedDek), "{text}");
        assert_eq!(rewraps(&kms, &named(&bad), "1").await, Some(KmsErrorClass::InvalidWrappedDek), "{text}");
    }
}

#[tokio::test]
async fn a_wrapped_dek_that_rsa_does_not_open() {
    let transit = Vault::shared().transit().await;
    transit.write("keys/rsa", json!({ "type": "rsa-2048" })).await;
    let kms = transit.kms_with(&transit.token().await, |settings| settings.key = "rsa".to_owned());
    let mut good = wrapped(&kms).await;
    assert_eq!(unwraps(&kms, &good).await, None);
    let text = "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error";
    assert_eq!(
        vault_answer(&transit, "decrypt/rsa", ciphertext("vault:v1:AAAA")).await,
        (500, text.to_owned())
    );
    good.1.bytes = b"vault:v1:AAAA".to_vec();
    assert_eq!(unwraps(&kms, &good).await, Some(KmsErrorClass::InvalidWrappedDek));
}

#[tokio::test]
async fn what_a_key_that_was_made_anew_did_not_wrap() {
    let transit = Vault::shared().transit().await;
    let kms = transit.kms().await;
    let old = wrapped(&kms).await;
    transit.write("keys/byok/config", json!({ "deletion_allowed": true })).await;
    let path = format!("{}/keys/byok", transit.mount);
    transit.vault.answer(Method::DELETE, &path, json!({})).await;
    transit.write("keys/byok", json!({})).await;
    assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::InvalidWrappedDek));
}

#[tokio::test]
async fn a_version_below_the_minimum() {
    let transit = Vault::shared().transit().await;
    let kms = transit.kms().await;
    let old = wrapped(&kms).await;
    transit.write("keys/byok/rotate", json!({})).await;
    transit.write("keys/byok/config", json!({ "min_encryption_version": 2 })).await;
    let first = pinned(&transit, 1).await;
    let text = "requested version for encryption is less than the minimum encryption key version";
    assert_eq!(vault_answer(&transit, "encrypt/byok", plaintext(json!({ "key_version": 1 }))).await.1, text);
    assert_eq!(wraps(&first).await, Some(KmsErrorClass::KeyVersionUnavailable));
    assert_eq!(rewraps(&kms, &old, "1").await, Some(KmsErrorClass::KeyVersionUnavailable));
    assert_eq!(unwraps(&kms, &old).await, None);

    transit
        .write("keys/byok/config", json!({ "min_encryption_version": 0, "min_decryption_version": 2 }))
        .await;
    let text = "ciphertext or signature version is disallowed by policy (too old)";
    let sent = ciphertext(std::str::from_utf8(&old.1.bytes).expect("text"));
    assert_eq!(vault_answer(&transit, "decrypt/byok", sent).await.1, text);
    assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::KeyVersionUnavailable));
    assert_eq!(rewraps(&kms, &old, "2").await, Some(KmsErrorClass::KeyVersionUnavailable));
    assert_eq!(
        vault_answer(&transit, "encrypt/byok", plaintext(json!({ "key_version": 1 }))).await.1,
        "no such key version"
    );
    assert_eq!(wraps(&first).await, Some(KmsErrorClass::KeyVersionUnavailable));
}

#[tokio::test]
async fn a_pinned_version_that_is_not_there_yet() {
    let transit = Vault::shared().transit().await;
    let kms = pinned(&transit, 2).await;
    let text = "requested version for encryption is higher than the latest key version";
    assert_eq!(vault_answer(&transit, "encrypt/byok", plaintext(json!({ "key_version": 2 }))).await.1, text);
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
    assert_eq!(
        kms.current_version().await.err().map(|error| error.class),
        Some(KmsErrorClass::Misconfigured)
    );
    transit.write("keys/byok/rotate", json!({})).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_pinned_version_wraps_whatever_is_newer() {
    let transit = Vault::shared().transit().await;
    transit.write("keys/byok/rotate", json!({})).await;
    let kms = pinned(&transit, 1).await;
    assert_eq!(wrapped(&kms).await.1.key_version, KeyVersion::new("byok", "1"));
    assert_eq!(kms.current_version().await, Ok(KeyVersion::new("byok", "1")));
}

#[tokio::test]
async fn a_key_that_does_not_encrypt_or_wants_a_context() {
    let transit = Vault::shared().transit().await;
    transit.write("keys/signs", json!({ "type": "ed25519" })).await;
    transit.write("keys/derives", json!({ "derived": true })).await;
    let texts = [
        ("encrypt/signs", "message encryption not supported for key type ed25519"),
        ("decrypt/signs", "message decryption not supported for key type ed25519"),
        ("encrypt/derives", "missing 'context' for key derivation"),
    ];
    for (path, text) in texts {
        let mut body = plaintext(json!({}));
        body["batch_input"][0]["ciphertext"] = "vault:v1:AAAA".into();
        assert!(vault_answer(&transit, path, body).await.1.starts_with(text), "{path}");
    }
    let token = transit.token().await;
    for key in ["signs", "derives"] {
        let kms = transit.kms_with(&token, |settings| settings.key = key.to_owned());
        let mut old = named("vault:v1:AAAA");
        old.1.key_version = KeyVersion::new(key, "1");
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured), "{key}");
        assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::Misconfigured), "{key}");
    }
}

#[tokio::test]
async fn a_mount_that_is_missing_or_something_else() {
    let transit = Vault::shared().transit().await;
    let root = transit.vault.root.clone();
    for (mount, text) in [
        ("nowhere", "no handler for route \"nowhere/encrypt/byok\"."),
        ("identity", "1 error occurred:\n\t* unsupported path"),
    ] {
        let other = Transit { mount: mount.to_owned(), ..transit.clone() };
        let (status, answered) = vault_answer(&other, "encrypt/byok", plaintext(json!({}))).await;
        assert!(status == 404 && answered.starts_with(text), "{status} {answered}");
        assert_eq!(wraps(&other.kms_as(&root)).await, Some(KmsErrorClass::Misconfigured), "{mount}");
    }
}

#[tokio::test]
async fn a_vault_that_is_sealed_and_unsealed_again() {
    let server = OwnServer::start().await;
    let transit = server.vault.transit().await;
    let kms = transit.kms().await;
    let old = wrapped(&kms).await;
    server.seal().await;
    assert_eq!(
        vault_answer(&transit, "encrypt/byok", plaintext(json!({}))).await,
        (503, "Vault is sealed".to_owned())
    );
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Sealed));
    assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::Sealed));
    server.unseal().await;
    assert_eq!(unwraps(&kms, &old).await, None);
}

#[tokio::test]
async fn too_many_calls() {
    let server = OwnServer::start().await;
    let transit = server.vault.transit().await;
    let kms = transit.kms().await;
    assert_eq!(wraps(&kms).await, None);
    let quota = json!({ "rate": 0.1, "interval": "1m", "path": format!("{}/", transit.mount) });
    server.vault.write("sys/quotas/rate-limit/few", quota).await;
    let mut seen = None;
    for _ in 0..10 {
        seen = seen.or(wraps(&kms).await);
    }
    assert_eq!(seen, Some(KmsErrorClass::Throttled));
    assert_eq!(vault_answer(&transit, "encrypt/byok", plaintext(json!({}))).await.0, 429);
}

#[tokio::test]
async fn an_item_error_carries_vaults_own_id_of_the_request() {
    let transit = Vault::shared().transit().await;
    let kms = transit.kms().await;
    let answers = kms.unwrap(&[named("vault:v1:AAAA"), wrapped(&kms).await]).await;
    let failed = answers[0].as_ref().err().expect("it fails");
    let id = answers[1].as_ref().ok().and_then(|answer| answer.request_id.clone()).expect("an id");
    assert_eq!((failed.http_status, failed.request_id.clone()), (Some(400), Some(id)));
}

/// Answers of OpenBao that Vault does not give, from its source code, since no OpenBao runs in the
/// tests.
mod openbao {
    use super::*;
    use crate::support::doctor;
    use crate::support::stub::{Seen, Stub, answer};
    use byok::config::VaultLogin;
    use byok::crypto::SecretText;

    /// `ErrSoftDeleted` (sdk/helper/keysutil/policy.go, v2.0.3 and v2.5.5), in a batch:
    /// builtin/logical/transit/path_encrypt.go, path_decrypt.go and path_rewrap.go.
    fn soft_deleted(seen: &Seen) -> axum::response::Response {
        let item = |item: &str| {
            format!(
                r#"{{"request_id":"0a59fa4f-4d82-d1f5-2b7b-9a2c9d7b9a2c","lease_id":"","renewable":false,"lease_duration":0,"data":{{"batch_results":[{item}]}},"wrap_info":null,"warnings":null,"auth":null}}"#
            )
        };
        match seen.path.as_str() {
            "/v1/transit/encrypt/byok" => {
                answer(400, item(r#"{"error":"refusing to use soft-deleted key","reference":""}"#))
            }
            "/v1/transit/decrypt/byok" => answer(
                400,
                item(r#"{"plaintext":"","error":"refusing to use soft-deleted key","reference":""}"#),
            ),
            "/v1/transit/rewrap/byok" => {
                answer(200, item(r#"{"error":"refusing to use soft-deleted key","reference":""}"#))
            }
            path => answer(
                404,
                format!(r#"{{"errors":["no handler for route \"{path}\". route entry not found."]}}"#),
            ),
        }
    }

    fn kms(stub: &Stub) -> VaultTransit {
        let login = VaultLogin::Token(SecretText::new("s.token".to_owned()));
        VaultTransit::new(crate::support::vault::settings(&stub.address, login))
            .expect("the settings are good")
    }

    #[tokio::test]
    async fn a_key_that_is_soft_deleted_is_turned_off() {
        let stub = Stub::start(|seen, _| soft_deleted(seen)).await;
        let (kms, old) = (kms(&stub), named("vault:v1:AAAA"));
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::KeyDisabled));
        assert_eq!(unwraps(&kms, &old).await, Some(KmsErrorClass::KeyDisabled));
        assert_eq!(rewraps(&kms, &old, "1").await, Some(KmsErrorClass::KeyDisabled));
        assert_eq!(KmsErrorClass::KeyDisabled.verdict(), byok::kms::Verdict::Revoked);
    }

    /// `ErrLockedNamespace` and `ErrNamespaceSealed`: vault/request_handling.go and
    /// sdk/logical/response_util.go, v2.3.2 to v2.6.2; a namespace of its own can be sealed from
    /// v2.6.0 on.
    #[tokio::test]
    async fn a_locked_namespace_is_turned_off_and_a_sealed_one_unreachable() {
        let locked = r#"{"errors":["API access to this namespace has been locked by an administrator - \"ns1/\" must be unlocked to gain access."]}"#;
        let sealed = r#"{"errors":["namespace is sealed"]}"#;
        for (body, class) in [(locked, KmsErrorClass::AccessDenied), (sealed, KmsErrorClass::Sealed)] {
            let stub = Stub::start(move |_, _| answer(503, body)).await;
            assert_eq!(wraps(&kms(&stub)).await, Some(class));
        }
    }

    /// OpenBao gives the same answer for a revoked or expired token as for a missing policy:
    /// `fetchACLTokenEntryAndEntity` and `handleRequest` (vault/request_handling.go, v2.0.3 to
    /// v2.6.2). `lookup-self` of a valid token: vault/token_store.go.
    async fn doctor_of(lookup_self: (u16, &'static str)) -> String {
        let stub = Stub::start_with_tokens(move |seen, _| match seen.path.as_str() {
            "/v1/auth/token/lookup-self" => answer(lookup_self.0, lookup_self.1),
            _ => answer(403, DENIED),
        })
        .await;
        let variables = [
            ("BYOK_PROVIDER", "vault-transit"),
            ("BYOK_VAULT_ADDR", stub.address.as_str()),
            ("BYOK_VAULT_TOKEN", "s.token"),
            ("BYOK_VAULT_TRANSIT_KEY", "byok"),
        ];
        doctor(&variables).await
    }

    const DENIED: &str = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;

    #[tokio::test]
    async fn doctor_names_both_causes_where_token_or_policy_may_be_wrong() {
        let report = doctor_of((403, DENIED)).await;
        assert!(report.contains("FAIL  key: making a DEK: AccessDenied"), "{report}");
        assert!(report.contains("either the token is expired or revoked, or it lacks the right"), "{report}");
        assert!(report.contains("grant `update` on transit/encrypt/byok"), "{report}");
    }

    #[tokio::test]
    async fn doctor_asks_for_the_grant_if_the_token_is_known_valid() {
        let lives = r#"{"request_id":"1b6d1bd4","lease_id":"","renewable":false,"lease_duration":0,"data":{"accessor":"a","ttl":3600},"wrap_info":null,"warnings":null,"auth":null}"#;
        let report = doctor_of((200, lives)).await;
        assert!(report.contains("grant `update` on transit/encrypt/byok"), "{report}");
        assert!(
            report.contains("the token itself is good") && !report.contains("either the token"),
            "{report}"
        );
    }
}
