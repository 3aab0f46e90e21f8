//! A key in the stand-in for Google Cloud KMS.

use async_trait::async_trait;
use byok::kms::{GcpKms, Kms, KmsErrorClass};
use reqwest::Method;
use serde_json::json;

use super::Customer;
use crate::support::gcp::{ACCOUNT, Google, KEY, RING, ROLE};

pub(super) struct OfGoogle {
    google: Google,
    kms: GcpKms,
}

#[async_trait]
impl Customer for OfGoogle {
    fn kms(&self) -> &dyn Kms {
        &self.kms
    }

    async fn rotate(&self) {
        self.google.rotate().await;
    }

    /// A key has no state of its own; its versions do.
    async fn disable(&self) -> KmsErrorClass {
        self.google.all_states("DISABLED").await;
        KmsErrorClass::KeyDisabled
    }

    async fn enable(&self) {
        self.google.all_states("ENABLED").await;
    }

    /// The right on the key ring lets Google answer that the key does not exist; without it, the
    /// answer is the same as for a missing right.
    async fn delete(&self) -> KmsErrorClass {
        self.google.bind(RING, &[(ROLE, ACCOUNT)]).await;
        self.google.as_customer(Method::DELETE, KEY, json!({})).await;
        KmsErrorClass::KeyNotFound
    }

    async fn exists(&self) -> bool {
        let answer = reqwest::get(format!("{}/control/v1/{KEY}", self.google.address)).await;
        answer.expect("the stand-in answers").status() == 200
    }

    fn binds(&self) -> bool {
        true
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items * 2
    }
}

pub(super) async fn customer() -> OfGoogle {
    let google = Google::start().await;
    let kms = google.kms(&[]).await;
    OfGoogle { google, kms }
}

conformance!();
