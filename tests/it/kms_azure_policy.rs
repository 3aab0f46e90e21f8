//! The output of `byok policy azure-key-vault` is what byok needs, and nothing more: the stand-in
//! enforces its data actions at its scope.

use byok::config::AzureAlgorithm;
use byok::crypto::Dek;
use byok::kms::{AzureKeyVault, DekBinding, Kms, KmsDiagnosis, KmsErrorClass, Purpose};
use byok::model::{DekId, TenantUid};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::azure::Azure;
use crate::support::printed_policy;

/// The role definition in the output, and the scope of its first assignment below the vault.
fn role(printed: &str, actions: &str) -> (Value, String) {
    let definition =
        printed.split_once("--role-definition '").expect("a role").1.split_once("}'").expect("its end").0;
    // The shell replaces this with the subscription.
    let definition = format!("{definition}}}").replace(r#"'"$SUBSCRIPTION"'"#, "0");
    let role: Value = serde_json::from_str(&definition).expect("JSON");
    let line = printed.lines().find(|line| line.contains("--scope")).expect("a scope");
    let scope = line.split_once("/keys/").expect("a key's scope").1.trim_end_matches('"');
    (role[actions].clone(), format!("/keys/{scope}"))
}

/// The outcome of each operation: wrap, unwrap, rewrap, and the reading of the key.
async fn classes(kms: &AzureKeyVault) -> [Option<KmsErrorClass>; 3] {
    let binding = DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
    let made = kms.wrap(&[(binding, &Dek::generate())]).await.remove(0);
    let wrapped = match made {
        Ok(made) => made.value,
        Err(error) => return [Some(error.class); 3],
    };
    let to = wrapped.key_version.clone();
    [
        None,
        kms.unwrap(&[(binding, wrapped.clone())]).await.remove(0).err().map(|error| error.class),
        kms.rewrap(&[(binding, wrapped)], &to).await.remove(0).err().map(|error| error.class),
    ]
}

#[tokio::test]
async fn it_grants_wrap_and_unwrap_on_this_key_only() {
    let azure = Azure::start().await;
    azure.forbid().await;
    azure.control(Method::POST, "keys/other", json!({})).await;
    assert_eq!(classes(&azure.kms()).await, [Some(KmsErrorClass::AccessDenied); 3]);
    let printed =
        printed_policy("azure-key-vault", &[("BYOK_AZURE_KEY_ID", &format!("{}/keys/byok", azure.vault))]);
    let (actions, scope) = role(&printed, "DataActions");
    let granted = json!({ "oid": azure.oid, "scope": scope, "actions": actions });
    azure.control(Method::POST, "roles", granted).await;
    assert_eq!(classes(&azure.kms()).await, [None; 3]);
    let other = azure.kms_with(|settings| settings.key.name = "other".to_owned());
    assert_eq!(classes(&other).await, [Some(KmsErrorClass::AccessDenied); 3]);
}

#[tokio::test]
async fn it_grants_the_same_in_a_managed_hsm() {
    let azure = Azure::start().await;
    azure.hsm_control(Method::DELETE, &format!("roles/{}", azure.oid), json!({})).await;
    let key = format!("{}/keys/aes", azure.hsm);
    let printed =
        printed_policy("azure-key-vault", &[("BYOK_AZURE_KEY_ID", &key), ("BYOK_AZURE_ALGORITHM", "A256KW")]);
    let (actions, scope) = role(&printed, "dataActions");
    let granted = json!({ "oid": azure.oid, "scope": scope, "actions": actions });
    azure.hsm_control(Method::POST, "roles", granted).await;
    assert_eq!(classes(&azure.hsm_kms("aes", AzureAlgorithm::A256Kw)).await, [None; 3]);
    let other = azure.hsm_kms("byok", AzureAlgorithm::RsaOaep256);
    assert_eq!(classes(&other).await, [Some(KmsErrorClass::AccessDenied); 3]);
}

#[tokio::test]
async fn doctor_sees_what_the_optional_right_lets_it_see() {
    let azure = Azure::start().await;
    assert!(azure.kms().exposure().await.is_empty());
    let reader = json!({ "oid": azure.oid, "scope": "/keys/byok", "actions": ["Microsoft.KeyVault/vaults/keys/read"] });
    azure.control(Method::POST, "roles", reader).await;
    let exposed = azure.kms().exposure().await;
    assert!(exposed[0].remedy.contains("purge protection"));
    assert!(exposed[1].what.contains("less than 3072 bits") && exposed.len() == 2);
    azure.attributes(None, json!({ "recoveryLevel": "Recoverable", "exp": 4_102_444_800_u64 })).await;
    let exposed = azure.kms().exposure().await;
    assert!(exposed[1].what.contains("expires") && exposed.len() == 2);
}
