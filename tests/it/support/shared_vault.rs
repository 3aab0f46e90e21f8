//! A transit key of a test's own in the shared Vault, with the customer's hand on it.

use reqwest::Method;
use serde_json::{Value, json};

use super::needed;

/// A key, and a token that may use it.
#[derive(Clone)]
pub(crate) struct VaultKey {
    pub(crate) address: String,
    root: String,
    pub(crate) token: String,
    pub(crate) name: String,
}

impl VaultKey {
    /// A new key in the shared Vault.
    pub(crate) async fn create() -> Self {
        Self::create_at(needed("BYOK_TEST_VAULT_ADDR"), needed("BYOK_TEST_VAULT_TOKEN")).await
    }

    /// A new key, with a token that may only encrypt, decrypt and rewrap with it, and read its versions.
    pub(crate) async fn create_at(address: String, root: String) -> Self {
        let name = format!("k-{}", uuid::Uuid::now_v7().simple());
        let key = Self { address, token: root.clone(), root, name };
        key.admin(Method::POST, &format!("transit/keys/{}", key.name), json!({})).await;
        let rule = |path: String, rights: &str| {
            format!("path \"transit/{path}/{}\" {{ capabilities = [{rights}] }}\n", key.name)
        };
        let policy: String = ["encrypt", "decrypt", "rewrap", "datakey/plaintext"]
            .iter()
            .map(|path| rule((*path).to_owned(), "\"update\""))
            .chain([rule("keys".to_owned(), "\"read\"")])
            .collect();
        key.admin(Method::PUT, &format!("sys/policies/acl/{}", key.name), json!({ "policy": policy })).await;
        let token = key
            .admin(Method::POST, "auth/token/create", json!({ "policies": [key.name], "period": "1h" }))
            .await;
        let token = token["auth"]["client_token"].as_str().expect("a token").to_owned();
        Self { token, ..key }
    }

    /// Makes a new version.
    pub(crate) async fn rotate(&self) {
        self.admin(Method::POST, &format!("transit/keys/{}/rotate", self.name), json!({})).await;
    }

    /// The customer's switch: versions below this one are refused.
    pub(crate) async fn refuse_below(&self, version: u32) {
        let limits = json!({ "min_decryption_version": version, "min_encryption_version": version });
        self.admin(Method::POST, &format!("transit/keys/{}/config", self.name), limits).await;
    }

    /// Revokes the token.
    pub(crate) async fn revoke_token(&self) {
        self.admin(Method::POST, "auth/token/revoke", json!({ "token": self.token })).await;
    }

    /// Deletes the key for good.
    pub(crate) async fn delete(&self) {
        self.admin(
            Method::POST,
            &format!("transit/keys/{}/config", self.name),
            json!({ "deletion_allowed": true }),
        )
        .await;
        self.admin(Method::DELETE, &format!("transit/keys/{}", self.name), json!({})).await;
    }

    /// A request with the root token.
    pub(crate) async fn admin(&self, method: Method, path: &str, body: Value) -> Value {
        let request = super::http()
            .request(method, format!("{}/v1/{path}", self.address))
            .header("X-Vault-Token", &self.root)
            .json(&body);
        let response = request.send().await.expect("Vault answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        let text = response.text().await.expect("text");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}
