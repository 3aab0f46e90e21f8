//! How we fetch and renew a Vault token, at a real Vault.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use byok::config::{SecretSource, VaultLogin};
use byok::crypto::{Dek, SecretText};
use byok::kms::{Kms as _, KmsErrorClass, VaultTransit};
use byok::model::ErrorCode;
use serde_json::json;

use crate::support::calls::{binding, refused_within_the_bound, wraps};
use crate::support::server::TestServer;
use crate::support::stub::{Stub, answer};
use crate::support::vault::{Transit, Vault, settings};

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// An AppRole mount for one test.
struct AppRole {
    transit: Transit,
    mount: String,
}

impl AppRole {
    /// A mount with a role whose tokens have our policy; `more` is added to the request that
    /// creates the role.
    async fn create(more: serde_json::Value) -> Self {
        let transit = Vault::shared().transit().await;
        let mount = format!("customers/a-{}", uuid::Uuid::now_v7().simple());
        transit.vault.write(&format!("sys/auth/{mount}"), json!({ "type": "approle" })).await;
        let role = Self { transit, mount };
        role.change(json!({ "token_policies": [role.transit.policy] })).await;
        role.change(more).await;
        role
    }

    fn path(&self, rest: &str) -> String {
        format!("auth/{}/role/byok{rest}", self.mount)
    }

    async fn change(&self, to: serde_json::Value) {
        self.transit.vault.write(&self.path(""), to).await;
    }

    /// Sets Vault's default lockout, but at this many failures.
    async fn lock_out_after(&self, failures: u32) {
        let lockout = json!({
            "lockout_threshold": failures.to_string(),
            "lockout_counter_reset_duration": "15m",
            "lockout_duration": "15m",
            "lockout_disable": false,
        });
        let tune = format!("sys/auth/{}/tune", self.mount);
        self.transit.vault.write(&tune, json!({ "user_lockout_config": lockout })).await;
    }

    async fn role_id(&self) -> String {
        let role_id = self.transit.vault.read(&self.path("/role-id")).await;
        role_id["data"]["role_id"].as_str().expect("a role id").to_owned()
    }

    async fn secret_id(&self) -> String {
        let made = self.transit.vault.write(&self.path("/secret-id"), json!({})).await;
        made["data"]["secret_id"].as_str().expect("a secret id").to_owned()
    }

    async fn destroy(&self, secret_id: &str) {
        self.transit.vault.write(&self.path("/secret-id/destroy"), json!({ "secret_id": secret_id })).await;
    }

    async fn revoke_tokens(&self) {
        let path = format!("sys/leases/revoke-prefix/auth/{}/login", self.mount);
        self.transit.vault.write(&path, json!({ "sync": true })).await;
    }

    async fn kms(&self, secret_id: SecretSource) -> VaultTransit {
        let role_id = self.role_id().await;
        let login = VaultLogin::AppRole {
            mount: self.mount.clone(),
            role_id: SecretText::new(role_id),
            secret_id: Some(secret_id),
        };
        VaultTransit::new(self.transit.settings(login)).expect("the settings are good")
    }
}

fn text(secret: &str) -> SecretSource {
    SecretSource::Text(SecretText::new(secret.to_owned()))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the file is written");
}

