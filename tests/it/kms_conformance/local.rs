//! A key file.

use async_trait::async_trait;
use byok::kms::{Kms, KmsErrorClass, LocalKey};

use super::Customer;

pub(super) struct OfLocal {
    key: LocalKey,
    folder: tempfile::TempDir,
}

#[async_trait]
impl Customer for OfLocal {
    fn kms(&self) -> &dyn Kms {
        &self.key
    }

    async fn rotate(&self) {
        self.key.rotate().expect("the file is written");
    }

    async fn disable(&self) -> KmsErrorClass {
        self.key.disable().expect("the file is written");
        KmsErrorClass::KeyDisabled
    }

    async fn enable(&self) {
        self.key.enable().expect("the file is written");
    }

    async fn delete(&self) -> KmsErrorClass {
        std::fs::remove_file(self.folder.path().join("key.json")).expect("the file is removed");
        KmsErrorClass::KeyNotFound
    }

    async fn exists(&self) -> bool {
        self.folder.path().join("key.json").exists()
    }

    fn binds(&self) -> bool {
        true
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items.div_ceil(1_000)
    }
}

pub(super) async fn customer() -> OfLocal {
    let folder = tempfile::tempdir().expect("a folder");
    let key = LocalKey::create(folder.path().join("key.json")).expect("a key");
    OfLocal { key, folder }
}

conformance!();
