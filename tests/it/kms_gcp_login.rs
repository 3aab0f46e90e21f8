//! How we fetch and renew an access token.

use std::path::Path;
use std::time::Duration;

use byok::crypto::Dek;
use byok::kms::{DekBinding, GcpKms, Kms, KmsDiagnosis, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::calls::{refused_within_the_bound, wraps};
use crate::support::gcp::{ACCOUNT, Google, KEY, ROLE};
use crate::support::log::Log;
use crate::support::stub::{Seen, Stub, answer};

const CREDENTIALS: &str = "BYOK_GCP_CREDENTIALS_JSON";
const SOURCE: &str = "source@p.iam.gserviceaccount.com";

async fn seconds(seconds: f32) {
    tokio::time::sleep(Duration::from_secs_f32(seconds)).await;
}

/// Waits until a condition holds, without tight timing.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        seconds(0.1).await;
    }
    panic!("{what}: not in time");
}

async fn with(google: &Google, credentials: &Value) -> GcpKms {
    google.kms(&[(CREDENTIALS, &credentials.to_string())]).await
}

fn impersonation(google: &Google, source: &Value) -> Value {
    let path = format!("v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
    json!({
        "type": "impersonated_service_account", "source_credentials": source,
        "service_account_impersonation_url": format!("{}/{path}", google.address),
    })
}

async fn may_act_as_us(google: &Google, account: &str) {
    let role = "roles/iam.serviceAccountTokenCreator";
    google.bind(&format!("projects/-/serviceAccounts/{ACCOUNT}"), &[(role, account)]).await;
}

async fn user(google: &Google) -> Value {
    let user = json!({
        "type": "authorized_user", "client_id": "c", "client_secret": "s+/&", "refresh_token": "1//r",
        "token_uri": format!("{}/token", google.address),
    });
    let mut registered = user.clone();
    registered["email"] = "ada@example.com".into();
    google.control("user", registered).await;
    let policy = json!({ "policy": { "bindings": [{ "role": ROLE, "members": ["user:ada@example.com"] }] } });
    google.as_customer(reqwest::Method::POST, &format!("{KEY}:setIamPolicy"), policy).await;
    user
}

#[tokio::test]
async fn one_token_serves_many_calls_at_once() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let deks: Vec<_> = (0..100).map(|_| Dek::generate()).collect();
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    let items: Vec<_> = deks.iter().map(|dek| (binding, dek)).collect();
    assert!(kms.wrap(&items).await.iter().all(Result::is_ok));
    assert_eq!((google.count("token").await, google.count("encrypt").await), (1, 100));
}

#[tokio::test]
async fn a_file_serves_like_the_json_and_is_reread_each_token() {
    let google = Google::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), google.account(ACCOUNT).await.to_string()).unwrap();
    let kms = google.kms(&[(CREDENTIALS, path(file.path()))]).await;
    assert_eq!(wraps(&kms).await, None);
    google.control("account", json!({ "email": ACCOUNT, "deleted": true })).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    // Another account's key replaces it. There is no pause, since the new key was not refused.
    google.bind(KEY, &[(ROLE, SOURCE)]).await;
    std::fs::write(file.path(), google.account(SOURCE).await.to_string()).unwrap();
    assert_eq!(wraps(&kms).await, None);
    std::fs::write(file.path(), "{}").unwrap();
    google.control("revoke", json!({})).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_persons_refresh_token_is_taken_and_warned_of() {
    let google = Google::start().await;
    let kms = with(&google, &user(&google).await).await;
    assert_eq!(wraps(&kms).await, None);
    assert!(kms.exposure().await[0].what.contains("person"));
    google.control("user", json!({ "email": "ada@example.com", "refresh_token": "1//r", "revoked": true, "client_id": "c", "client_secret": "s+/&" })).await;
    google.control("revoke", json!({})).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
}