#[tokio::test]
async fn an_approle_logs_in_when_it_is_first_needed() {
    let role = AppRole::create(json!({})).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_within_the_call() {
    let role = AppRole::create(json!({})).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&kms).await, None);
    role.revoke_tokens().await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_is_renewed_without_traffic() {
    // The secret id is valid for one login.
    let role =
        AppRole::create(json!({ "token_ttl": "4s", "token_max_ttl": "1h", "secret_id_num_uses": 1 })).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&kms).await, None);
    seconds(8).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_at_its_maximum_is_replaced() {
    let role = AppRole::create(json!({ "token_ttl": "4s", "token_max_ttl": "6s" })).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    for _ in 0..5 {
        assert_eq!(wraps(&kms).await, None);
        seconds(2).await;
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_replaced_before_its_end() {
    let role = AppRole::create(json!({ "token_ttl": "4s", "token_type": "batch" })).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    for _ in 0..3 {
        assert_eq!(wraps(&kms).await, None);
        seconds(2).await;
    }
}

#[tokio::test]
async fn a_destroyed_secret_id_is_invalid_until_its_file_has_another() {
    let role = AppRole::create(json!({})).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let secret_id = role.secret_id().await;
    write(file.path(), &format!("{secret_id}\n"));
    let kms = role.kms(SecretSource::File(file.path().to_owned())).await;
    assert_eq!(wraps(&kms).await, None);
    role.destroy(&secret_id).await;
    role.revoke_tokens().await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::LoginPaused));
    write(file.path(), &role.secret_id().await);
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn destroying_a_secret_id_alone_ends_its_token_within_the_bound() {
    let role = AppRole::create(json!({})).await;
    let secret_id = role.secret_id().await;
    let kms = role.kms(text(&secret_id)).await;
    assert_eq!(wraps(&kms).await, None);
    role.destroy(&secret_id).await;
    // The login in the background has presented it; it is not presented again yet.
    assert_eq!(refused_within_the_bound(&kms).await, KmsErrorClass::LoginPaused);
}

#[tokio::test]
async fn wrong_secrets_lock_no_role_out_and_good_ones_work_immediately() {
    let role = AppRole::create(json!({})).await;
    role.lock_out_after(5).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let kms = role.kms(SecretSource::File(file.path().to_owned())).await;
    for wrong in ["wrong-1", "wrong-2"] {
        write(file.path(), wrong);
        // Callers that hang up before the login is answered leave its refusal to the others.
        let hang_up = || tokio::time::timeout(Duration::from_millis(1), wraps(&kms));
        futures_util::future::join_all((0..20).map(|_| hang_up())).await;
        // A client that retried after 1, 2, 4 and 8 s would be refused six times in all.
        for _ in 0..32 {
            assert_ne!(wraps(&kms).await, None);
            tokio::time::sleep(Duration::from_millis(125)).await;
        }
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::LoginPaused));
    }
    write(file.path(), &role.secret_id().await);
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn the_fourth_wrong_secret_in_a_row_is_not_shown() {
    let role = AppRole::create(json!({})).await;
    role.lock_out_after(4).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let kms = role.kms(SecretSource::File(file.path().to_owned())).await;
    for wrong in ["wrong-1", "wrong-2", "wrong-3"] {
        write(file.path(), wrong);
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    write(file.path(), "wrong-4");
    let answers = kms.wrap(&[(binding(), &Dek::generate())]).await;
    let Err(paused) = &answers[0] else { panic!("it is refused") };
    assert_eq!((paused.class, paused.class.code()), (KmsErrorClass::LoginPaused, ErrorCode::KmsUnavailable));
    let wait = paused.retry_after.expect("a time").as_secs();
    assert!((1_100..=1_200).contains(&wait), "{wait}");
    // The role is not locked out.
    let another = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&another).await, None);
}

