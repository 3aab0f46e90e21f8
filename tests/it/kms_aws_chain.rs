//! Where the SDK's own chain finds credentials (a profile, a container's endpoint), and TLS: both read the process's
//! environment, so the real binary is what runs here.

use std::path::Path;

use axum::http::HeaderValue;
use serde_json::json;

use crate::support::aws::{Cloud, Key};
use crate::support::pki::Authority;
use crate::support::relay::Relay;
use crate::support::stub::{Stub, answer};

/// What `byok doctor` says of the key.
async fn doctor(key: &Key, endpoint: &str, more: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("byok.db").display());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"))
        .arg("doctor")
        .env_clear()
        .env("HOME", folder.path())
        // No test looks for a machine's metadata.
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
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains(&key.user.secret), "{said}");
    said
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
    let said = doctor(&key, &key.cloud().address, &variables).await;
    assert!(said.contains("a DEK was wrapped and unwrapped"), "{said}");
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
    let said = doctor(&key, &key.cloud().address, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &endpoint)]).await;
    // The SDK insists on a session token; fakecloud does not look at it.
    assert!(said.contains("a DEK was wrapped and unwrapped"), "{said}");
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn no_credentials_anywhere_are_a_mistake_of_ours_and_no_refusal() {
    let key = Cloud::shared().key().await;
    let said = doctor(&key, &key.cloud().address, &[]).await;
    assert!(said.contains("key: our credential: Misconfigured"), "{said}");
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
    let said = with(&ours).await;
    assert!(said.contains("a DEK was wrapped and unwrapped"), "{said}");
    let said = with(&other).await;
    assert!(said.contains("key: making a DEK: Unreachable"), "{said}");
}

/// Over TLS on our side, plain HTTP to the server.
async fn relay(cloud: &str, authority: &Authority) -> Relay {
    Relay::ending_tls(cloud, &authority.server(), |_| "call".to_owned()).await
}