#[tokio::test]
async fn a_revoked_refresh_token_alone_ends_access_within_the_bound() {
    let google = Google::start().await;
    let mut user = user(&google).await;
    let kms = with(&google, &user).await;
    assert_eq!(wraps(&kms).await, None);
    user["email"] = "ada@example.com".into();
    user["revoked"] = true.into();
    google.control("user", user).await;
    assert_eq!(refused_within_the_bound(&kms).await, KmsErrorClass::CredentialInvalid);
}

#[tokio::test]
async fn a_persons_quota_project_goes_with_every_call() {
    let stub = Stub::start(|seen, _| match seen.path.as_str() {
        "/token" => answer(200, r#"{"access_token":"ya29.x","expires_in":3600,"token_type":"Bearer"}"#),
        _ => answer(500, "{}"),
    })
    .await;
    let google = Google::start().await;
    let mut file = user(&google).await;
    file["quota_project_id"] = "p-quota".into();
    file["token_uri"] = format!("{}/token", stub.address).into();
    let kms = google.kms(&[(CREDENTIALS, &file.to_string()), ("BYOK_GCP_ENDPOINT", &stub.address)]).await;
    wraps(&kms).await;
    let called = stub.seen().into_iter().find(|seen| seen.path.contains(":encrypt")).expect("a call");
    assert_eq!(called.headers["x-goog-user-project"], "p-quota");
    assert_eq!(called.headers["authorization"], "Bearer ya29.x");
}

#[tokio::test]
async fn the_metadata_server_gives_a_token_where_there_is_no_file() {
    let google = Google::start().await;
    google.control("settings", json!({ "machine": ACCOUNT })).await;
    let host = google.address.trim_start_matches("http://").to_owned();
    let kms = google.kms(&[(CREDENTIALS, ""), ("GCE_METADATA_HOST", &host)]).await;
    assert_eq!(wraps(&kms).await, None);
    google.control("revoke", json!({})).await;
    assert_eq!(wraps(&kms).await, None, "a token that ended early is replaced");
    assert_eq!(google.count("metadata").await, 2);
}

#[tokio::test]
async fn a_machine_without_an_account_or_the_scope_is_misconfigured() {
    let google = Google::start().await;
    let host = google.address.trim_start_matches("http://").to_owned();
    let kms = google.kms(&[(CREDENTIALS, ""), ("GCE_METADATA_HOST", &host)]).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
    let scopes = json!(["https://www.googleapis.com/auth/iam"]);
    google.control("settings", json!({ "machine": ACCOUNT, "machine_scopes": scopes })).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
}

#[tokio::test]
async fn who_answers_at_the_metadata_servers_address_has_to_be_it() {
    let google = Google::start().await;
    for status in [200, 403] {
        let stub = Stub::start(move |_, _| answer(status, r#"{"access_token":"x","expires_in":3600}"#)).await;
        let host = stub.address.trim_start_matches("http://").to_owned();
        let kms = google.kms(&[(CREDENTIALS, ""), ("GCE_METADATA_HOST", &host)]).await;
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Internal), "{status}");
        assert_eq!(google.count("encrypt").await, 0);
    }
}

#[tokio::test]
async fn an_account_is_impersonated_by_file_and_by_variable() {
    let google = Google::start().await;
    let source = google.account(SOURCE).await;
    let by_file = with(&google, &impersonation(&google, &source)).await;
    let by_variable = google
        .kms(&[(CREDENTIALS, &source.to_string()), ("BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT", ACCOUNT)])
        .await;
    for kms in [&by_file, &by_variable] {
        assert_eq!(wraps(kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    may_act_as_us(&google, SOURCE).await;
    for kms in [&by_file, &by_variable] {
        until("the pause after the refusal is over", async || wraps(kms).await.is_none()).await;
    }
    assert!(google.count("generateAccessToken").await >= 4);
}

#[tokio::test]
async fn the_printed_policy_of_an_impersonated_account_names_who_may_impersonate() {
    let printed = crate::support::printed_policy(
        "gcp-kms",
        &[("BYOK_GCP_KEY_NAME", KEY), ("BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT", ACCOUNT)],
    );
    assert!(printed.contains(&format!("gcloud iam service-accounts add-iam-policy-binding '{ACCOUNT}'")));
    assert!(printed.contains("--role='roles/iam.serviceAccountTokenCreator'"));
}

#[tokio::test]
async fn a_revoked_token_is_replaced_and_the_call_retried_once() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    assert_eq!(wraps(&kms).await, None);
    google.control("revoke", json!({})).await;
    assert_eq!(wraps(&kms).await, None);
    assert_eq!((google.count("token").await, google.count("encrypt").await), (2, 3));
}

#[tokio::test]
async fn a_disabled_account_is_refused_with_its_token_and_comes_back() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    assert_eq!(wraps(&kms).await, None);
    google.control("account", json!({ "email": ACCOUNT, "disabled": true })).await;
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    google.control("account", json!({ "email": ACCOUNT, "disabled": false })).await;
    until("it is accepted again", async || wraps(&kms).await.is_none()).await;
}

#[tokio::test]
async fn a_refused_credential_is_not_hammered() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    google.control("account", json!({ "email": ACCOUNT, "disabled": true })).await;
    let began = Instant::now();
    for _ in 0..300 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    // The first request, one after a second, one after two more, …
    let most = 2 + u64::from((began.elapsed().as_secs() + 1).ilog2());
    assert!(google.count("token").await <= most, "{} in {:?}", google.count("token").await, began.elapsed());
}

#[tokio::test]
async fn new_tokens_that_are_refused_are_not_requested_without_end() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let refusal = json!({ "times": 1000, "refuse": { "status": "UNAUTHENTICATED", "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED" } });
    google.fault("encrypt", refusal).await;
    for _ in 0..100 {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
    }
    assert!(google.count("token").await < 12, "{}", google.count("token").await);
    google.control("calm", json!({})).await;
    until("the pause is over", async || wraps(&kms).await.is_none()).await;
}

