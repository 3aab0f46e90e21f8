//! Where the SDK's own chain finds credentials (a profile, a container's endpoint), and TLS. Both
//! depend on the process's environment, so these tests run the real binary.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use serde_json::json;

use crate::support::aws::{Cloud, Fault, Front, Key};
use crate::support::pki::Authority;
use crate::support::relay::Relay;
use crate::support::server::TestServer;
use crate::support::stub::{Stub, answer};

/// The report of `byok doctor` about the key.
async fn doctor(key: &Key, endpoint: &str, more: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("byok.db").display());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"))
        .arg("doctor")
        .env_clear()
        .env("HOME", folder.path())
        // No test asks for instance metadata.
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs([
            ("DATABASE_URL", database.as_str()),
            ("HASURA_GRAPHQL_JWT_SECRET", r#"{"type":"HS256","key":"0123456789abcdef0123456789abcdef"}"#),
            ("BYOK_PROVIDER", "aws-kms"),
            ("BYOK_AWS_KEY_ARN", &key.arn),
            ("BYOK_AWS_ENDPOINT", endpoint),
            ("BYOK_AWS_STS_ENDPOINT", &key.cloud().address),
        ])
        .envs(more.iter().copied())
        .output()
        .await
        .expect("byok runs");
    let report =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!report.contains(&key.user.secret), "{report}");
    report
}

fn path(path: &Path) -> &str {
    path.to_str().expect("an ASCII path")
}

#[tokio::test]
async fn a_profile_is_found() {
    let key = Cloud::shared().key().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let profile = format!(
        "[customers]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        key.user.id, key.user.secret
    );
    std::fs::write(file.path(), profile).expect("it is written");
    let variables = [("AWS_SHARED_CREDENTIALS_FILE", path(file.path())), ("AWS_PROFILE", "customers")];
    let report = doctor(&key, &key.cloud().address, &variables).await;
    assert!(report.contains("a DEK was wrapped and unwrapped"), "{report}");
}

/// The profile `customers`, which assumes the role with this external id at this STS.
fn profile_with_role(key: &Key, role: &str, external_id: &str, more: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let profile = format!(
        "[profile customers]\nrole_arn = {role}\nexternal_id = {external_id}\nsource_profile = us\n{more}\n\
         [profile us]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        key.user.id, key.user.secret
    );
    std::fs::write(file.path(), profile).expect("it is written");
    file
}

#[tokio::test]
async fn a_profiles_role_is_taken_and_refusals_are_told_from_outages() {
    let key = Cloud::shared().key().await;
    let role = key.role("byok-7f3a").await;
    let endpoint = format!("endpoint_url = {}\n", key.cloud().address);
    for (id, expected) in [("byok-7f3a", "a DEK was wrapped and unwrapped"), ("another", "AccessDenied")] {
        let file = profile_with_role(&key, &role.arn, id, &endpoint);
        let variables = [("AWS_CONFIG_FILE", path(file.path())), ("AWS_PROFILE", "customers")];
        let doctor = doctor(&key, &key.cloud().address, &variables).await;
        assert!(doctor.contains(expected), "{doctor}");
    }
}

#[tokio::test]
async fn no_sdk_variable_redirects_a_profiles_role_to_another_sts() {
    let key = Cloud::shared().key().await;
    let role = key.role("byok-7f3a").await;
    let file = profile_with_role(&key, &role.arn, "byok-7f3a", "");
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"] {
        let elsewhere = Stub::start(|_, _| answer(500, "")).await;
        let variables = [
            ("AWS_CONFIG_FILE", path(file.path())),
            ("AWS_PROFILE", "customers"),
            (variable, &elsewhere.address),
        ];
        let report = doctor(&key, &key.cloud().address, &variables).await;
        assert!(elsewhere.seen().is_empty(), "{variable}: {report}");
        assert!(report.contains(variable), "{report}");
    }
}

