//! The servers, clients and providers that the tests share: real servers, and stand-ins only for
//! clouds.

pub(crate) mod aws;
pub(crate) mod azure;
pub(crate) mod calls;
pub(crate) mod gcp;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod offered;
pub(crate) mod older_schema;
pub(crate) mod page;
pub(crate) mod pgbouncer;
pub(crate) mod pki;
pub(crate) mod postgres;
pub(crate) mod private;
pub(crate) mod provider;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod release_before;
pub(crate) mod rows;
pub(crate) mod sealed;
pub(crate) mod server;
pub(crate) mod several;
pub(crate) mod shared_vault;
pub(crate) mod stub;
pub(crate) mod switch;
pub(crate) mod tenancy;
pub(crate) mod tenant_kms;
pub(crate) mod tiles;
pub(crate) mod toxics;
pub(crate) mod vault;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// An HTTP client, with the TLS provider that the first call installs.
pub(crate) fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// A variable that `scripts/servers start` sets. A test without it fails: nothing is skipped.
pub(crate) fn needed(name: &str) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "the tests' own environment")]
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/test it`, or source what `scripts/servers start` writes")
    })
}

/// The output of `byok policy PROVIDER` with only these variables.
pub(crate) fn printed_policy(provider: &str, variables: &[(&str, &str)]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_byok"))
        .args(["policy", provider])
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("byok runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The standard output of `byok doctor` with only these variables and a new database.
pub(crate) async fn doctor(variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_byok"))
        .arg("doctor")
        .env_clear()
        .env("DATABASE_URL", format!("sqlite://{}", folder.path().join("byok.db").display()))
        .env("HASURA_GRAPHQL_JWT_SECRET", json!({ "type": "HS256", "key": "k".repeat(64) }).to_string())
        .envs(variables.iter().copied())
        .output()
        .await
        .expect("byok runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A JWT signed with HS256, made without the crate's own code.
pub(crate) fn jwt(secret: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes())))
}