#[tokio::test]
async fn the_pause_grows_where_it_is_cloud_kms_that_refuses() {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    google.fault("encrypt", json!({ "times": 100_000, "refuse": { "status": "UNAUTHENTICATED" } })).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(6_500) {
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::CredentialInvalid));
        seconds(0.02).await;
    }
    // Two requests at once, one after a second, and one after two more; the next ones are due after
    // seven.
    let asked = google.count("token").await;
    assert!(asked <= 6, "{asked}");
}

#[tokio::test]
async fn a_token_is_renewed_in_the_background_before_it_ends() {
    let google = Google::start().await;
    google.control("settings", json!({ "token_seconds": 4 })).await;
    let kms = google.kms(&[]).await;
    assert_eq!(wraps(&kms).await, None);
    until("it is renewed without a call", async || google.count("token").await >= 2).await;
    assert_eq!(google.count("encrypt").await, 1);
    assert_eq!(wraps(&kms).await, None);
    drop(kms);
    let asked = google.count("token").await;
    seconds(3.5).await;
    assert_eq!(google.count("token").await, asked, "and no more once the key is not in use");
}

#[tokio::test]
async fn a_live_token_outlasts_its_endpoint_and_then_is_an_outage() {
    let google = Google::start().await;
    google.control("settings", json!({ "token_seconds": 8 })).await;
    let kms = google.kms(&[]).await;
    assert_eq!(wraps(&kms).await, None);
    google.fault("token", json!({ "times": 10_000, "status": 503, "body": "canary" })).await;
    // The renewal is due after six seconds, the token ends after eight.
    until("a renewal failed", async || google.count("token").await >= 2).await;
    assert_eq!(wraps(&kms).await, None);
    until("it has ended", async || wraps(&kms).await == Some(KmsErrorClass::Unreachable)).await;
    google.control("calm", json!({})).await;
    until("it is well again", async || wraps(&kms).await.is_none()).await;
}