#[tokio::test]
async fn a_profile_that_is_changed_is_read_again() {
    let key = Cloud::shared().key().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    // A profile without a source: nothing says which credentials assume the role.
    std::fs::write(file.path(), format!("[default]\nrole_arn = {}\n", key.user.arn)).expect("it is written");
    let server =
        served(&key, &key.cloud().address, &[("AWS_SHARED_CREDENTIALS_FILE", path(file.path()))]).await;
    let body = json!({ "plaintext": "hello", "context": { "record_id": "1" } });
    assert_ne!(server.post("/byok/encrypt", body.clone()).await.status, 200);
    let profile = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        key.user.id, key.user.secret
    );
    std::fs::write(file.path(), profile).expect("it is written");
    let began = Instant::now();
    while server.post("/byok/encrypt", body.clone()).await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(180), "it is read again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn credentials_that_expire_without_the_metadata_service_are_an_outage() {
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    let away = Arc::new(AtomicBool::new(false));
    let body = json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": key.user.id, "SecretAccessKey": key.user.secret, "Token": "any", "Expiration": "2100-01-01T00:00:00Z",
    });
    let (body, is_away) = (body.to_string(), away.clone());
    let machine = Stub::start(move |seen, _| {
        if is_away.load(Ordering::Relaxed) {
            return answer(403, "");
        }
        let mut response = match seen.path.as_str() {
            "/latest/api/token" => answer(200, "a-token"),
            "/latest/meta-data/iam/security-credentials/" => answer(200, "byok"),
            _ => answer(200, body.clone()),
        };
        let life = HeaderValue::from_static("21600");
        response.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", life);
        response
    })
    .await;
    let server =
        served(&key, &front.address, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.address.as_str())])
            .await;
    server.encrypt("hello", "1").await;
    away.store(true, Ordering::Relaxed);
    front.fail("GenerateDataKey", 1000, Fault::Error(400, "ExpiredTokenException"));
    front.fail("Decrypt", 1000, Fault::Error(400, "ExpiredTokenException"));
    let record = json!({ "plaintext": "hello", "context": { "record_id": "2" } });
    let refused = server.post("/byok/encrypt", record).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
}

#[tokio::test]
async fn a_metadata_service_that_hangs_ends_with_the_deadline_unrefused() {
    let key = Cloud::shared().key().await;
    let hung = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", hung.local_addr().expect("an address"));
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", address.as_str()), ("BYOK_KMS_TIMEOUT_MS", "600")];
    let server = served(&key, &key.cloud().address, &variables).await;
    let began = Instant::now();
    let body = json!({ "plaintext": "hello", "context": { "record_id": "1" } });
    let failed = server.post("/byok/encrypt", body).await;
    assert_eq!((failed.status.as_u16(), &failed.body["code"]), (503, &json!("KMS_UNAVAILABLE")));
    assert!(began.elapsed() < Duration::from_secs(10));
}

async fn served(key: &Key, endpoint: &str, more: &[(&str, &str)]) -> TestServer {
    let variables =
        [("BYOK_PROVIDER", "aws-kms"), ("BYOK_AWS_KEY_ARN", &key.arn), ("BYOK_AWS_ENDPOINT", endpoint)];
    TestServer::with(&variables.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn a_containers_credentials_are_found() {
    let key = Cloud::shared().key().await;
    let body = json!({
        "AccessKeyId": key.user.id, "SecretAccessKey": key.user.secret, "Token": "any", "Expiration": "2100-01-01T00:00:00Z",
    });
    let stub = Stub::start(move |_, _| {
        let mut response = answer(200, body.to_string());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        response
    })
    .await;
    let endpoint = format!("{}/credentials", stub.address);
    let report =
        doctor(&key, &key.cloud().address, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &endpoint)]).await;
    // The SDK requires a session token; fakecloud ignores it.
    assert!(report.contains("a DEK was wrapped and unwrapped"), "{report}");
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn no_credentials_anywhere_are_an_error_of_ours_and_no_refusal() {
    let key = Cloud::shared().key().await;
    let report = doctor(&key, &key.cloud().address, &[]).await;
    assert!(report.contains("key: our credential: Misconfigured"), "{report}");
}

#[tokio::test]
async fn https_is_trusted_by_the_systems_certificates_and_no_others() {
    let key = Cloud::shared().key().await;
    let (ours, other) = (Authority::new(), Authority::new());
    let cloud = key.cloud().address.clone();
    let relay = relay(&cloud, &ours).await;
    let credentials =
        [("AWS_ACCESS_KEY_ID", key.user.id.as_str()), ("AWS_SECRET_ACCESS_KEY", &key.user.secret)];
    let with = async |authority: &Authority| {
        let file = authority.file();
        let variables: Vec<_> = credentials.into_iter().chain([("SSL_CERT_FILE", path(&file))]).collect();
        doctor(&key, &relay.url, &variables).await
    };
    let report = with(&ours).await;
    assert!(report.contains("a DEK was wrapped and unwrapped"), "{report}");
    let report = with(&other).await;
    assert!(report.contains("key: making a DEK: Unreachable"), "{report}");
}

/// A relay that speaks TLS to us, and plain HTTP to the server.
async fn relay(cloud: &str, authority: &Authority) -> Relay {
    Relay::ending_tls(cloud, &authority.server(), |_| "call".to_owned()).await
}
