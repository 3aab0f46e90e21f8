//! Keys in the stand-in for Azure: an RSA key of a vault, and a symmetric one of a managed HSM.

use byok::config::AzureAlgorithm;
use byok::kms::AzureKeyVault;
use reqwest::Method;
use serde_json::{Value, json};

// The behaviours are imported too, since the two modules below run them.
use super::*;
use crate::support::azure::Azure;

pub(super) struct OfAzure {
    azure: Azure,
    kms: AzureKeyVault,
    /// The name of the managed HSM's key, if the customer uses that.
    hsm_key: Option<&'static str>,
}

impl OfAzure {
    async fn to_key(&self, method: Method, path: &str, body: Value) -> Value {
        match self.hsm_key {
            Some(key) => self.azure.hsm_control(method, &format!("keys/{key}{path}"), body).await,
            None => self.azure.control(method, &format!("keys/byok{path}"), body).await,
        }
    }

    /// Azure enables and disables each version separately.
    async fn enable_all(&self, enabled: bool) {
        let key = self.to_key(Method::GET, "", json!({})).await;
        for version in key["versions"].as_array().expect("a list") {
            let attributes = json!({ "version": version, "attributes": { "enabled": enabled } });
            self.to_key(Method::POST, "/attributes", attributes).await;
        }
    }
}

#[async_trait]
impl Customer for OfAzure {
    fn kms(&self) -> &dyn Kms {
        &self.kms
    }

    async fn rotate(&self) {
        let made = match self.hsm_key {
            Some(_) => json!({ "kty": "oct-HSM", "key_size": 256 , "key_ops": ["wrapKey", "unwrapKey"] }),
            None => json!({}),
        };
        self.to_key(Method::POST, "", made).await;
    }

    async fn disable(&self) -> KmsErrorClass {
        self.enable_all(false).await;
        KmsErrorClass::KeyDisabled
    }

    async fn enable(&self) {
        self.enable_all(true).await;
    }

    async fn delete(&self) -> KmsErrorClass {
        self.to_key(Method::DELETE, "", json!({})).await;
        self.to_key(Method::POST, "/purge", json!({})).await;
        KmsErrorClass::KeyNotFound
    }

    async fn exists(&self) -> bool {
        self.to_key(Method::GET, "", json!({})).await["exists"] == true
    }

    fn binds(&self) -> bool {
        false
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items * 2
    }
}

mod of_a_vault {
    use super::{Azure, OfAzure};

    pub(super) async fn customer() -> OfAzure {
        let azure = Azure::start().await;
        OfAzure { kms: azure.kms(), azure, hsm_key: None }
    }

    conformance!();
}

mod of_a_managed_hsm {
    use super::{Azure, AzureAlgorithm, OfAzure};

    pub(super) async fn customer() -> OfAzure {
        let azure = Azure::start().await;
        OfAzure { kms: azure.hsm_kms("aes", AzureAlgorithm::A256Kw), azure, hsm_key: Some("aes") }
    }

    conformance!();
}