#[tokio::test]
async fn a_role_that_others_locked_out_is_tried_again_and_again() {
    let role = AppRole::create(json!({})).await;
    role.lock_out_after(1).await;
    assert_eq!(wraps(&role.kms(text("wrong")).await).await, Some(KmsErrorClass::CredentialInvalid));
    let kms = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    // An uncounted refusal is at most a minute old, and so is returned again.
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    role.transit
        .vault
        .write(
            &format!("sys/auth/{}/tune", role.mount),
            json!({
                "user_lockout_config": { "lockout_disable": true },
            }),
        )
        .await;
    seconds(1).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_renewal_in_the_background_never_locks_a_role_out() {
    let role = AppRole::create(json!({ "token_ttl": "2s", "token_max_ttl": "3s" })).await;
    role.lock_out_after(3).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let secret_id = role.secret_id().await;
    write(file.path(), &secret_id);
    let kms = role.kms(SecretSource::File(file.path().to_owned())).await;
    assert_eq!(wraps(&kms).await, None);
    role.destroy(&secret_id).await;
    seconds(6).await;
    assert_ne!(wraps(&kms).await, None);
    write(file.path(), &role.secret_id().await);
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn health_names_the_refused_credential_and_its_next_attempt() {
    let role = AppRole::create(json!({})).await;
    let role_id = role.role_id().await;
    let server = TestServer::with(&[
        ("BYOK_VAULT_TOKEN", ""),
        ("BYOK_VAULT_APPROLE_MOUNT", &role.mount),
        ("BYOK_VAULT_APPROLE_ROLE_ID", &role_id),
        ("BYOK_VAULT_APPROLE_SECRET_ID", "wrong"),
    ])
    .await;
    let health = server.get("/byok/health").await.body;
    assert!(health["error"].is_string(), "{health}");
    assert!(health["next_login"].as_str().is_some_and(|at| at.ends_with('Z')), "{health}");
    let call =
        server.post("/byok/encrypt", json!({ "plaintext": "p", "context": { "record_id": "r" } })).await;
    assert_eq!((call.status.as_u16(), &call.body["code"]), (503, &json!("KMS_UNAVAILABLE")));
    let wait = call.headers["retry-after"].to_str().ok().and_then(|wait| wait.parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| (1_000..=1_200).contains(&wait)), "{wait:?}");
    let logs = server.logs.lock().expect("a lock").clone();
    assert!(logs.contains("Vault refuses our credential") && logs.contains("next_login"), "{logs}");
}

#[tokio::test]
async fn a_missing_role_and_a_missing_mount_are_invalid_credentials() {
    let role = AppRole::create(json!({})).await;
    let kms = role.kms(text("never")).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    let login = VaultLogin::AppRole {
        mount: "customers/nowhere".to_owned(),
        role_id: SecretText::new("r".to_owned()),
        secret_id: None,
    };
    let kms = VaultTransit::new(role.transit.settings(login)).expect("the settings are good");
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn policies_that_a_role_gets_later_come_with_a_new_login() {
    let role = AppRole::create(json!({ "token_policies": ["default"] })).await;
    let kms = role.kms(text(&role.secret_id().await)).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::AccessDenied));
    role.change(json!({ "token_policies": [role.transit.policy] })).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::AccessDenied), "no login for each refusal");
    seconds(11).await;
    assert_eq!(wraps(&kms).await, None);
}

/// A client that logs in to a stub.
fn at_stub(stub: &Stub) -> VaultTransit {
    let (role_id, secret_id) = (SecretText::new("r".to_owned()), Some(text("s")));
    let login = VaultLogin::AppRole { mount: "approle".to_owned(), role_id, secret_id };
    VaultTransit::new(settings(&stub.address, login)).expect("the settings are good")
}

fn logins(stub: &Stub) -> usize {
    stub.seen().iter().filter(|seen| seen.path == "/v1/auth/approle/login").count()
}

#[tokio::test]
async fn a_login_that_was_refused_is_not_tried_again_at_once() {
    let stub = Stub::start(|_, _| answer(400, r#"{"errors":["invalid role or secret ID"]}"#)).await;
    let kms = at_stub(&stub);
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    for _ in 0..10 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::LoginPaused));
    }
    assert_eq!(logins(&stub), 1);
}

