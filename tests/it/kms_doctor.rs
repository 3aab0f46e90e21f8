//! The report of `byok doctor` about a key at AWS and at Azure, with each possible fault by itself.
//! Google's and Vault's are in `kms_gcp_doctor` and `cli`.

use reqwest::Method;
use serde_json::json;

use crate::support::aws::{Cloud, permissions};
use crate::support::azure::{Azure, SECRET};
use crate::support::doctor;

/// An address where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:9";

fn says(report: &str, words: &[&str]) {
    for word in words {
        assert!(report.contains(word), "`{word}` is not in: {report}");
    }
}

#[tokio::test]
async fn at_aws_it_names_the_right_role_secret_and_route() {
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    let role = key.role("customer-1").await;
    role.permit(&permissions(&key.arn, &["kms:ListKeyRotations"])).await;
    let report = async |changed: &[(&str, &str)]| {
        let mut variables = vec![
            ("BYOK_PROVIDER", "aws-kms"),
            ("BYOK_AWS_KEY_ARN", &key.arn),
            ("BYOK_AWS_ROLE_ARN", &role.arn),
            ("BYOK_AWS_EXTERNAL_ID", "customer-1"),
            ("BYOK_AWS_ENDPOINT", &cloud.address),
            ("BYOK_AWS_STS_ENDPOINT", &cloud.address),
            ("BYOK_KMS_TIMEOUT_MS", "2000"),
            ("AWS_ACCESS_KEY_ID", &key.user.id),
            ("AWS_SECRET_ACCESS_KEY", &key.user.secret),
        ];
        variables.retain(|(name, _)| !changed.iter().any(|(changed, _)| changed == name));
        variables.extend(changed);
        doctor(&variables).await
    };
    says(
        &report(&[]).await,
        &["ok    key: a DEK was wrapped and unwrapped", "ok    key: a DEK was re-wrapped"],
    );
    let one = report(&[("BYOK_AWS_EXTERNAL_ID", "another")]).await;
    says(&one, &["FAIL  key: our credential: AccessDenied", "external id"]);
    let one = report(&[("AWS_SECRET_ACCESS_KEY", "wrong")]).await;
    says(&one, &["FAIL  key: our credential: CredentialInvalid"]);
    let one = report(&[("BYOK_AWS_STS_ENDPOINT", NOWHERE)]).await;
    says(&one, &["FAIL  key: our credential: Unreachable", "the source of our credential"]);
    let one = report(&[("BYOK_AWS_ENDPOINT", NOWHERE)]).await;
    says(&one, &["FAIL  key: making a DEK: Unreachable", "check the KMS's address"]);
    let mut less = permissions(&key.arn, &[]);
    let actions = less["Statement"][0]["Action"].as_array_mut().expect("a list");
    actions.retain(|action| action != "kms:Decrypt");
    role.permit(&less).await;
    says(&report(&[]).await, &["FAIL  key: unwrapping a DEK: AccessDenied", "grant kms:Decrypt"]);
    role.permit(&permissions(&key.arn, &[])).await;
    key.as_customer("DisableKey").await;
    says(&report(&[]).await, &["FAIL  key: making a DEK: KeyDisabled", "enable the key"]);
}

#[tokio::test]
async fn at_azure_it_names_the_right_secret_tenant_and_key() {
    let azure = Azure::start().await;
    let (key, ca_file) = (format!("{}/keys/byok", azure.vault), azure.ca_file());
    let report = async |changed: &[(&str, &str)]| {
        let mut variables = vec![
            ("BYOK_PROVIDER", "azure-key-vault"),
            ("BYOK_AZURE_KEY_ID", key.as_str()),
            ("BYOK_AZURE_TENANT_ID", &azure.tenant),
            ("BYOK_AZURE_CLIENT_ID", &azure.client_id),
            ("BYOK_AZURE_CLIENT_SECRET", SECRET),
            ("BYOK_AZURE_AUTHORITY_HOST", &azure.authority),
            ("BYOK_AZURE_CA_FILE", &ca_file),
            ("BYOK_KMS_TIMEOUT_MS", "2000"),
        ];
        variables.retain(|(name, _)| !changed.iter().any(|(changed, _)| changed == name));
        variables.extend(changed);
        doctor(&variables).await
    };
    says(
        &report(&[]).await,
        &["ok    key: a DEK was wrapped and unwrapped", "ok    key: a DEK was re-wrapped"],
    );
    let one = report(&[("BYOK_AZURE_CLIENT_SECRET", "wrong")]).await;
    says(&one, &["FAIL  key: our credential: CredentialInvalid", "client id and secret"]);
    let one = report(&[("BYOK_AZURE_TENANT_ID", "11111111-2222-3333-4444-555555555555")]).await;
    says(&one, &["FAIL  key:", "Misconfigured"]);
    let one = report(&[("BYOK_AZURE_AUTHORITY_HOST", &NOWHERE.replace("http:", "https:"))]).await;
    says(&one, &["FAIL  key: our credential: Unreachable"]);
    let none = format!("{}/keys/none", azure.vault);
    azure.allow(&azure.oid, "/").await;
    let one = report(&[("BYOK_AZURE_KEY_ID", &none)]).await;
    says(&one, &["FAIL  key: making a DEK: KeyNotFound", "BYOK_AZURE_KEY_ID"]);
    azure.forbid().await;
    says(&report(&[]).await, &["FAIL  key: making a DEK: AccessDenied", "data action keys/wrap"]);
    let wrap = json!({ "oid": azure.oid, "scope": "/keys/byok", "actions": ["Microsoft.KeyVault/vaults/keys/wrap/action"] });
    azure.control(Method::POST, "roles", wrap).await;
    says(&report(&[]).await, &["FAIL  key: unwrapping a DEK: AccessDenied", "data action keys/unwrap"]);
    azure.attributes(None, json!({ "enabled": false })).await;
    says(&report(&[]).await, &["FAIL  key: making a DEK: KeyDisabled", "enable the key"]);
}
