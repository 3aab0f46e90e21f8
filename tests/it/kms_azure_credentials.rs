//! Our credentials at Azure: every kind, how long their tokens are used, what a refusal means, and
//! that a refused credential is not presented again and again.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use byok::config::{AzureCredential, SecretSource};
use byok::crypto::{Dek, SecretText};
use byok::kms::{AzureKeyVault, DekBinding, Kms, KmsErrorClass, Purpose, Stage};
use byok::model::{DekId, TenantUid};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::azure::{Azure, ROW_MAC_KEY, SECRET};
use crate::support::calls::{refused_within_the_bound, wraps};
use crate::support::server::TestServer;

async fn tokens(azure: &Azure) -> u64 {
    azure.count("authority", "token").await
}

fn by_secret(azure: &Azure, secret: SecretSource) -> AzureKeyVault {
    let client_id = azure.client_id.clone();
    azure.kms_with(|settings| settings.credential = AzureCredential::ClientSecret { client_id, secret })
}

/// Waits for a condition that takes some seconds on an idle machine.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..150 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{what} within 30 s");
}

#[tokio::test]
async fn one_token_serves_many_calls_at_once() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    let deks: Vec<_> = (0..60).map(|_| Dek::generate()).collect();
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    let items: Vec<_> = deks.iter().map(|dek| (binding, dek)).collect();
    let (first, second) = tokio::join!(kms.wrap(&items), kms.wrap(&items));
    assert!(first.iter().chain(&second).all(Result::is_ok));
    assert_eq!(tokens(&azure).await, 1);
}

#[tokio::test]
async fn a_refused_secret_is_the_credentials_fault_and_waits() {
    let azure = Azure::start().await;
    let wrong = SecretSource::Text(SecretText::new("wrong".to_owned()));
    let kms = by_secret(&azure, wrong);
    for _ in 0..20 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    assert!(tokens(&azure).await <= 3, "{}", tokens(&azure).await);
    let error = kms.current_version().await.expect_err("refused");
    assert_eq!((error.stage, error.http_status), (Stage::Credential, Some(401)));
}