#[tokio::test]
async fn an_uncounted_refusal_is_retried_after_a_second() {
    let stub = Stub::start(|_, _| answer(403, r#"{"errors":["permission denied"]}"#)).await;
    let kms = at_stub(&stub);
    for _ in 0..10 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    assert_eq!(logins(&stub), 1);
    seconds(1).await;
    wraps(&kms).await;
    wraps(&kms).await;
    assert_eq!(logins(&stub), 2);
}

#[tokio::test]
async fn calls_that_come_together_share_one_login() {
    let stub = Stub::start(|seen, _| match seen.path.as_str() {
        "/v1/auth/approle/login" => {
            answer(200, r#"{"auth":{"client_token":"hvs.x","lease_duration":60,"renewable":true}}"#)
        }
        _ => answer(200, r#"{"data":{"batch_results":[{"ciphertext":"vault:v1:c3R1Yg=="}]}}"#),
    })
    .await;
    let kms = at_stub(&stub);
    let outcomes = futures_util::future::join_all((0..20).map(|_| wraps(&kms))).await;
    assert_eq!(outcomes, [None; 20]);
    assert_eq!(logins(&stub), 1);
}

#[tokio::test]
async fn a_token_that_was_given_to_us_is_renewed_without_traffic() {
    let transit = Vault::shared().transit().await;
    let token = transit.vault.token(&[&transit.policy], json!({ "period": "4s" })).await;
    let kms = transit.kms_as(&token);
    seconds(8).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_changes() {
    let transit = Vault::shared().transit().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    write(file.path(), &transit.token().await);
    let login = VaultLogin::TokenFile(file.path().to_owned());
    let kms = VaultTransit::new(transit.settings(login)).expect("the settings are good");
    assert_eq!(wraps(&kms).await, None);
    write(file.path(), "hvs.never\n");
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    write(file.path(), &format!("{}\n", transit.token().await));
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_file_replaced_within_one_tick_is_read_after_refusal() {
    let transit = Vault::shared().transit().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let same_time = |token: &str| {
        write(file.path(), token);
        let times = std::fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        file.as_file().set_times(times).expect("the time is set");
    };
    let (first, second) = (transit.token().await, transit.token().await);
    assert_eq!(first.len(), second.len());
    same_time(&first);
    let login = VaultLogin::TokenFile(file.path().to_owned());
    let kms = VaultTransit::new(transit.settings(login)).expect("the settings are good");
    assert_eq!(wraps(&kms).await, None);
    same_time(&second);
    transit.vault.write("auth/token/revoke", json!({ "token": first })).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_deleted_token_file_leaves_the_token_that_was_read() {
    let transit = Vault::shared().transit().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let login = || VaultLogin::TokenFile(path.clone());
    let kms = VaultTransit::new(transit.settings(login())).expect("the settings are good");
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
    write(&path, &transit.token().await);
    assert_eq!(wraps(&kms).await, None);
    std::fs::remove_file(&path).expect("the file is removed");
    assert_eq!(wraps(&kms).await, None);
}

/// Vault asks the cluster whether a service account's token is genuine. Here the cluster is a stub,
/// and Vault is real.
#[tokio::test]
async fn a_service_account_logs_in() {
    let cluster = Stub::start(|seen, _| {
        let sent: serde_json::Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        let genuine = sent["spec"]["token"].as_str().is_some_and(|token| token.ends_with(".genuine"));
        let user = json!({ "username": "system:serviceaccount:apps:byok", "uid": "u-1", "groups": [] });
        let status = json!({ "authenticated": genuine, "user": user, "audiences": ["vault"] });
        let review =
            json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status });
        answer(201, review.to_string())
    })
    .await;
    let transit = Vault::shared().transit().await;
    let mount = format!("customers/k-{}", uuid::Uuid::now_v7().simple());
    transit.vault.write(&format!("sys/auth/{mount}"), json!({ "type": "kubernetes" })).await;
    let cluster_at = json!({ "kubernetes_host": cluster.address, "token_reviewer_jwt": "x", "disable_local_ca_jwt": true });
    transit.vault.write(&format!("auth/{mount}/config"), cluster_at).await;
    let role = json!({
        "bound_service_account_names": ["byok"],
        "bound_service_account_namespaces": ["apps"],
        "token_policies": [transit.policy],
        "audience": "vault",
    });
    transit.vault.write(&format!("auth/{mount}/role/byok"), role).await;

    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let account = json!({ "namespace": "apps", "serviceaccount": { "name": "byok", "uid": "u-1" } });
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:apps:byok",
        "aud": ["vault"],
        "iat": 1_700_000_000,
        "nbf": 1_700_000_000,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": account,
    });
    let jwt = format!("{}.{}", part(json!({ "alg": "RS256", "kid": "k" })), part(claims));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let kms = |signature: &str| {
        write(file.path(), &format!("{jwt}.{signature}"));
        let login = VaultLogin::Kubernetes {
            mount: mount.clone(),
            role: "byok".to_owned(),
            jwt_file: file.path().to_owned(),
        };
        VaultTransit::new(transit.settings(login)).expect("the settings are good")
    };
    assert_eq!(wraps(&kms("genuine")).await, None);
    assert_eq!(wraps(&kms("forged")).await, Some(KmsErrorClass::CredentialInvalid));
}
