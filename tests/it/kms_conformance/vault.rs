//! A Transit key in the shared Vault.

use async_trait::async_trait;
use byok::kms::{Kms, KmsErrorClass, VaultTransit};

use super::Customer;
use crate::support::vault::{Transit, Vault};

pub(super) struct OfVault {
    transit: Transit,
    kms: VaultTransit,
}

#[async_trait]
impl Customer for OfVault {
    fn kms(&self) -> &dyn Kms {
        &self.kms
    }

    async fn rotate(&self) {
        self.transit.write("keys/byok/rotate", serde_json::json!({})).await;
    }

    async fn disable(&self) -> KmsErrorClass {
        self.transit.allow(false).await;
        KmsErrorClass::AccessDenied
    }

    async fn enable(&self) {
        self.transit.allow(true).await;
    }

    async fn delete(&self) -> KmsErrorClass {
        self.transit.write("keys/byok/config", serde_json::json!({ "deletion_allowed": true })).await;
        let path = format!("{}/keys/byok", self.transit.mount);
        self.transit.vault.answer(reqwest::Method::DELETE, &path, serde_json::json!({})).await;
        KmsErrorClass::KeyNotFound
    }

    async fn exists(&self) -> bool {
        let path = format!("{}/keys/byok", self.transit.mount);
        self.transit.vault.answer(reqwest::Method::GET, &path, serde_json::json!({})).await.0 == 200
    }

    fn binds(&self) -> bool {
        false
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items.div_ceil(256)
    }
}

/// A token with all capabilities, `create` included: only our own checks keep a key from being
/// created.
pub(super) async fn customer() -> OfVault {
    let transit = Vault::shared().transit().await;
    let policy =
        format!("path \"{}/*\" {{ capabilities = [\"create\", \"update\", \"read\"] }}", transit.mount);
    let path = format!("sys/policies/acl/{}", transit.policy);
    // A wider policy than usual, which `disable` removes entirely.
    transit.vault.write(&path, serde_json::json!({ "policy": policy })).await;
    let kms = transit.kms().await;
    OfVault { transit, kms }
}

conformance!();