#[tokio::test]
async fn what_entra_says_of_an_application_is_told_apart() {
    for (change, class) in [
        (json!({ "disabled": true }), KmsErrorClass::CredentialInvalid),
        (json!({ "blocked": true }), KmsErrorClass::AccessDenied),
        (json!({ "secrets": [{ "value": SECRET, "expires": 1 }] }), KmsErrorClass::CredentialInvalid),
        (json!({ "secrets": [] }), KmsErrorClass::CredentialInvalid),
    ] {
        let azure = Azure::start().await;
        azure.change_principal(change.clone()).await;
        assert_eq!(wraps(&azure.kms()).await, Some(class), "{change}");
    }
    let azure = Azure::start().await;
    azure.control(Method::DELETE, &format!("principals/{}", azure.client_id), json!({})).await;
    assert_eq!(wraps(&azure.kms()).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn every_answer_of_the_authority_has_its_class() {
    for (code, class) in [
        (7_000_215, KmsErrorClass::CredentialInvalid),
        (7_000_222, KmsErrorClass::CredentialInvalid),
        (700_016, KmsErrorClass::CredentialInvalid),
        (700_213, KmsErrorClass::CredentialInvalid),
        (53_003, KmsErrorClass::AccessDenied),
        (90_002, KmsErrorClass::Misconfigured),
        (500_011, KmsErrorClass::Misconfigured),
        (90_033, KmsErrorClass::Unreachable),
    ] {
        let azure = Azure::start().await;
        azure.fault(json!({ "aadsts": code, "times": 100 })).await;
        assert_eq!(wraps(&azure.kms()).await, Some(class), "{code}");
    }
}

#[tokio::test]
async fn who_waits_for_a_token_shares_what_came_of_it() {
    let azure = Azure::start().await;
    azure.fault(json!({ "target": "authority", "times": 1000, "status": 500, "delay": 300 })).await;
    let kms = azure.kms();
    let deks: Vec<_> = (0..16).map(|_| Dek::generate()).collect();
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    let items: Vec<_> = deks.iter().map(|dek| (binding, dek)).collect();
    let answers = kms.wrap(&items).await;
    assert!(answers.iter().all(|answer| {
        answer
            .as_ref()
            .is_err_and(|error| (error.class, error.stage) == (KmsErrorClass::Internal, Stage::Credential))
    }));
    // One request, and two retries that all waiting calls share; on a busy machine they may not
    // share them.
    assert!(tokens(&azure).await <= 6, "{}", tokens(&azure).await);
}

#[tokio::test]
async fn a_fetch_goes_on_when_the_call_that_began_it_ends() {
    let azure = Azure::start().await;
    azure.fault(json!({ "target": "authority", "delay": 500 })).await;
    let kms = azure.kms();
    let left = tokio::time::timeout(Duration::from_millis(250), wraps(&kms)).await;
    assert!(left.is_err() && tokens(&azure).await == 1, "it was left in the middle of the fetch");
    assert_eq!(wraps(&kms).await, None);
    assert_eq!(tokens(&azure).await, 1);
}

#[tokio::test]
async fn a_hanging_authority_is_told_apart_from_a_hanging_vault() {
    for (target, stage) in [("authority", Stage::Credential), ("vault", Stage::Key)] {
        let azure = Azure::start().await;
        azure.fault(json!({ "target": target, "times": 1000, "delay": 3_000 })).await;
        let kms = azure.kms_with(|settings| settings.timeout = Duration::from_secs(1));
        let error = kms.current_version().await.expect_err("no answer");
        assert_eq!((error.class, error.stage), (KmsErrorClass::Timeout, stage), "{target}");
    }
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_for_each_token() {
    let azure = Azure::start().await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "not yet").expect("it is written");
    let kms = by_secret(&azure, SecretSource::File(file.path().to_owned()));
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    std::fs::write(file.path(), format!("{SECRET}\n")).expect("it is written");
    // Another credential does not wait for the pause.
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_token_that_the_vault_refuses_is_replaced_once() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    azure.control(Method::DELETE, "tokens", json!({})).await;
    // The token is only seconds old, so a new one would be refused too.
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    assert_eq!(tokens(&azure).await, 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(wraps(&kms).await, None);
    assert_eq!(tokens(&azure).await, 2);
}

#[tokio::test]
async fn deleting_a_secret_alone_ends_its_token_within_the_bound() {
    let azure = Azure::start().await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    azure.change_principal(json!({ "secrets": [] })).await;
    assert_eq!(refused_within_the_bound(&kms).await, KmsErrorClass::CredentialInvalid);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_and_without_traffic() {
    let azure = Azure::start().await;
    azure.control(Method::POST, "tokens", json!({ "seconds": 6 })).await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    eventually("another token", async || tokens(&azure).await >= 3).await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_live_token_outlasts_an_outage_of_the_authority() {
    let azure = Azure::start().await;
    azure.control(Method::POST, "tokens", json!({ "seconds": 12 })).await;
    let kms = azure.kms();
    assert_eq!(wraps(&kms).await, None);
    azure.fault(json!({ "target": "authority", "times": 1000, "status": 503 })).await;
    eventually("a renewal that fails", async || {
        assert_eq!(wraps(&kms).await, None);
        tokens(&azure).await >= 2
    })
    .await;
    assert_eq!(wraps(&kms).await, None);
    eventually("the end of the token", async || wraps(&kms).await == Some(KmsErrorClass::Unreachable)).await;
    azure.mend().await;
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn a_managed_identity_is_the_machines_own_or_the_named_one() {
    let azure = Azure::start().await;
    let own =
        azure.control(Method::POST, "principals", json!({ "managed": true, "systemAssigned": true })).await;
    let named = azure.control(Method::POST, "principals", json!({ "managed": true })).await;
    let client_id = named["clientId"].as_str().expect("an id");
    for (principal, named) in [(&own, None), (&named, Some(client_id))] {
        let kms = azure.kms_with(|settings| {
            settings.credential = azure.managed(named);
            // The tenant is not needed here, and most machines do not set it.
            settings.tenant = None;
        });
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::AccessDenied));
        azure.allow(principal["oid"].as_str().expect("an id"), "/keys/byok").await;
        assert_eq!(wraps(&kms).await, None);
    }
    assert_eq!((azure.count("imds", "token").await, tokens(&azure).await), (2, 0));
}

/// Microsoft's client reads these two variables by itself, so this test runs the real binary.
#[tokio::test]
async fn an_app_takes_its_identity_from_where_its_environment_says() {
    let azure = Azure::start().await;
    let app = json!({ "managed": true, "systemAssigned": true });
    let app = azure.control(Method::POST, "principals", app).await;
    azure.allow(app["oid"].as_str().expect("an id"), "/keys/byok").await;
    let endpoint = format!("{}/msi/token", azure.imds);
    let (key, ca_file) = (format!("{}/keys/byok", azure.vault), azure.ca_file());
    let server = TestServer::with(&[
        ("BYOK_PROVIDER", "azure-key-vault"),
        ("BYOK_AZURE_KEY_ID", &key),
        ("BYOK_AZURE_CA_FILE", &ca_file),
        ("BYOK_ROW_MAC_KEY", ROW_MAC_KEY),
        // The authority that the vault's challenge names.
        ("BYOK_AZURE_AUTHORITY_HOST", &azure.authority),
        ("IDENTITY_ENDPOINT", &endpoint),
        ("IDENTITY_HEADER", "canary-identity-header"),
        ("BYOK_LOG", "trace"),
    ])
    .await;
    server.encrypt("hello", "r").await;
    assert_eq!((azure.count("imds", "token").await, tokens(&azure).await), (1, 0));
    assert!(!server.logged().contains("canary"));
}

#[tokio::test]
async fn an_identity_that_the_machine_has_not_is_the_credentials_fault() {
    let azure = Azure::start().await;
    let kms = azure.kms_with(|settings| settings.credential = azure.managed(Some(&azure.client_id)));
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    assert_eq!(azure.count("imds", "token").await, 1);
}

#[tokio::test]
async fn a_metadata_service_under_update_is_an_outage_and_left_alone() {
    let azure = Azure::start().await;
    azure.control(Method::POST, "principals", json!({ "managed": true, "systemAssigned": true })).await;
    azure.fault(json!({ "target": "imds", "times": 1000, "status": 410 })).await;
    let kms = azure.kms_with(|settings| settings.credential = azure.managed(None));
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Unreachable));
    // One request and two retries: Microsoft's client would make six more for each.
    assert_eq!(azure.count("imds", "token").await, 3);
}

/// An issuer that a federated identity credential trusts.
struct Issuer(ring::rsa::KeyPair);

impl Issuer {
    fn new() -> Self {
        let pem = include_str!("../../src/auth/jwt/testdata/rsa2048.private.pem");
        let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(lines).expect("a key");
        Self(ring::rsa::KeyPair::from_pkcs8(&der).expect("a key"))
    }

    fn public_pem() -> &'static str {
        include_str!("../../src/auth/jwt/testdata/rsa2048.public.pem")
    }

    fn write_token(&self, path: &Path, claims: &Value) {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(claims));
        let mut signature = vec![0; self.0.public().modulus_len()];
        let random = ring::rand::SystemRandom::new();
        self.0
            .sign(&ring::signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
            .expect("it signs");
        std::fs::write(path, format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
            .expect("it is written");
    }
}

#[tokio::test]
async fn a_workload_identity_is_whom_the_trusted_issuer_says() {
    let azure = Azure::start().await;
    let issuer = Issuer::new();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let subject = "system:serviceaccount:byok:byok";
    let trusted =
        json!({ "issuer": "https://oidc.example", "subject": subject, "key": Issuer::public_pem() });
    azure.change_principal(json!({ "federated": [trusted], "secrets": [] })).await;
    let good = json!({
        "iss": "https://oidc.example", "sub": subject, "aud": "api://AzureADTokenExchange", "exp": 4_000_000_000_u64,
    });
    let kms = || {
        let token_file = file.path().to_owned();
        let client_id = azure.client_id.clone();
        azure.kms_with(|settings| {
            settings.credential = AzureCredential::WorkloadIdentity { client_id, token_file };
        })
    };
    issuer.write_token(file.path(), &good);
    assert_eq!(wraps(&kms()).await, None);
    for (claim, value) in
        [("iss", json!("https://other")), ("sub", json!("other")), ("aud", json!("other")), ("exp", json!(1))]
    {
        let mut bad = good.clone();
        bad[claim] = value;
        issuer.write_token(file.path(), &bad);
        let refused = kms();
        assert_eq!(wraps(&refused).await, Some(KmsErrorClass::CredentialInvalid), "{claim}");
        // The kubelet writes a new token, which is read and presented without a pause.
        issuer.write_token(file.path(), &good);
        assert_eq!(wraps(&refused).await, None);
    }
}

#[tokio::test]
async fn a_missing_token_file_is_no_refusal_of_the_key() {
    let azure = Azure::start().await;
    let client_id = azure.client_id.clone();
    let kms = azure.kms_with(|settings| {
        settings.credential = AzureCredential::WorkloadIdentity { client_id, token_file: "/nowhere".into() };
    });
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
}
