//! The report of `byok doctor` about a key at Google, with each possible fault by itself.

use serde_json::json;

use crate::support::doctor;
use crate::support::gcp::{ACCOUNT, Google, KEY, RING, ROLE};

/// The lines of the report about the key.
async fn report(google: &Google, variables: &[(&str, &str)]) -> String {
    let env = google.environment(variables).await;
    let names = [
        "BYOK_PROVIDER",
        "BYOK_GCP_KEY_NAME",
        "BYOK_GCP_CREDENTIALS_JSON",
        "BYOK_GCP_ENDPOINT",
        "BYOK_GCP_IAM_ENDPOINT",
        "BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT",
        "BYOK_KEY_VERSION_STRATEGY",
        "GCE_METADATA_HOST",
    ];
    let text =
        doctor(&names.iter().filter_map(|name| Some((*name, env.get(name)?))).collect::<Vec<_>>()).await;
    let lines = text.split("\n").skip_while(|line| !line.contains("  key: "));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_key_that_is_well() {
    let google = Google::start().await;
    let report = report(&google, &[]).await;
    assert!(report.contains("ok    key: a DEK was wrapped and unwrapped under byok/1"), "{report}");
    assert!(report.contains("ok    key: a DEK was re-wrapped") && !report.contains("warn"), "{report}");
}

#[tokio::test]
async fn a_right_that_is_missing_has_its_name() {
    let google = Google::start().await;
    google.bind(KEY, &[("roles/cloudkms.cryptoKeyEncrypter", ACCOUNT)]).await;
    let one = report(&google, &[]).await;
    assert!(
        one.contains("unwrapping a DEK: AccessDenied, HTTP 403") && one.contains("useToDecrypt"),
        "{one}"
    );
    google.bind(KEY, &[("roles/cloudkms.cryptoKeyDecrypter", ACCOUNT)]).await;
    let one = report(&google, &[]).await;
    assert!(one.contains("wrapping a DEK: AccessDenied, HTTP 403") && one.contains("useToEncrypt"), "{one}");
}

#[tokio::test]
async fn a_key_that_is_disabled_scheduled_for_deletion_or_missing() {
    let google = Google::start().await;
    google.bind(RING, &[(ROLE, ACCOUNT)]).await;
    google.all_states("DISABLED").await;
    assert!(report(&google, &[]).await.contains("making a DEK: KeyDisabled"));
    google.all_states("DESTROY_SCHEDULED").await;
    assert!(report(&google, &[]).await.contains("making a DEK: KeyPendingDeletion"));
    let none = format!("{RING}/cryptoKeys/none");
    let one = report(&google, &[("BYOK_GCP_KEY_NAME", &none)]).await;
    assert!(one.contains("making a DEK: KeyNotFound") && one.contains("BYOK_GCP_KEY_NAME"), "{one}");
    assert!(report(&google, &[("BYOK_KEY_VERSION_STRATEGY", "9")]).await.contains("KeyVersionUnavailable"));
}

#[tokio::test]
async fn a_credential_that_is_refused_or_may_not_act_as_another() {
    let google = Google::start().await;
    let acting = [("BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT", "other@p.iam.gserviceaccount.com")];
    let one = report(&google, &acting).await;
    assert!(one.contains("our credential: CredentialInvalid") && one.contains("impersonate"), "{one}");
    google.control("account", json!({ "email": ACCOUNT, "disabled": true })).await;
    let one = report(&google, &[]).await;
    assert!(one.contains("our credential: CredentialInvalid, HTTP 400"), "{one}");
}

#[tokio::test]
async fn a_machine_without_the_scope_or_an_account() {
    let google = Google::start().await;
    let host = google.address.trim_start_matches("http://").to_owned();
    let machine = [("BYOK_GCP_CREDENTIALS_JSON", ""), ("GCE_METADATA_HOST", host.as_str())];
    let one = report(&google, &machine).await;
    assert!(one.contains("our credential: Misconfigured, HTTP 404"), "{one}");
    let scopes = json!(["https://www.googleapis.com/auth/iam"]);
    google.control("settings", json!({ "machine": ACCOUNT, "machine_scopes": scopes })).await;
    let one = report(&google, &machine).await;
    assert!(one.contains("our credential: Misconfigured, HTTP 403"), "{one}");
}

#[tokio::test]
async fn an_identity_that_may_do_too_much() {
    let google = Google::start().await;
    google.bind(KEY, &[(ROLE, ACCOUNT), ("roles/cloudkms.admin", ACCOUNT)]).await;
    assert!(report(&google, &[]).await.contains("warn  key: our identity may change the key"));
}
