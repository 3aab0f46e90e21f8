//! A key in fakecloud, behind a front that names its key material.

use async_trait::async_trait;
use byok::kms::{AwsKms, Kms, KmsErrorClass};
use serde_json::json;

use super::Customer;
use crate::support::aws::{Cloud, Front, Key, permissions};

pub(super) struct OfAws {
    key: Key,
    front: Front,
    kms: AwsKms,
}

#[async_trait]
impl Customer for OfAws {
    fn kms(&self) -> &dyn Kms {
        &self.kms
    }

    async fn rotate(&self) {
        self.front.rotate(&self.key).await;
    }

    async fn disable(&self) -> KmsErrorClass {
        self.key.as_customer("DisableKey").await;
        KmsErrorClass::KeyDisabled
    }

    async fn enable(&self) {
        self.key.as_customer("EnableKey").await;
    }

    /// AWS deletes a key after seven days at least, but refuses it from the first moment.
    async fn delete(&self) -> KmsErrorClass {
        self.key.schedule_deletion().await;
        KmsErrorClass::KeyPendingDeletion
    }

    async fn exists(&self) -> bool {
        let described = self.key.cloud().kms("DescribeKey", json!({ "KeyId": self.key.arn })).await;
        described["KeyMetadata"]["KeyState"] != "PendingDeletion"
    }

    fn binds(&self) -> bool {
        true
    }

    fn rewraps_to_older(&self) -> bool {
        false
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items
    }
}

/// A key whose user may list its versions.
pub(super) async fn customer() -> OfAws {
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    key.user.permit(&permissions(&key.arn, &["kms:ListKeyRotations"])).await;
    let front = Front::of(&cloud).await;
    let kms = key.kms_with(|settings| {
        settings.endpoint = Some(front.address.parse().expect("an address"));
        // Enough for a large batch on a busy machine.
        settings.timeout = std::time::Duration::from_secs(30);
    });
    OfAws { key, front, kms }
}

conformance!();
