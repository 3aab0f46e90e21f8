//! A Transit key for one test in the shared Vault, and the customer's control of it.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::needed;
use super::provider::{Switch, Turns};

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

    /// A new key, with a token that may only encrypt, decrypt and rewrap with it, and read its
    /// versions.
    pub(crate) async fn create_at(address: String, root: String) -> Self {
        let name = format!("k-{}", uuid::Uuid::now_v7().simple());
        let key = Self { address, token: root.clone(), root, name };
        key.admin(Method::POST, &format!("transit/keys/{}", key.name), json!({})).await;
        let token = format!("t-{}", uuid::Uuid::new_v4().simple());
        let key = Self { token, ..key };
        key.permit("update", "read").await;
        key.make_token().await;
        key
    }

    /// Sets the policy of our token: the capability to use the key, and the capability to read its
    /// versions.
    async fn permit(&self, uses: &str, reads: &str) {
        let rule = |path: &str, right: &str| {
            format!("path \"transit/{path}/{}\" {{ capabilities = [\"{right}\"] }}\n", self.name)
        };
        let policy: String = ["encrypt", "decrypt", "rewrap", "datakey/plaintext"]
            .iter()
            .map(|path| rule(path, uses))
            .chain([rule("keys", reads)])
            .collect();
        self.admin(Method::PUT, &format!("sys/policies/acl/{}", self.name), json!({ "policy": policy }))
            .await;
    }

    /// Creates our token. Root may choose a token's id, so the same token can be created again.
    async fn make_token(&self) {
        let token = json!({ "id": self.token, "policies": [self.name], "period": "1h" });
        self.admin(Method::POST, "auth/token/create", token).await;
    }

    /// Makes a new version of the key.
    pub(crate) async fn rotate(&self) {
        self.admin(Method::POST, &format!("transit/keys/{}/rotate", self.name), json!({})).await;
    }

    /// Refuses all versions below this one: the customer's switch.
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

    /// Makes the newest version the only one that unwraps.
    async fn refuse_older(&self) {
        let latest = self.latest().await;
        if latest < 2 {
            self.rotate().await;
        }
        self.refuse_below(latest.max(2)).await;
    }

    async fn latest(&self) -> u32 {
        let key = self.admin(Method::GET, &format!("transit/keys/{}", self.name), json!({})).await;
        key["data"]["latest_version"].as_u64().and_then(|latest| latest.try_into().ok()).expect("a version")
    }

    /// A plain backup of the key, with which Vault can restore it after a deletion. A key that once
    /// allows backups always does.
    async fn backup(&self) -> Value {
        let allowed = json!({ "exportable": true, "allow_plaintext_backup": true });
        self.admin(Method::POST, &format!("transit/keys/{}/config", self.name), allowed).await;
        let backup = self.admin(Method::GET, &format!("transit/backup/{}", self.name), json!({})).await;
        backup["data"]["backup"].clone()
    }

    /// All that Vault lets a customer turn off.
    pub(crate) fn switches(&self) -> Vec<(Switch, Turns)> {
        let customer = Arc::new(Customer { key: self.clone(), backup: Mutex::new(Value::Null) });
        let turns = |switch| match switch {
            Switch::Key => Turns::of(
                &customer,
                |customer| Box::pin(customer.key.permit("deny", "deny")),
                |customer| Box::pin(customer.key.permit("update", "read")),
            ),
            Switch::Policy => Turns::of(
                &customer,
                |Customer { key, .. }| {
                    Box::pin(async {
                        let policy = format!("sys/policies/acl/{}", key.name);
                        key.admin(Method::DELETE, &policy, json!({})).await;
                    })
                },
                |customer| Box::pin(customer.key.permit("update", "read")),
            ),
            Switch::Deletion => Turns::of(
                &customer,
                |Customer { key, backup }| {
                    Box::pin(async {
                        *backup.lock().await = key.backup().await;
                        key.delete().await;
                    })
                },
                |Customer { key, backup }| {
                    Box::pin(async {
                        let backup = json!({ "backup": *backup.lock().await });
                        key.admin(Method::POST, &format!("transit/restore/{}", key.name), backup).await;
                    })
                },
            ),
            Switch::Version => Turns::of(
                &customer,
                |customer| Box::pin(customer.key.refuse_older()),
                |customer| Box::pin(customer.key.refuse_below(1)),
            ),
            Switch::Credential => Turns::of(
                &customer,
                |customer| Box::pin(customer.key.revoke_token()),
                |customer| Box::pin(customer.key.make_token()),
            ),
        };
        Switch::ALL.map(|switch| (switch, turns(switch))).into()
    }

    /// Sends a request with the root token.
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

/// The customer who owns the key.
struct Customer {
    key: VaultKey,
    /// The backup of the key while it is deleted.
    backup: Mutex<Value>,
}