#[tokio::test]
async fn what_the_token_endpoint_answers_has_its_class() {
    let google = Google::start().await;
    for (status, body, class) in [
        (400, r#"{"error":"invalid_grant","error_description":"canary"}"#, KmsErrorClass::CredentialInvalid),
        (401, r#"{"error":"invalid_client"}"#, KmsErrorClass::CredentialInvalid),
        (403, r#"{"error":"access_denied"}"#, KmsErrorClass::CredentialInvalid),
        (400, r#"{"error":"invalid_scope"}"#, KmsErrorClass::Misconfigured),
        (403, "<html>", KmsErrorClass::Internal),
        (404, r#"{"error":"no such page"}"#, KmsErrorClass::Misconfigured),
        (408, r#"{"error":"timeout"}"#, KmsErrorClass::Internal),
        (307, "", KmsErrorClass::Misconfigured),
        (200, "<html>", KmsErrorClass::Internal),
        (200, r#"{"access_token":"a\nb","expires_in":3600}"#, KmsErrorClass::Internal),
        (500, "", KmsErrorClass::Internal),
        (503, "", KmsErrorClass::Unreachable),
    ] {
        let kms = google.kms(&[]).await;
        google.fault("token", json!({ "times": 3, "status": status, "body": body })).await;
        assert_eq!(wraps(&kms).await, Some(class), "{status} {body}");
        google.control("calm", json!({})).await;
        until("it is well again", async || wraps(&kms).await.is_none()).await;
    }
}

#[tokio::test]
async fn a_token_endpoint_that_hangs_does_not_outlast_the_deadline() {
    let google = Google::start().await;
    google.fault("token", json!({ "delay_ms": 8_000 })).await;
    let kms = google.kms(&[("BYOK_KMS_TIMEOUT_MS", "1000")]).await;
    let began = Instant::now();
    assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Timeout));
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(wraps(&kms).await, None);
}

#[tokio::test]
async fn who_waits_for_a_token_does_not_get_anothers_timeout() {
    let google = Google::start().await;
    google.fault("token", json!({ "delay_ms": 8_000 })).await;
    let kms = google.kms(&[("BYOK_KMS_TIMEOUT_MS", "1500")]).await;
    let later = async {
        seconds(1.0).await;
        wraps(&kms).await
    };
    assert_eq!(tokio::join!(wraps(&kms), later), (Some(KmsErrorClass::Timeout), None));
}

#[tokio::test]
async fn who_hangs_up_does_not_take_the_token_with_it() {
    let google = Google::start().await;
    google.fault("token", json!({ "times": 100, "delay_ms": 900 })).await;
    let kms = google.kms(&[]).await;
    for _ in 0..5 {
        let _ = tokio::time::timeout(Duration::from_millis(400), wraps(&kms)).await;
    }
    assert_eq!((wraps(&kms).await, google.count("token").await), (None, 1));
}

/// A token endpoint that returns this `expires_in`, whether it is true or not.
async fn telling(google: &Google, expires_in: u64) -> Stub {
    let token = google.control("token", json!({ "email": ACCOUNT })).await["access_token"].clone();
    let body = json!({ "access_token": token, "expires_in": expires_in }).to_string();
    Stub::start(move |_, _| answer(200, body.clone())).await
}

#[tokio::test]
async fn no_claimed_lifetime_makes_a_token_be_requested_each_call() {
    let google = Google::start().await;
    for expires_in in [0, 1, u64::MAX] {
        let endpoint = telling(&google, expires_in).await;
        let mut account = google.account(ACCOUNT).await;
        account["token_uri"] = format!("{}/token", endpoint.address).into();
        let kms = with(&google, &account).await;
        let began = Instant::now();
        let outcomes = futures_util::future::join_all((0..50).map(|_| wraps(&kms))).await;
        assert!(outcomes.iter().all(Option::is_none), "{expires_in}: {outcomes:?}");
        let (asked, most) = (endpoint.seen().len(), 2 + began.elapsed().as_secs() as usize);
        assert!(asked <= most, "{expires_in}: asked {asked} times");
    }
}

#[tokio::test]
async fn an_impersonated_tokens_lifetime_does_not_depend_on_our_clock() {
    let google = Google::start().await;
    let token = google.control("token", json!({ "email": ACCOUNT })).await["access_token"].clone();
    let impersonated = move |_: &Seen, _| {
        let body = json!({ "accessToken": token, "expireTime": "2020-01-01T01:00:00Z" }).to_string();
        let mut response = answer(200, body);
        response.headers_mut().insert("date", "Wed, 01 Jan 2020 00:00:00 GMT".parse().unwrap());
        response
    };
    let iam = Stub::start(impersonated).await;
    let variables =
        [("BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT", ACCOUNT), ("BYOK_GCP_IAM_ENDPOINT", &iam.address)];
    let kms = google.kms(&variables).await;
    for _ in 0..3 {
        assert_eq!(wraps(&kms).await, None);
        seconds(0.7).await;
    }
    assert_eq!(iam.seen().len(), 1);
}

#[tokio::test]
async fn neither_token_endpoint_nor_kms_makes_us_follow_redirects() {
    let elsewhere = Stub::start(|_, _| answer(200, r#"{"access_token":"x","expires_in":3600}"#)).await;
    let google = Google::start().await;
    let to = json!({ "times": 3, "status": 307, "headers": { "Location": format!("{}/token", elsewhere.address) } });
    for method in ["token", "encrypt"] {
        google.fault(method, to.clone()).await;
        assert_eq!(wraps(&google.kms(&[]).await).await, Some(KmsErrorClass::Misconfigured), "{method}");
        google.control("calm", json!({})).await;
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_file_that_sends_us_elsewhere_later_is_not_obeyed() {
    let elsewhere = Stub::start(|_, _| answer(200, r#"{"access_token":"x","expires_in":3600}"#)).await;
    let google = Google::start().await;
    let mut account = google.account(ACCOUNT).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), account.to_string()).unwrap();
    let kms = google.kms(&[(CREDENTIALS, path(file.path()))]).await;
    for address in [format!("{}/token", elsewhere.address), "https://evil.invalid/token".to_owned()] {
        account["token_uri"] = address.into();
        std::fs::write(file.path(), account.to_string()).unwrap();
        assert_eq!(wraps(&kms).await, Some(KmsErrorClass::Misconfigured));
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn googles_words_and_our_secrets_stay_out_of_errors_and_logs() {
    let log = Log::capture();
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    let dek = Dek::generate();
    let plain = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, dek.expose());
    let mut errors = String::new();
    let made = kms.wrap(&[(binding, &dek)]).await.remove(0).expect("it wraps").value;
    for (status, body) in [
        (
            403,
            json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": "canary", "details": [{ "reason": "canary" }] } }),
        ),
        (400, json!({ "error": { "code": 400, "status": "canary", "message": "canary" } })),
        (200, json!({ "plaintext": "canary", "name": "canary" })),
        (500, json!("canary")),
    ] {
        for method in ["encrypt", "decrypt"] {
            google.fault(method, json!({ "times": 3, "status": status, "body": body.to_string() })).await;
        }
        errors.push_str(&format!("{:?}", kms.wrap(&[(binding, &dek)]).await.remove(0).err()));
        errors.push_str(&format!("{:?}", kms.unwrap(&[(binding, made.clone())]).await.remove(0).err()));
        google.control("calm", json!({})).await;
    }
    google.control("revoke", json!({})).await;
    let refusal = json!({ "error": "invalid_grant", "error_description": "canary" }).to_string();
    google.fault("token", json!({ "status": 400, "body": refusal })).await;
    errors.push_str(&format!("{:?}", kms.wrap(&[(binding, &dek)]).await.remove(0).err()));
    let ours = log.ours();
    assert!(
        ours.contains("a request to the KMS failed") && ours.contains("no Google access token"),
        "{ours}"
    );
    for secret in ["canary", &plain, "ya29.", "BEGIN PRIVATE KEY", "assertion"] {
        assert!(!errors.contains(secret) && !ours.contains(secret), "{secret} leaked");
    }
}
